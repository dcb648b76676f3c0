"""What the families' configurations share when they are written: how keys follow from an architecture.

A source is an attribute of `MoEArchitecture` (a dotted path into its parts), a function of it, or a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.interchange._reading import FULL, SLIDING
from moe_optuna.parts import Attention, GroupedQueryAttention

__all__ = [
    "COMMON",
    "MIXTURE",
    "WINDOWS",
    "chunk",
    "dense_first",
    "first_layers",
    "is_windowed",
    "layer_types",
    "of",
    "qkv_bias",
    "value",
    "window",
]

COMMON: dict[str, Any] = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "d_head",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "tie_word_embeddings": "tied_embeddings",
}
"""Keys that nearly all families share."""

MIXTURE: dict[str, Any] = {
    "intermediate_size": "d_dense",
    "moe_intermediate_size": "d_expert",
    "num_experts": "n_experts",
    "num_experts_per_tok": "top_k",
}
"""Keys of many families whose dense layers and experts differ in width."""


def value(architecture: MoEArchitecture, source: Any) -> Any:
    """What a source gives for an architecture.

    Raises:
        LookupError: Where the architecture has no such part.
    """
    if callable(source):
        return source(architecture)
    if not isinstance(source, str):
        return source
    found: Any = architecture
    for name in source.split("."):
        if not hasattr(found, name):
            raise LookupError(source)
        found = getattr(found, name)
    return found


def of(kind: type[Attention], name: str) -> Callable[[MoEArchitecture], Any]:
    """A property, or a dotted path, of the layers of one kind."""

    def found(architecture: MoEArchitecture) -> Any:
        for layer, _ in architecture.attention.layers(architecture.n_layers):
            if isinstance(layer, kind):
                return attrgetter(name)(layer)
        raise LookupError(f"no {kind.kind} layers")

    return found


def _size(name: str) -> Callable[[MoEArchitecture], int | None]:
    """A size of the layers that have one, or ``None``."""

    def found(architecture: MoEArchitecture) -> int | None:
        layers = architecture.attention.layers(architecture.n_layers)
        return next((size for kind, _ in layers if (size := getattr(kind, name, None))), None)

    return found


window, chunk = _size("window"), _size("chunk")


def is_windowed(architecture: MoEArchitecture) -> bool:
    """Whether some layers have a sliding window."""
    return window(architecture) is not None


def layer_types(other: str, is_other: Callable[[Attention], bool]) -> Callable[[MoEArchitecture], list[str]]:
    """`layer_types`: full attention or the `other` word; an architecture has no order, so full layers are spread."""

    def words(architecture: MoEArchitecture) -> list[str]:
        n = architecture.n_layers
        full = n - sum(count for kind, count in architecture.attention.layers(n) if is_other(kind))
        return [FULL if (layer + 1) * full // n > layer * full // n else other for layer in range(n)]

    return words


def first_layers(architecture: MoEArchitecture) -> list[int]:
    """Numbers of the dense layers."""
    return list(range(architecture.n_dense_layers))


def dense_first(architecture: MoEArchitecture) -> list[str]:
    """`mlp_layer_types`."""
    return ["dense"] * architecture.n_dense_layers + ["sparse"] * architecture.n_moe_layers


qkv_bias = of(GroupedQueryAttention, "qkv_bias")

WINDOWS: dict[str, Any] = {
    "sliding_window": window,
    "layer_types": layer_types(SLIDING, lambda kind: getattr(kind, "window", None) is not None),
}
"""Keys of families whose layers are full or windowed."""
