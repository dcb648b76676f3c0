"""What the trials of a study say, in the form that a surrogate and a choice need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from moe_optuna.errors import InputError
from moe_optuna.pruners import COLLAPSED, finished_curves, forecast
from moe_optuna.samplers._compat import claimed, enqueued_params

__all__ = ["ABSURD", "History", "Run"]

ABSURD = 1e6  # nats per token: a penalty, not a loss

Locate = Callable[[Mapping[str, Any], Mapping[str, Any]], int | None]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished trial that tells something about an architecture.

    Attributes:
        index: Which architecture, as `locate` numbers them.
        loss: Final loss in nats per token, or what the curve of a pruned trial foretells; ``None`` where the trial
            failed or says nothing.
        vague: Relative sd of a forecast; 0 of a loss that was reached.
        failed: Whether the trial ended without a loss.
    """

    index: int
    loss: float | None
    vague: float = 0.0
    failed: bool = False


@dataclass(eq=False)
class History:
    """The trials of one study, read again and again while they grow; finished ones are looked at once.

    Attributes:
        locate: From parameters and user attributes to the number of an architecture, ``None`` where they mean none.
        runs: Finished trials in the order in which they ended.
        informative: Those with a loss or a forecast of it, but for the collapsed.
        ended: By an architecture's number, of all that some trial has ended on: whether all of its runs failed or
            collapsed.
        pending: Numbers of the architectures that run or wait in the queue now, by trial.
        waiting: How many trials wait in the queue.
        collapsed: How many trials ended with a loss so high that they count as failed (`COLLAPSED`).
        name: The study's, for messages.
    """

    locate: Locate
    name: str | None = None
    runs: list[Run] = field(default_factory=list)
    informative: list[Run] = field(default_factory=list)
    ended: dict[int, bool] = field(default_factory=dict)
    pending: dict[int, int] = field(default_factory=dict)
    waiting: int = 0
    collapsed: int = 0
    _seen: set[int] = field(default_factory=set)
    _until: tuple[str, int] = ("", 0)  # when the last of the runs ended
    _settled: int = 0  # how many of the first trials have all been seen
    _curves: list[tuple[Mapping[int, float], float]] = field(default_factory=list)

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in what has changed since the last call.

        Raises:
            InputError: Where an architecture's loss is not positive: laws are of its logarithm.
        """
        fresh = self._fresh(trials)
        if fresh and _ended(fresh[0]) < self._until:  # told late: by another's clock, or added with its old date
            self.runs, self._curves, self._seen, self._settled = [], [], set(), 0
            fresh = self._fresh(trials)
        for trial in fresh:
            index = self.locate(trial.params, trial.user_attrs)
            run = self._run(trial, index) if index is not None else None
            self._seen.add(trial.number)
            if run is not None:
                self.runs.append(run)
            self._curves += finished_curves([trial])
            self._until = _ended(trial)
        if fresh:
            self._judge()
        self.pending, self.waiting = {}, 0
        for trial in trials[self._settled :]:
            if trial.state.is_finished():
                continue
            self.waiting += trial.state == TrialState.WAITING
            index = self.locate(claimed(trial) or enqueued_params(trial), trial.user_attrs)
            if index is not None:
                self.pending[trial.number] = index

    @property
    def taken(self) -> set[int]:
        """Architectures that some trial has proposed, whatever came of it."""
        return self.taken_but(None)

    def taken_but(self, number: int | None) -> set[int]:
        """`taken`, without what the running trial of a number proposes."""
        return self.ended.keys() | {index for trial, index in self.pending.items() if trial != number}

    def _fresh(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those that have finished since the last call, in the order in which they ended."""
        while self._settled < len(trials) and trials[self._settled].number in self._seen:
            self._settled += 1
        left = trials[self._settled :]
        return sorted((t for t in left if t.state.is_finished() and t.number not in self._seen), key=_ended)

    def _judge(self) -> None:
        """Which runs say something and which architectures failed, whatever the order in which the runs ended."""
        bound = COLLAPSED * min((run.loss for run in self.runs if run.loss is not None), default=math.inf)
        self.informative, self.collapsed, self.ended = [], 0, {}
        for run in self.runs:
            collapsed = run.loss is not None and run.loss > bound
            self.collapsed += collapsed
            if run.loss is not None and not collapsed:
                self.informative.append(run)
            self.ended[run.index] = (run.failed or collapsed) and self.ended.get(run.index, True)

    def _run(self, trial: FrozenTrial, index: int) -> Run | None:
        if trial.state == TrialState.FAIL and trial.user_attrs.get("interrupted"):
            return None
        if trial.state == TrialState.COMPLETE and trial.value is not None and trial.value <= 0:
            raise InputError(
                f"loss {trial.value!r} of trial {trial.number}, expected a positive number, in nats per token",
                where=self.name,
            )
        if trial.state == TrialState.COMPLETE and trial.value is not None and _is_loss(trial.value):
            return Run(index, trial.value)
        if trial.state == TrialState.PRUNED:
            curve = trial.intermediate_values
            if not curve:
                return Run(index, None)
            if _is_loss(curve[max(curve)]):
                ahead = forecast(curve, self._curves)
                return Run(index, ahead.loss, vague=ahead.sd) if ahead else Run(index, None)
        return Run(index, None, failed=True)


def _ended(trial: FrozenTrial) -> tuple[str, int]:
    return str(trial.datetime_complete), trial.number


def _is_loss(value: float) -> bool:
    return 0 < value < ABSURD
