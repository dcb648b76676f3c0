"""The time that a search still needs."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moe_optuna.search._events import Event, Observer

if TYPE_CHECKING:
    from moe_optuna.space import SearchSpace

__all__ = ["Clock"]

_TREND = -0.2  # exponent of the seconds a FLOP over compute: larger models use a machine better
_TRENDS = (-0.6, 0.0)  # how far a measured one is believed


@dataclass
class Clock:
    """Adds the time left to each event: what is planned, at each budget's seconds a FLOP.

    A trial counts with its whole budget once it is finished, so that what the pruner saves is in the rate. Budgets not
    yet begun follow the trend of the last two.
    """

    space: SearchSpace
    observer: Observer
    now: Callable[[], float] = time.monotonic
    _there: dict[tuple[float, int], float] = field(default_factory=dict)  # FLOPs of trials found finished, by study
    _done: dict[tuple[float, int], float] = field(default_factory=dict)  # FLOPs of all finished trials
    _running: dict[tuple[float, int, int], float] = field(default_factory=dict)
    _spent: dict[float, float] = field(default_factory=lambda: defaultdict(float))  # seconds, by budget
    _told: tuple[float, float] | None = None  # the last event's time and budget

    def observe(self, event: Event) -> None:
        """Pass an event on, with the time left."""
        if event.phase is not None and event.kind != "note":
            study = (event.compute, event.phase)
            self._done[study] = event.finished * event.compute
            self._there.setdefault(study, self._done[study])
            if event.trial is not None:
                self._pass(event.compute)
                if event.kind == "end":
                    self._running.pop((*study, event.trial), None)
                else:
                    self._running[*study, event.trial] = event.fraction * event.compute
        self.observer(replace(event, remaining=self._remaining()))

    def _pass(self, compute: float) -> None:
        """Charge the time since the last event to the budget at hand."""
        now = self.now()
        if self._told is not None and self._told[1] == compute:
            self._spent[compute] += now - self._told[0]
        self._told = now, compute

    def _remaining(self) -> float | None:
        plan = self.space.search
        seconds = {c: spent / trained for c, spent in self._spent.items() if (trained := self._trained(c)) > 0}
        if not seconds:
            return None
        last = max(seconds)
        trend = _trend(seconds)
        left = 0.0
        for step, compute in enumerate(self.space.budgets):
            trials = sum(plan.trials(phase, step) for phase in (0, 1, 2)) + plan.repeated(step)
            rate = seconds.get(compute, seconds[last] * (compute / last) ** trend)
            left += max(0.0, trials * compute - self._worked(compute)) * rate
        return left

    def _worked(self, compute: float) -> float:
        """FLOPs of a budget that are behind us."""
        return sum(flops for (c, *_), flops in (*self._done.items(), *self._running.items()) if c == compute)

    def _trained(self, compute: float) -> float:
        """Those of them in this run of the search."""
        return self._worked(compute) - sum(flops for (c, _), flops in self._there.items() if c == compute)


def _trend(seconds: dict[float, float]) -> float:
    """Exponent of the seconds a FLOP over compute."""
    if len(seconds) < 2:
        return _TREND
    before, last = sorted(seconds)[-2:]
    low, high = _TRENDS
    return min(high, max(low, math.log(seconds[last] / seconds[before]) / math.log(last / before)))
