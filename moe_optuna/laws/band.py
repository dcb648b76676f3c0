"""The near-optimal band: every value of an axis whose loss is within a share (0.1 % in arXiv:2603.21862) of the
least.

A band is as uncertain as the losses under it. Here it is computed for each of many joint draws of the losses over
candidates, so that its edges come with intervals; the draws come from the surrogate, a bootstrap, or any other
source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BAND", "Band", "Growth", "Optimum", "band_of_draws", "growth"]

BAND = 0.001
"""Relative width of the band in loss, after the paper."""

Verdict = Literal["widens", "narrows", "can't tell"]
Array = NDArray[np.float64]
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Band:
    """Low and high edge of a band, their 95 % intervals, and the share of loss above the least that defines it."""

    low: float
    high: float
    low_interval: tuple[float, float]
    high_interval: tuple[float, float]
    width: float = BAND


@dataclass(frozen=True)
class Optimum:
    """The best candidate by a surrogate.

    Attributes:
        index: Its place among the candidates.
        loss: Predicted loss, nats per token.
        interval: 95 % interval of that loss.
        in_band: Probability that its loss is within `width` of the least over all candidates.
    """

    index: int
    loss: float
    interval: tuple[float, float]
    in_band: float
    width: float = BAND


def band_of_draws(draws: Array, values: Array, width: float = BAND) -> Band:
    """The band of an axis from joint draws of losses.

    Args:
        draws: Losses (s, m), a row a draw.
        values: The axis at each candidate (m,).
        width: Share of loss above the least.
    """
    inside = draws <= draws.min(1, keepdims=True) * (1 + width)
    low = np.where(inside, values, np.inf).min(1)
    high = np.where(inside, values, -np.inf).max(1)
    return Band(float(np.median(low)), float(np.median(high)), interval(low), interval(high), width)


def interval(draws: Array) -> tuple[float, float]:
    """95 % interval of draws (s,)."""
    low, high = np.quantile(draws, QUANTILES)
    return float(low), float(high)


@dataclass(frozen=True)
class Growth:
    """How a band's extent changes with compute: ``extent ~ compute^exponent``.

    Attributes:
        exponent, interval: Fitted exponent and its 95 % interval.
        verdict: ``widens`` or ``narrows`` where the interval leaves 0 out, else ``can't tell``.
    """

    exponent: float
    interval: tuple[float, float]
    verdict: Verdict


def growth(compute: ArrayLike, extents: ArrayLike) -> Growth:
    """The exponent of a band's extent in compute.

    Args:
        compute: Budgets (b,), at least two different ones.
        extents: Positive extents by draw, (s, b): log(high / low) for the relative, high - low for the absolute
            growth.
    """
    h = np.log(np.asarray(compute, float))
    y = np.log(np.asarray(extents, float))
    weight = 1 / (y.var(0) + 1e-12)
    weight /= weight.sum()
    centred = h - weight @ h
    exponents = (y - (y @ weight)[:, None]) @ (weight * centred) / (weight @ centred**2)
    low, high = interval(exponents)
    verdict: Verdict = "widens" if low > 0 else "narrows" if high < 0 else "can't tell"
    return Growth(float(np.median(exponents)), (low, high), verdict)
