"""What a cluster demands of an architecture; it prunes the lattice before anything is sampled."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool, model_validator

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.memory import Memory, Shape, all_to_all_bytes, training_memory
from moe_optuna.space._dimensions import Dimensions, Frozen, Whole
from moe_optuna.space._solve import Columns

__all__ = ["LIMITS", "Infrastructure"]

LIMITS = ("memory_per_device", "all_to_all_bytes")
"""The rules on whole architectures, in bytes."""


class Infrastructure(Frozen):
    """Rules of a cluster.

    Attributes:
        width_multiple: d_model, d_expert and d_dense are multiples of it.
        expert_parallel: n_experts is a multiple of it.
        tensor_parallel: n_heads and n_kv_heads are multiples of it.
        pipeline_stages: n_layers is a multiple of it.
        data_parallel: Replicas, over which ZeRO divides.
        memory_per_device: Most bytes that training may take on a device (`moe_optuna.memory`); no rule if absent.
        tokens_per_device: Tokens of a micro-batch; the context length if absent.
        zero: ZeRO stage.
        recompute: Whether activations are computed again in the backward pass.
        all_to_all_bytes: Most bytes that a token may send to other devices in a training step; no rule if absent.
    """

    width_multiple: Whole = 1
    expert_parallel: Whole = 1
    tensor_parallel: Whole = 1
    pipeline_stages: Whole = 1
    data_parallel: Whole = 1
    memory_per_device: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens_per_device: Whole | None = None
    zero: Literal[0, 1, 2, 3] = 1
    recompute: StrictBool = False
    all_to_all_bytes: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Infrastructure:
        if self.data_parallel % self.expert_parallel and self.data_parallel > 1:
            raise ValueError(
                f"data_parallel: {self.data_parallel}, expected a multiple of expert_parallel = {self.expert_parallel}"
            )
        return self

    def allowed(self, combinations: Columns) -> NDArray[np.bool_]:
        """Which combinations the devices can divide among them, (n,)."""
        c = combinations
        return np.asarray(
            (c["n_experts"] % self.expert_parallel == 0)
            & (c["n_heads"] % self.tensor_parallel == 0)
            & (c["n_kv_heads"] % self.tensor_parallel == 0)
        )

    def shape(self, columns: Columns, dimensions: Dimensions) -> Shape:
        """What `moe_optuna.memory` needs to know of the architectures of a space, (n,) each."""
        c, vocabulary = columns, dimensions.vocab_size
        layers = c["n_dense_layers"] + c["n_moe_layers"]
        features = 2 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"])
        expert = 3 * c["d_model"] * c["d_expert"] * c["n_moe_layers"]
        # Norms and router as in `MoEArchitecture.full`; the gains of QK norm are shared by the heads.
        vectors = (2 * layers + 1) * c["d_model"] + 2 * c["d_head"] * layers * dimensions.qk_norm
        dense = 3 * c["d_model"] * c["d_dense"] * c["n_dense_layers"]
        router = c["d_model"] * c["n_experts"] * c["n_moe_layers"]
        return Shape(
            **{name: c[name] for name in ("d_model", "n_dense_layers", "n_moe_layers", "d_dense", "d_expert")},
            **{name: c[name] for name in ("n_experts", "top_k")},
            d_shared=c["n_shared_experts"] * c["d_expert"],
            vocab_size=vocabulary,
            layer_params=features * c["d_model"] * layers + dense + expert * c["n_shared_experts"] + router + vectors,
            expert_params=expert * c["n_experts"],
            embedding_params=vocabulary * c["d_model"],
            head_params=(not dimensions.tied_embeddings) * vocabulary * c["d_model"],
            mixer_features=features,
        )

    def memory(self, columns: Columns, dimensions: Dimensions) -> Memory[NDArray[np.float64]]:
        """Bytes on a device for columns of architectures of a space, (n,) each part."""
        tokens = self.tokens_per_device or dimensions.context_length
        return training_memory(self.shape(columns, dimensions), tokens=tokens, **self.sharding)

    @property
    def sharding(self) -> dict[str, Any]:
        """The arguments of `training_memory` that a cluster fixes."""
        names = ("data_parallel", "tensor_parallel", "expert_parallel", "pipeline_stages", "zero", "recompute")
        return {name: getattr(self, name) for name in names}

    def traffic(self, columns: Columns, dimensions: Dimensions) -> NDArray[np.float64]:
        """Bytes that a token sends to other devices in a training step, (n,)."""
        c, devices = columns, self.expert_parallel
        return np.asarray(all_to_all_bytes(c["top_k"], c["d_model"], c["n_moe_layers"], expert_parallel=devices))

    @property
    def limits_architectures(self) -> bool:
        """Whether there is a rule on whole architectures, which `admits` tells."""
        return any(getattr(self, name) is not None for name in LIMITS)

    def admits(self, columns: Columns, dimensions: Dimensions) -> NDArray[np.bool_]:
        """Whether architectures keep the limits of memory and traffic, (n,); neither falls as any width or number of
        layers grows."""
        keeps = np.ones(len(columns["d_model"]), dtype=bool)
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None:
                keeps &= self.used(name, columns, dimensions) <= limit
        return keeps

    def used(self, limit: str, columns: Columns, dimensions: Dimensions) -> NDArray[np.float64]:
        """What architectures use of one of `LIMITS`, bytes, (n,)."""
        if limit == "memory_per_device":
            return self.memory(columns, dimensions).total
        return self.traffic(columns, dimensions)

    def of(self, architecture: MoEArchitecture, dimensions: Dimensions) -> dict[str, float]:
        """What one architecture, of whatever parts, uses of each of `LIMITS`, bytes."""
        a, devices, tokens = architecture, self.expert_parallel, self.tokens_per_device or dimensions.context_length
        return {
            "memory_per_device": float(training_memory(a, tokens=tokens, **self.sharding).total),
            "all_to_all_bytes": all_to_all_bytes(a.top_k, a.d_model, a.n_moe_layers, expert_parallel=devices),
        }
