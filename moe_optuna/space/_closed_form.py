"""The triad solved in real numbers (arXiv:2603.21862, section 3; derived in docs/solve.md).

With w = d_head (n_heads + n_kv_heads), q = n_heads d_head, S the context, and dense width `ratio * d_model`::

    L = (M - 6 Na) / (6 S q)                                    depth: does not depend on d_model
    Q = (N - Na) / (3 (n_experts - top_k))                      = d_model d_expert L_m
    f = Na - 3 (top_k + n_shared_experts) Q                     = 2 w L d_model + 3 ratio d_model^2 L_d

so that f fixes L_d for a given d_model, or d_model for a given L_d. All arguments broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ClosedForm"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClosedForm:
    """The real solution for targets and combinations of the discrete dimensions, (n,) each.

    Attributes:
        n_layers: L.
        moe_volume: Q, d_model d_expert n_moe_layers.
        rest: f, active parameters of attention and of dense blocks.
        attention: 2 w L: attention's active parameters for each unit of d_model.
    """

    n_layers: Floats
    moe_volume: Floats
    rest: Floats
    attention: Floats

    @classmethod
    def of(cls, targets: ArrayLike, combinations: Mapping[str, Any]) -> ClosedForm:
        """Solve for targets (n, 3) of M, Na and N, at `n_heads`, `n_kv_heads`, `d_head`, `n_experts`, `top_k`,
        `n_shared_experts` and `context_length`, (n,) each. Where nothing solves it, the numbers say so by their sign.
        """
        compute, active, total = np.asarray(targets, dtype=float).T
        c = {name: np.asarray(values, dtype=float) for name, values in combinations.items()}
        layers = (compute - 6 * active) / (6 * c["context_length"] * c["n_heads"] * c["d_head"])
        with np.errstate(divide="ignore", invalid="ignore"):
            volume = (total - active) / (3 * (c["n_experts"] - c["top_k"]))
        rest = active - 3 * (c["top_k"] + c["n_shared_experts"]) * volume
        return cls(layers, volume, rest, 2 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers)

    def d_model(self, n_dense_layers: ArrayLike, ratio: float) -> Floats:
        """The d_model at which `n_dense_layers` dense layers of width ``ratio * d_model`` use up the rest:
        the positive root of ``3 ratio L_d d^2 + 2 w L d = f``; NaN where there is none."""
        square = 3 * ratio * np.asarray(n_dense_layers, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            root = 2 * self.rest / (self.attention + np.sqrt(self.attention**2 + 4 * square * self.rest))
            return np.where((self.rest > 0) & (self.n_layers > 0), root, np.nan)

    def interval(self, ratio: float, *, n_dense_layers: int = 0, n_moe_layers: int = 1) -> tuple[Floats, Floats]:
        """The feasible d_model, from the fewest MoE layers (lowest) to the fewest dense layers (highest)."""
        dense = np.maximum(self.n_layers - n_moe_layers, n_dense_layers)
        return self.d_model(dense, ratio), self.d_model(n_dense_layers, ratio)
