"""Work for a controller: a study to be brought to a number of trials, how far it is, and one trial on a worker."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import TrialState

from moe_optuna.errors import InputError
from moe_optuna.search._events import Event

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from moe_optuna.architecture import MoEArchitecture
    from moe_optuna.space import Phase

__all__ = ["Run", "Tally", "Work", "enqueued", "trained"]


@dataclass(frozen=True)
class Work:
    """A study to be brought to a number of trials.

    Attributes:
        study: The study, with its sampler and pruner.
        phase: What its trials may propose.
        trials: Trials that it is to have, trained to the end or pruned; those that failed are replaced, as long as
            there are architectures (`exhausted`).
        recipe: The training recipe, as plain data.
        text: The hash of the text that it trains on.
        seed: The seed of trials that carry none of their own.
        checkpoints: The folder for what is being trained.
    """

    study: Study
    phase: Phase
    trials: int
    recipe: dict[str, Any]
    text: str
    seed: int
    checkpoints: Path

    def run(self, trial: Trial, architecture: MoEArchitecture) -> Run:
        """What a worker needs to know of a trial; one without a seed gets that of the search."""
        seed = trial.user_attrs.get("seed")
        if seed is None:
            trial.set_user_attr("seed", seed := self.seed)
        task = {
            "architecture": architecture.to_dict(),
            "compute": self.phase.compute,
            "tokens": self.phase.tokens(architecture),
            "recipe": self.recipe,
            "text": self.text,
            "seed": seed,
            "checkpoint": str(self.checkpoints / self.study.study_name.replace("/", "_") / f"{trial.number:05d}"),
        }
        frozen = self.frozen(trial)
        return Run(trial, task, architecture, set(frozen.intermediate_values), enqueued(frozen) is not None)

    def enqueued_before(self, trial: Trial) -> int | None:
        """The number of an earlier trial that was enqueued with the same parameters and seed, ``None`` without one."""
        params = enqueued(mine := self.frozen(trial))
        if params is None or (seed := mine.user_attrs.get("seed")) is None:
            return None
        for other in self.study.get_trials(deepcopy=False)[: mine.number]:
            if enqueued(other) == params and other.user_attrs.get("seed") == seed:
                return other.number
        return None

    def frozen(self, trial: Trial) -> FrozenTrial:
        """The trial as the storage has it."""
        return self.study._storage.get_trial(trial._trial_id)

    def event(self, kind: Any, tally: Tally) -> Event:
        """An event of this study as far as it is."""
        where = self.phase.compute, self.phase.number
        return Event(kind, *where, best=tally.best, finished=tally.trained, trials=max(self.trials, tally.trained))

    def exhausted(self) -> bool:
        """Whether every architecture has had its trial, in a study that is to have at most one of each beside those
        that are enqueued: a further one would train an architecture again with the same seed."""
        trials, size = self.study.get_trials(deepcopy=False), len(self.phase.lattice)
        if len(trials) < size or self.trials - sum(enqueued(trial) is not None for trial in trials) > size:
            return False
        return len({self._index(trial) for trial in trials} - {None}) == size

    def failures(self) -> dict[MoEArchitecture, str]:
        """Architectures that failed in this study, each with the reason."""
        found = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if (index := self._index(trial)) is not None:
                found[self.phase.lattice[index]] = str(trial.user_attrs.get("reason", ""))
        return found

    def _index(self, trial: FrozenTrial) -> int | None:
        """The architecture of a trial; ``None`` also where another controller is still asking for its parameters."""
        with contextlib.suppress(InputError):
            return self.phase.index(trial.params)
        return None


@dataclass
class Run:
    """A trial on a worker.

    Attributes:
        trial: The trial.
        task: What the worker gets.
        architecture: What is trained.
        steps: The points of the grid that are reported.
        repeat: Whether it was enqueued.
        begun: Whether the worker has taken it up: only then can the worker have died of it.
        verdict: How it ends, where that is decided before its result: ``lost`` is another controller's now.
        reason: Why, for a person.
    """

    trial: Trial
    task: dict[str, Any]
    architecture: MoEArchitecture
    steps: set[int]
    repeat: bool
    begun: bool = False
    verdict: Literal["", "pruned", "failed", "lost"] = ""
    reason: str = ""

    def prunes(self, seed: int) -> bool:
        """Whether the study's pruner stops it; a repeat measures the noise and runs on, also with the search's seed."""
        return self.task["seed"] == seed and not self.repeat and bool(self.trial.should_prune())


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a study is.

    Attributes:
        trained: Trials that count: trained to the end, or stopped on the way.
        failed: Trials that failed.
        running, waiting: Trials that somebody runs, or is to take up.
        best: Lowest loss of the complete ones.
    """

    trained: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    best: float | None = None

    @classmethod
    def of(cls, study: Study) -> Tally:
        """Count the trials of a study."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        states = [trial.state for trial in trials]
        losses = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
        return cls(
            trained=sum(map(trained, trials)),
            failed=states.count(TrialState.FAIL),
            running=states.count(TrialState.RUNNING),
            waiting=states.count(TrialState.WAITING),
            best=min(losses, default=None),
        )


def enqueued(trial: FrozenTrial) -> dict[str, Any] | None:
    """The parameters with which a trial was asked for, as repeats are; ``None`` of one that the sampler proposed."""
    return trial.system_attrs.get("fixed_params")


def trained(trial: FrozenTrial) -> bool:
    """Whether a trial counts: trained to the end, or stopped on the way; not one that was never trained."""
    return trial.state == TrialState.COMPLETE or (
        trial.state == TrialState.PRUNED and "infeasible" not in trial.user_attrs
    )
