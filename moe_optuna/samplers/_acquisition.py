"""What a trial is worth.

Shapes: m candidates with posterior `mean` (m,) and `cov` (m, m) of the noise-free loss; `noise` (scalar) is the
variance of an observation's seed noise. Losses are minimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Odds", "believe", "expected_improvement", "value_of_information"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_LENGTHS = np.array([0.05, 0.1, 0.2, 0.4])
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_SURE = 6.0  # standard deviations from the band's edge beyond which a candidate's side of it is settled
_STEPS = 128.0  # table entries of psi a standard deviation, of which it is interpolated to 1e-5
_Z = np.arange(0, 8 * _STEPS + 2) / _STEPS
_PSI = np.exp(-0.5 * _Z**2) / np.sqrt(2 * np.pi) - _Z * np.vectorize(math.erfc)(_Z / math.sqrt(2)) / 2
_FALLS = np.diff(_PSI)


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


def value_of_information(mean: Array, cov: Array, noise: float, width: float, among: Indices) -> Array:
    """What a run is expected to tell about the optimum and its band, (a,), in nats per token.

    After a run at x the posterior mean at r becomes ``mean_r + cov_xr / sqrt(cov_xx + noise) Z`` with Z standard normal
    (Frazier et al. 2009, eq. 9); with Z integrated by Gauss-Hermite quadrature the sum of two expectations:

    - the knowledge gradient: how far the least posterior mean falls, i.e. what the recommendation gains;
    - the band: how much less of the candidates' loss is misjudged about the band's edge ``least mean (1 + width)``.
      Where r's membership is decided by the sign of ``mean_r - edge``, its expected misjudged loss is
      ``E[max(f - edge, 0)]`` inside and ``E[max(edge - f, 0)]`` outside (the straddle of Bryan et al. 2005 with its
      stakes); averaged over the candidates.

    Args:
        width: Relative width of the near-optimal band.
        among: The candidates that may be run, (a,).
    """
    variance = np.maximum(np.diag(cov), 0)
    change = cov[among] / np.sqrt(variance[among] + noise)[:, None]  # (x, r)
    least = float(mean.min())
    gap = mean - least * (1 + width)
    # What is sure to stay on its side of the edge can neither be misjudged nor become the best.
    open_ = np.abs(gap) < _SURE * np.sqrt(variance)
    if not open_.any():
        return np.zeros(len(among))
    settled = math.inf if open_[mean.argmin()] else least
    mean, gap, variance, change = mean[open_], gap[open_], variance[open_], change[:, open_]
    after = np.sqrt(np.maximum(variance - change**2, 1e-24))
    now = _misjudged(gap, np.sqrt(variance)).sum()
    drop, misjudged = np.zeros(len(change)), np.zeros(len(change))
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        future = mean + node * change
        lowest = np.minimum(future.min(1), settled)
        drop += weight * (least - lowest)
        misjudged += weight * _misjudged(future - lowest[:, None] * (1 + width), after).sum(1)
    worth: Array = np.maximum(drop, 0) + np.maximum(now - misjudged, 0) / len(open_)
    return worth


def _misjudged(gap: Array, sd: Array) -> Array:
    """``sd psi(|gap| / sd)`` with ``psi(z) = phi(z) - z Phi(-z)``, the loss that lies beyond the edge."""
    place = np.abs(gap)
    place *= _STEPS / sd
    np.minimum(place, len(_FALLS) - 1.0, out=place)
    below = place.astype(np.intp)
    place -= below
    place *= _FALLS.take(below)
    place += _PSI.take(below)
    place *= sd
    return place


class Odds:
    """Which architectures of a lattice are likely to finish, from where runs failed and where they did not.

    A kernel vote of the runs (Nadaraya and Watson) together with half a vote of the failures' share overall; of the
    kernel's lengths that under which each run is best predicted by the others. Votes are counted once, as runs end.

    Args:
        inputs: The lattice in the unit cube, (m, k).
    """

    def __init__(self, inputs: Array) -> None:
        self._inputs = inputs
        self._counted: dict[int, bool] = {}
        self._votes, self._against = np.zeros((2, len(_LENGTHS), len(inputs)))

    def finishing(self, ended: Mapping[int, bool]) -> Array:
        """Probability that a run ends with a loss, (m,); 0 where it has been tried in vain.

        Args:
            ended: Whether an architecture failed, by its place in the lattice; what has been told stays told.
        """
        if not any(ended.values()):
            return np.ones(len(self._inputs))
        for place, bad in ended.items():
            if self._counted.get(place) != bad:
                votes = np.exp(-0.5 * ((self._inputs - self._inputs[place]) ** 2).sum(1) / _LENGTHS[:, None] ** 2)
                self._votes += votes * (place not in self._counted)
                self._against += votes * (float(bad) - self._counted.get(place, False))
                self._counted[place] = bad
        places, failed = np.array(list(ended)), np.array(list(ended.values()))
        # One more run that finished: the first failure alone does not make failures the rule.
        share = failed.sum() / (len(places) + 1)
        others = (self._against[:, places] - failed + 0.5 * share) / (self._votes[:, places] - 0.5)
        length = np.log(np.where(failed, others, 1 - others)).sum(1).argmax()
        odds: Array = 1 - (self._against[length] + 0.5 * share) / (self._votes[length] + 0.5)
        odds[places[failed]] = 0.0
        return odds
