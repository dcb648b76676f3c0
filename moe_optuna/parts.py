"""The parts of an architecture: what one attention layer or one feed-forward block holds and does.

A kind is a small frozen value with one method, ``cost(architecture)`` or ``cost(d_model, width)``. A new kind is one
new class with
a `kind` name; nothing elsewhere asks which kind it has. Widths are in features, windows and contexts in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from moe_optuna.architecture import MoEArchitecture

__all__ = [
    "Attention",
    "Cost",
    "FeedForward",
    "GatedFeedForward",
    "GroupedQueryAttention",
    "Interleaved",
    "LatentAttention",
    "Norm",
    "Router",
]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one copy of a part holds, and the products that it computes for a token.

    Attributes:
        matrices: Parameters that multiply every token that visits: 2 FLOPs each forward, 4 backward.
        vectors: Norm gains, biases, sinks: held, but no matrix product.
        table: Parameters that are only looked up.
        pair_width: Features multiplied for each (query, key) pair, queries times keys and weights times values
            together, over all heads.
        window: Keys that a query can see, itself included; ``None`` for the whole causal context.
    """

    matrices: int = 0
    vectors: int = 0
    table: int = 0
    pair_width: int = 0
    window: int | None = None

    @property
    def parameters(self) -> int:
        """All parameters of one copy."""
        return self.matrices + self.vectors + self.table


class Attention(Protocol):
    """A kind of attention (or of any token mixer): costs of one layer, and how a stack of layers divides into kinds."""

    kind: ClassVar[str]

    def cost(self, architecture: MoEArchitecture) -> Cost:
        """Cost of one layer."""
        ...

    def layers(self, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        """The kinds in a stack of `n_layers` and how many layers each has; the counts add up to `n_layers`."""
        ...


class _Uniform:
    """A kind that all layers of a stack share."""

    def layers(self: Attention, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        return ((self, n_layers),)


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention(_Uniform):
    """Grouped-query attention (arXiv:2305.13245); with ``n_kv_heads == n_heads`` multi-head attention.

    Attributes:
        window: Keys that a query sees (sliding window), or ``None`` for all before it.
        qkv_bias, output_bias: Whether the projections carry biases.
        sinks: One learned logit a head (gpt-oss).
        norm_over: With ``architecture.qk_norm``: one gain vector for a head's features, shared by all heads, or one
            over all heads (OLMoE).
    """

    kind: ClassVar[str] = "grouped_query"
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    norm_over: Literal["head", "width"] = "head"

    def cost(self, architecture: MoEArchitecture) -> Cost:
        a = architecture
        query, key = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
        vectors = (query + 2 * key) * self.qkv_bias + a.d_model * self.output_bias + a.n_heads * self.sinks
        if a.qk_norm:
            vectors += 2 * a.d_head if self.norm_over == "head" else query + key
        return Cost(matrices=2 * a.d_model * (query + key), vectors=vectors, pair_width=2 * query, window=self.window)


@dataclass(frozen=True, slots=True)
class LatentAttention(_Uniform):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), in the form that training multiplies out.

    Attributes:
        kv_rank: Width of the compressed keys and values.
        q_rank: Width of the compressed queries, or ``None`` where queries come straight from the model width.
        d_nope, d_rope: A head's query and key features without and with rotary positions; the rotary key is shared by
            all heads.
        d_value: A head's value features.
        bias: Whether the down-projections and the output carry biases (``attention_bias`` of Hugging Face).
    """

    kind: ClassVar[str] = "latent"
    kv_rank: int
    q_rank: int | None
    d_nope: int
    d_rope: int
    d_value: int
    bias: bool = False

    def cost(self, architecture: MoEArchitecture) -> Cost:
        d, heads, d_query = architecture.d_model, architecture.n_heads, self.d_nope + self.d_rope
        query = d * heads * d_query if self.q_rank is None else self.q_rank * (d + heads * d_query)
        matrices = (
            query
            + d * (self.kv_rank + self.d_rope)
            + self.kv_rank * heads * (self.d_nope + self.d_value)
            + heads * self.d_value * d
        )
        vectors = self.kv_rank + (self.q_rank or 0) + ((self.q_rank or 0) + self.kv_rank + self.d_rope + d) * self.bias
        return Cost(matrices=matrices, vectors=vectors, pair_width=heads * (d_query + self.d_value))


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Layers of different kinds in one stack, such as sliding windows between full attention; the order does not
    matter to any count.

    Attributes:
        parts: Pairs of a kind and its number of layers.
    """

    kind: ClassVar[str] = "interleaved"
    parts: tuple[tuple[Attention, int], ...]

    def cost(self, architecture: MoEArchitecture) -> Cost:
        raise TypeError("layers of an interleaved stack differ: ask `layers` for the kinds and each kind for its cost")

    def layers(self, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        if sum(count for _, count in self.parts) != n_layers:
            raise ValueError(
                f"interleaved attention describes {sum(count for _, count in self.parts)} layers, expected {n_layers}"
            )
        return self.parts


class FeedForward(Protocol):
    """A kind of feed-forward block."""

    kind: ClassVar[str]

    def cost(self, d_model: int, width: int) -> Cost:
        """Cost of one block from `d_model` to `width` features and back."""
        ...


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """Three matrices: gate, up and down (SwiGLU and its like, arXiv:2002.05202).

    Attributes:
        bias: Whether all three carry biases.
    """

    kind: ClassVar[str] = "gated"
    bias: bool = False

    def cost(self, d_model: int, width: int) -> Cost:
        return Cost(matrices=3 * d_model * width, vectors=(2 * width + d_model) * self.bias)


@dataclass(frozen=True, slots=True)
class Router:
    """What a MoE layer holds beside its experts.

    Attributes:
        bias: A learned bias on the routing logits. (The bias that balances the load without a loss is a buffer and
            never counted.)
        shared_gate: A learned gate on the shared experts' output (Qwen2-MoE).
    """

    bias: bool = False
    shared_gate: bool = False

    def cost(self, d_model: int, n_experts: int) -> Cost:
        return Cost(matrices=d_model * (n_experts + self.shared_gate), vectors=n_experts * self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Normalisation over the model width.

    Attributes:
        per_layer: Norms in one layer, those inside attention (QK norm, latent norms) not included.
        bias: LayerNorm's bias beside the gain.
    """

    per_layer: int = 2
    bias: bool = False

    def cost(self, d_model: int) -> Cost:
        return Cost(vectors=d_model * (1 + self.bias))
