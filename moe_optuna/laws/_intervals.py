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

__all__ = ["Profile", "bootstrap_weights", "profile", "spread", "student"]

_WINDOW = 0.3
"""Share of the runs whose residuals, nearest zero, give the density of the noise there."""


@dataclass(frozen=True)
class Profile:
    """Ends of the interval of each coefficient, in the formula's coordinates ``(p,)``, and which are open.

    Attributes:
        low, high: The ends; an open one is where the physical region ends.
        open_low, open_high: Whether the data set no such end.
        error: Standard errors ``(p,)``, in the formula's coordinates.
        better: A lower optimum, ``(p,)`` centred, where a profile came across one.
    """

    low: Array
    high: Array
    open_low: NDArray[np.bool_]
    open_high: NDArray[np.bool_]
    error: Array
    better: Array | None


def student(level: float, freedom: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), 0.5 + 0.5 * level))


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

    scale = np.sqrt(np.diag(hessian)) + 1e-150
    inverse = np.linalg.inv(hessian / np.outer(scale, scale) + 1e-9 * np.eye(p)) / np.outer(scale, scale)
    return inverse, inverse @ variance @ inverse


def profile(
    problem: Problem, phi_P: Array, objective: float, delta: float, groups: NDArray[np.intp], *, level: float = 0.95
) -> Profile:
    """Profile intervals of every coefficient: one batch of constrained fits walks all ends at once.

    The signed root of the rise is nearly linear in the coefficient, so a secant in it closes in a few rounds.
    """
    p, n = len(phi_P), len(problem.log_target)
    inverse, covariance = spread(problem, phi_P, delta, groups)
    index, sign = np.tile(np.arange(p), 2), np.repeat([-1.0, 1.0], p)
    rows, count = np.arange(2 * p), 2 * p
    walk, to_SPP = problem.along(index)

    here_SP = (to_SPP @ phi_P[:, None])[..., 0]
    inverse_SPP = to_SPP @ inverse @ to_SPP.transpose(0, 2, 1)
    covariance_SPP = to_SPP @ covariance @ to_SPP.transpose(0, 2, 1)
    flat_S = np.maximum(inverse_SPP[rows, index, index], 1e-300)
    variance_S = covariance_SPP[rows, index, index]
    tangent_SP = inverse_SPP[rows, :, index] / flat_S[:, None]
    freedom = min(n - p, int(groups.max()))  # groups less one
    root_S = np.sqrt(0.5 * variance_S / flat_S) * student(level, freedom)  # of the rise at the end of the interval
    root_S = np.maximum(root_S, 1e-9)

    free_SP = np.ones((count, p), bool)
    free_SP[rows, index] = False
    centre_S = here_SP[rows, index]
    span_S = np.abs(np.where(sign < 0, walk.low[rows, index], walk.high[rows, index]) - centre_S)
    error_S = np.maximum(np.sqrt(variance_S), 1e-9 * (1.0 + np.abs(centre_S)))

    inner_S, outer_S = (
        np.zeros(count),
        np.full(count, np.nan),
    )  # distances at which the rise is below, above the threshold
    inner_root_S, outer_root_S = np.zeros(count), np.full(count, np.nan)
    nearest_SP = here_SP.copy()
    open_S = span_S <= 1e-9
    done_S = open_S.copy()
    distance_S = np.minimum(2.0 * error_S, span_S)
    weights = np.ones((1, n))
    better: Array | None = None
    least = objective
    for _ in range(16):
        at_S = centre_S + sign * distance_S
        along_SP = here_SP + (at_S - centre_S)[:, None] * tangent_SP
        starts = np.concatenate([along_SP, nearest_SP])
        starts[rows, index], starts[rows + count, index] = at_S, at_S
        twice = walk.part(np.tile(rows, 2))
        found_SP, value_S = minimise(
            twice, starts, weights, delta, wide=0.01, free_SP=np.concatenate([free_SP, free_SP]), steps=25
        )
        second = value_S[count:] < value_S[:count]
        found_SP = np.where(second[:, None], found_SP[count:], found_SP[:count])
        value_S = np.minimum(value_S[:count], value_S[count:])
        if value_S.min() < least * (1 - 1e-6):
            least = float(value_S.min())
            best = int(value_S.argmin())
            better = np.linalg.solve(to_SPP[best], found_SP[best])
        rise_S = np.sqrt(np.maximum(value_S - objective, 0.0))

        below = (rise_S < root_S) & ~done_S
        above = (rise_S >= root_S) & ~done_S
        reached = below & (distance_S >= span_S * (1 - 1e-9))
        open_S, done_S = open_S | reached, done_S | reached
        inner_S, inner_root_S = np.where(below, distance_S, inner_S), np.where(below, rise_S, inner_root_S)
        outer_S, outer_root_S = np.where(above, distance_S, outer_S), np.where(above, rise_S, outer_root_S)
        nearest_SP = np.where(below[:, None], found_SP, nearest_SP)
        bracketed = ~np.isnan(outer_S)
        done_S |= bracketed & (outer_S - inner_S < 0.02 * outer_S)
        if done_S.all():
            break
        slope_S = (root_S - inner_root_S) / np.maximum(outer_root_S - inner_root_S, 1e-300)
        between_S = inner_S + (outer_S - inner_S) * np.clip(slope_S, 0.1, 0.9)
        onward_S = 1.1 * distance_S * root_S / np.maximum(inner_root_S, 1e-12)
        onward_S = np.clip(onward_S, 1.2 * distance_S, 4 * distance_S)
        distance_S = np.where(bracketed, between_S, np.minimum(onward_S, span_S))
    slope_S = np.clip((root_S - inner_root_S) / np.maximum(outer_root_S - inner_root_S, 1e-300), 0.0, 1.0)
    end_S = np.where(np.isnan(outer_S), np.where(open_S, span_S, inner_S), inner_S + (outer_S - inner_S) * slope_S)
    ends = centre_S + sign * end_S + problem.offset[index]
    open_S |= np.isnan(outer_S)
    return Profile(ends[:p], ends[p:], open_S[:p], open_S[p:], np.sqrt(variance_S[:p]), better)
