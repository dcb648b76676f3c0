"""A search space in words: the whole problem at a glance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moe_optuna.space._dimensions import CHOICES, Width

if TYPE_CHECKING:
    from moe_optuna.space._space import SearchSpace

__all__ = ["describe"]


def describe(space: SearchSpace) -> str:
    """What is asked, what is held, what each phase searches, what is fixed and what is solved."""
    d, axes, held, plan = space.dimensions, space.axes, space.tolerances, space.search
    law = space.allocation_law
    free = [f"{name} {_values(sorted(getattr(d, name)))}" for name in d.free]
    fixed = [f"{name} {getattr(d, name)[0]}{_by_scale(space, name)}" for name in CHOICES if name not in d.free]
    names = ("context_length", "vocab_size", "tied_embeddings", "qk_norm")
    fixed += [f"{name} {str(getattr(d, name)).lower()}" for name in names]
    cluster = space.infrastructure.model_dump(exclude_defaults=True)
    trials = [_values(getattr(plan, name)) for name in ("zero", "one", "two", "repeats")]
    lines = {
        "budgets": f"{_values(space.budgets)} FLOPs; blueprint for {space.target:g}",
        "allocation": f"flops_per_token = {law.coefficient:g} compute^{law.exponent:g}",
        "tolerances": f"flops_per_token {held.flops_per_token:.3g}, active_params {held.active_params:.3g}, "
        f"total_params {held.total_params:.3g} (non_embedding)",
        "phase 0": f"allocation {_range(axes.allocation)}, at compute_density {space.reference.compute_density:g} and "
        f"expansion_ratio {space.reference.expansion_ratio:g}",
        "phase 1": f"compute_density {_range(axes.compute_density)}, expansion_ratio {_range(axes.expansion_ratio)}",
        "phase 2": ", ".join(["width 0 to 1", *free]),
        "fixed": ", ".join(fixed),
        "solved": f"d_model {_width(d.d_model)}, d_expert {_width(d.d_expert)}, d_dense {_dense(space)}, n_layers "
        f"{d.n_layers.low} to {d.n_layers.high}, n_dense_layers from {d.n_dense_layers.low}, n_moe_layers from "
        f"{d.n_moe_layers.low}",
        "cluster": ", ".join(f"{name} {value:g}" for name, value in cluster.items()),
        "trials": f"{trials[0]}, {trials[1]} and {trials[2]} in phases 0, 1 and 2, {trials[3]} repeats",
    }
    return f"SearchSpace {space.name!r}\n" + "\n".join(f"  {key:<10}  {text}" for key, text in lines.items() if text)


def _values(numbers: Iterable[float]) -> str:
    items = [f"{number:g}" for number in numbers]
    return items[0] if len(items) == 1 else "{" + ", ".join(items) + "}"


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"


def _width(spec: Width) -> str:
    return f"{spec.low} to {spec.high} by {spec.multiple}"


def _dense(space: SearchSpace) -> str:
    spec = space.dimensions.d_dense
    if spec.ratio is not None:
        return f"{spec.ratio:g} d_model by {spec.multiple}"
    return f"{spec.bounds[0]} to {spec.bounds[1]} by {spec.multiple}"


def _by_scale(space: SearchSpace, name: str) -> str:
    steps = [f"{step.changes[name][0]} from {step.compute:g}" for step in space.scale if name in step.changes]
    return f" ({', '.join(steps)})" if steps else ""
