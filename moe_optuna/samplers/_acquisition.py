"""What a trial is worth, as pure functions of arrays.

Shapes: m candidates with posterior `mean` (m,) and `cov` (m, m) of the noise-free loss; `noise` (scalar) is the
variance of an observation's seed noise. Losses are minimised.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_optuna.samplers._design import squared_distances

__all__ = ["believe", "expected_improvement", "success", "value_of_information"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_LENGTHS = (0.05, 0.1, 0.2, 0.4)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """``E[max(best - f, 0)]``, (m,) (Jones et al. 1998, eq. 15)."""
    from scipy.special import ndtr

    sd = np.maximum(sd, 1e-12)
    z = (best - mean) / sd
    gain: Array = (best - mean) * ndtr(z) + sd * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return gain


def believe(cov: Array, noise: float, pending: Indices) -> Array:
    """Posterior covariance once the runs at `pending` (k,) are in; the mean stays, as what they will say is expected
    to be the mean (the kriging believer, Ginsbourger et al. 2010)."""
    for index in pending:
        column = cov[:, index]
        cov = cov - np.outer(column, column) / (column[index] + noise)
    return cov


def value_of_information(mean: Array, cov: Array, noise: float, width: float) -> Array:
    """What a run at each candidate is expected to tell about the optimum and its band, (m,), in nats per token.

    After a run at x the posterior mean at r becomes ``mean_r + cov_xr / sqrt(cov_xx + noise) Z`` with Z standard normal
    (Frazier et al. 2009, eq. 9); with Z integrated by Gauss-Hermite quadrature the sum of two expectations:

    - the knowledge gradient: how far the least posterior mean falls, i.e. what the recommendation gains;
    - the band: how much less of the candidates' loss is misjudged about the band's edge ``least mean (1 + width)``.
      Where r's membership is decided by the sign of ``mean_r - edge``, its expected misjudged loss is
      ``E[max(f - edge, 0)]`` inside and ``E[max(edge - f, 0)]`` outside (the straddle of Bryan et al. 2005 with its
      stakes); averaged over the candidates.

    Args:
        width: Relative width of the near-optimal band.
    """
    total = np.diag(cov) + noise
    change = cov / np.sqrt(total)[:, None]  # (x, r)
    least = float(mean.min())
    drop = np.zeros(len(mean))
    misjudged = np.zeros(len(mean))
    before = np.sqrt(np.maximum(np.diag(cov), 0))
    after = np.sqrt(np.maximum(np.diag(cov)[None, :] - change**2, 0))
    now = _misjudged(mean, before, least * (1 + width)).mean()
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        future = mean + node * change
        lowest = future.min(1)
        drop += weight * (least - lowest)
        misjudged += weight * _misjudged(future, after, lowest[:, None] * (1 + width)).mean(1)
    worth: Array = np.maximum(drop, 0) + np.maximum(now - misjudged, 0)
    return worth


def _misjudged(mean: Array, sd: Array, edge: Array | float) -> Array:
    return expected_improvement(np.abs(mean - edge), sd, 0.0)


def success(inputs: Array, failed: Array, finished: Array) -> Array:
    """Probability that a run ends with a loss, (m,), from where runs failed and where they did not.

    A kernel vote of the runs (Nadaraya and Watson) together with half a vote of the failures' share overall; of the
    kernel's lengths that under which each run is best predicted by the others.

    Args:
        inputs: Candidates in the unit cube, (m, k).
        failed: Runs that failed, (f, k).
        finished: Runs that did not, (n, k).
    """
    if not len(failed):
        return np.ones(len(inputs))
    runs = np.vstack([failed, finished])
    bad = np.arange(len(runs)) < len(failed)
    # One more run that finished: the first failure alone does not make failures the rule.
    share = len(failed) / (len(runs) + 1)

    def failure(squared: Array) -> Array:
        votes = np.exp(-0.5 * squared)
        odds: Array = (votes @ bad + 0.5 * share) / (votes.sum(1) + 0.5)
        return odds

    among = squared_distances(runs, runs)
    np.fill_diagonal(among, np.inf)

    def likelihood(length: float) -> float:
        odds = failure(among / length**2)
        return float(np.log(np.where(bad, odds, 1 - odds)).sum())

    length = max(_LENGTHS, key=likelihood)
    return 1 - failure(squared_distances(inputs, runs) / length**2)
