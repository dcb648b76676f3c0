"""`LadderLaws`, a value: the laws of a ladder, what they say at any budget, and laws.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.errors import InputError
from moe_optuna.files import read_object, write_whole
from moe_optuna.laws._phase_law import PhaseLaw
from moe_optuna.laws._power_law import PowerLaw, points_of
from moe_optuna.laws.axis import LOWER_POLE, Array, AxisFit, AxisForm, FormName
from moe_optuna.laws.band import Growth, growth, interval
from moe_optuna.laws.published import PUBLISHED

__all__ = ["FittedAxis", "LadderLaws", "growth_of", "power_laws_of", "with_ratios"]

FORMAT = 1
SOURCE = "laws fitted to the runs of a search"


def with_ratios(columns: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Dimensions and counts of architectures, (m,) each, as laws read them: floats of at least 1, and the ratios."""
    numbers = {name: np.maximum(np.asarray(column), 1).astype(float) for name, column in columns.items()}
    return numbers | {
        "compute_density": numbers["flops_per_token"] / numbers["active_params"],
        "expansion_ratio": numbers["total_params"] / numbers["active_params"],
    }


@dataclass(frozen=True)
class FittedAxis:
    """The fit of one axis at one budget, as laws.json holds it: `AxisFit` with its band in numbers.

    Attributes:
        compute, phase, axis: The budget in FLOPs, the phase, and the axis.
        pooled: Whether the fit leans on the other budgets, since this one's own runs do not suffice.
        band, band_intervals: Edges of the 0.1 % band, and their 95 % intervals.
        band_noise: Edges of the band at `noise_width`, the smallest excess that the runs can tell from none.
    """

    compute: float
    phase: int
    axis: str
    pooled: bool
    form: FormName
    coefficients: Mapping[str, float]
    range: tuple[float, float]
    optimum: float
    interval: tuple[float, float]
    band: tuple[float, float]
    band_intervals: tuple[tuple[float, float], tuple[float, float]]
    band_noise: tuple[float, float]
    noise: float
    noise_width: float
    loss: float
    loss_interval: tuple[float, float]
    points: int

    @classmethod
    def of(cls, compute: float, phase: int, axis: str, fit: AxisFit, *, pooled: bool) -> FittedAxis:
        near, noisy = fit.band(), fit.band(fit.noise_width)
        pole = {"pole": fit.form.pole} if np.isfinite(fit.form.pole) else {}
        return cls(
            compute, phase, axis, pooled, fit.form.name, {**fit.coefficients, **pole}, fit.range, fit.optimum,
            fit.interval, (near.low, near.high), (near.low_interval, near.high_interval), (noisy.low, noisy.high),
            fit.noise, fit.noise_width, fit.loss, fit.loss_interval, fit.points,
        )  # fmt: skip

    @property
    def curve(self) -> AxisForm:
        """The form with its pole."""
        return AxisForm(self.form, float(self.coefficients.get("pole", np.inf)))

    def predict(self, x: ArrayLike) -> Array:
        """Loss along the axis with the others at their best, nats per token."""
        columns = self.curve.basis(np.atleast_1d(np.asarray(x, float)))
        weights = np.array([self.coefficients["a"], self.coefficients["b"]])
        return np.asarray(columns @ weights + self.coefficients["c"])


@dataclass(frozen=True)
class LadderLaws:
    """What a ladder has taught.

    Attributes:
        space: The search space's name.
        noise: Relative sd of a run's loss over seeds.
        budgets: The ladder in FLOPs.
        phases: The law of each phase.
        axes: The fits at each budget.
        power_laws: By quantity.
        growth: By axis, how the relative and the absolute extent of its band changes with compute.
        held_out: The largest budget predicted from the others, against what its own runs say; None with fewer than
            two budgets.
    """

    space: str | None
    noise: float
    budgets: tuple[float, ...]
    phases: Mapping[int, PhaseLaw]
    axes: tuple[FittedAxis, ...]
    power_laws: Mapping[str, PowerLaw]
    growth: Mapping[str, Mapping[str, Growth]]
    held_out: dict[str, Any] | None
    source: str = SOURCE

    @classmethod
    def published(cls) -> LadderLaws:
        """The published holistic laws, with what they leave open derived or absent
        (`moe_optuna.laws._published_ladder`).
        """
        from moe_optuna.laws import _published_ladder as published

        law = PUBLISHED["holistic_flops_per_token"]
        a, b = law.coefficients["a"], law.coefficients["b"]
        points = points_of(published.BUDGETS, (a * published.BUDGETS**b)[None])
        spread = (a * np.exp(-1.96 * law.error), a * np.exp(1.96 * law.error))
        laws = {"flops_per_token": PowerLaw("flops_per_token", a, b, spread, (b, b), 0.0, points)}
        ladder = cls(
            "holistic", 0.0, tuple(published.BUDGETS), published.phases(), (), laws, {}, None, published.SOURCE
        )
        return replace(ladder, power_laws=power_laws_of(ladder))

    # ---- answers at a budget; draws have the best in row 0

    def draws(self, quantity: str, compute: ArrayLike) -> Array:
        """Draws of a quantity at budgets (b,), the best in row 0, (s, b).

        Quantities: `loss`, `flops_per_token`, `active_params`, `total_params`, `tokens`, and the axes of the phases.

        Raises:
            InputError: Where the ladder has no law of it, or a budget is not a positive finite number.
        """
        compute = _budgets(compute)
        if quantity == "loss":
            if not self.knows_loss:
                raise InputError("the laws do not give the loss itself", where="laws")
            draws = self.phases[self.last_phase].level(compute)
            return np.vstack([np.median(draws, axis=0), draws[1:]])  # the most probable floor is no typical one
        if quantity == "tokens":
            return compute / self.draws("flops_per_token", compute)
        if quantity == "active_params":
            return self.draws("flops_per_token", compute) / self.draws("compute_density", compute)
        if quantity == "total_params":
            return self.draws("active_params", compute) * self.draws("expansion_ratio", compute)
        for law in self.phases.values():
            if any(axis.name == quantity for axis in law.axes):
                return law.optima(quantity, compute)
        if quantity in self.power_laws:  # an allocation that no phase searched
            return self.power_laws[quantity].draws(compute)
        raise InputError(f"no law of {quantity}, expected runs that searched it", where="laws")

    @property
    def axes_known(self) -> tuple[str, ...]:
        """The axes that some phase's law has."""
        return tuple(axis.name for law in self.phases.values() for axis in law.axes)

    @property
    def last_phase(self) -> int:
        """The highest phase that the largest budget has runs of: what its least loss is by."""
        return max((f.phase for f in self.axes if f.compute == self.budgets[-1]), default=max(self.phases))

    @property
    def knows_loss(self) -> bool:
        """Whether the laws give the loss itself."""
        return bool(np.isfinite(self.phases[self.last_phase].theta[0]))

    def predict(self, quantity: str, compute: float) -> tuple[float, tuple[float, float]]:
        """A quantity at a budget with its 95 % interval.

        Raises:
            InputError: Where the ladder has no law of it, or the budget is not a positive finite number.
        """
        draws = self.draws(quantity, compute)[:, 0]
        return float(draws[0]), interval(draws[1:])

    def band(self, axis: str, compute: float) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """The near-optimal band of an axis at a budget: (low, high), and the 95 % intervals of both.

        Raises:
            InputError: Where the ladder has no law of the axis, or the budget is not a positive finite number.
        """
        law = next((law for law in self.phases.values() if any(a.name == axis for a in law.axes)), None)
        if law is None:
            raise InputError(f"{axis!r}, expected one of {', '.join(self.axes_known)}", where="axis")
        low, high = (edge[:, 0] for edge in law.edges(axis, _budgets(compute)))
        return (float(low[0]), float(high[0])), interval(low[1:]), interval(high[1:])

    def excess(self, compute: float, columns: Mapping[str, ArrayLike], draws: int = 0) -> Array:
        """Predicted relative excess of loss over the least, for candidates (m,) by the axes that `columns` holds:
        the best in row 0, then draws, (1 + draws, m); infinite at and beyond a pole."""
        total: Array = np.zeros((1, 1))
        for law in self.phases.values():
            for axis in law.axes:
                if axis.name in columns:
                    total = total + law.cost(axis.name, compute, columns[axis.name], draws)
        with np.errstate(over="ignore"):
            return np.nan_to_num(np.expm1(total), nan=np.inf, posinf=np.inf)

    # ---- files

    def to_dict(self) -> dict[str, Any]:
        """Plain data of laws.json, which `from_dict` reads back."""
        floor, floor_interval, identified = self.phases[self.last_phase].floor()
        return {
            "format": FORMAT,
            "space": self.space,
            "noise": self.noise,
            "budgets": list(self.budgets),
            "axes": [_plain(asdict(axis)) for axis in self.axes],
            "power_laws": [
                {
                    "quantity": law.quantity, "a": law.a, "b": law.b, "offset": law.offset,
                    "a_interval": list(law.a_interval), "b_interval": list(law.b_interval),
                    "points": [list(point) for point in law.points],
                }
                for law in self.power_laws.values()
            ],
            "growth": {
                axis: {
                    kind: {"exponent": g.exponent, "interval": list(g.interval), "verdict": g.verdict}
                    for kind, g in kinds.items()
                }
                for axis, kinds in self.growth.items()
            },
            "loss": {
                "budgets": [[c, *self._with_interval("loss", c)] for c in self.budgets],
                "floor": floor, "floor_interval": list(floor_interval), "floor_identified": identified,
            } if self.knows_loss else None,
            "phases": [law.to_dict() for law in self.phases.values()],
            "held_out": self.held_out,
            "source": self.source,
        }  # fmt: skip

    def _with_interval(self, quantity: str, compute: float) -> tuple[float, float, float]:
        value, (low, high) = self.predict(quantity, compute)
        return value, low, high

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "laws") -> LadderLaws:
        """The inverse of `to_dict`.

        Raises:
            InputError: Where the data are not those of a ladder's laws, named with `where`.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"format {data.get('format')!r}, expected {FORMAT}", where=where)
        if "phases" not in data:
            raise InputError("no key 'phases', expected the laws of a ladder", where=where)
        try:
            phases = {law.phase: law for law in map(PhaseLaw.from_dict, data["phases"])}
            powers = [
                PowerLaw(
                    p["quantity"], float(p["a"]), float(p["b"]), tuple(p["a_interval"]), tuple(p["b_interval"]),
                    float(p["offset"]), tuple(tuple(point) for point in p["points"]),
                )
                for p in data["power_laws"]
            ]  # fmt: skip
            bands = {
                axis: {kind: Growth(g["exponent"], tuple(g["interval"]), g["verdict"]) for kind, g in kinds.items()}
                for axis, kinds in data["growth"].items()
            }
            laws = cls(
                data["space"], float(data["noise"]), tuple(map(float, data["budgets"])), phases,
                tuple(FittedAxis(**{key: _frozen(value) for key, value in axis.items()}) for axis in data["axes"]),
                {power.quantity: power for power in powers}, bands, data.get("held_out"),
                str(data.get("source", SOURCE)),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not the laws of a ladder ({error!r})", where=where) from None
        if not laws.phases:
            raise InputError("holds no phase, expected at least one", where=where)
        return laws

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_whole(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LadderLaws:
        """Read laws.json.

        Raises:
            InputError: Where the file is missing or is not such a file.
        """
        return cls.from_dict(read_object(path, expected="the laws of a ladder", finite=True), where=path)


def _budgets(compute: ArrayLike) -> Array:
    """Budgets as (b,), each a positive finite number.

    Raises:
        InputError: Naming the first that is not.
    """
    budgets = np.atleast_1d(np.asarray(compute, float))
    if (bad := ~(np.isfinite(budgets) & (budgets > 0))).any():
        raise InputError(f"{budgets[bad][0]:g}, expected a positive finite number of training FLOPs", where="compute")
    return budgets


def _plain(value: Any) -> Any:
    """Tuples as the lists of JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _frozen(value: Any) -> Any:
    """Lists of JSON as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def power_laws_of(ladder: LadderLaws) -> dict[str, PowerLaw]:
    """Power laws of everything that a larger budget needs, through the phases' laws at the ladder's ends."""
    budgets = np.array(ladder.budgets)
    ends = np.array([budgets[0], budgets[-1]]) if len(budgets) > 1 else budgets[0] * np.array([1.0, 10.0])
    searched = [(axis.name, law) for law in ladder.phases.values() for axis in law.axes]
    quantities = [name for name, _ in searched]
    if {"compute_density", "expansion_ratio"} <= set(quantities) and (0 in ladder.phases or ladder.power_laws):
        quantities += ["active_params", "total_params"]
    measured = {
        name: [
            (f.compute, f.optimum, *f.interval) for f in ladder.axes if f.axis == name and not f.pooled
        ]
        for name in quantities
    }  # fmt: skip
    laws = dict(ladder.power_laws)
    for name in quantities:
        points = tuple(measured[name]) or points_of(budgets, ladder.draws(name, budgets))
        laws[name] = PowerLaw.through(name, ends, ladder.draws(name, ends), points, _offset(name))
    for name, law in searched:
        for side, at_ends, at_all in zip(
            ("low", "high"), law.edges(name, ends), law.edges(name, budgets), strict=True
        ):  # fmt: skip
            quantity = f"{name}_{side}"
            laws[quantity] = PowerLaw.through(quantity, ends, at_ends, points_of(budgets, at_all), _offset(name))
    return laws


def _offset(axis: str) -> float:
    """What an axis cannot fall below, so that its power law is of what exceeds it."""
    return LOWER_POLE["pole_linear"] if axis == "compute_density" else 0.0


def growth_of(ladder: LadderLaws) -> dict[str, dict[str, Growth]]:
    """Growth of each axis's band, by the phases' laws; none from a single budget."""
    if len(ladder.budgets) < 2:
        return {}
    ends = np.array([ladder.budgets[0], ladder.budgets[-1]])
    extents: Mapping[str, Callable[[Array, Array], Array]] = {
        "relative": lambda low, high: np.log(high / low),
        "absolute": lambda low, high: high - low,
    }
    return {
        axis.name: {
            kind: growth(ends, np.maximum(extent(*(e[1:] for e in law.edges(axis.name, ends))), 1e-9))
            for kind, extent in extents.items()
        }
        for law in ladder.phases.values()
        for axis in law.axes
    }
