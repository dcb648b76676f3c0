"""`PowerLaw`: what a quantity of the optimum comes to as compute grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.laws._phase_law import DRAWS
from moe_optuna.laws.axis import Array
from moe_optuna.laws.band import interval

__all__ = ["PowerLaw", "points_of"]


@dataclass(frozen=True)
class PowerLaw:
    """``value = offset + a compute^b``, compute in FLOPs.

    Attributes:
        quantity: What it gives.
        a, b: Coefficients, with 95 % intervals.
        offset: 6 for compute density, which cannot fall below.
        points: (compute, value, low, high) at the budgets of the ladder.
    """

    quantity: str
    a: float
    b: float
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    offset: float
    points: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def through(cls, quantity: str, compute: Array, values: Array, points: Any, offset: float = 0.0) -> PowerLaw:
        """The line in the logarithms through values (s, b), the best in row 0 and draws in the others."""
        h = np.log(compute)
        design = np.column_stack([np.ones_like(h), h])
        lines = np.linalg.lstsq(design, np.log(values - offset).T, rcond=None)[0]  # (2, s)
        log_a, b = lines
        low, high = interval(log_a[1:])
        return cls(
            quantity, float(np.exp(log_a[0])), float(b[0]), (float(np.exp(low)), float(np.exp(high))), interval(b[1:]),
            offset, points,
        )  # fmt: skip

    def draws(self, compute: ArrayLike) -> Array:
        """Values at budgets (b,), the best in row 0, then draws, (s, b); for a law that is given and not fitted.

        Their log sd is that of a at the ladder's budgets and grows by as much with each decade outside of them (the
        rule of `moe_optuna.laws.published`), and by that of b with each factor of e.
        """
        compute = np.asarray(compute, float)
        measured = [point[0] for point in self.points]
        outside = np.abs(np.log(compute / np.clip(compute, min(measured), max(measured))))
        sd_a = float(np.log(self.a_interval[1] / self.a_interval[0])) / (2 * 1.96) * (1 + outside / np.log(10))
        sd = np.hypot(sd_a, (self.b_interval[1] - self.b_interval[0]) / (2 * 1.96) * outside)
        normal = np.vstack([np.zeros((1, 1)), np.random.default_rng(0).standard_normal((DRAWS, 1))])
        return np.asarray(self(compute) * np.exp(sd * normal))

    def __call__(self, compute: ArrayLike) -> Array:
        return np.asarray(self.offset + self.a * np.asarray(compute, float) ** self.b)


def points_of(compute: Array, values: Array) -> tuple[tuple[float, float, float, float], ...]:
    """(compute, value, low, high) from values (s, b) with the best in row 0."""
    bounds = [interval(column[1:]) if len(column) > 1 else (column[0], column[0]) for column in values.T]
    return tuple(
        (float(c), float(v), float(low), float(high))
        for c, v, (low, high) in zip(compute, values[0], bounds, strict=True)
    )
