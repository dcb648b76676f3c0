"""What the surrogate sees of an architecture: its reduced coordinates, and the shape that they leave open.

An integer architecture stands for a cell of coordinates, and neighbouring cells differ in width and granularity by
whole steps, which at small scale changes the loss by more than the band. So the surrogate's inputs are the unit
coordinates, then (`SHAPE`):

- ``d_model``: ``log(d_model / M^(1/3))``, the width at constant aspect, so that budgets compare;
- ``granularity``: ``log(d_model / d_expert)``, over half a unit, as it says less.

Each is scaled to the range that it has over the phase's lattice; one that is constant there is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moe_optuna.space import Phase

__all__ = ["Features"]

Array = NDArray[np.float64]

SHAPE = {"d_model": 1.0, "granularity": 0.5}
"""Names of the inputs beside the coordinates, and how much of the unit interval each spans."""

_NEEDED = ("d_model", "d_expert", "flops_per_token")


def _shape(columns: Mapping[str, Any]) -> Array:
    """The shape of architectures before scaling, (n, 2)."""
    d_model, d_expert, flops = (np.maximum(np.asarray(columns[name], dtype=float), 1.0) for name in _NEEDED)
    return np.stack([np.log(d_model) - np.log(flops) / 3, np.log(d_model / d_expert)], axis=-1)


@dataclass(frozen=True)
class Features:
    """The inputs of a phase.

    Attributes:
        names: Names of those beside the coordinates.
        all: Inputs of every architecture of the lattice, (m, p + len(names)), in the unit cube.
    """

    names: tuple[str, ...]
    all: Array
    _low: Array
    _high: Array
    _kept: NDArray[np.bool_]

    @classmethod
    def of(cls, phase: Phase) -> Features:
        shape = _shape(phase.lattice.arrays)
        low, high = shape.min(0), shape.max(0)
        kept = high - low > 1e-6
        names = tuple(name for name, keep in zip(SHAPE, kept, strict=True) if keep)
        bare = cls(names, np.empty(0), low, high, kept)
        return cls(names, np.hstack([phase.unit, bare._scaled(shape)]), low, high, kept)

    def of_trial(self, unit: Array, attributes: Mapping[str, Any]) -> Array:
        """Inputs of a trial at another budget, (p + len(names),), from its unit coordinates (p,) and the user
        attributes that `phase.suggest` sets; in the middle where it has none."""
        if not all(isinstance(attributes.get(name), (int, float)) for name in _NEEDED):
            return np.concatenate([unit, np.full(len(self.names), 0.5)])
        return np.concatenate([unit, self._scaled(_shape(attributes)[None])[0]])

    def _scaled(self, shape: Array) -> Array:
        span = np.array(list(SHAPE.values())) / np.where(self._kept, self._high - self._low, 1.0)
        middle = (self._low + self._high) / 2
        return (0.5 + (shape - middle) * span)[:, self._kept]
