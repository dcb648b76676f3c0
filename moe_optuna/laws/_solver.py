"""Robust fits of one form to one table of runs, many at once: every start, bootstrap and profile point is a row of
one batch.

Minimises ``sum_i w_i huber(log f(x_i) - log y_i)`` over centred coordinates in a box. Shapes carry their letters:
s fits of the batch, p coordinates, n runs.

Two stages, both Levenberg-Marquardt with projected steps. First the Huber threshold falls geometrically from wide
(least squares, which finds the basin) to its target, each step with the weights min(1, delta/|r|). Those weights bound
the curvature from above, so they never overshoot and converge slowly; the second stage therefore takes the curvature
of the objective itself, from the residuals within a window that shrinks to delta, and ends in a few Newton steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_optuna.laws._form import Features, Form
from moe_optuna.laws._formulas import Array

__all__ = ["Problem", "huber", "minimise"]

_BLOCK = 400_000
"""Numbers of one Jacobian block: small enough for the cache, large enough for NumPy."""
_SHRINK = 0.6
_BAD = 1e6
"""Residual of a point at which the law has no value."""


def huber(residuals: Array, delta: float) -> Array:
    """``r^2/2`` within delta, ``delta (|r| - delta/2)`` outside."""
    size = np.abs(residuals)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


@dataclass(frozen=True)
class Problem:
    """A form, its runs, and the coordinates in which it is searched: ``q = matrix phi + offset`` inside a box.

    Attributes:
        matrix: ``(p, p)``, or ``(s, p, p)`` where each fit of a batch has its own coordinates.
        low, high: The box, ``(p,)`` or ``(s, p)``.
    """

    form: Form
    features: Features
    log_target: Array
    matrix: Array
    offset: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, form: Form, features: Features, target: Array) -> Problem:
        """The problem of fitting a form to targets ``(n,)``, in centred coordinates."""
        matrix, offset = form.centre(features, float(target.min()))
        low, high = form.region
        return cls(form, features, np.log(target), matrix, offset, low, high)

    def along(self, index_S: NDArray[np.intp]) -> tuple[Problem, Array]:
        """The same problem with a coordinate of the formula itself in place of one centred coordinate a fit.

        A profile holds a printed coefficient fixed, and most of those mix several centred coordinates.

        Returns:
            The problem, and the maps ``(s, p, p)`` from centred coordinates to its own.
        """
        rows = np.arange(len(index_S))
        to_SPP = np.tile(np.eye(len(self.low)), (len(index_S), 1, 1))
        to_SPP[rows, index_S] = self.matrix[index_S]
        ends = np.stack([self.matrix * self.low, self.matrix * self.high])
        low_SP, high_SP = np.tile(self.low, (len(index_S), 1)), np.tile(self.high, (len(index_S), 1))
        low_SP[rows, index_S], high_SP[rows, index_S] = ends.min(0).sum(1)[index_S], ends.max(0).sum(1)[index_S]
        matrix_SPP = self.matrix @ np.linalg.inv(to_SPP)
        return replace(self, matrix=matrix_SPP, low=low_SP, high=high_SP), to_SPP

    def of_runs(self, kept_N: NDArray[np.intp]) -> Problem:
        """The problem of some of the runs, in the same coordinates."""
        features = tuple(feature[kept_N] for feature in self.features)
        return replace(self, features=features, log_target=self.log_target[kept_N])

    def part(self, rows: slice | NDArray[np.intp]) -> Problem:
        """The problem of some rows of the batch."""
        if self.matrix.ndim == 2:
            return self
        return replace(self, matrix=self.matrix[rows], low=self.low[rows], high=self.high[rows])

    def coefficients(self, phi_SP: Array) -> Array:
        """Coefficients ``(s, p)`` as printed."""
        return self.form.coefficients(self.coordinates(phi_SP))

    def coordinates(self, phi_SP: Array) -> Array:
        """The formula's coordinates ``(s, p)``."""
        return np.asarray((self.matrix @ phi_SP[..., None])[..., 0] + self.offset)

    def residuals(self, phi_SP: Array) -> tuple[Array, Array]:
        """Log residuals ``(s, n)`` and their Jacobian ``(s, p, n)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            value_SN, partials = self.form.log_model(self.features, self.coordinates(phi_SP))
            jacobian_SPN = np.swapaxes(self.matrix, -1, -2) @ np.stack(partials, axis=1)
        residual_SN = value_SN - self.log_target
        bad = ~(np.isfinite(residual_SN).all(1) & np.isfinite(jacobian_SPN).all((1, 2)))
        if bad.any():
            residual_SN[bad], jacobian_SPN[bad] = _BAD, 0.0
        return residual_SN, jacobian_SPN


def minimise(
    problem: Problem,
    start_SP: Array,
    weights_SN: Array,
    delta: float,
    *,
    wide: float,
    free_SP: NDArray[np.bool_] | None = None,
    steps: int = 40,
) -> tuple[Array, Array]:
    """Fits from many starts.

    Args:
        problem: Form and runs.
        start_SP: Starting points; fixed coordinates keep their value.
        weights_SN: Weights of the runs, one row a fit or one row for all.
        delta: Huber threshold in log units.
        wide: Threshold at which the first stage begins; `delta` for a start near the optimum.
        free_SP: Coordinates that may move; all unless given.
        steps: Newton steps at most.

    Returns:
        The optima ``(s, p)`` and objectives ``(s,)``.
    """
    count, p = start_SP.shape
    free_SP = np.ones((count, p), bool) if free_SP is None else np.broadcast_to(free_SP, (count, p))
    weights_SN = np.broadcast_to(weights_SN, (count, weights_SN.shape[-1]))
    size = max(1, _BLOCK // (p * weights_SN.shape[1]))
    best_SP, objective_S = np.empty((count, p)), np.empty(count)
    for first in range(0, count, size):
        block = slice(first, first + size)
        fits = _Batch(problem.part(block), start_SP[block], weights_SN[block], free_SP[block])
        level = max(wide, delta)
        while level > delta:
            fits.step(level, None)
            level *= _SHRINK
        for _ in range(3):
            fits.step(delta, None)
        fits.polish(delta, steps)
        best_SP[block], objective_S[block] = fits.phi_SP, fits.objective(delta)
    return best_SP, objective_S


class _Batch:
    """A block of fits and the state of their Levenberg-Marquardt iterations."""

    def __init__(self, problem: Problem, phi_SP: Array, weights_SN: Array, free_SP: NDArray[np.bool_]) -> None:
        self.problem, self.weights_SN, self.free_SP = problem, weights_SN, free_SP
        self.phi_SP = np.clip(phi_SP, problem.low, problem.high)
        self.residual_SN, self.jacobian_SPN = problem.residuals(self.phi_SP)
        self.damping_S = np.full(len(phi_SP), 1e-2)

    def objective(self, delta: float) -> Array:
        return np.asarray((self.weights_SN * huber(self.residual_SN, delta)).sum(1))

    def step(self, delta: float, window_S: Array | None) -> tuple[NDArray[np.bool_], Array]:
        """One projected step of every fit, with the curvature of the window or, without one, of the reweighted
        squares.

        Returns:
            Which fits moved, and by how much their objectives fell.
        """
        size_SN, J = np.abs(self.residual_SN), self.jacobian_SPN
        upper_SN = self.weights_SN * np.minimum(1.0, delta / np.maximum(size_SN, 1e-300))
        if window_S is None:
            curvature_SN = upper_SN
        else:
            curvature_SN = self.weights_SN * (size_SN <= window_S[:, None]) * (delta / window_S[:, None])
        gradient_SP = np.einsum("spn,sn->sp", J, upper_SN * self.residual_SN)
        hessian_SPP = (J * curvature_SN[:, None]) @ J.transpose(0, 2, 1)
        scale_SP = np.einsum("spn,spn,sn->sp", J, J, upper_SN)

        low, high = self.problem.low, self.problem.high
        stuck_SP = ((self.phi_SP <= low) & (gradient_SP > 0)) | ((self.phi_SP >= high) & (gradient_SP < 0))
        move_SP = self.free_SP & ~stuck_SP
        hessian_SPP = hessian_SPP * (move_SP[:, :, None] & move_SP[:, None, :])
        diagonal = np.arange(hessian_SPP.shape[1])
        ridge_SP = self.damping_S[:, None] * scale_SP + 1e-12 * scale_SP.max(1, keepdims=True) + 1e-300
        hessian_SPP[:, diagonal, diagonal] += np.where(move_SP, ridge_SP, 1.0)
        change_SP = -np.linalg.solve(hessian_SPP, (gradient_SP * move_SP)[..., None])[..., 0]
        change_SP = np.clip(np.nan_to_num(change_SP), -2.0, 2.0)

        trial_SP = np.clip(self.phi_SP + change_SP, low, high)
        residual_SN, jacobian_SPN = self.problem.residuals(trial_SP)
        fall_S = (self.weights_SN * (huber(self.residual_SN, delta) - huber(residual_SN, delta))).sum(1)
        better = fall_S > 0
        self.phi_SP[better], self.residual_SN[better], self.jacobian_SPN[better] = (
            trial_SP[better],
            residual_SN[better],
            jacobian_SPN[better],
        )
        self.damping_S = np.where(better, np.maximum(self.damping_S / 5, 1e-9), np.minimum(self.damping_S * 8, 1e8))
        return better, np.where(better, fall_S, 0.0)

    def polish(self, delta: float, steps: int) -> None:
        """Newton steps until no fit falls by more than a billionth of its objective."""
        window_S = np.maximum(np.quantile(np.abs(self.residual_SN), 0.3, axis=1), delta)
        self.damping_S[:] = 1e-3
        objective_S, failures_S = self.objective(delta), np.zeros(len(window_S), int)
        alive = np.arange(len(window_S))
        for _ in range(steps):
            part = self._subset(alive)
            better, fall_S = part.step(delta, window_S[alive])
            self.phi_SP[alive], self.damping_S[alive] = part.phi_SP, part.damping_S
            self.residual_SN[alive], self.jacobian_SPN[alive] = part.residual_SN, part.jacobian_SPN
            window_S[alive] = np.where(better, np.maximum(window_S[alive] / 1.5, delta), window_S[alive])
            idle_S = np.where(better, 2, 1)  # a tiny fall says more than a refused step
            failures_S[alive] = np.where(fall_S > 1e-9 * objective_S[alive], 0, failures_S[alive] + idle_S)
            alive = alive[failures_S[alive] < 4]
            if not len(alive):
                break

    def _subset(self, rows: NDArray[np.intp]) -> _Batch:
        part = object.__new__(_Batch)
        part.problem, part.weights_SN, part.free_SP = self.problem.part(rows), self.weights_SN[rows], self.free_SP[rows]
        part.phi_SP, part.damping_S = self.phi_SP[rows], self.damping_S[rows]
        part.residual_SN, part.jacobian_SPN = self.residual_SN[rows], self.jacobian_SPN[rows]
        return part
