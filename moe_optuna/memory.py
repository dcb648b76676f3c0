"""What training asks of a device: memory, and the traffic of experts that lie on several devices.

The rule, for mixed-precision AdamW, a micro-batch of `tokens` a device, and flash attention:

states
    Weights, gradients and optimizer states take `weight_bytes`, `gradient_bytes` and `optimizer_bytes` a parameter
    (2, 4 and 12: bfloat16, float32, and float32 master weights with two moments). Routed experts are divided over
    `expert_parallel` devices, every parameter over `tensor_parallel` ones and, layers only, over `pipeline_stages`;
    the fullest stage holds the larger of embedding and head, or both where there is one stage. From ZeRO stage 1, 2, 3
    on, optimizer states, gradients, weights are divided over all `data_parallel` replicas as well (arXiv:1910.02054).
    Expert parallelism takes its devices from the data-parallel ones, of which there are at least as many.
activations
    What the backward pass reads, `activation_bytes` a number (arXiv:2205.05198, with flash attention). For a token in a
    layer: the block's two residual inputs and their norms, 4 d_model; queries, keys, values and attention's output,
    2 d_head (n_heads + n_kv_heads); in a dense block gate, up and their product, 3 d_dense; in a MoE layer the same
    for each expert visited, 3 d_expert (top_k + n_shared_experts), the copies of the input and the outputs that
    are mixed, 2 top_k d_model, and router logits and probabilities in float32. They are divided over
    `tensor_parallel` (sequence parallelism), and not over stages: the first of the 1F1B schedule holds as many
    micro-batches as there are stages. With `recompute` a layer keeps its input alone, and one layer is live at a time.
    Without `rows_kept`, as in this project's step on a CPU, the experts' rows are gathered and multiplied again in the
    backward pass: gate and up are kept, 2 d_expert for each routed expert visited, but queries and keys twice, before
    norm and rotation too; and once the experts' outputs, the head's input and its norm, the gradients of both, and of
    the widest block gate, up and their product (gate and up where the logits' gradient lies, and no less).
logits
    vocab_size numbers a token, at `activation_bytes` and again in float32 for their gradient.

It leaves out what depends on the software: buffers of collectives, fragmentation, workspaces.

`trial_memory` is the rule as this project's own training on a CPU keeps to it; `benchmarks/memory.py` measures that.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, whole_number

__all__ = ["Memory", "Shape", "all_to_all_bytes", "training_memory", "trial_memory"]

Number = TypeVar("Number")
"""An integer or a float, or an array of them: the formulas hold for many architectures at once."""


@dataclass(frozen=True, slots=True)
class Memory(Generic[Number]):
    """Bytes on the fullest device, by what they hold."""

    weights: Number
    gradients: Number
    optimizer: Number
    activations: Number
    logits: Number

    @property
    def total(self) -> Number:
        """All of them."""
        parts: Any = (self.weights, self.gradients, self.optimizer, self.activations, self.logits)
        return parts[0] + parts[1] + parts[2] + parts[3] + parts[4]  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The parts and their total."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of an architecture depends on; integers, or arrays of them.

    Attributes:
        layer_params: Parameters of all layers, routed experts not included; `expert_params`: of routed experts.
        embedding_params, head_params: Of the two ends; no head where it is tied.
        mixer_features: Numbers that attention keeps for a token, in one layer.
    """

    d_model: Any
    n_dense_layers: Any
    n_moe_layers: Any
    d_dense: Any
    d_expert: Any
    d_shared: Any
    n_experts: Any
    top_k: Any
    vocab_size: Any
    layer_params: Any
    expert_params: Any
    embedding_params: Any
    head_params: Any
    mixer_features: Any

    @classmethod
    def of(cls, architecture: MoEArchitecture) -> Shape:
        """The shape of one architecture, whatever kinds its parts are of."""
        a = architecture
        experts = a.n_moe_layers * a.n_experts * a.experts.cost(a.d_model, a.d_expert).parameters
        ends = {
            role: sum(part.held * part.cost.parameters for part in a.components if part.role == role)
            for role in ("embedding", "head")
        }
        features = sum(
            count * max(cost.pair_width * (a.n_heads + a.n_kv_heads) / a.n_heads, cost.matrices / a.d_model)
            for cost, count in ((kind.cost(a), count) for kind, count in a.attention.layers(a.n_layers))
        )
        return cls(
            **{name: getattr(a, name) for name in ("d_model", "n_dense_layers", "n_moe_layers", "d_dense", "d_expert")},
            d_shared=a.shared_width,
            **{name: getattr(a, name) for name in ("n_experts", "top_k", "vocab_size")},
            layer_params=a.full.total_params - experts - ends["embedding"] - ends["head"],
            expert_params=experts,
            embedding_params=ends["embedding"],
            head_params=ends["head"],
            mixer_features=features / a.n_layers,
        )


def training_memory(
    architecture: MoEArchitecture | Shape,
    *,
    tokens: int,
    data_parallel: int = 1,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    pipeline_stages: int = 1,
    zero: int = 1,
    recompute: bool = False,
    rows_kept: bool = True,
    weight_bytes: float = 2,
    gradient_bytes: float = 4,
    optimizer_bytes: float = 12,
    activation_bytes: float = 2,
) -> Memory[Any]:
    """Bytes on the fullest device, by the rule at the head of this module.

    Args:
        architecture: One architecture, or the `Shape` of many.
        tokens: Tokens of a micro-batch on one device.
        zero: ZeRO stage, 0 to 3.
        rows_kept: Whether the experts' rows are kept for the backward pass; else as in this project's step on a CPU.

    Raises:
        InputError: Where a number of devices or of tokens is below 1, or `zero` is no stage.
    """
    devices = {"data_parallel": data_parallel, "tensor_parallel": tensor_parallel, "expert_parallel": expert_parallel}
    for name, number in (devices | {"pipeline_stages": pipeline_stages, "tokens": tokens}).items():
        whole_number(number, name)
    if zero not in (0, 1, 2, 3):
        raise InputError(f"{zero!r}, expected a ZeRO stage, 0 to 3", where="zero")
    s = architecture if isinstance(architecture, Shape) else Shape.of(architecture)
    replicas = max(data_parallel, expert_parallel)

    ends = s.embedding_params + s.head_params if pipeline_stages == 1 else _larger(s.embedding_params, s.head_params)
    held = (s.layer_params + s.expert_params / expert_parallel) / pipeline_stages + ends
    shared = ((s.layer_params + s.expert_params) / pipeline_stages + ends) / replicas
    weights, gradients, optimizer = (
        size * (shared if zero >= stage else held) / tensor_parallel
        for size, stage in ((weight_bytes, 3), (gradient_bytes, 2), (optimizer_bytes, 1))
    )

    block = 4 * s.d_model + s.mixer_features
    dense = activation_bytes * (block + 3 * s.d_dense)
    routed = s.top_k * (3 * s.d_expert + 2 * s.d_model if rows_kept else 2 * s.d_expert)
    experts = routed + 3 * s.d_shared
    moe = activation_bytes * (block + experts) + 8 * s.n_experts
    if recompute:
        inputs = activation_bytes * s.d_model * (s.n_dense_layers + s.n_moe_layers)
        layers = inputs + _larger(dense * (s.n_dense_layers > 0), moe * (s.n_moe_layers > 0))
    else:
        layers = dense * s.n_dense_layers + moe * s.n_moe_layers
    if not rows_kept:
        widest = _larger(s.d_dense * (s.n_dense_layers > 0), s.d_shared)
        between = (s.top_k + 4) * s.d_model + widest + _larger(2 * widest - s.vocab_size, 0)
        layers = layers + activation_bytes * (s.mixer_features / 2 * (s.n_dense_layers + s.n_moe_layers) + between)
    logits = (activation_bytes + 4) * s.vocab_size
    return Memory(weights, gradients, optimizer, tokens * layers / tensor_parallel, tokens * logits / tensor_parallel)


def trial_memory(architecture: MoEArchitecture, *, tokens: int, averaged: bool = False) -> Memory[Any]:
    """Bytes that one of this project's trainings adds to a process on a CPU, all in float32, at its peak.

    Args:
        architecture: What is trained.
        tokens: Tokens of a forward pass.
        averaged: Whether the recipe averages weights.
    """
    # Weights take 4 bytes in the optimizer's memory. The memory that they were made in, 4 bytes more, the system's
    # allocator keeps or gives back, depending on the machine: half of it is counted.
    moments = 12 if averaged else 8
    return training_memory(
        architecture, tokens=tokens, rows_kept=False,
        weight_bytes=6, gradient_bytes=4, optimizer_bytes=moments, activation_bytes=4,
    )  # fmt: skip


def all_to_all_bytes(top_k: Any, d_model: Any, n_moe_layers: Any, *, expert_parallel: float = math.inf) -> Any:
    """Bytes that a token sends to other devices in training, two a number: dispatch and combine, forward and backward,
    to the top_k experts of each MoE layer, of which ``1 - 1/expert_parallel`` lie elsewhere. Integers, or arrays."""
    return 8.0 * top_k * d_model * n_moe_layers * (1 - 1 / expert_parallel)


def _larger(a: Any, b: Any) -> Any:
    """The larger of two numbers, or of each pair of two arrays."""
    return a + (b - a) * (b > a)
