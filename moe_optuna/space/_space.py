"""`SearchSpace`: what is searched, as a value that reads from and writes to TOML."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, NonNegativeInt, ValidationError, model_validator

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.files import write_whole
from moe_optuna.space._describe import describe
from moe_optuna.space._diagnosis import Diagnosis, diagnose
from moe_optuna.space._dimensions import Dimensions, Frozen, Scale
from moe_optuna.space._infrastructure import Infrastructure
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._rules import Rules
from moe_optuna.space._solve import Bands
from moe_optuna.space._toml import check, dumps
from moe_optuna.triad import ROUNDING, Budget, Tolerances, Triad

if TYPE_CHECKING:
    from moe_optuna.space._phase import Phase

__all__ = ["AllocationLaw", "Axes", "Reference", "SearchPlan", "SearchSpace"]

_FOLDERS = (Path(__file__).parents[1] / "search_spaces", Path(__file__).parents[2] / "search_spaces")
_KINDS = {"tuple_type": "a list", "model_type": "a table", "dict_type": "a table", "dataclass_type": "a table"}
"""What pydantic calls by Python's names, as TOML does."""
_LEAST = {"allocation": 0.0, "compute_density": 6.0, "expansion_ratio": 1.0}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Interval = tuple[Positive, Positive]


class AllocationLaw(Frozen):
    """``M = coefficient * C ** exponent``, in FLOPs per token."""

    coefficient: Positive
    exponent: float = Field(gt=0, lt=1)

    def flops_per_token(self, compute: float) -> float:
        """M at a compute budget."""
        return float(self.coefficient * compute**self.exponent)

    def compute(self, flops_per_token: float) -> float:
        """The budget whose M this is."""
        return float((flops_per_token / self.coefficient) ** (1 / self.exponent))


class Axes(Frozen):
    """Ranges of the coordinates of phases 0 and 1, the same at every budget.

    Attributes:
        allocation: M over the allocation law's M.
        resolution: Half the relative size in Na and in N of a cell of phases 0 and 1, of which each proposes one
            architecture; by default, and at most, their tolerances.
    """

    allocation: Interval = (0.125, 8.0)
    compute_density: Interval
    expansion_ratio: Interval
    resolution: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _inside(self) -> Axes:
        for name, least in _LEAST.items():
            low, high = getattr(self, name)
            if not least < low < high < float("inf"):
                raise ValueError(f"{name}: [{low:g}, {high:g}], expected {least:g} < low < high")
        return self


class Reference(Frozen):
    """Where phase 0 holds the other coordinates."""

    compute_density: float = Field(gt=6, allow_inf_nan=False)
    expansion_ratio: float = Field(gt=1, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r}, expected an integer or a list of integers")
    return (value,)


Trials = Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class SearchPlan(Frozen):
    """Trials per phase; one number for every budget, or a list with one for each.

    Attributes:
        zero, one, two: Trials of each phase.
        repeats: Trainings of a budget's best architecture with other seeds, which measure the noise.
    """

    zero: Trials = (0,)
    one: Trials = (16,)
    two: Trials = (12,)
    repeats: Trials = (2,)

    def trials(self, phase: Literal[0, 1, 2], step: int) -> int:
        """Trials of a phase at a step of the ladder."""
        return _at((self.zero, self.one, self.two)[phase], step)

    def repeated(self, step: int) -> int:
        """Repeats at a step of the ladder."""
        return _at(self.repeats, step)


def _at(numbers: tuple[int, ...], step: int) -> int:
    return numbers[0] if len(numbers) == 1 else numbers[step]


class SearchSpace(Frozen):
    """A search: the ladder of budgets, the dimensions and their steps, tolerances, rules and trial counts.

    Attributes:
        budgets: The ladder in FLOPs, ascending.
        target: The budget that the blueprint is for, at least ten times the largest of the ladder.
        allocation_law: How a budget divides into M and D before phase 0 corrects it.
        scale: Dimensions that change with scale.
        training: The `[training]` table as it stands; `moe_optuna.training.Recipe.from_table` checks it, as a search
            does before it starts.
    """

    format: Literal[1] = 1
    # Folders and studies are called after it, with some words more, in at most 255 bytes.
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=60)
    budgets: tuple[Positive, ...] = Field(min_length=1)
    target: Positive
    allocation_law: AllocationLaw
    reference: Reference
    axes: Axes
    tolerances: Tolerances = Tolerances()
    dimensions: Dimensions
    scale: tuple[Scale, ...] = ()
    infrastructure: Infrastructure = Infrastructure()
    search: SearchPlan = SearchPlan()
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> SearchSpace:
        for key, value in self.training.items():
            check(value, f"training.{key}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets: {list(self.budgets)}, expected ascending")
        if len({f"{compute:.3g}" for compute in self.budgets}) < len(self.budgets):  # studies are called after them
            raise ValueError(f"budgets: {list(self.budgets)}, expected to differ in their first three digits")
        if self.target < 10 * self.budgets[-1]:
            raise ValueError(f"target: {self.target:g}, expected at least 10 times the largest budget")
        if [step.compute for step in self.scale] != sorted({step.compute for step in self.scale}):
            raise ValueError("scale: expected ascending compute")
        for name in ("zero", "one", "two", "repeats"):
            if len(getattr(self.search, name)) not in (1, len(self.budgets)):
                raise ValueError(f"search.{name}: expected one number, or one for each of {len(self.budgets)} budgets")
        for step in self.scale:
            for name, values in step.changes.items():
                if name in self.dimensions.free or (isinstance(values, tuple) and len(values) > 1):
                    raise ValueError(f"scale: {name} changes with scale and is free, expected either")
            _replace(self.dimensions, step)
        experts, active, shared = (getattr(self.dimensions, n)[0] for n in ("n_experts", "top_k", "n_shared_experts"))
        limit = (experts + shared) / (active + shared)
        for where, value in (("axes", self.axes.expansion_ratio[1]), ("reference", self.reference.expansion_ratio)):
            if value > limit:
                raise ValueError(
                    f"{where}.expansion_ratio: {value:g}, expected at most "
                    f"(n_experts + shared) / (top_k + shared) = {limit:.4g}"
                )
        return self

    def __hash__(self) -> int:
        return hash(self.to_toml())

    def __repr__(self) -> str:
        return describe(self)

    __str__ = __repr__

    # ------------------------------------------------------------------ files

    @classmethod
    def load(cls, name_or_path: str | Path) -> SearchSpace:
        """A ready space by name (`cpu`, `lab`, `holistic`), or a file.

        Raises:
            InputError: Where there is none, or what is wrong in it, in one line.
        """
        path = Path(name_or_path)
        if not path.suffix and len(path.parts) == 1:
            ready = {file.stem: file for folder in reversed(_FOLDERS) for file in sorted(folder.glob("*.toml"))}
            if str(path) in ready:
                path = ready[str(path)]
            elif not path.is_file():
                hint = did_you_mean(str(path), ready) or f"; expected {', '.join(ready)} or the path of a file"
                raise InputError(f"no such search space{hint}", where=path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(error.strerror or "cannot be read", where=path) from None
        except UnicodeDecodeError:
            raise InputError("not a text file, expected TOML", where=path) from None
        return cls.from_toml(text, where=path)

    @classmethod
    def from_toml(cls, text: str, *, where: object = "search space") -> SearchSpace:
        """Read TOML.

        Raises:
            InputError: What is wrong, in one line that begins with `where`.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"not TOML: {error}", where=where) from None
        return cls.from_dict(data, where=where)

    @classmethod
    def from_dict(cls, data: Any, *, where: object = "search space") -> SearchSpace:
        """The inverse of `to_dict`.

        Raises:
            InputError: As `from_toml`.
        """
        if not isinstance(data, dict):
            raise InputError(f"{type(data).__name__}, expected a table", where=where)
        if data.get("format") != 1:
            raise InputError(f"format = {data.get('format')!r}, expected format = 1", where=where)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(_one_line(error), where=where) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back, fit for JSON."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """TOML that `from_toml` reads back."""
        return dumps(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write as TOML."""
        write_whole(path, self.to_toml())

    # ------------------------------------------------------------------ the problem

    def allocation(self, compute: float) -> Budget:
        """A budget's M and D by the allocation law.

        Raises:
            InputError: Where compute is not a positive finite number.
        """
        budget = Budget(compute, 1.0)  # which checks compute before the law takes its power
        return Budget(compute, self.allocation_law.flops_per_token(budget.compute))

    def triad(self, flops_per_token: float, compute_density: float, expansion_ratio: float) -> Triad:
        """A triad at the coordinates of phase 1, with the space's tolerances."""
        return Triad.at(flops_per_token, compute_density, expansion_ratio, self.tolerances)

    def rules(self, flops_per_token: float) -> Rules:
        """The rules at the scale of an M."""
        return next(rules for _, rules in self.scales(np.array([flops_per_token])))

    def scales(self, flops_per_token: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], Rules]]:
        """The rules at each scale that the M of (n,) belong to, and which of them do."""
        scales = np.searchsorted(self._starts, flops_per_token, side="right")
        for scale in np.unique(scales):
            yield np.flatnonzero(scales == scale), self.every_scale[scale]

    @property
    def _starts(self) -> list[float]:
        """The M at which each scale begins."""
        # What was computed from a scale's own compute belongs to it, whatever its last bit says.
        return [self.allocation_law.flops_per_token(step.compute) / (1 + 1e-9) for step in self.scale]

    @cached_property
    def every_scale(self) -> tuple[Rules, ...]:
        """The rules at each scale, from the smallest M to the largest."""
        bounds = [0.0, *self._starts, math.inf]
        rules = [Rules(self.dimensions, self.infrastructure, {}, (0.0, bounds[1]))]
        for number, step in enumerate(self.scale):
            places = {name: f"scale.{number}.{name}" for name in step.changes}
            reach = (bounds[number + 1], bounds[number + 2])
            rules.append(Rules(_replace(self.dimensions, step), self.infrastructure, places, reach))
        return tuple(rules)

    def lattice(self, triad: Triad) -> Lattice:
        """Every architecture that meets the triad and the space's rules."""
        return self.rules(triad.flops_per_token).lattice(Bands.of(triad))

    def explain(self, triad: Triad) -> Diagnosis:
        """How many architectures meet a triad; where none does, what binds, the nearest feasible triad, and the
        smallest relaxation of each rule that gives an architecture."""
        return diagnose(self.rules(triad.flops_per_token), triad, self.every_scale)

    def violations(self, architecture: MoEArchitecture, triad: Triad | None = None) -> dict[str, str]:
        """The rules of the space, and the tolerances of a triad, that an architecture breaks: name of the rule, and
        what was found and expected. Empty where it keeps them all. Without a triad, the scale is the one at which it
        breaks fewest, of those whose M it is within the tolerance of."""
        flops, off = architecture.non_embedding.flops_per_token, self.tolerances.flops_per_token
        aims = [triad.flops_per_token] if triad is not None else [flops, flops / (1 + off), flops / (1 - off)]
        broken = min((self.rules(aim).violations(architecture) for aim in aims), key=len)
        if triad is not None:
            deviations = triad.deviations(architecture)
            for name, excess in triad.violations(architecture).items():
                if excess > ROUNDING:
                    found, limit = deviations[name], getattr(triad.tolerances, name)
                    broken[f"tolerances.{name}"] = f"{found:+.2%} from {triad.targets[name]:.4g}, expected {limit:.2%}"
        return broken

    def phase_zero(
        self, compute: float, *, compute_density: float | None = None, expansion_ratio: float | None = None
    ) -> Phase:
        """The allocation of a budget: M around the law's, at these coordinates or the space's reference.

        Raises:
            InputError: Where a number is out of its domain, or the phase has no architecture.
        """
        from moe_optuna.space._phase import phase_zero

        density = self.reference.compute_density if compute_density is None else compute_density
        expansion = self.reference.expansion_ratio if expansion_ratio is None else expansion_ratio
        return phase_zero(self, self.allocation(compute).compute, density, expansion)

    def phase_one(self, compute: float, *, flops_per_token: float | None = None) -> Phase:
        """Compute density and expansion ratio at the proxy width, for an M or the allocation law's.

        Raises:
            InputError: As of `phase_zero`.
        """
        from moe_optuna.space._phase import phase_one

        budget = self.allocation(compute) if flops_per_token is None else Budget(compute, flops_per_token)
        return phase_one(self, budget.compute, budget.flops_per_token)

    def phase_two(self, triad: Triad, *, compute: float | None = None) -> Phase:
        """Width and the other freed dimensions with the triad locked, at a compute or that whose M the triad has.

        Raises:
            InputError: As of `phase_zero`.
        """
        from moe_optuna.space._phase import phase_two

        if compute is None:
            compute = self.allocation_law.compute(triad.flops_per_token)
        return phase_two(self, triad, self.allocation(compute).compute)


def _replace(dimensions: Dimensions, step: Scale) -> Dimensions:
    """The dimensions at a scale, checked like those of the file."""
    return Dimensions.model_validate(dimensions.model_dump() | step.changes)


def _one_line(error: ValidationError) -> str:
    """The first complaint of a validation, as key, value and what was expected; an unknown key before all, since a
    misspelt one is missing as well."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    first = min(error.errors(include_url=False), key=lambda complaint: complaint["type"] not in unknown)
    path = [str(part) for part in first["loc"]]
    if first["type"] in unknown:
        known = _keys(SearchSpace, path[:-1])
        table = f" in [{'.'.join(path[:-1])}]" if path[:-1] else ""
        return f"unknown key {path[-1]!r}{table}{did_you_mean(path[-1], known)}"
    where = ".".join(path)
    if first["type"] == "missing":
        return f"missing key {where!r}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if first["type"] in _KINDS:
        return f"{where} = {first['input']!r}: expected {_KINDS[first['type']]}"
    return f"{where} = {first['input']!r}: {message[0].lower()}{message[1:]}"


def _keys(model: Any, path: list[str]) -> list[str]:
    """The keys that a table of the file may have."""
    for part in path:
        if part.isdigit():
            continue
        model = model.model_fields[part].annotation
        arguments = [kind for kind in getattr(model, "__args__", ()) if hasattr(kind, "model_fields")]
        model = arguments[0] if arguments else model
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))
