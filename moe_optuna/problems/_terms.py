"""Terms of a problem's loss: functions of an architecture and a budget, added in log loss.

A term takes `features`, a mapping of the words below to arrays of shape (n,), and the compute C in FLOPs; it returns
an array of shape (n,), the log of the loss over what it would be where the term is 0: at its optimum, but for
`EfficiencyLeverage`, `Slope` and `Roughness`, which fall below 0. Features are
`compute_density, expansion_ratio, d_model, n_layers, granularity, activation_ratio, allocation` (M over the M of the
space's law) and the dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moe_optuna.laws import PUBLISHED

__all__ = [
    "Allocation",
    "Array",
    "ComputeDensity",
    "EfficiencyLeverage",
    "ExpansionRatio",
    "Features",
    "Jump",
    "PowerLaw",
    "Roughness",
    "Shape",
    "Slope",
    "Term",
    "TwoBasins",
    "Valley",
]

Array = NDArray[np.float64]
Features = Mapping[str, Array]


class Term(Protocol):
    """One contribution to the log loss."""

    def __call__(self, features: Features, compute: float) -> Array: ...


@dataclass(frozen=True)
class PowerLaw:
    """``value (C / at)^exponent``: where an optimum moves with the budget."""

    value: float
    exponent: float
    at: float

    def __call__(self, compute: float) -> float:
        return float(self.value * (compute / self.at) ** self.exponent)


@dataclass(frozen=True)
class Jump:
    """A power law up to a budget, beyond which the optimum stands elsewhere: what a jump of the head count does to
    M/Na."""

    law: PowerLaw
    beyond: float
    factor: float

    def __call__(self, compute: float) -> float:
        return self.law(compute) * (self.factor if compute > self.beyond else 1.0)


Location = PowerLaw | Jump


@dataclass(frozen=True)
class ComputeDensity:
    """``a/(x - 6) + b x + c`` in ``x = M/Na`` (arXiv:2603.21862, section 4.2), written about its optimum.

    With ``r = (x - 6) / optimum(C)`` it is ``strength (r + 1/r - 2) / 2``.

    Attributes:
        optimum: M/Na - 6 at the optimum, against C.
        strength: Log loss a unit of ``log(r)^2 / 2`` costs near the optimum.
    """

    optimum: Location
    strength: float = 0.01

    def __call__(self, features: Features, compute: float) -> Array:
        ratio = (features["compute_density"] - 6) / self.optimum(compute)
        return self.strength * (ratio + 1 / ratio - 2) / 2


@dataclass(frozen=True)
class ExpansionRatio:
    """``a/(x - 1) + b/(R - x) + c`` in ``x = N/Na``, R the ratio of an architecture all of whose FLOPs are experts'
    (arXiv:2603.21862, section 4.2); R = 289/9 there.

    With ``u = (x - 1) / (R - 1)`` and its optimum ``o``: ``strength (o^2/u + (1 - o)^2/(1 - u) - 1)``.

    Attributes:
        pole: R.
        optimum: ``o``, between 0 and 1 (0.62 in the paper), moved along `drift` a decade of C.
        strength: Log loss.
        drift: What a decade of C adds to the optimum.
        at: C in FLOPs at which the optimum is `optimum`.
    """

    pole: float
    optimum: float = 0.62
    strength: float = 0.01
    drift: float = 0.0
    at: float = 1e18

    def __call__(self, features: Features, compute: float) -> Array:
        best = float(np.clip(self.optimum + self.drift * np.log10(compute / self.at), 0.05, 0.95))
        share = np.clip((features["expansion_ratio"] - 1) / (self.pole - 1), 1e-3, 1 - 1e-3)
        return self.strength * (best**2 / share + (1 - best) ** 2 / (1 - share) - 1)


@dataclass(frozen=True)
class Shape:
    """A quadratic in the log of one feature: in ``d_model`` the paper's Phase-2 law, in ``aspect`` (d_model over
    layers) a depth-width term.

    Attributes:
        feature: The feature's name, or ``aspect``.
        optimum: The feature at the optimum, against C.
        strength: Log loss at a factor of e from the optimum.
    """

    feature: str
    optimum: Location
    strength: float = 0.02

    def __call__(self, features: Features, compute: float) -> Array:
        value = _value(features, self.feature)
        penalty: Array = self.strength * np.log(value / self.optimum(compute)) ** 2
        return penalty


@dataclass(frozen=True)
class EfficiencyLeverage:
    """The joint law of arXiv:2507.17702 over A, G and C as log loss: a leverage of EL is worth EL times the compute,
    ``-slope log(EL)`` where ``L = alpha C^-slope``. More leverage is always better, so its minimum is below 0.

    Attributes:
        slope: Exponent of the loss in compute, of the MoE family in that paper.
    """

    slope: float = 0.0694

    def __call__(self, features: Features, compute: float) -> Array:
        granularity = np.clip(features["granularity"], 0.25, 64)
        value, _ = PUBLISHED["leverage"].quietly(features["activation_ratio"], granularity, compute)
        penalty: Array = -self.slope * np.log(value)
        return penalty


@dataclass(frozen=True)
class Allocation:
    """``A/M^alpha + B/D^beta`` under ``C = M D`` (Chinchilla's form, arXiv:2203.15556), written about its optimum.

    With ``r = M/M*`` it is ``strength ((beta r^-alpha + alpha r^beta) / (alpha + beta) - 1)``.

    Attributes:
        optimum: M at the optimum over the law's M, against C.
    """

    optimum: Location
    strength: float = 0.4
    alpha: float = 0.34
    beta: float = 0.28

    def __call__(self, features: Features, compute: float) -> Array:
        ratio = features["allocation"] / self.optimum(compute)
        mixture = (self.beta * ratio**-self.alpha + self.alpha * ratio**self.beta) / (self.alpha + self.beta)
        return self.strength * (mixture - 1)


@dataclass(frozen=True)
class Valley:
    """A narrow valley across two features: the best of one depends on the other, so no sum of one-axis laws fits.

    Attributes:
        features: Names of the two.
        centre: Their values at the optimum.
        scale: Log-widths of the ranges, so that both count alike.
        narrow, wide: Log loss a scale away across the valley and along it.
    """

    features: tuple[str, str]
    centre: tuple[Location, Location]
    scale: tuple[float, float]
    narrow: float = 0.02
    wide: float = 0.003

    def __call__(self, features: Features, compute: float) -> Array:
        u, v = (
            np.log(_value(features, name) / centre(compute)) / scale
            for name, centre, scale in zip(self.features, self.centre, self.scale, strict=True)
        )
        return (self.narrow * (u + v) ** 2 + self.wide * (u - v) ** 2) / 2


@dataclass(frozen=True)
class TwoBasins:
    """Two minima in the log of one feature, the second a little worse: a quadratic fits neither.

    Attributes:
        feature: The feature's name.
        best, other: The two minima.
        gap: Log loss of the second minimum over the first.
        strength: Log loss at a factor of e from a minimum.
    """

    feature: str
    best: Location
    other: Location
    gap: float = 0.003
    strength: float = 0.04

    def __call__(self, features: Features, compute: float) -> Array:
        value = _value(features, self.feature)
        basins = [
            self.strength * np.log(value / self.best(compute)) ** 2,
            self.strength * np.log(value / self.other(compute)) ** 2 + self.gap,
        ]
        sharp = 2000.0
        # A smooth minimum, so that no kink gives the basins away.
        merged: Array = -np.logaddexp(-sharp * basins[0], -sharp * basins[1]) / sharp
        return merged


@dataclass(frozen=True)
class Slope:
    """Ever better towards one end of a feature: the optimum lies on the edge of what is feasible.

    Attributes:
        feature: The feature's name.
        strength: Log loss a factor of e costs; negative where more is better.
    """

    feature: str
    strength: float

    def __call__(self, features: Features, compute: float) -> Array:
        penalty: Array = self.strength * np.log(_value(features, self.feature))
        return penalty


@dataclass(frozen=True)
class Roughness:
    """What no smooth surrogate can know: each architecture has a small offset of its own, the same at every seed.

    Attributes:
        size: Standard deviation of the offset in log loss.
    """

    size: float = 0.001

    def __call__(self, features: Features, compute: float) -> Array:
        mixed = np.zeros(len(features["d_model"]))
        for step, name in ((0.7548776662, "d_model"), (0.5698402910, "d_expert"), (0.3141592653, "n_layers")):
            mixed += step * features[name]
        # A sine of a large irrational phase is as good as a draw, and the same on every machine and in every version.
        offset: Array = self.size * np.sqrt(2) * np.sin(2 * np.pi * 97.0 * mixed)
        return offset


def _value(features: Features, name: str) -> Array:
    return features["d_model"] / features["n_layers"] if name == "aspect" else features[name]
