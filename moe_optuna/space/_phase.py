"""Phases: the reduced coordinates that Optuna sees, and the architectures that they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import COUNTS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.space._axis import Axis
from moe_optuna.space._choose import at_median, join, nearest_each
from moe_optuna.space._closed_form import ClosedForm
from moe_optuna.space._diagnosis import Diagnosis, diagnose, reason
from moe_optuna.space._infrastructure import LIMITS
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._rules import Rules
from moe_optuna.space._solve import Bands, Columns, counts
from moe_optuna.triad import Tolerances, Triad

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from moe_optuna.space._space import SearchSpace

__all__ = ["Phase", "study_name"]

Floats = NDArray[np.float64]

CELLS = 1_000_000
"""Cells of a phase at most: they take a gigabyte and a minute or two."""

REACH = 0.15
"""How far from an architecture a point may lie to mean it, as a share of each axis's range."""

_DEMANDS = (*LIMITS, "expert_parallel", "tensor_parallel", "pipeline_stages", "width_multiple")
"""The rules of a cluster that can leave a phase without architectures."""

_ATTRIBUTES = (
    "d_model", "n_dense_layers", "n_moe_layers", "n_heads", "d_expert", "n_experts", "top_k", "n_shared_experts",
    *COUNTS,
)  # fmt: skip


def study_name(search: str, compute: float, number: int) -> str:
    """The name of a study in a search: `<search>/<compute>/phase-<number>`."""
    return f"{search}/{compute:.3g}/phase-{number}"


@dataclass(frozen=True, eq=False)
class Phase:
    """One search of a budget: axes, and the architectures that may be proposed, each at its exact coordinates.

    Attributes:
        number: 0 allocation, 1 compute density and expansion ratio, 2 width and what else is free.
        compute: The budget C in FLOPs.
        triad: The locked triad in phase 2, else None.
        axes: The Optuna parameters; the same at every budget.
        lattice: What the phase may propose: one architecture for each coordinate.
        coordinates: (len(lattice), len(axes)), the coordinates of each architecture.
        targets: (len(lattice), 3), the M, Na and N that each is held to.
    """

    space: SearchSpace
    number: Literal[0, 1, 2]
    compute: float
    triad: Triad | None
    axes: tuple[Axis, ...]
    lattice: Lattice
    coordinates: Floats
    targets: Floats

    @property
    def name(self) -> str:
        """`phase-0`, `phase-1` or `phase-2`."""
        return f"phase-{self.number}"

    def study_name(self, search: str) -> str:
        """The name of this phase's study in a search."""
        return study_name(search, self.compute, self.number)

    @cached_property
    def unit(self) -> Floats:
        """The coordinates scaled to [0, 1], (len(lattice), len(axes))."""
        columns = [axis.to_unit(self.coordinates[:, i]) for i, axis in enumerate(self.axes)]
        return np.clip(np.stack(columns, axis=1), 0, 1)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distribution of each axis."""
        return {axis.name: axis.distribution for axis in self.axes}

    def params(self, index: int) -> dict[str, float | int]:
        """The parameters that mean an architecture of the lattice."""
        return {
            axis.name: int(value) if axis.choices else float(value)
            for axis, value in zip(self.axes, self.coordinates[index], strict=True)
        }

    def index(self, params: Mapping[str, float | int]) -> int | None:
        """The architecture that parameters mean: the nearest on the continuous axes among those that agree on the
        discrete ones; ``None`` where it is further than `REACH` on some axis.

        Raises:
            InputError: Where a parameter of an axis is missing.
        """
        self._check(params)
        point = [params[axis.name] for axis in self.axes]
        if not all(axis.contains(value) for axis, value in zip(self.axes, point, strict=True)):
            return None
        offsets = np.abs(self.unit - [float(axis.to_unit(v)) for axis, v in zip(self.axes, point, strict=True)])
        discrete = np.array([bool(axis.choices) for axis in self.axes])
        near = np.flatnonzero((offsets <= np.where(discrete, 0, REACH)).all(axis=1))
        if not len(near):
            return None
        exact = (self.coordinates[near] == np.array(point, dtype=float)).all(axis=1)
        return int(near[np.argmin(np.where(exact, -1, (offsets[near] ** 2).sum(axis=1)))])

    def suggest(self, trial: BaseTrial) -> MoEArchitecture:
        """Ask a trial for its coordinates and answer with their architecture, whose dimensions and counts become user
        attributes.

        Raises:
            optuna.TrialPruned: Where no architecture is near; the user attribute `infeasible` says why.
        """
        import optuna

        params: dict[str, Any] = {}
        for axis in self.axes:
            if axis.choices:
                params[axis.name] = trial.suggest_categorical(axis.name, axis.choices)
            else:
                params[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log)
        index = self.index(params)
        if index is None:
            why = self.why_not(params)
            trial.set_user_attr("infeasible", why)
            raise optuna.TrialPruned(why)
        for name in _ATTRIBUTES:
            trial.set_user_attr(name, int(self.lattice.arrays[name][index]))
        return self.lattice[index]

    def why_not(self, params: Mapping[str, float | int]) -> str:
        """Why parameters mean no architecture, and which would, in one line.

        Raises:
            InputError: Where a parameter of an axis is missing.
        """
        self._check(params)
        point = ", ".join(f"{axis.name} = {params[axis.name]:.6g}" for axis in self.axes)
        for axis in self.axes:
            if not axis.contains(params[axis.name]):
                expected = f"one of {axis.choices}" if axis.choices else f"{axis.low:g} to {axis.high:g}"
                return f"{axis.name} = {params[axis.name]!r}, expected {expected}"
        rules, triad = self._held(params)
        met = bool(rules.lattice(Bands.of(triad)))
        cause = f"what meets it lies further off than {REACH:.0%} of an axis" if met else reason(rules, triad)
        unit = np.array([float(axis.to_unit(params[axis.name])) for axis in self.axes])
        nearest = self.params(int(np.argmin(((self.unit - unit) ** 2).sum(axis=1))))
        feasible = ", ".join(f"{name} = {value:.6g}" for name, value in nearest.items())
        return f"no architecture at {point}: {cause}; nearest feasible: {feasible}"

    def explain(self, params: Mapping[str, float | int]) -> Diagnosis:
        """What meets the triad that parameters stand for with their discrete choices; where nothing does, what binds,
        the nearest feasible triad, and the smallest relaxation of each rule.

        Raises:
            InputError: Where a parameter of an axis is missing.
        """
        self._check(params)
        scales = [each.reduced(**self._discrete(params)) for each in self.space.every_scale]
        return diagnose(*self._held(params), scales)

    def _check(self, params: Mapping[str, float | int]) -> None:
        if missing := [axis.name for axis in self.axes if axis.name not in params]:
            raise InputError(f"missing {', '.join(missing)}, expected a value for each axis", where=self.name)

    def _held(self, params: Mapping[str, float | int]) -> tuple[Rules, Triad]:
        """The rules and the triad that parameters stand for."""
        triad = self.triad or self._triad_at(params)
        return self.space.rules(triad.flops_per_token).reduced(**self._discrete(params)), triad

    def _discrete(self, params: Mapping[str, float | int]) -> dict[str, tuple[int]]:
        """The dimensions that parameters choose."""
        return {axis.name: (int(params[axis.name]),) for axis in self.axes if axis.choices}

    def _triad_at(self, params: Mapping[str, float | int]) -> Triad:
        """The triad of coordinates of phase 0 or 1, where the others are those of the phase's own targets."""
        flops, active, total = self.targets[0]
        density, expansion = flops / active, total / active
        if self.number == 0:
            flops = self.space.allocation(self.compute).flops_per_token * params["allocation"]
        else:
            density, expansion = params["compute_density"], params["expansion_ratio"]
        return self.space.triad(float(flops), float(density), float(expansion))

    def tokens(self, architecture: MoEArchitecture) -> int:
        """Tokens that use up the budget: D = C / M of the architecture itself, to the nearest."""
        return max(round(self.compute / architecture.non_embedding.flops_per_token), 1)

    def triad_of(self, architecture: MoEArchitecture | int | np.integer) -> Triad:
        """The triad that an architecture of the lattice is held to."""
        index = self.lattice.index(architecture) if isinstance(architecture, MoEArchitecture) else int(architecture)
        flops, active, total = (float(target) for target in self.targets[index])
        return self.triad or Triad(flops, active, total, self.space.tolerances)

    def __repr__(self) -> str:
        axes = ", ".join(axis.name for axis in self.axes)
        return f"<{self.name} at {self.compute:.3g} FLOPs: {axes}; {len(self.lattice)} architectures>"


def _grid(low: float, high: float, half: float, rule: str) -> Floats:
    """Centres of cells of relative half-width `half`, from low to high without a gap. A centre is a middle in
    logarithms, and its cell lies lower by sqrt(1 - half²), 0.13 % at 0.05: the last may end as much below high."""
    ratio = math.log((1 + half) / (1 - half)) or 1e-16
    count = max(math.ceil(math.log(high / low) / ratio - 1e-9), 1)
    _bounded(count, rule)
    return np.asarray(low * np.exp(ratio * (np.arange(count) + 0.5)))


def _bounded(cells: int, rule: str) -> None:
    if cells > CELLS:
        raise InputError(f"so small that there are {cells:.4g} cells, expected at most {CELLS}", where=rule)


def _cell(space: SearchSpace) -> Tolerances:
    """Half the relative size of a cell of phases 0 and 1: the resolution, at most the tolerances."""
    held, resolution = space.tolerances, space.axes.resolution or 1.0
    return Tolerances(held.flops_per_token, min(held.active_params, resolution), min(held.total_params, resolution))


def _cells(space: SearchSpace, targets: Floats) -> tuple[Columns, Floats]:
    """One architecture for each of the targets (n, 3) that has any, at its proxy width: the median of the feasible
    d_model (arXiv:2603.21862, section 4). Returns dimensions and targets, (m,) and (m, 3)."""
    cell = _cell(space)
    relative = (cell.flops_per_token, cell.active_params, cell.total_params)
    pieces, aims = [], []
    for rows, rules in space.scales(targets[:, 0]):
        problem, row = rules.reduced().problem(Bands.around(targets[rows], relative))
        aim = targets[rows][row]
        columns = at_median(problem, aim)
        if columns:
            aims.append(aim[columns.pop("pair")])
            pieces.append(columns)
    return (join(pieces), np.concatenate(aims)) if pieces else ({}, targets[:0])


def _distinct(coordinates: Floats, deviation: Floats, keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of the rows to keep, the one with the smallest deviation at each coordinate, in the order of coordinates."""
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(deviation[rows], kind="stable")]
    return rows[np.unique(coordinates[rows], axis=0, return_index=True)[1]]


def phase_zero(space: SearchSpace, compute: float, compute_density: float, expansion_ratio: float) -> Phase:
    """See `SearchSpace.phase_zero`."""
    law = space.allocation(compute).flops_per_token
    triad = space.triad(law, compute_density, expansion_ratio)  # which refuses coordinates that are none
    axis = Axis("allocation", *space.axes.allocation, log=True)
    flops = law * _grid(axis.low, axis.high, space.tolerances.flops_per_token, "tolerances.flops_per_token")
    active = flops / compute_density
    targets = np.stack([flops, active, active * expansion_ratio], axis=1)
    columns, aim = _cells(space, targets)
    if not columns:
        raise _empty(space, 0, compute, triad, lambda other: _cells(other, targets)[0])
    coordinates = (counts(columns)["flops_per_token"] / law)[:, None]
    return _phase(space, 0, compute, None, (axis,), columns, coordinates, aim)


def phase_one(space: SearchSpace, compute: float, flops_per_token: float) -> Phase:
    """See `SearchSpace.phase_one`."""
    axes = (
        Axis("compute_density", *space.axes.compute_density, log=True, pole=6.0),
        Axis("expansion_ratio", *space.axes.expansion_ratio, log=True),
    )
    cell = _cell(space)
    rule = "tolerances or axes.resolution"
    densities = _grid(axes[0].low, axes[0].high, cell.active_params, rule)
    expansions = _grid(axes[1].low, axes[1].high, cell.total_params, rule)
    _bounded(len(densities) * len(expansions), rule)
    density, expansion = np.meshgrid(densities, expansions, indexing="ij")
    active = flops_per_token / density.ravel()
    targets = np.stack([np.full_like(active, flops_per_token), active, active * expansion.ravel()], axis=1)
    columns, aim = _cells(space, targets)
    if not columns:
        x, y = (float(np.sqrt(axis.low * axis.high)) for axis in axes)
        raise _empty(space, 1, compute, space.triad(flops_per_token, x, y), lambda other: _cells(other, targets)[0])
    count = counts(columns)
    coordinates = np.stack(
        [count["flops_per_token"] / count["active_params"], count["total_params"] / count["active_params"]], axis=1
    )
    return _phase(space, 1, compute, None, axes, columns, coordinates, aim)


def phase_two(space: SearchSpace, triad: Triad, compute: float) -> Phase:
    """See `SearchSpace.phase_two`.

    `width` is the position of log d_model in the interval of the closed form at the architecture's own combination of
    the discrete dimensions, widened at both ends by the tolerance of Na; what lies beyond meets the triad by its
    tolerance only and is left out.
    """
    rules = space.rules(triad.flops_per_token)
    dimensions = rules.dimensions
    axes = (Axis("width"), *(Axis(n, choices=tuple(sorted(getattr(dimensions, n)))) for n in dimensions.free))
    targets = np.array([list(triad.targets.values())])
    problem, row = rules.problem(Bands.of(triad))
    aim = targets[row]
    low, high = rules.interval(ClosedForm.of(aim, problem.combinations))
    columns = nearest_each(problem, aim, ["pair", "d_model"])
    if not columns:

        def solved(other: SearchSpace) -> Columns:
            problem, row = other.rules(triad.flops_per_token).problem(Bands.of(triad))
            return nearest_each(problem, targets[row], ["pair", "d_model"])

        raise _empty(space, 2, compute, triad, solved)
    pair = columns.pop("pair")
    slack = triad.tolerances.active_params
    low, high = (low * (1 - slack))[pair], (high * (1 + slack))[pair]
    inside = (columns["d_model"] >= low) & (columns["d_model"] <= high)
    if not inside.any():
        # A triad that is met by its tolerances only: the interval is what they allow.
        low = np.full(len(pair), columns["d_model"].min() * (1 - slack))
        high = np.full(len(pair), columns["d_model"].max() * (1 + slack))
    width = np.log(columns["d_model"] / low) / np.log(high / low)
    freed = [problem.combinations[name][pair] for name in dimensions.free]
    coordinates = np.stack([width, *freed], axis=1).astype(float)
    return _phase(space, 2, compute, triad, axes, columns, coordinates, aim[pair])


def _empty(
    space: SearchSpace, number: int, compute: float, triad: Triad, solved: Callable[[SearchSpace], Columns]
) -> InputError:
    """A phase without architectures: by which of the cluster's rules, where there are some without it; else explained
    at a triad.

    Args:
        solved: From a space to the dimensions of its architectures of the phase.
    """
    where = f"{space.name} at {compute:.3g} FLOPs, phase {number}"
    rules = space.infrastructure.model_dump(exclude_defaults=True)
    demands = [name for name in _DEMANDS if name in rules]
    for dropped in (*((name,) for name in demands), tuple(demands)):
        kept = {name: value for name, value in rules.items() if name not in dropped}
        columns = solved(space.from_dict(space.to_dict() | {"infrastructure": kept}))
        if not dropped or not columns:
            continue
        found = f"without {'them' if len(dropped) > 1 else 'it'} there are {len(columns['d_model'])}"
        if len(dropped) == 1 and dropped[0] in LIMITS:
            used = space.infrastructure.used(dropped[0], columns, space.dimensions)
            found += f", which take {used.min():.4g} to {used.max():.4g} bytes"
        named = " and ".join(f"infrastructure.{name} = {rules[name]:g}" for name in dropped)
        return InputError(f"no architecture keeps {named}; {found}", where=where)
    if number == 2:
        return InputError(str(space.explain(triad)), where=where)
    scales = [each.reduced() for each in space.every_scale]
    return InputError(str(diagnose(space.rules(triad.flops_per_token).reduced(), triad, scales)), where=where)


def _phase(
    space: SearchSpace,
    number: Literal[0, 1, 2],
    compute: float,
    triad: Triad | None,
    axes: tuple[Axis, ...],
    columns: Columns,
    coordinates: Floats,
    targets: Floats,
) -> Phase:
    """The phase over those architectures that lie on all axes."""
    keep = np.ones(len(coordinates), dtype=bool)
    for i, axis in enumerate(axes):
        if not axis.choices:
            keep &= (coordinates[:, i] >= axis.low) & (coordinates[:, i] <= axis.high)
    deviation = np.stack(list(counts(columns).values()), axis=1) / targets - 1
    rows = _distinct(coordinates, (deviation**2).sum(axis=1), keep)
    if not len(rows):
        where = f"{space.name} at {compute:.3g} FLOPs, phase {number}"
        raise InputError("what meets the triads lies outside the ranges of the axes", where=where)
    lattice = Lattice(space.dimensions, columns={name: column[rows] for name, column in columns.items()})
    return Phase(space, number, compute, triad, axes, lattice, coordinates[rows], targets[rows])
