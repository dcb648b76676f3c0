"""What one architecture has and another has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.parts import GatedFeedForward, Interleaved, Router

__all__ = ["differences", "refuse"]


def differences(wanted: MoEArchitecture, found: MoEArchitecture) -> list[str]:
    """What `wanted` has and `found` has not, each as ``name = value``; layers that neither has do not count."""
    return list(_differences(_canonical(wanted), _canonical(found)))


def _differences(wanted: Any, found: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(wanted):
        name, a, b = prefix + field.name, getattr(wanted, field.name), getattr(found, field.name)
        if a != b and is_dataclass(a) and type(a) is type(b) and not isinstance(a, Interleaved):
            yield from _differences(a, b, f"{name}.")
        elif a != b:
            yield f"{name} = {a!r}"


def _canonical(architecture: MoEArchitecture) -> MoEArchitecture:
    """The same architecture with nothing said in two ways, and nothing said of layers that it has not."""
    a = architecture
    layers: Counter[Any] = Counter()
    for kind, count in a.attention.layers(a.n_layers):
        layers[kind] += count
    parts = tuple(sorted(layers.items(), key=repr))
    canonical: dict[str, Any] = {"attention": parts[0][0] if len(parts) == 1 else Interleaved(parts)}
    if a.n_dense_layers == 0:
        canonical |= {"d_dense": 0, "feed_forward": GatedFeedForward()}
    if a.n_moe_layers == 0:
        canonical |= dict.fromkeys(("d_expert", "n_experts", "top_k", "n_shared_experts"), 0)
        canonical |= {"experts": GatedFeedForward(), "router": Router()}
    if a.n_moe_layers == 0 or a.n_shared_experts == 0 or a.shared == a.experts:
        canonical["shared"] = None
    if a.n_moe_layers == 0 or a.d_shared == a.n_shared_experts * a.d_expert:
        canonical["d_shared"] = None
    return replace(a, **canonical)


def refuse(architecture: MoEArchitecture, expressed: MoEArchitecture, framework: str) -> None:
    """Raise where a framework's configuration would lose something.

    Raises:
        InputError: Naming what differs.
    """
    if lost := differences(architecture, expressed):
        raise InputError(f"{framework} cannot express {', '.join(lost)}", where="architecture")
