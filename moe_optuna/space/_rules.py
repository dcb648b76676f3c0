"""The rules that an architecture of a space keeps at one scale, as a problem to solve and as a list to check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.space._closed_form import ClosedForm
from moe_optuna.space._dimensions import CHOICES, Dimensions, Range
from moe_optuna.space._infrastructure import LIMITS, Infrastructure
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._solve import Bands, Problem

__all__ = ["Rules"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """Dimensions at one scale, and the cluster's demands.

    Attributes:
        dimensions: As the file has them; `solved` are those with the cluster's `width_multiple`.
        infrastructure: The cluster's demands.
        places: Where in the file the dimensions are that do not stand in `[dimensions]`, by name.
        flops_per_token: From which M to which, that not included, the rules hold.
    """

    dimensions: Dimensions
    infrastructure: Infrastructure
    places: Mapping[str, str] = field(default_factory=dict)
    flops_per_token: tuple[float, float] = (0.0, math.inf)

    @cached_property
    def solved(self) -> Dimensions:
        """The dimensions with the multiples that the cluster demands."""
        return self.dimensions.with_multiple(self.infrastructure.width_multiple)

    def reduced(self, **update: Any) -> Rules:
        """With the first of each list of values alone, as phases 0 and 1 have them, and some dimensions replaced."""
        return replace(self, dimensions=self.dimensions.first.model_copy(update=update))

    def problem(self, bands: Bands) -> tuple[Problem, Integers]:
        """Every allowed combination with each of the bands (n, 3), and the row of the band of each pair."""
        combinations = self.dimensions.combinations()
        allowed = np.flatnonzero(self.infrastructure.allowed(combinations))
        rows = np.repeat(np.arange(len(bands.low)), len(allowed))
        columns = {name: np.tile(column[allowed], len(bands.low)) for name, column in combinations.items()}
        columns["context_length"] = np.full(len(rows), self.dimensions.context_length, dtype=np.int64)
        admit = None
        if self.infrastructure.limits_architectures:
            admit = partial(self.infrastructure.admits, dimensions=self.dimensions)
        return Problem(columns, bands[rows], self.solved, self.infrastructure.pipeline_stages, admit), rows

    def lattice(self, bands: Bands) -> Lattice:
        """Every architecture inside the bands (1, 3)."""
        return Lattice(self.solved, problem=self.problem(bands)[0])

    def interval(self, form: ClosedForm) -> tuple[Floats, Floats]:
        """The feasible d_model in real numbers, lowest and highest, (n,) each.

        A free dense width is taken at three times d_model, the shape of the paper's.
        """
        d = self.dimensions
        return form.interval(
            d.d_dense.ratio or 3.0, n_dense_layers=d.n_dense_layers.low, n_moe_layers=d.n_moe_layers.low
        )

    def violations(self, architecture: MoEArchitecture) -> dict[str, str]:
        """The rules that an architecture breaks: name of the rule, and what was found and expected."""
        a, d, cluster = architecture, self.dimensions, self.infrastructure
        broken: dict[str, str] = {}
        for name in ("d_model", "d_expert", "n_layers", "n_dense_layers", "n_moe_layers"):
            limits: Range = getattr(d, name)
            value = getattr(a, name)
            if not limits.low <= value <= limits.high:
                broken[f"dimensions.{name}"] = f"{value}, expected {limits.low} to {limits.high}"
        if a.n_dense_layers:
            width = np.array([a.d_model])
            if d.d_dense.ratio is not None:
                expected = int(self.solved.d_dense.of(width)[0])
                if a.d_dense != expected:
                    broken["dimensions.d_dense"] = f"{a.d_dense}, expected {expected} at d_model = {a.d_model}"
            elif not d.d_dense.bounds[0] <= a.d_dense <= d.d_dense.bounds[1]:
                broken["dimensions.d_dense"] = f"{a.d_dense}, expected {d.d_dense.bounds[0]} to {d.d_dense.bounds[1]}"
        for name in ("d_model", "d_expert", "d_dense") if a.n_dense_layers else ("d_model", "d_expert"):
            multiple = getattr(self.solved, name).multiple
            if getattr(a, name) % multiple:
                broken[f"dimensions.{name}.multiple"] = f"{getattr(a, name)}, expected a multiple of {multiple}"
        for name in CHOICES:
            value = a.n_heads // a.n_kv_heads if name == "queries_per_kv_head" else getattr(a, name)
            if value not in getattr(d, name):
                broken[f"dimensions.{name}"] = f"{value}, expected {' or '.join(map(str, getattr(d, name)))}"
        for name in ("context_length", "vocab_size", "tied_embeddings", "qk_norm"):
            if getattr(a, name) != getattr(d, name):
                broken[f"dimensions.{name}"] = f"{getattr(a, name)}, expected {getattr(d, name)}"
        for rule, names in (
            ("expert_parallel", ("n_experts",)),
            ("tensor_parallel", ("n_heads", "n_kv_heads")),
            ("pipeline_stages", ("n_layers",)),
        ):
            for name in names:
                if getattr(a, name) % getattr(cluster, rule):
                    broken[f"infrastructure.{rule}"] = (
                        f"{name} = {getattr(a, name)}, expected a multiple of {getattr(cluster, rule)}"
                    )
        used = cluster.of(a, d)
        for rule in LIMITS:
            limit = getattr(cluster, rule)
            if limit is not None and used[rule] > limit:
                broken[f"infrastructure.{rule}"] = f"{used[rule]:.4g} bytes, expected at most {limit:.4g}"
        return broken
