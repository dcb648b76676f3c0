"""What a space says about the structural dimensions: which are fixed, which are free, and in what steps."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import lcm
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from moe_optuna.architecture import LARGEST

__all__ = ["CHOICES", "Choices", "DenseWidth", "Dimensions", "Range", "Scale", "Whole", "Width"]

Integers = NDArray[np.int64]

CHOICES = ("n_heads", "queries_per_kv_head", "d_head", "n_experts", "top_k", "n_shared_experts")
"""The dimensions that take one of a list of values; every combination of them is solved by itself."""

Whole = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
"""A whole number from 1 on, and no text, no truth value, nothing that products of two would overflow with."""


class Frozen(BaseModel):
    """A value read from a file: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _distinct(value: Any) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else value
    if not isinstance(values, (list, tuple)) or not all(type(each) is int for each in values):
        raise ValueError(f"{value!r}, expected an integer or a list of integers")
    if not values or len(set(values)) < len(values) or min(values) < 0 or max(values) > LARGEST:
        raise ValueError(f"{value!r}, expected one or more distinct integers from 0 to {LARGEST}")
    return tuple(values)


Choices = Annotated[tuple[int, ...], BeforeValidator(_distinct)]
"""One value, or a list of them; the first is the one that phases 0 and 1 use."""


class Range(Frozen):
    """A whole number from `low` to `high`, both included."""

    low: int = Field(strict=True, ge=0, le=LARGEST)
    high: int = Field(strict=True, ge=0, le=LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


class Width(Range):
    """A width in features: a multiple of `multiple` from `low` to `high`."""

    low: Whole = 1
    high: Whole = 1 << 20
    multiple: Whole = 1


class DenseWidth(Frozen):
    """The width of dense feed-forward blocks: `ratio` times d_model, rounded to the nearest `multiple`, or, without a
    ratio, any multiple from `low` to `high`."""

    # Above, widths at the largest d_model would not fit 64 bits.
    ratio: float | None = Field(default=None, gt=0, le=1 << 20)
    low: Whole | None = None
    high: Whole | None = None
    multiple: Whole = 1

    @model_validator(mode="after")
    def _either(self) -> DenseWidth:
        if (self.ratio is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("expected either a ratio, or low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """`low` and `high` of a free width."""
        return self.low or 1, self.high or 1

    @property
    def fraction(self) -> Fraction:
        """The ratio as a fraction of small numbers, so that 2.6667 means 8/3."""
        return Fraction(str(self.ratio)).limit_denominator(1000)

    def of(self, d_model: Integers) -> Integers:
        """The width at each d_model, for a fixed ratio: nearest multiple, halves up, at least one multiple."""
        up, down, step = self.fraction.numerator, self.fraction.denominator, self.multiple
        steps = (2 * up * d_model + down * step) // (2 * down * step)
        return np.asarray(np.maximum(steps, 1) * step, dtype=np.int64)


class Dimensions(Frozen):
    """The structural dimensions of a space, those of phase 1 first where several values are listed.

    Attributes:
        queries_per_kv_head: n_heads / n_kv_heads.
        n_layers: Layers of both kinds together.
    """

    d_model: Width
    d_expert: Width
    d_dense: DenseWidth
    n_layers: Range = Range(low=1, high=1000)
    n_dense_layers: Range = Range(low=0, high=1000)
    n_moe_layers: Range = Range(low=1, high=1000)
    n_heads: Choices
    queries_per_kv_head: Choices = (1,)
    d_head: Choices
    n_experts: Choices
    top_k: Choices
    n_shared_experts: Choices = (0,)
    context_length: Whole
    vocab_size: Whole
    tied_embeddings: StrictBool = False
    qk_norm: StrictBool = True

    @model_validator(mode="after")
    def _consistent(self) -> Dimensions:
        for name in CHOICES:
            if name != "n_shared_experts" and min(getattr(self, name)) == 0:
                raise ValueError(f"{name}: 0, expected at least 1")
        if self.n_moe_layers.low < 1:
            raise ValueError("n_moe_layers: low = 0, expected at least 1: without experts N = Na")
        if self.top_k[0] > self.n_experts[0]:
            raise ValueError(
                f"top_k: {self.top_k[0]}, expected at most n_experts = {self.n_experts[0]} (of lists the first)"
            )
        if self.n_heads[0] % self.queries_per_kv_head[0]:
            group, heads = self.queries_per_kv_head[0], self.n_heads[0]
            raise ValueError(
                f"queries_per_kv_head: {group}, expected a divisor of n_heads = {heads} (of lists the first)"
            )
        return self

    @property
    def free(self) -> tuple[str, ...]:
        """The dimensions with more than one value, in the order of `CHOICES`."""
        return tuple(name for name in CHOICES if len(getattr(self, name)) > 1)

    @property
    def first(self) -> Dimensions:
        """With the first of each list of values alone: the dimensions of phases 0 and 1."""
        return self.model_copy(update={name: getattr(self, name)[:1] for name in CHOICES})

    def with_multiple(self, multiple: int) -> Dimensions:
        """With all widths multiples of `multiple` as well."""
        widths = {name: getattr(self, name) for name in ("d_model", "d_expert", "d_dense")}
        update = {
            name: spec.model_copy(update={"multiple": lcm(spec.multiple, multiple)}) for name, spec in widths.items()
        }
        return self.model_copy(update=update)

    def combinations(self) -> dict[str, Integers]:
        """Every combination of the listed values that is an architecture, (n,) for each of `CHOICES`, and
        `n_kv_heads`."""
        lists = [sorted(getattr(self, name)) for name in CHOICES]
        table = np.array(list(itertools.product(*lists)), dtype=np.int64).reshape(-1, len(CHOICES))
        columns = dict(zip(CHOICES, table.T, strict=True))
        valid = (columns["n_heads"] % columns["queries_per_kv_head"] == 0) & (columns["top_k"] <= columns["n_experts"])
        columns["n_kv_heads"] = columns["n_heads"] // columns["queries_per_kv_head"]
        return {name: column[valid] for name, column in columns.items()}


class Scale(Frozen):
    """What changes with scale: values that replace those of `[dimensions]` from `compute` on, until the next.

    Attributes:
        compute: The scale, in FLOPs: it begins where flops_per_token is what the allocation law gives at this compute.
    """

    compute: float = Field(ge=0, allow_inf_nan=False)
    n_heads: Choices | None = None
    queries_per_kv_head: Choices | None = None
    d_head: Choices | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The replaced dimensions and their values."""
        return {name: value for name, value in self if name != "compute" and value is not None}
