"""What the surrogate expects before its Gaussian process corrects it: log loss over (log compute, unit coordinates).

Each mean is a function of coefficients theta (q,) with a normal prior, and gives values (n,) and their Jacobian (n,
q). With h the centred log of compute and w = u - 1/2 the centred coordinates:

`law`
    ``level(h) + sum_a curvature_a(h) phi_a(w_a - optimum_a(h))``. Level: the log of ``E + A C^-alpha``, by its value
    and slope at h = 0 and the floor E's share of it. The three forms of arXiv:2603.21862 are one: ``a / (x - 6) + b
    x`` over t = log(x - 6), ``a / (x - 1) + b / (pole - x)`` over t = logit((x - 1) / (pole - 1)), both ``2
    sqrt(ab') (cosh(t - t_opt) - 1)`` above their least value, and a quadratic. So ``phi(w) = 2 (cosh(R w) - 1) /
    R^2`` with R the range of t over the axis, ``w^2`` at R = 0. The optimum is linear in h (a power law of x - 6) but
    for a bend, which is expected to be small: without one a law is the surer of itself beyond its runs the more there
    are, and where exponents change it is wrong. The curvature is a power law.
`quadratic`
    A full quadratic in w whose coefficients drift with h: optima move, axes interact, no form is claimed.
`constant`
    A power law of compute, no shape at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from moe_optuna.laws._gp import Array, cholesky

MAX_STEPS = 25
BEND = 0.05
"""How far an optimum's drift usually changes as log compute grows by one half, as a part of the drift."""
MeanName = Literal["law", "quadratic", "constant"]


@dataclass(frozen=True)
class Mean:
    """A parametric mean: its prior and its function.

    Attributes:
        prior_mean, prior_sd: Normal prior of the coefficients, (q,).
        starts: Where the search for the coefficients begins, each (q,).
        evaluate: (theta, h (n,), w (n, p)) -> values (n,) and Jacobian (n, q).
    """

    name: MeanName
    prior_mean: Array
    prior_sd: Array
    evaluate: Callable[[Array, Array, Array], tuple[Array, Array]]
    starts: tuple[Array, ...] = ()

    def fit(self, h: Array, w: Array, y: Array, covariance: Array, start: Array | None = None) -> Array:
        """Coefficients of the largest posterior density where y ~ N(mean, covariance), by Levenberg-Marquardt."""
        factor = cholesky(covariance)
        results = [self._descend(theta, h, w, y, factor) for theta in (self.starts if start is None else (start,))]
        return min(results, key=lambda result: result[0])[1]

    def _descend(self, theta: Array, h: Array, w: Array, y: Array, factor: Array) -> tuple[float, Array]:
        def at(point: Array) -> tuple[float, Array, Array]:
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # far out: not finite, and no better
                values, jacobian = self.evaluate(point, h, w)
            white = solve_triangular(factor, np.column_stack([y - values, jacobian]), lower=True, check_finite=False)
            residual = np.concatenate([white[:, 0], (self.prior_mean - point) / self.prior_sd])
            slope = np.vstack([white[:, 1:], np.diag(1 / self.prior_sd)])
            return float(residual @ residual) if np.isfinite(slope).all() else np.inf, residual, slope

        value, residual, slope = at(theta)
        damping = 1e-3
        for _ in range(MAX_STEPS):
            normal = slope.T @ slope
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope.T @ residual)
            trial = at(theta + step)
            if trial[0] <= value:
                gain, theta = value - trial[0], theta + step
                value, residual, slope = trial
                damping = max(damping / 5, 1e-9)
                if gain < 1e-4:
                    break
            else:
                damping *= 10
                if damping > 1e6:
                    break
        return value, theta


def constant(spread: float, level: float) -> Mean:
    """`spread`: sd of log loss within a budget; `level`: log loss at h = 0."""

    def evaluate(theta: Array, h: Array, w: Array) -> tuple[Array, Array]:
        jacobian = np.column_stack([np.ones_like(h), h])
        return jacobian @ theta, jacobian

    prior = np.array([level, -0.06])
    return Mean("constant", prior, np.array([5 * spread + 0.05, 0.06]), evaluate, (prior,))


def quadratic(axes: int, spread: float, level: float) -> Mean:
    """The quadratic over `axes` coordinates."""
    pairs = [(i, j) for i in range(axes) for j in range(i)]

    def evaluate(theta: Array, h: Array, w: Array) -> tuple[Array, Array]:
        columns = [np.ones_like(h), h, h * h]
        for i in range(axes):
            columns += [w[:, i], w[:, i] ** 2, w[:, i] * h, w[:, i] ** 2 * h]
        columns += [w[:, i] * w[:, j] for i, j in pairs]
        jacobian = np.column_stack(columns)
        return jacobian @ theta, jacobian

    mean = [level, -0.06, 0.0] + [0.0, 2 * spread, 0.0, 0.0] * axes + [0.0] * len(pairs)
    sd = [5 * spread + 0.05, 0.06, 0.003] + [3 * spread, 4 * spread, 0.3 * spread, 0.3 * spread] * axes
    sd += [2 * spread] * len(pairs)
    prior = np.array(mean)
    return Mean("quadratic", prior, np.array(sd), evaluate, (prior,))


def law(ranges: Array, spread: float, level: float, drifts: Array) -> Mean:
    """The law over axes whose forms have the ranges R (p,), 0 for a quadratic, and whose optima drift with log compute
    by about `drifts` (p,)."""
    axes = len(ranges)
    wide = np.where(ranges > 0, ranges, 1.0)

    def evaluate(theta: Array, h: Array, w: Array) -> tuple[Array, Array]:
        share, slope = 1 / (1 + np.exp(-theta[1])), np.exp(theta[2])
        rate = slope / (1 - share)
        falling = np.exp(np.clip(-rate * h, -30, 30))
        total = share + (1 - share) * falling
        place, drift, bend, curve, growth = theta[3:].reshape(5, axes)
        delta = w - optimum(place, drift, bend, h[:, None])  # (n, p)
        bounded = np.clip(wide * delta, -8, 8)
        curved = ranges > 0
        phi = np.where(curved, 2 * (np.cosh(bounded) - 1) / wide**2, delta**2)
        steep = np.where(curved, 2 * np.sinh(bounded) / wide, 2 * delta)
        strength = np.exp(np.clip(curve + growth * h[:, None], -20, 5))
        jacobian = np.column_stack(
            [
                np.ones_like(h),
                share * (1 - share) * (1 - falling * (1 + rate * h)) / total,
                -slope * h * falling / total,
                -strength * steep,
                -strength * steep * h[:, None],
                -strength * steep * h[:, None] ** 2,
                strength * phi,
                strength * phi * h[:, None],
            ]
        )
        return theta[0] + np.log(total) + (strength * phi).sum(1), jacobian

    curve = np.log(3 * spread)
    mean = [level, -0.5, np.log(0.06)] + [0.0] * 3 * axes + [curve] * axes + [0.0] * axes
    sd = [5 * spread + 0.05, 1.5, 0.7] + [0.4] * axes + [*drifts] + [*(BEND * drifts)] + [1.5] * axes + [0.05] * axes
    prior = np.array(mean)
    starts = []
    for place in (-0.25, 0.0, 0.25):
        start = prior.copy()
        start[3 : 3 + axes] = place
        starts.append(start)
    return Mean("law", prior, np.array(sd), evaluate, tuple(starts))


def optimum(place: Array, drift: Array, bend: Array, h: Array) -> Array:
    """The law's optimum at centred log compute h, as a centred coordinate."""
    return place + drift * h + bend * h**2


def build(name: MeanName, ranges: Array, spread: float, level: float, drifts: Array) -> Mean:
    """A mean by its name."""
    if name == "law":
        return law(ranges, spread, level, drifts)
    return quadratic(len(ranges), spread, level) if name == "quadratic" else constant(spread, level)
