"""The time that a search still needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moe_optuna.search._events import Event, Observer

if TYPE_CHECKING:
    from moe_optuna.space import SearchSpace

__all__ = ["Clock"]


@dataclass
class Clock:
    """Adds the time left to each event: what is planned, over the rate at which it has been worked off."""

    space: SearchSpace
    observer: Observer
    _since: float | None = None
    _there: dict[tuple[float, int], float] = field(default_factory=dict)  # FLOPs of trials found finished, by study
    _done: dict[tuple[float, int], float] = field(default_factory=dict)  # FLOPs of all finished trials
    _running: dict[tuple[float, int, int], float] = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        """Pass an event on, with the time left."""
        if event.phase is not None and event.kind != "note":
            study = (event.compute, event.phase)
            self._done[study] = event.finished * event.compute
            self._there.setdefault(study, self._done[study])
            if event.trial is not None and event.kind == "end":
                self._running.pop((*study, event.trial), None)
            elif event.trial is not None:
                self._since = self._since or time.monotonic()
                self._running[*study, event.trial] = event.fraction * event.compute
        self.observer(replace(event, remaining=self._remaining()))

    def _remaining(self) -> float | None:
        plan = self.space.search
        planned = sum(
            compute * (plan.trials(0, step) + plan.trials(1, step) + plan.trials(2, step) + plan.repeated(step))
            for step, compute in enumerate(self.space.budgets)
        )
        done = sum(self._done.values()) + sum(self._running.values())
        trained = done - sum(self._there.values())
        if self._since is None or trained <= 0:
            return None
        return max(0.0, planned - done) * (time.monotonic() - self._since) / trained
