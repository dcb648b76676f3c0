"""The ladder: budget after budget, phase after phase, and at the end the architecture for a larger budget.

At each budget: phase 0 fits how much of it goes to FLOPs per token, phase 1 searches compute density and expansion
ratio at that M, phase 2 locks the triad of phase 1's recommendation and searches width and what else the space frees;
the recommended architecture is then trained again with other seeds, which measures the noise. Each study is
warm-started by the same phase of the smaller budgets. The largest budget is predicted before its first trial.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from moe_optuna.errors import InputError, did_you_mean, of_kind, whole_number
from moe_optuna.files import SPACE_FILE, write_whole
from moe_optuna.laws.threads import one_thread
from moe_optuna.search._checks import check_space, check_text, make_folder
from moe_optuna.search._clock import Clock
from moe_optuna.search._controller import Controller
from moe_optuna.search._events import Event, Observer
from moe_optuna.search._lease import Leases
from moe_optuna.search._local import Executor, LocalExecutor
from moe_optuna.search._mps import side_by_side
from moe_optuna.search._runs import Runs
from moe_optuna.search._slots import check_counts, local_slots
from moe_optuna.search._storage import JOURNAL, hold, open_storage
from moe_optuna.search._studies import Studies, refuse_others
from moe_optuna.search._work import Tally, Work, enqueued

if TYPE_CHECKING:
    from moe_optuna.laws import LadderLaws
    from moe_optuna.samplers import Recommendation, TriadSampler
    from moe_optuna.search.blueprint import Blueprint
    from moe_optuna.space import Phase, SearchSpace

__all__ = ["SearchResult", "search"]

EXECUTORS = ("local", "ray")
TRIAL = "moe_optuna.search._trial"
SEEDS = 2**31
"""Number of seeds of a search."""
GRACE = 5.0
"""Seconds that idle workers have to end."""


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        out: Its folder.
        blueprint: The architecture for the target budget.
        laws: What was fitted.
        studies: Names of the studies, in the order of the ladder.
        trials: Trials by state.
        held_out: The largest budget: prediction against outcome; ``None`` with a single budget, or where the smaller
            ones had too few runs to predict it.
    """

    out: Path
    blueprint: Blueprint
    laws: LadderLaws
    studies: tuple[str, ...]
    trials: Mapping[str, int]
    held_out: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """The object that `moe-optuna search --json` prints."""
        return {
            "out": str(self.out),
            "blueprint": self.blueprint.to_dict(),
            "studies": list(self.studies),
            "trials": dict(self.trials),
            "held_out": self.held_out,
        }


def search(
    space: SearchSpace | str | Path,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    workers: int | None = None,
    devices_per_trial: int = 1,
    executor: str = "local",
    ray_address: str | None = None,
    seed: int = 0,
    observer: Observer | None = None,
    trial: str = TRIAL,
) -> SearchResult:
    """Run, or resume, the whole ladder of a search space.

    Args:
        space: A search space, the name of one, or a path.
        out: The folder for journal, ``runs.csv``, ``laws.json``, ``blueprint.json``, ``space.toml`` (the space as it
            was read), checkpoints, artifacts and the workers' logs; ``runs/<name>`` unless given. The same folder and
            space resume.
        storage: An Optuna storage URL; a journal in `out` unless given.
        workers: Trials side by side; one a set of GPUs, or one a core, unless given.
        devices_per_trial: GPUs of one trial.
        executor: ``local``: processes of this host; ``ray``: placed by Ray on a cluster.
        ray_address: Of an existing cluster; with ``ray`` one is started unless given.
        seed: Of the samplers, and of the first training of each architecture.
        observer: Told of everything that happens (`moe_optuna.search.progress.display` draws it).
        trial: The module of the functions that workers run: ``run(task, link)`` and ``prepare(recipe)``.

    Raises:
        InputError: On input that cannot be used, before anything starts; or where the search cannot go on.
        KeyboardInterrupt: Where it was stopped by SIGINT or SIGTERM; the same call resumes.
    """
    from moe_optuna.space import SearchSpace
    from moe_optuna.training import Recipe, find_text

    space = SearchSpace.load(space) if isinstance(space, (str, Path)) else space
    of_kind(space, SearchSpace, "a search space, its name or a path", where="space")
    recipe = Recipe.from_table(space.training, where=f"{space.name}: [training]")
    if executor not in EXECUTORS:
        raise InputError(f"{executor!r}, expected local or ray{did_you_mean(executor, EXECUTORS)}", where="--executor")
    if executor == "local" and ray_address is not None:
        raise InputError("needs --executor ray", where="--ray-address")
    seed = whole_number(seed, "--seed", least=0)
    if seed >= SEEDS:
        raise InputError(f"{seed}, expected 0 to {SEEDS - 1}", where="--seed")
    if ray_address is not None:
        from moe_optuna.search._ray import reach

        reach(ray_address)
    check_counts(workers, devices_per_trial)
    slots = local_slots(workers, devices_per_trial) if executor == "local" else ()
    folder = Path(out) if out is not None else Path("runs") / space.name
    check_space(space)
    if executor == "local":
        check_text(space, recipe, {"vocab_size": find_text(recipe)})
    with contextlib.ExitStack() as stack:
        stack.enter_context(_files_in(folder))
        if storage is None:
            make_folder(folder)
            stack.enter_context(hold(folder))
        known = storage is not None or (folder / JOURNAL).exists()
        store = open_storage(storage, folder, workers=len(slots) or workers or 2) if known else None
        refuse_others(store, space, folder, shared=storage is not None)
        make_folder(folder)
        stack.enter_context(_quiet_optuna())
        # The cores are the workers', and threads that wait for a busy core cost it ten times and more (measured: 380 s
        # became 24 s on two loaded cores).
        stack.enter_context(one_thread)
        clock = Clock(space, observer or (lambda event: None))
        running: Executor
        if executor == "local":
            # Before the workers, so that it ends after them.
            slots = stack.enter_context(
                side_by_side(slots, lambda message: clock.observe(Event("note", message=message)))
            )
            running = LocalExecutor(slots, module=trial, logs=folder / "logs")
        else:
            from moe_optuna.search._ray import RayExecutor

            running = RayExecutor(
                workers, devices_per_trial=devices_per_trial, address=ray_address, module=trial, logs=folder / "logs"
            )
        runs = Runs(folder / "runs.csv")
        controller = Controller(
            running,
            Leases(exclusive=storage is None),
            observer=clock.observe,
            finished=lambda work: runs.write(),
        )
        stack.callback(lambda: running.close(0.0 if controller.hurried else GRACE))
        stack.enter_context(controller.signals())
        clock.observe(Event("prepare"))
        text = controller.prepare(recipe.to_dict())
        check_text(space, recipe, text)
        store = store or open_storage(None, folder, workers=1)  # a new journal, now that nothing speaks against it
        studies = Studies(space, store, seed, folder, recipe, text)
        stack.enter_context(studies.kept())
        if not (folder / SPACE_FILE).exists():
            write_whole(folder / SPACE_FILE, space.to_toml())
        return _Ladder(space, studies, controller, recipe.to_dict(), folder, runs, clock).climb()


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextlib.contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """What goes wrong with a file of the search, a full disk above all, as one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.strerror or error}; nothing that was finished is lost, the same command resumes",
            where=error.filename or folder,
        ) from error


@dataclass
class _Ladder:
    """One search on its way up."""

    space: SearchSpace
    studies: Studies
    controller: Controller
    recipe: dict[str, Any]
    out: Path
    runs: Runs
    clock: Clock
    allocations: list[tuple[float, float]] = field(default_factory=list)

    def climb(self) -> SearchResult:
        """All budgets, then the blueprint."""
        outcome, prediction, before = None, None, None
        for step, compute in enumerate(self.space.budgets):
            if step and compute == self.space.budgets[-1]:
                prediction = self._prediction(compute)
            outcome = before = self._budget(step, compute, before, prediction)
        assert outcome is not None  # a space has a budget
        from moe_optuna.search._plan import plan

        laws = self._fit()
        held_out = _compare(laws, prediction, outcome)
        blueprint = plan(self.space.target, laws=laws, space=self.space)
        self.runs.write()
        _write_json(self.out / "laws.json", laws.to_dict(), held_out)
        _write_json(self.out / "blueprint.json", blueprint.to_dict(), held_out)
        self.clock.observe(Event("done"))
        return SearchResult(self.out, blueprint, laws, self.studies.names, self.runs.counts, held_out)

    def _budget(
        self, step: int, compute: float, before: Recommendation | None, prediction: dict[str, Any] | None
    ) -> Recommendation:
        """The three phases of a budget, then repeats of the architecture that they recommend; that architecture."""
        attributes = {} if prediction is None else {"prediction": json.dumps(prediction)}
        plan, space = self.space.search, self.space
        flops_per_token = None
        if plan.trials(0, step):
            zero = self._phase(space.phase_zero(compute, **_coordinates(before)), step, attributes)
            flops_per_token = self._allocate(compute, zero.recommend().architecture.non_embedding.flops_per_token)
        flops_per_token = self.studies.recorded(1, compute, "flops_per_token") or flops_per_token
        found = one = self._phase(
            space.phase_one(compute, flops_per_token=flops_per_token),
            step,
            attributes | {"flops_per_token": flops_per_token},
        )
        if plan.trials(2, step):
            triad = self.studies.locked(compute) or one.work.phase.triad_of(one.recommend().architecture)
            found = self._phase(
                space.phase_two(triad, compute=compute), step, attributes | {"triad": json.dumps(triad.to_dict())}
            )
        if repeats := plan.repeated(step):
            self._repeat(found, repeats)
        return found.recommend()

    def _phase(self, phase: Phase, step: int, attributes: dict[str, Any]) -> _Searched:
        """One study, brought to its trials; at most one for each architecture that the phase may propose."""
        study, sampler = self.studies.open(phase, attributes)
        self.runs.add(study, phase)
        trials = min(self.space.search.trials(phase.number, step), len(phase.lattice))
        text, seed = self.studies.text["content"], self.studies.seed
        checkpoints = self.out.absolute() / "checkpoints"  # a worker on another node has another working directory
        work = Work(study, phase, trials, self.recipe, text, seed, checkpoints)
        self.clock.observe(work.event("study", Tally.of(work.study)))
        self.controller.run(work)
        return _Searched(work, sampler)

    def _repeat(self, found: _Searched, repeats: int) -> None:
        """Train the recommended architecture with the seeds that follow the search's, and with the search's own where
        no trial has run it to its end."""
        study, phase, seed = found.work.study, found.work.phase, self.studies.seed
        trials = study.get_trials(deepcopy=False)
        if (chosen := study.user_attrs.get("repeats")) is None:  # else by an earlier run: what it chose stands
            params = phase.params(phase.lattice.index(found.recommend().architecture))
            trained = any(trial.params == params and trial.state == TrialState.COMPLETE for trial in trials)
            study.set_user_attr("repeats", chosen := {"params": params, "first": int(trained)})
        params, first = chosen["params"], chosen["first"]
        queued = {trial.user_attrs.get("seed") for trial in trials if enqueued(trial) == params}
        for number in range(first, repeats + 1):
            if seed + number not in queued:
                study.enqueue_trial(params, user_attrs={"seed": seed + number})
        work = replace(found.work, trials=found.work.trials + repeats + 1 - first)
        message = "the last ones repeat the recommended architecture with other seeds"
        self.clock.observe(replace(work.event("study", Tally.of(work.study)), message=message))
        self.controller.run(work)

    def _allocate(self, compute: float, flops_per_token: float) -> float:
        """M at this budget, from phase 0 at this and the smaller ones: a power law in C once three are there."""
        self.allocations.append((compute, flops_per_token))
        if len(self.allocations) < 3:
            return flops_per_token
        log_compute, log_m = np.log(np.array(self.allocations)).T
        slope, intercept = np.polyfit(log_compute, log_m, 1)
        return math.exp(intercept + slope * math.log(compute))

    def _prediction(self, compute: float) -> dict[str, Any] | None:
        """What the smaller budgets say about this one, made before its first trial and kept."""
        for phase in (0, 1):
            if (text := self.studies.recorded(phase, compute, "prediction")) is not None:
                found: dict[str, Any] = json.loads(text)
                return found
        from moe_optuna.search._plan import plan

        try:
            return plan(compute, laws=self._fit(), space=self.space).to_dict()
        except InputError as error:  # too few runs for a law: the search goes on without
            self.clock.observe(Event("note", compute, message=f"no prediction: {error}"))
            return None

    def _fit(self) -> LadderLaws:
        from moe_optuna.laws import fit_ladder

        return fit_ladder(self.runs.columns(), space=self.space.name, seed=self.studies.seed)


@dataclass(frozen=True)
class _Searched:
    """A study that has its trials."""

    work: Work
    sampler: TriadSampler

    def recommend(self) -> Recommendation:
        """The surrogate's optimum."""
        return self.sampler.recommend(self.work.study)


def _coordinates(found: Recommendation | None) -> dict[str, float]:
    """Where phase 0 holds the other coordinates: at the smaller budget's optimum."""
    if found is None:
        return {}
    return {name: getattr(found.architecture, name) for name in ("compute_density", "expansion_ratio")}


def _compare(laws: LadderLaws, recorded: dict[str, Any] | None, outcome: Recommendation) -> dict[str, Any] | None:
    """The largest budget: what the smaller ones say about it, what was recorded before its first trial, what was
    found."""
    if recorded is None:
        return None
    architecture = outcome.architecture
    found = {
        "architecture": architecture.to_dict(),
        "loss": outcome.loss,
        "interval": list(outcome.interval),
        "flops_per_token": architecture.non_embedding.flops_per_token,
        "compute_density": architecture.compute_density,
        "expansion_ratio": architecture.expansion_ratio,
    }
    return {**(laws.held_out or {}), "compute": recorded["compute"], "recorded": recorded, "outcome": found}


def _write_json(path: Path, payload: dict[str, Any], held_out: dict[str, Any] | None) -> None:
    """Write laws or blueprint, with the comparison of this search where there is one."""
    whole = payload if held_out is None else payload | {"held_out": held_out}
    write_whole(path, json.dumps(whole, indent=1) + "\n")
