"""What a cluster demands of an architecture."""

from __future__ import annotations

from pydantic import PositiveInt

from moe_optuna.space._dimensions import Frozen
from moe_optuna.space._solve import Columns

__all__ = ["Infrastructure"]


class Infrastructure(Frozen):
    """Rules of a cluster; they prune the lattice before anything is sampled.

    Attributes:
        width_multiple: d_model, d_expert and d_dense are multiples of it.
        expert_parallel: n_experts is a multiple of it.
        tensor_parallel: n_heads and n_kv_heads are multiples of it.
        pipeline_stages: n_layers is a multiple of it.
    """

    width_multiple: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    pipeline_stages: PositiveInt = 1

    def allowed(self, combinations: Columns) -> Columns:
        """The combinations that the devices can divide among them."""
        c = combinations
        keep = (
            (c["n_experts"] % self.expert_parallel == 0)
            & (c["n_heads"] % self.tensor_parallel == 0)
            & (c["n_kv_heads"] % self.tensor_parallel == 0)
        )
        return {name: column[keep] for name, column in c.items()}
