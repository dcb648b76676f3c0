"""Space-filling choice over a lattice, as pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill", "squared_distances"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_SIZE = 768  # lattice points looked at, at most; beyond, a random sample of them


def squared_distances(left: Array, right: Array) -> Array:
    """(n, p) and (m, p) -> (n, m)."""
    squared: Array = (left * left).sum(1)[:, None] + (right * right).sum(1) - 2 * left @ right.T
    return np.maximum(squared, 0)


def fill(unit: Array, allowed: Indices, taken: Indices, random: np.random.Generator) -> int:
    """The allowed lattice point that best completes the taken ones to a cover of the whole lattice.

    Greedy k-medians (facility location, Nemhauser et al. 1978): of the allowed points that which most lowers the mean
    distance from a point of the lattice to the nearest taken one. The cover follows the lattice, however crooked, and
    keeps off its corners.

    Args:
        unit: All points of the lattice in the unit cube, (m, p).
        allowed: Places in `unit` to choose from, (a,), at least one.
        taken: Places that are covered already, (t,).

    Returns:
        A place in `unit`.
    """
    if not unit.shape[1]:
        return int(random.choice(allowed))
    # Half the lattice is enough to be covered, and lets the seed have a say.
    cover = unit[_some(np.arange(len(unit)), random, min(_SIZE, len(unit) // 2 + 1))]
    choice = _some(allowed, random, _SIZE)
    gaps = np.sqrt(squared_distances(unit[choice], cover))
    if len(taken):
        gaps = np.minimum(gaps, np.sqrt(squared_distances(cover, unit[taken])).min(1))
    return int(choice[np.argmin(gaps.mean(1))])


def _some(indices: Indices, random: np.random.Generator, size: int) -> Indices:
    return indices if len(indices) <= size else random.choice(indices, size, replace=False)
