"""Runs on which a fit hangs: the few whose absence moves a coefficient further than its error.

A single run moves a robust fit little, and a handful that lean the same way hide one another from tests of one run at a
time. So sets are tested: for every coefficient and direction the k runs that push it hardest, by the linear influence
of each (approximate maximum influence perturbation, arXiv:2011.14999), and the k runs with the largest influence in
least squares; each set is then left out in earnest, all in one batch of fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_optuna.laws._formulas import Array
from moe_optuna.laws._intervals import spread
from moe_optuna.laws._solver import Problem, minimise

__all__ = ["Influence", "influence"]

_LIMIT = 2.0
"""Shift, in standard errors of the fit without the runs, from which they are worth naming."""
_TOLL = 9.5
"""What each named run must add to the shift, times the root of the number of runs. Innocent runs, picked for the harm
that they do, add a third of it; a set is named where its shift exceeds the toll by one standard error."""


@dataclass(frozen=True)
class Influence:
    """Runs, the fit without them, and how far it moves.

    Attributes:
        rows: Indices of the runs, ascending.
        phi: Optimum without them ``(p,)``, centred.
        objective: Without them.
        shift: Largest move of a coefficient, in its standard errors without them.
        coefficient: Index of that coefficient.
    """

    rows: NDArray[np.intp]
    phi: Array
    objective: float
    shift: float
    coefficient: int


def influence(problem: Problem, phi_P: Array, delta: float, groups: NDArray[np.intp]) -> Influence | None:
    """The influential runs, or ``None`` where no small set (a twentieth of the runs, ten at most) moves the fit."""
    n = len(problem.log_target)
    largest = min(10, n // 20)
    if largest == 0:
        return None
    residual_N, jacobian_PN = (array[0] for array in problem.residuals(phi_P[None]))
    inverse, covariance = spread(problem, phi_P, delta, groups)
    to_formula = problem.matrix
    error_P = np.sqrt(np.diag(to_formula @ covariance @ to_formula.T)) + 1e-300
    push_PN = (to_formula @ inverse @ (jacobian_PN * np.clip(residual_N, -delta, delta))) / error_P[:, None]
    squares_PN = (to_formula @ inverse @ (jacobian_PN * residual_N)) / error_P[:, None]
    orders = [np.argsort(-sign * row)[:largest] for row in push_PN for sign in (1.0, -1.0)]
    orders.append(np.argsort(-np.abs(squares_PN).max(0))[:largest])
    sets = list({tuple(sorted(map(int, order[: k + 1]))) for k in range(largest) for order in orders})

    weights_SN = np.ones((len(sets), n))
    for row, members in enumerate(sets):
        weights_SN[row, list(members)] = 0.0
    optimum_SP, objective_S = minimise(problem, np.tile(phi_P, (len(sets), 1)), weights_SN, delta, wide=0.05)
    moved_SP = problem.coordinates(optimum_SP) - problem.coordinates(phi_P[None])
    shift_S, coefficient_S = np.zeros(len(sets)), np.zeros(len(sets), int)
    for row in range(len(sets)):
        kept = weights_SN[row] > 0
        _, without = spread(problem, optimum_SP[row], delta, groups, kept=kept)
        error_P = np.sqrt(np.diag(to_formula @ without @ to_formula.T)) + 1e-300
        shifts = np.abs(moved_SP[row]) / error_P
        shift_S[row], coefficient_S[row] = shifts.max(), shifts.argmax()
    excess_S = shift_S - _TOLL / np.sqrt(n) * np.array([len(members) for members in sets])
    chosen = int(excess_S.argmax())
    if excess_S[chosen] < 1.0 or shift_S[chosen] < _LIMIT:
        return None
    return Influence(
        np.array(sets[chosen]),
        optimum_SP[chosen],
        float(objective_S[chosen]),
        float(shift_S[chosen]),
        int(coefficient_S[chosen]),
    )
