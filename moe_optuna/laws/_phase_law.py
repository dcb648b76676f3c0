"""The law of one phase over all budgets: level, optima and curvatures as functions of compute, learned from all runs
together.

With h the log of compute less its reference, and w the centred coordinate of an axis (t of its form, less a centre
that moves with compute, over the searched range T):

    loss = level(h) exp(sum_a exp(curve_a + growth_a h) phi_a(w_a - place_a - drift_a h - bend_a h^2))

It is the surrogate's law (`_means.law`); budgets share it, so that six noisy runs at one budget lean on those at the
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from moe_optuna.laws._means import optimum
from moe_optuna.laws.axis import Array, AxisFit, AxisForm
from moe_optuna.laws.band import BAND, interval
from moe_optuna.laws.published import PUBLISHED
from moe_optuna.laws.surrogate import USUAL_DRIFT, Observations, Surrogate

__all__ = ["LawAxis", "PhaseLaw"]

DRAWS = 400
# arXiv:2603.21862: its law, and the widths that it swept.
USUAL_EXPONENT = {"flops_per_token": PUBLISHED["holistic_flops_per_token"].coefficients["b"], "d_model": 0.22}
USUAL_ERROR = 0.1  # of it: how far exponents, of t in compute, are from the usual ones
LEAST_RANGE = 0.2
LARGEST = 100.0  # logs and parts of a searched range: no law's are as large, and exponentials of larger ones overflow


@dataclass(frozen=True)
class LawAxis:
    """An axis of a phase across budgets.

    Attributes:
        centre, slope: Where w is 0 at h = 0, and how that moves with h: the literature's exponent, 0 for a ratio.
        extent: T, the range of t around that line that the runs searched.
    """

    name: str
    form: AxisForm
    centre: float
    slope: float
    extent: float

    @classmethod
    def over(cls, name: str, form: AxisForm, x: Array, h: Array) -> LawAxis:
        """The axis that the values x (n,) at h (n,) span."""
        t = form.t(x)
        # What the literature says of the optimum's exponent is where the drift's prior stands: runs that all lie at
        # the edge of what a small budget can search say little about it.
        slope = USUAL_EXPONENT.get(name, 0.0)
        level = t - slope * h
        low, high = float(level.min()), float(level.max())
        return cls(name, form, (low + high) / 2, slope, max(high - low, LEAST_RANGE))

    @property
    def curvature_range(self) -> float:
        """R of the form: 0 for a parabola."""
        return 0.0 if self.form.name == "quadratic_log" else self.extent

    def w(self, x: ArrayLike, h: ArrayLike) -> Array:
        """Centred coordinate of values."""
        return np.asarray((self.form.t(x) - self.centre - self.slope * np.asarray(h)) / self.extent)

    def x(self, w: ArrayLike, h: ArrayLike) -> Array:
        """The inverse of `w`."""
        return self.form.x(self.centre + self.slope * np.asarray(h) + self.extent * np.asarray(w))

    def from_unit(self, unit: Array, /) -> Array:
        """Values at the reference budget for unit coordinates, as the surrogate asks for them."""
        return self.x(unit - 0.5, 0.0)


@dataclass(frozen=True)
class PhaseLaw:
    """The fitted law.

    Attributes:
        phase: 0, 1 or 2.
        reference: Log of compute at h = 0.
        theta, covariance: Coefficients (q,) = (log level at h = 0, NaN where it is not known, logit of the floor's
            share of it, log of its slope, place..., drift..., bend..., curve..., growth...) and their covariance.
        noise: Relative sd of a run over seeds.
        points: Runs behind it.
        mean: Which of law, quadratic and constant predicted the largest budget best from the smaller ones.
    """

    phase: int
    axes: tuple[LawAxis, ...]
    reference: float
    theta: Array
    covariance: Array
    noise: float
    points: int
    mean: str
    seed: int = 0
    surrogate: Surrogate | None = field(default=None, repr=False, compare=False)

    @classmethod
    def fit(
        cls,
        phase: int,
        forms: Mapping[str, AxisForm],
        columns: Mapping[str, NDArray[Any]],
        *,
        noise: float | None = None,
        seed: int = 0,
    ) -> PhaseLaw:
        """Learn from the runs of a phase: `columns` holds compute, loss, censored, vague, group and axes, (n,) each.
        Of what is censored and vague `loss` is a forecast."""
        log_compute = np.log(columns["compute"])
        reference = float(np.mean(np.unique(log_compute)))
        h = log_compute - reference
        axes = tuple(LawAxis.over(name, form, columns[name], h) for name, form in forms.items())
        pole = next((axis.form.pole for axis in axes if axis.form.name == "two_pole"), np.inf)
        unit = np.column_stack([axis.w(columns[axis.name], h) + 0.5 for axis in axes])
        # In parts of the range searched: of a narrow one the same drift is more.
        drifts = [max(USUAL_DRIFT, USUAL_ERROR / axis.extent) for axis in axes]
        surrogate = Surrogate(axes, pole=pole, drifts=drifts, seed=seed).fit(
            Observations(
                columns["compute"],
                unit,
                columns["loss"],
                columns["censored"] & (columns["vague"] == 0),
                columns["group"],
                columns["vague"],
            ),
            noise=noise,
            wary=False,
        )
        theta, covariance, _ = surrogate.law()
        return cls(
            phase, axes, reference, theta, covariance, surrogate.noise_, len(h), surrogate.mean_, seed, surrogate
        )

    # ---- what it says at a budget

    def draws(self, number: int = DRAWS) -> Array:
        """The best coefficients in the first row, then draws of them, (1 + number, q)."""
        values, vectors = np.linalg.eigh(self.covariance)
        normal = np.random.default_rng(self.seed).standard_normal((number, len(values)))
        sampled = self.theta + (normal * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return np.vstack([self.theta, sampled])

    def level(self, compute: ArrayLike) -> Array:
        """Least loss at budgets (b,), nats per token: the best in row 0, then draws, (s, b)."""
        theta, h = self.draws()[:, :3, None], self._h(compute)
        share, rest = expit(theta[:, 1]), expit(-theta[:, 1])
        rate = np.exp(np.clip(theta[:, 2], -30, 30)) / np.maximum(rest, 1e-30)
        return np.asarray(np.exp(theta[:, 0]) * (share + rest * np.exp(np.clip(-rate * h, -30, 30))))

    def floor(self) -> tuple[float, tuple[float, float], bool]:
        """The loss that no compute goes below, its 95 % interval, and whether the runs rather than the prior say
        so.
        """
        theta = self.draws()
        floors = np.exp(theta[:, 0]) * expit(theta[:, 1])
        return float(floors[0]), interval(floors[1:]), bool(self.covariance[1, 1] < 0.5)

    def optima(self, name: str, compute: ArrayLike) -> Array:
        """Optimum of an axis at budgets (b,): the best in row 0, then draws, (s, b)."""
        axis, place, _ = self._axis(name, self._h(compute))
        return axis.x(place, self._h(compute))

    def edges(self, name: str, compute: ArrayLike, width: float = BAND) -> tuple[Array, Array]:
        """Low and high edge of the band at budgets (b,), like `optima`; at most one searched range beyond the
        optimum.
        """
        h = self._h(compute)
        axis, place, strength = self._axis(name, h)
        excess, R = np.log1p(width) / strength, axis.curvature_range
        reach = np.sqrt(excess) if R == 0 else np.arccosh(1 + excess * R**2 / 2) / R
        reach = np.minimum(reach, 1.0)
        return axis.x(place - reach, h), axis.x(place + reach, h)

    def cost(self, name: str, compute: float, values: ArrayLike, draws: int = DRAWS) -> Array:
        """Log of loss over the least along one axis, for values (m,): the best in row 0, then draws, (1 + draws,
        m).
        """
        h = self._h(compute)
        axis, place, strength = self._axis(name, h, draws)
        delta, R = axis.w(values, h) - place, axis.curvature_range
        return np.asarray(strength * (delta**2 if R == 0 else 2 * (np.cosh(np.clip(R * delta, -30, 30)) - 1) / R**2))

    def axis_fit(self, name: str, compute: float, points: int) -> AxisFit:
        """The law's curve of an axis at one budget, in the coefficients of its form, over the searched range."""
        h = self._h([compute])
        axis, place, strength = self._axis(name, h)
        low, high = axis.x(np.array([-0.5, 0.5]), h)
        bounds = (float(low), float(high))
        level, t = self.level([compute])[:, 0], axis.form.t(axis.x(place, h))[:, 0]
        R = axis.curvature_range
        weight = level * strength[:, 0] / (R or axis.extent) ** 2
        if axis.form.name == "quadratic_log":
            table = np.column_stack([weight, -2 * weight * t, level + weight * t**2])
        elif axis.form.name == "pole_linear":
            a, b = weight * np.exp(t), weight * np.exp(-t)
            table = np.column_stack([a, b, level - 2 * weight - 6 * b])
        else:
            span = axis.form.pole - 1
            a, b = weight * np.exp(t), weight * np.exp(-t)
            table = np.column_stack([a * span, b * span, level - 2 * weight - a - b])
        return AxisFit.of(axis.form, table, bounds, noise=self.noise, points=points, error=float(level[1:].std()))

    def _h(self, compute: ArrayLike) -> Array:
        return np.asarray(np.log(np.asarray(compute, float)) - self.reference)

    def _axis(self, name: str, h: Array, draws: int = DRAWS) -> tuple[LawAxis, Array, Array]:
        """An axis, its optimum w and its curvature at h (b,), (s, b) each."""
        index = [axis.name for axis in self.axes].index(name)
        coefficients = self.draws(draws)[:, 3:].reshape(-1, 5, len(self.axes))[:, :, index]
        place, drift, bend, curve, growth = coefficients.T[..., None]
        strength = np.exp(np.clip(curve + growth * h, -20, 5))
        return self.axes[index], optimum(place, drift, bend, h), strength

    # ---- files

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {
            "phase": self.phase,
            "axes": [
                {
                    "axis": axis.name, "form": axis.form.name, "centre": axis.centre, "slope": axis.slope,
                    "extent": axis.extent, **({"pole": axis.form.pole} if np.isfinite(axis.form.pole) else {}),
                }
                for axis in self.axes
            ],
            "reference": self.reference,
            "theta": [None if np.isnan(value) else value for value in self.theta.tolist()],
            "covariance": self.covariance.tolist(),
            "noise": self.noise,
            "points": self.points,
            "mean": self.mean,
            "seed": self.seed,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PhaseLaw:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError where it is not one."""
        if odd := [a["axis"] for a in data["axes"] if not isinstance(a["axis"], str)]:
            raise TypeError(f"axis {odd[0]!r}")
        axes = tuple(
            LawAxis(
                a["axis"], AxisForm(a["form"], float(a.get("pole", np.inf))),
                float(a["centre"]), float(a["slope"]), float(a["extent"]),
            )
            for a in data["axes"]
        )  # fmt: skip
        theta, covariance = np.array(data["theta"], float), np.array(data["covariance"], float)
        if theta.shape != (3 + 5 * len(axes),) or covariance.shape != 2 * theta.shape:
            raise ValueError(f"theta {theta.shape} and covariance {covariance.shape} for {len(axes)} axes")
        if not (np.isfinite(theta[1:]).all() and np.isfinite(covariance).all()):  # null: the level is not known
            raise ValueError("theta or covariance is not finite")
        if (np.abs(theta[1:]) > LARGEST).any() or (np.abs(covariance) > LARGEST**2).any():
            raise ValueError(f"theta or covariance beyond {LARGEST:g} and its square")
        return cls(
            int(data["phase"]), axes, float(data["reference"]), theta, covariance, float(data["noise"]),
            int(data["points"]), str(data["mean"]), int(data["seed"]),
        )  # fmt: skip
