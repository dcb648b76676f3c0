"""What a law misses: residuals that follow a curve along one of its inputs are no noise, and grow outside the runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "misfit", "missed"]

Array = NDArray[np.float64]
Curve = tuple[float, float, float]
"""Coefficients of a parabola in the natural log of an input, the highest power first."""

LEVEL = 1e-3
"""Chance at which noise alone would bend as much."""
SHARE = 0.2
"""Share of the residuals' variance below which a curve is passed over, however certain."""
_VALUES = 4  # an input with fewer values bends anyhow


def misfit(table: Mapping[str, Array], inputs: tuple[str, ...], residuals: Array) -> dict[str, Curve]:
    """Curves by input, the most telling first, each on what the earlier ones leave.

    Args:
        table: Columns ``(n,)`` of the inputs, positive where a curve is looked for.
        inputs: Their names.
        residuals: Log residuals ``(n,)``.
    """
    left, found = residuals, dict[str, Curve]()
    while True:
        best: tuple[float, str, Array] | None = None
        for name in inputs:
            if name in found or table[name].min() <= 0 or len(np.unique(table[name])) < _VALUES:
                continue
            chance, share, curve = _bend(np.log(table[name]), left)
            if chance < LEVEL and share > SHARE and (best is None or share > best[0]):
                best = share, name, curve
        if best is None:
            return found
        _, name, curve = best
        found[name] = (float(curve[0]), float(curve[1]), float(curve[2]))
        left = left - np.polyval(curve, np.log(table[name]))


def missed(curves: Mapping[str, Curve], columns: Mapping[str, Array]) -> Array | float:
    """Size of what the law misses at the columns, in log units: the root of the sum of squares of the curves."""
    squares = [np.polyval(curve, np.log(columns[name])) ** 2 for name, curve in curves.items()]
    return np.asarray(np.sqrt(np.sum(squares, axis=0))) if squares else 0.0


def _bend(x: Array, y: Array) -> tuple[float, float, Array]:
    """Chance that noise bends as much as a parabola through it (F-test), the share it explains, and the parabola."""
    from scipy.special import fdtrc

    curve = np.polyfit(x, y, 2)
    rest, whole = float(((y - np.polyval(curve, x)) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    degrees = len(y) - 3
    if degrees < 3 or whole <= 0:
        return 1.0, 0.0, curve
    return float(fdtrc(2, degrees, (whole - rest) / 2 / max(rest / degrees, 1e-300))), 1.0 - rest / whole, curve
