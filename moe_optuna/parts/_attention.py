"""Kinds of attention over the (query, key) pairs of a context, and stacks that interleave kinds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from moe_optuna.errors import InputError
from moe_optuna.parts._cost import Cost, Part

if TYPE_CHECKING:
    from moe_optuna.architecture import MoEArchitecture

__all__ = [
    "Attention",
    "GroupedQueryAttention",
    "IndexedAttention",
    "Interleaved",
    "LatentAttention",
    "MixtureAttention",
    "Uniform",
]


class Attention(Protocol):
    """A kind of attention (or of any token mixer): costs of one layer, and how a stack of layers divides into kinds."""

    kind: ClassVar[str]

    def cost(self, architecture: MoEArchitecture) -> Cost:
        """Cost of one layer."""
        ...

    def layers(self, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        """The kinds in a stack of `n_layers` and how many layers each has; the counts add up to `n_layers`."""
        ...


class Uniform(Part):
    """A kind that all layers of a stack share."""

    __slots__ = ()

    def layers(self: Attention, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        return ((self, n_layers),)


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention(Uniform):
    """Grouped-query attention (arXiv:2305.13245); with ``n_kv_heads == n_heads`` multi-head attention.

    Attributes:
        window: Keys that a query sees (sliding window), or ``None`` for all before it.
        chunk: Tokens of the blocks that a context is cut into: a query sees its own block alone (Llama 4); ``None`` for
            no blocks.
        qkv_bias, output_bias: Whether the projections carry biases.
        sinks: One learned logit a head (gpt-oss).
        norm_over: With ``architecture.qk_norm``: one gain vector for a head's features, shared by all heads, or one
            over all heads (OLMoE).
        output_gate: A fifth projection, as wide as the queries, gates the heads' output before it is projected
            (Qwen3-Next, AFMoE).
    """

    kind: ClassVar[str] = "grouped_query"
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    norm_over: Literal["head", "width"] = "head"
    output_gate: bool = False
    chunk: int | None = None

    def cost(self, architecture: MoEArchitecture) -> Cost:
        a = architecture
        query, key = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
        vectors = (query + 2 * key) * self.qkv_bias + a.d_model * self.output_bias + a.n_heads * self.sinks
        if a.qk_norm:
            vectors += 2 * a.d_head if self.norm_over == "head" else query + key
        matrices = a.d_model * (2 * query + 2 * key + query * self.output_gate)
        return Cost(matrices=matrices, vectors=vectors, pair_width=2 * query, window=self.window, chunk=self.chunk)


@dataclass(frozen=True, slots=True)
class LatentAttention(Uniform):
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
class IndexedAttention(Uniform):
    """Latent attention over the keys that an indexer chooses for each query (DeepSeek-V3.2, arXiv:2512.02556).

    The indexer scores all keys before the query by heads of its own, from the compressed query, which it needs. It is
    counted as any part is, forward and backward.

    Attributes:
        latent: The attention over the chosen keys.
        top_k: Keys chosen for a query, at least 1.
        n_heads, d_head: The indexer's heads and their features; with 0 heads a layer has no indexer and takes the
            choice of the layer before it (GLM-5).
    """

    kind: ClassVar[str] = "indexed"
    latent: LatentAttention
    top_k: int
    n_heads: int
    d_head: int

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if self.top_k == 0:  # a window of 0 keys would be counted as none
            raise InputError("0, expected at least 1", where="top_k")
        if not isinstance(self.latent, LatentAttention) or self.latent.q_rank is None:
            raise InputError(f"{self.latent!r}, expected latent attention with a query rank", where="latent")

    def cost(self, architecture: MoEArchitecture) -> Cost:
        cost, d = self.latent.cost(architecture), architecture.d_model
        indexer = (self.latent.q_rank or 0) * self.n_heads * self.d_head + d * (self.d_head + self.n_heads)
        return replace(
            cost,
            matrices=cost.matrices + indexer * (self.n_heads > 0),
            vectors=cost.vectors + 2 * self.d_head * (self.n_heads > 0),
            index_width=self.n_heads * (self.d_head + 1),
            window=self.top_k,
        )


@dataclass(frozen=True, slots=True)
class MixtureAttention(Uniform):
    """Mixture-of-attention (JetMoE, arXiv:2404.07413): experts are pairs of query and output projections.

    Keys and values, ``n_kv_heads`` heads of them, are shared; each of the ``top_k`` experts that a token visits brings
    as many query heads, so that ``n_heads == top_k * n_kv_heads``. `Router.mixtures` counts its router and output bias.
    """

    kind: ClassVar[str] = "mixture"

    def cost(self, architecture: MoEArchitecture) -> Cost:
        a = architecture
        key, expert = a.d_model * a.n_kv_heads * a.d_head, 2 * a.d_model * a.n_kv_heads * a.d_head
        return Cost(
            matrices=2 * key + a.top_k * expert,
            pair_width=2 * a.n_heads * a.d_head,
            idle=(a.n_experts - a.top_k) * expert,
        )


@dataclass(frozen=True, slots=True)
class Interleaved(Part):
    """Layers of different kinds in one stack, such as sliding windows between full attention.

    The order does not matter to any count.

    Attributes:
        parts: Pairs of a kind, not interleaved itself, and its number of layers.
    """

    kind: ClassVar[str] = "interleaved"
    parts: tuple[tuple[Attention, int], ...]

    def __post_init__(self) -> None:
        for part in self.parts if isinstance(self.parts, tuple) else (self.parts,):
            fits = isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Part)
            if not (fits and type(part[1]) is int and part[1] > 0):
                raise InputError(f"{part!r}, expected pairs of a kind and its number of layers", where="parts")
            if isinstance(part[0], Interleaved):
                raise InputError("interleaved in itself, expected kinds that all their layers share", where="parts")

    def cost(self, architecture: MoEArchitecture) -> Cost:
        raise TypeError("layers of an interleaved stack differ: ask `layers` for the kinds and each kind for its cost")

    def layers(self, n_layers: int) -> tuple[tuple[Attention, int], ...]:
        described = sum(count for _, count in self.parts)
        if described != n_layers:
            raise InputError(f"{described} layers, expected {n_layers}", where="interleaved attention")
        return self.parts
