"""One reduced coordinate: its range, its scale, and its image in the unit interval."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Axis"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A continuous axis from `low` to `high`, or a discrete one over `choices`.

    Attributes:
        name: The Optuna parameter.
        low, high: Bounds, both included.
        log: Whether the unit interval is linear in the logarithm, and
        pole: of the distance from which value; ``log(x - 6)`` for compute_density, since 6 is its limit.
        choices: The values of a discrete axis, ascending; its unit positions are their ranks.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    pole: float = 0.0
    choices: tuple[int, ...] = ()

    def to_unit(self, values: ArrayLike) -> NDArray[np.float64]:
        """Positions in [0, 1] of values, (n,) to (n,)."""
        values = np.asarray(values, dtype=float)
        if self.choices:
            return np.asarray(np.searchsorted(self.choices, values) / max(len(self.choices) - 1, 1))
        if not self.log:
            return np.asarray((values - self.low) / (self.high - self.low))
        span = np.log((self.high - self.pole) / (self.low - self.pole))
        return np.asarray(np.log((values - self.pole) / (self.low - self.pole)) / span)

    def from_unit(self, unit: ArrayLike) -> NDArray[np.float64]:
        """The inverse of `to_unit`; a discrete axis takes the nearest choice."""
        unit = np.asarray(unit, dtype=float)
        if self.choices:
            ranks = np.rint(unit * (len(self.choices) - 1)).astype(np.int64)
            return np.asarray(np.array(self.choices, dtype=float)[ranks])
        if not self.log:
            return np.asarray(self.low + unit * (self.high - self.low))
        ratio = (self.high - self.pole) / (self.low - self.pole)
        return np.asarray(np.clip(self.pole + (self.low - self.pole) * ratio**unit, self.low, self.high))

    def contains(self, value: float) -> bool:
        """Whether a value lies on the axis; what is no number, as a foreign trial may hold, does not."""
        if self.choices:
            return value in self.choices
        return isinstance(value, Real) and bool(self.low <= value <= self.high)

    @property
    def distribution(self) -> BaseDistribution:
        """The Optuna distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        return FloatDistribution(self.low, self.high, log=self.log)
