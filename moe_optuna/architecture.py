"""`MoEArchitecture`: the structural dimensions of a decoder-only Mixture-of-Experts language model, with exact counts.

Two counting conventions, never mixed silently:

`non_embedding` (arXiv:2603.21862, section 3; the triad is held in it)
    Matrices of attention, dense feed-forward blocks and experts only: no embeddings, head, router, norms or biases.
    Causal attention is halved. With ``a = 2 d_model d_head (n_heads + n_kv_heads)`` for an attention layer::

        Na = a L + 3 d_model (d_dense L_d + d_expert (top_k + n_shared_experts) L_m)
        N  = Na + 3 d_model d_expert (n_experts - top_k) L_m
        M  = 6 Na + 6 context_length n_heads d_head L

`full`
    Every parameter that the module holds, tied matrices once; active parameters are all less the routed experts that a
    token does not visit; FLOPs of every matrix product, head and router too, attention over exactly the keys that each
    query sees.

FLOPs are training FLOPs per token, forward and backward: three times the forward ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from moe_optuna.errors import InputError, did_you_mean, whole_number
from moe_optuna.files import read_object, write_whole
from moe_optuna.parts import (
    KINDS,
    Attention,
    Cost,
    FeedForward,
    GatedFeedForward,
    GroupedQueryAttention,
    Norm,
    Router,
)

__all__ = ["COUNTS", "DIMENSIONS", "LARGEST", "Component", "Counts", "MoEArchitecture"]

FORMAT = 1
LARGEST = 2**31 - 1
"""The largest dimension."""
Role = Literal["attention", "dense_ffn", "moe", "router", "norm", "embedding", "head"]
_STRUCTURE: tuple[Role, ...] = ("attention", "dense_ffn", "moe")

DIMENSIONS = (
    "d_model", "n_dense_layers", "n_moe_layers", "n_heads", "n_kv_heads", "d_head", "d_dense", "d_expert",
    "n_experts", "top_k", "n_shared_experts", "context_length", "vocab_size",
)  # fmt: skip
"""The integer dimensions, in the order of files and tables."""

COUNTS = ("flops_per_token", "active_params", "total_params")
"""M, Na and N, what `Counts` holds and a triad targets, in the order of files and tables."""


@dataclass(frozen=True, slots=True)
class Counts:
    """FLOPs per token (training), active and total parameters in one convention."""

    flops_per_token: int
    active_params: int
    total_params: int

    @property
    def compute_density(self) -> float:
        """M / Na, FLOPs per token and active parameter."""
        return self.flops_per_token / self.active_params

    @property
    def expansion_ratio(self) -> float:
        """N / Na."""
        return self.total_params / self.active_params


@dataclass(frozen=True, slots=True)
class Component:
    """Copies of one part: how many the model holds, and how many a token passes through.

    A matrix that the model shares with another part (a tied head) is visited and not held.
    """

    role: Role
    cost: Cost
    held: int
    visited: int

    def flops(self, context_length: int, *, exact: bool) -> int:
        """Training FLOPs per token, attention included, over the copies that a token visits."""
        products = 6 * (self.cost.matrices + self.cost.state)
        return self.visited * (products + _pair_flops(self.cost, context_length, exact))


def _pair_flops(cost: Cost, context: int, exact: bool) -> int:
    """Training FLOPs per token of the products over (query, key) pairs: the mean over positions, rounded.

    Exact: query i sees min(i, window) keys, i = 1 ... context. Otherwise the halved form of the papers: context / 2
    keys on the mean where there is no window. A context in blocks is that for each of them, the last one cut.
    """

    def pairs_twice(length: int, window: int) -> int:
        window = min(window, length)
        return window * (window + exact) + 2 * window * (length - window)

    chunk, window = cost.chunk or context, cost.window or context
    pairs = context // chunk * pairs_twice(chunk, window) + pairs_twice(context % chunk, window)
    products = cost.pair_width * pairs + cost.index_width * pairs_twice(context, context)
    return (6 * products + context) // (2 * context)


@dataclass(frozen=True, kw_only=True)
class MoEArchitecture:
    """A complete architecture: the words of the field as attributes, frozen, hashable, comparable.

    The first `n_dense_layers` layers have a dense feed-forward block, the `n_moe_layers` after them experts. Without
    MoE layers it is a dense model, and `d_expert`, `n_experts`, `top_k` and `n_shared_experts` are 0.

    Attributes:
        d_model: Width of the residual stream.
        n_dense_layers, n_moe_layers: Layers of each kind.
        n_heads, n_kv_heads, d_head: Query heads, key and value heads, features of a head.
        d_dense: Hidden width of a dense block.
        d_expert: Hidden width of an expert.
        n_experts, top_k: Routed experts in a layer, and how many of them a token visits.
        n_shared_experts: Experts of width `d_expert` that every token visits.
        context_length: Tokens of a training sequence.
        vocab_size: Rows of the embedding and of the head.
        tied_embeddings: Whether the head is the embedding's matrix.
        qk_norm: Whether queries and keys are normalised.
        head_bias: Whether the head has a bias.
        attention, feed_forward, experts, router, norm: The kinds of the parts (`moe_optuna.parts`).
        shared: The kind of the shared experts, or ``None`` where they are as the routed ones.
        d_shared: Hidden width of a layer's shared experts together, or ``None`` for ``n_shared_experts * d_expert``.

    Raises:
        InputError: Where a dimension is not an integer, or is 0 although the architecture has such layers, where a
            switch is not true or false, or where dimensions contradict each other.
    """

    d_model: int
    n_dense_layers: int
    n_moe_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_dense: int
    d_expert: int
    n_experts: int
    top_k: int
    n_shared_experts: int
    context_length: int
    vocab_size: int
    tied_embeddings: bool = False
    qk_norm: bool = True
    head_bias: bool = False
    attention: Attention = GroupedQueryAttention()
    feed_forward: FeedForward = GatedFeedForward()
    experts: FeedForward = GatedFeedForward()
    router: Router = Router()
    norm: Norm = Norm()
    shared: FeedForward | None = None
    d_shared: int | None = None

    def __post_init__(self) -> None:
        for name in (*DIMENSIONS, *["d_shared"] * (self.d_shared is not None)):
            value = getattr(self, name)
            if type(value) is not int or value < 0:  # numpy's integers are kept as Python's, which JSON takes
                object.__setattr__(self, name, value := whole_number(value, name, least=0))
            if value > LARGEST:
                raise InputError(f"too large, expected at most {LARGEST}", where=name)
        for name in ("tied_embeddings", "qk_norm", "head_bias"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{getattr(self, name)!r}, expected true or false", where=name)
        positive = ["d_model", "n_heads", "n_kv_heads", "d_head", "context_length", "vocab_size"]
        positive += ["d_dense"] * (self.n_dense_layers > 0)
        positive += ["d_expert", "n_experts", "top_k"] * (self.n_moe_layers > 0)
        positive += ["d_shared"] * (self.d_shared is not None)
        for name in positive:
            if getattr(self, name) == 0:
                raise InputError("0, expected at least 1", where=name)
        if self.n_layers == 0:
            raise InputError("both 0, expected at least one layer", where="n_dense_layers, n_moe_layers")
        if self.top_k > self.n_experts:
            raise InputError(f"{self.top_k}, expected at most n_experts = {self.n_experts}", where="top_k")
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"{self.n_kv_heads}, expected a divisor of n_heads = {self.n_heads}", where="n_kv_heads")
        if self.d_shared is not None and self.n_shared_experts == 0:
            raise InputError(f"{self.d_shared}, expected null without n_shared_experts", where="d_shared")
        self.attention.layers(self.n_layers)

    @property
    def n_layers(self) -> int:
        """Layers of both kinds."""
        return self.n_dense_layers + self.n_moe_layers

    @property
    def shared_width(self) -> int:
        """Hidden width of a layer's shared experts together."""
        return self.d_shared or self.n_shared_experts * self.d_expert

    @property
    def components(self) -> tuple[Component, ...]:
        """The parts whose sum the architecture is; every count is a sum over this list."""
        d, layers, moe = self.d_model, self.n_layers, self.n_moe_layers
        expert = self.experts.cost(d, self.d_expert)
        shared = (self.shared or self.experts).cost(d, self.shared_width)
        shared_copies = moe if self.n_shared_experts else 0
        head_copies = int(not self.tied_embeddings)
        return (
            Component("embedding", Cost(table=self.vocab_size * d), 1, 1),
            *(Component("attention", kind.cost(self), count, count) for kind, count in self.attention.layers(layers)),
            Component("dense_ffn", self.feed_forward.cost(d, self.d_dense), self.n_dense_layers, self.n_dense_layers),
            Component("moe", shared, shared_copies, shared_copies),
            Component("moe", expert, self.n_experts * moe, self.top_k * moe),
            Component("router", self.router.cost(d, self.n_experts), moe, moe),
            Component("norm", self.norm.cost(d), self.norm.per_layer * layers + 1, self.norm.per_layer * layers + 1),
            Component("head", Cost(matrices=self.vocab_size * d), head_copies, 1),
            Component("head", Cost(vectors=self.vocab_size * self.head_bias), 1, 1),
        )

    @cached_property
    def non_embedding(self) -> Counts:
        """Counts in the `non_embedding` convention (arXiv:2603.21862, eqs. 3, 4, 12)."""
        structure = [part for part in self.components if part.role in _STRUCTURE]
        return Counts(
            flops_per_token=sum(part.flops(self.context_length, exact=False) for part in structure),
            active_params=sum(part.visited * part.cost.matrices for part in structure),
            total_params=sum(part.held * (part.cost.matrices + part.cost.idle) for part in structure),
        )

    @cached_property
    def full(self) -> Counts:
        """Counts in the `full` convention."""
        return _full(self.components, self.context_length)

    @property
    def roles(self) -> dict[Role, Counts]:
        """The `full` counts of the parts by their role; they add up to `full`."""
        roles = dict.fromkeys(part.role for part in self.components)
        return {
            role: _full([part for part in self.components if part.role == role], self.context_length) for role in roles
        }

    @property
    def shares(self) -> dict[str, float]:
        """Shares of attention, dense blocks and experts in `non_embedding.flops_per_token`; they add up to 1."""
        parts = {
            role: sum(p.flops(self.context_length, exact=False) for p in self.components if p.role == role)
            for role in _STRUCTURE
        }
        return {role: flops / self.non_embedding.flops_per_token for role, flops in parts.items()}

    @property
    def compute_density(self) -> float:
        """M / Na in the `non_embedding` convention; above 6, the more attention the higher."""
        return self.non_embedding.compute_density

    @property
    def expansion_ratio(self) -> float:
        """N / Na in the `non_embedding` convention."""
        return self.non_embedding.expansion_ratio

    @property
    def granularity(self) -> float | None:
        """G = 2 d_model / d_expert (arXiv:2507.17702), or ``None`` without experts."""
        return 2 * self.d_model / self.d_expert if self.d_expert else None

    @property
    def activation_ratio(self) -> float | None:
        """A = top_k / n_experts (the form that fits arXiv:2507.17702's figures), or ``None`` without experts."""
        return self.top_k / self.n_experts if self.n_experts else None

    @property
    def shared_ratio(self) -> float | None:
        """S = shared / (top_k + shared), or ``None`` without experts."""
        return self.n_shared_experts / (self.top_k + self.n_shared_experts) if self.n_experts else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back: the dimensions, and those parts that are not the default."""
        data: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in DIMENSIONS or value != field.default:
                data[field.name] = _plain(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "architecture") -> MoEArchitecture:
        """The inverse of `to_dict`.

        Raises:
            InputError: On an unknown or missing key or a value that does not fit, named with `where`.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise InputError(f"unknown key {key!r}{did_you_mean(key, known)}", where=where)
        if missing := [name for name in DIMENSIONS if name not in data]:
            raise InputError(f"missing {', '.join(missing)}", where=where)
        absent = ("shared", None)  # as `d_shared` may be
        values = {
            key: _part(value, KINDS[key], f"{where}: {key}") if key in KINDS and (key, value) != absent else value
            for key, value in data.items()
        }
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(str(error), where=where) from None

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_whole(path, json.dumps({"format": FORMAT, "architecture": self.to_dict()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> MoEArchitecture:
        """Read what `save` wrote.

        Raises:
            InputError: Where the file is missing, is not such a file, or has another format.
        """
        data = read_object(path, expected="an architecture, an object with 'format' and 'architecture'")
        if not isinstance(data.get("architecture"), dict):
            raise InputError(
                "not an architecture file, expected an object with 'format' and 'architecture'", where=path
            )
        if data.get("format") != FORMAT:
            raise InputError(f"format {data.get('format')!r}, expected {FORMAT}", where=path)
        return cls.from_dict(data["architecture"], where=path)


def _full(components: Sequence[Component], context_length: int) -> Counts:
    return Counts(
        flops_per_token=sum(part.flops(context_length, exact=True) for part in components),
        active_params=sum(min(part.held, part.visited) * part.cost.active for part in components),
        total_params=sum(part.held * part.cost.parameters for part in components),
    )


def _plain(value: Any) -> Any:
    """A part as plain data: its kind and its fields."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    return {"kind": value.kind} | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _part(data: Any, kinds: Mapping[str, type], where: str) -> Any:
    """A part from what `_plain` made of it; parts inside a part are of the same kinds."""
    if not isinstance(data, Mapping):
        raise InputError(f"{data!r}, expected an object", where=where)
    name = data.get("kind", next(iter(kinds)))
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"unknown kind {name!r}, expected one of {', '.join(kinds)}", where=where)

    def value(data: Any) -> Any:
        if isinstance(data, list):
            return tuple(value(item) for item in data)
        return _part(data, kinds, where) if isinstance(data, Mapping) else data

    values = {key: value(item) for key, item in data.items() if key != "kind"}
    try:
        return kinds[name](**values)
    except InputError as error:
        raise InputError(str(error), where=where) from None
    except TypeError as error:
        raise InputError(str(error).split("__init__() ")[-1], where=where) from None
