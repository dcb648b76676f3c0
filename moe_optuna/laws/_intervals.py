"""Intervals of a robust fit: by profile, by bootstrap over runs or groups, and what the data do not identify.

A profile holds one coefficient at a value, fits all others, and asks how much worse the objective becomes. For squared
errors the answer is compared with a chi-square; for Huber's loss the same holds after a factor (the likelihood ratio
of M-estimates, Huber and Ronchetti, Robust Statistics, section 13.6), here from the sandwich covariance, which also
accounts for groups of runs that err together. Profiles need no symmetry: an interval that never closes is reported as
open, since the coefficient is then not identified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_optuna.laws._formulas import Array
from moe_optuna.laws._solver import Problem, minimise

__all__ = ["Profile", "bootstrap_weights", "profile", "spread", "student", "widening"]

_WINDOW = 0.3
"""Share of the runs whose residuals, nearest zero, give the density of the noise there."""


_RIDGE = 1e-7
_NARROW = 20.0
"""Threshold at which constrained fits begin, over delta: wide enough to leave the kinks of absolute errors."""


@dataclass(frozen=True)
class Profile:
    """Ends of the interval of each coefficient, in the formula's coordinates ``(p,)``, and which are open.

    Attributes:
        low, high: The ends; an open one is where the physical region ends.
        open_low, open_high: Whether the data set no such end.
        error: Standard errors ``(p,)``, in the formula's coordinates.
        edges: At each end, the low ones first, the fit of all others, ``(2 p, p)`` in the formula's coordinates.
        better: A lower optimum, ``(p,)`` centred, where a profile came across one.
    """

    low: Array
    high: Array
    open_low: NDArray[np.bool_]
    open_high: NDArray[np.bool_]
    error: Array
    edges: Array
    better: Array | None


def student(level: float, freedom: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), 0.5 + 0.5 * level))


def widening(level: float, rows: int, coefficients: int, groups: int) -> float:
    """How much wider than a bootstrap's quantiles an interval about the optimum has to be.

    A bootstrap sees the residuals that the fit has left, too small by the root of (n - p) / n, and their normal
    quantiles; what `profile` corrects in the same two ways.
    """
    freedom = min(rows - coefficients, groups - 1)
    return student(level, freedom) / student(level, np.inf) * float(np.sqrt(rows / (rows - coefficients)))


def bootstrap_weights(groups: NDArray[np.intp], count: int, rng: np.random.Generator) -> Array:
    """Weights ``(count, n)`` of a bootstrap that draws whole groups; `groups` are ``(n,)`` integers from 0 on."""
    number = int(groups.max()) + 1
    return rng.multinomial(number, np.full(number, 1.0 / number), count).astype(float)[:, groups]


def spread(
    problem: Problem,
    phi_P: Array,
    delta: float,
    groups: NDArray[np.intp],
    *,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array]:
    """Curvature of the objective's expectation, inverted, and the sandwich covariance, ``(p, p)`` centred.

    The curvature of Huber's loss is the share of residuals within delta of 0. With delta far below the noise that is
    a count of few runs; the density of a wider window, which the noise fills evenly, stands for it.
    """
    residual, jacobian = (array[0] for array in problem.residuals(phi_P[None]))
    if kept is not None:
        residual, jacobian, groups = residual[kept], jacobian[:, kept], groups[kept]
    n, p = len(residual), len(phi_P)
    size = np.abs(residual)
    window = max(float(np.quantile(size, min(1.0, _WINDOW + p / n))), delta)
    near = size <= window
    fitted = max(near.sum() - p, 1) / near.sum() * n / max(n - p, 1)  # p residuals are 0 because they are fitted
    hessian = (jacobian * (near * (min(1.0, delta / window) * fitted))) @ jacobian.T

    score = jacobian * np.clip(residual, -delta, delta)
    number = len(np.unique(groups))
    summed = score if number == n else np.stack([np.bincount(groups, row) for row in score])
    variance = summed @ summed.T * n / max(n - p, 1) * number / max(number - 1, 1)

    # Directions in which the law does not change have neither curvature nor scores; the ridge gives them the ratio
    # that independent runs have on the whole.
    scale = np.sqrt(np.diag(hessian)) + 1e-12 * np.sqrt(np.trace(hessian)) + 1e-150
    ratio = (np.clip(residual, -delta, delta) ** 2).sum() / max(n - p, 1) / (near.mean() * min(1.0, delta / window))
    inverse = np.linalg.inv(hessian / np.outer(scale, scale) + _RIDGE * np.eye(p))
    middle = inverse @ (variance / np.outer(scale, scale) + _RIDGE * ratio * np.eye(p)) @ inverse
    return inverse / np.outer(scale, scale), middle / np.outer(scale, scale)


def profile(
    problem: Problem, optima_SP: Array, objective: float, delta: float, groups: NDArray[np.intp], *, level: float = 0.95
) -> Profile:
    """Profile intervals of every coefficient: one batch of constrained fits walks all ends at once.

    Each constrained fit starts from the optimum moved along the valley, from its neighbour towards the optimum, and
    from the other basins (`optima_SP`, the best first). The signed root of the rise is nearly linear in the
    coefficient, so a secant in it closes in a few rounds; where the optimum lies on a plateau it is not, and a bracket
    that the secant did not halve is halved.
    """
    phi_P = optima_SP[0]
    p, n = len(phi_P), len(problem.log_target)
    inverse, covariance = spread(problem, phi_P, delta, groups)
    index, sign = np.tile(np.arange(p), 2), np.repeat([-1.0, 1.0], p)
    rows, count = np.arange(2 * p), 2 * p
    walk, to_SPP = problem.along(index)

    here_SP = (to_SPP @ phi_P[:, None])[..., 0]
    inverse_SPP = to_SPP @ inverse @ to_SPP.transpose(0, 2, 1)
    flat_S = inverse_SPP[rows, index, index]
    variance_S = (to_SPP @ covariance @ to_SPP.transpose(0, 2, 1))[rows, index, index]
    tangent_SP = inverse_SPP[rows, :, index] / flat_S[:, None]
    freedom = min(n - p, int(groups.max()))  # groups less one
    # The root of the rise at the end of the interval; a fit without error still has the rounding of its objective.
    root_S = np.maximum(np.sqrt(0.5 * variance_S / flat_S) * student(level, freedom), 1e-9)

    free_SP = np.ones((count, p), bool)
    free_SP[rows, index] = False
    centre_S = here_SP[rows, index]
    span_S = np.abs(np.where(sign < 0, walk.low[rows, index], walk.high[rows, index]) - centre_S)
    error_S = np.sqrt(variance_S)

    # Distances at which the rise is below and above the threshold, with its roots there.
    inner_S, outer_S = np.zeros(count), np.full(count, np.nan)
    inner_root_S, outer_root_S = np.zeros(count), np.full(count, np.nan)
    bracket_S = np.full(count, np.inf)
    nearest_SP = here_SP.copy()
    open_S = span_S <= 1e-9
    end_S = np.where(open_S, span_S, np.nan)
    distance_S = np.minimum(np.maximum(2.0 * error_S, 1e-9 * (1.0 + np.abs(centre_S))), span_S)
    least, better = objective, None
    for _ in range(16):
        live = np.flatnonzero(np.isnan(end_S))
        if not len(live):
            break
        at_S = centre_S[live] + sign[live] * distance_S[live]
        along_SP = here_SP[live] + (at_S - centre_S[live])[:, None] * tangent_SP[live]
        basins = (to_SPP[live] @ optima_SP[1:, None, :, None])[..., 0]
        starts = np.concatenate([np.stack([along_SP, nearest_SP[live]]), basins])
        starts[:, np.arange(len(live)), index[live]] = at_S
        found, value = minimise(
            walk.part(np.tile(live, len(starts))), starts.reshape(-1, p), np.ones((1, n)), delta,
            wide=_NARROW * delta, free_SP=np.tile(free_SP[live], (len(starts), 1)), steps=40,
        )  # fmt: skip
        value = value.reshape(len(starts), -1)
        value_S, which = value.min(0), value.argmin(0)
        found_SP = found.reshape(len(starts), -1, p)[which, np.arange(len(live))]
        if value_S.min() < least * (1 - 1e-6):
            least = float(value_S.min())
            better = np.linalg.solve(to_SPP[live[value_S.argmin()]], found_SP[value_S.argmin()])
        rise_S = np.sqrt(np.maximum(value_S - objective, 0.0))

        below = rise_S < root_S[live]
        inside, outside = live[below], live[~below]
        inner_S[inside], inner_root_S[inside] = distance_S[inside], rise_S[below]
        nearest_SP[inside] = found_SP[below]
        outer_S[outside], outer_root_S[outside] = distance_S[outside], rise_S[~below]
        reached = inside[distance_S[inside] >= span_S[inside] * (1 - 1e-9)]
        open_S[reached], end_S[reached] = True, span_S[reached]

        bracketed = ~np.isnan(outer_S)
        share_S = (root_S - inner_root_S) / np.maximum(outer_root_S - inner_root_S, 1e-300)
        between_S = inner_S + (outer_S - inner_S) * np.clip(share_S, 0.02, 0.98)
        near = np.abs(rise_S / root_S[live] - 1.0) < 0.01
        settled = bracketed & np.isnan(end_S) & (outer_S - inner_S < 0.02 * outer_S)
        settled[live[near]] |= np.isnan(end_S[live[near]])
        end_S[settled] = np.where(bracketed, between_S, distance_S)[settled]
        slow_S, bracket_S = outer_S - inner_S > 0.5 * bracket_S, np.where(bracketed, outer_S - inner_S, np.inf)
        between_S = np.where(slow_S, 0.5 * (inner_S + outer_S), between_S)
        onward_S = np.clip(distance_S * root_S / np.maximum(inner_root_S, 1e-12), 1.2 * distance_S, 4 * distance_S)
        distance_S = np.where(bracketed, between_S, np.minimum(onward_S, span_S))
    open_S |= np.isnan(end_S) & np.isnan(outer_S)
    end_S = np.where(np.isnan(end_S), np.where(np.isnan(outer_S), inner_S, distance_S), end_S)
    ends = centre_S + sign * end_S + problem.offset[index]
    edges_SP = problem.coordinates(np.linalg.solve(to_SPP, nearest_SP[..., None])[..., 0])
    return Profile(ends[:p], ends[p:], open_S[:p], open_S[p:], error_S[:p], edges_SP, better)
