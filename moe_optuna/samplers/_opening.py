"""The first proposals of a study whose optimum another search's laws foretell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError, of_kind

if TYPE_CHECKING:
    from moe_optuna.laws import LadderLaws
    from moe_optuna.space import Phase

__all__ = ["Opening", "best_near"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_NEAR_EDGE = 4  # architectures nearest to an edge of the band, of which the best is run


class Opening:
    """The predicted optimum, then, axis by axis, the best architecture near each edge of its band.

    Args:
        laws: What foretells.
        phase: Whose lattice.

    Raises:
        InputError: Where the laws are none, or know none of the phase's axes.
    """

    def __init__(self, laws: LadderLaws, phase: Phase) -> None:
        from moe_optuna.laws import LadderLaws, with_ratios

        of_kind(laws, LadderLaws, "laws, such as `LadderLaws.load` reads from a laws.json", where="laws")
        if phase.number not in laws.phases:
            known = ", ".join(map(str, sorted(laws.phases)))
            raise InputError(f"none of phase {phase.number}, expected those of a search of it; these are of {known}",
                             where="laws")  # fmt: skip
        arrays = with_ratios(phase.lattice.arrays)
        axes = [axis.name for axis in laws.phases[phase.number].axes if axis.name in arrays]
        self._excess = laws.excess(phase.compute, {name: arrays[name] for name in axes})[0]
        self._edges = [
            np.abs(np.log(arrays[name] / edge)) for name in axes for edge in laws.band(name, phase.compute)[0]
        ]

    def choose(self, begun: int, allowed: Indices) -> int | None:
        """The proposal after `begun` others, out of `allowed` (a,); ``None`` where the laws say no more."""
        if begun > len(self._edges):
            return None
        if not begun or np.argmin(self._excess) in allowed:  # what was enqueued comes in place of edges, not of this
            return int(allowed[np.argmin(self._excess[allowed])])
        return int(allowed[best_near(self._edges[begun - 1][allowed], self._excess[allowed])])


def best_near(distance: Floats, loss: Floats) -> int:
    """Of the `_NEAR_EDGE` candidates nearest to an edge, by distance (a,), the place of the least loss (a,)."""
    near = np.argsort(distance, kind="stable")[:_NEAR_EDGE]
    return int(near[np.argmin(loss[near])])
