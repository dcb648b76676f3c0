"""The families of problems, one function each, in one table.

The first four are what the surrogate expects; the others each break one of its assumptions, and say which. What depends
on the space (where an optimum lies) is set at the middle budget of its ladder, in the range of its Phase-1 lattice, and
moves with compute from there; where in the range is drawn anew for each variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moe_optuna.architecture import COUNTS
from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.problems._problem import Problem
from moe_optuna.problems._terms import (
    Allocation,
    ComputeDensity,
    EfficiencyLeverage,
    ExpansionRatio,
    Jump,
    PowerLaw,
    Roughness,
    Shape,
    Slope,
    Term,
    TwoBasins,
    Valley,
)
from moe_optuna.space import SearchSpace

__all__ = ["FAMILIES", "Family", "make"]


@dataclass(frozen=True)
class _Setting:
    """What the Phase-1 lattices of a space span at the middle budget `at`, and where in it a variant has its optima.

    Attributes:
        density, expansion: M/Na and N/Na, from their 2 % to their 98 % quantiles.
        pole: Upper end of N/Na.
        d_model, aspect: Typical width, and width over layers.
        width_growth: Exponent of the typical width in compute.
        beyond: A budget between the largest and the next.
        places: Where the optima lie in the ranges, three numbers between 0 and 1.
    """

    at: float
    density: tuple[float, float]
    expansion: tuple[float, float]
    pole: float
    d_model: float
    aspect: float
    width_growth: float
    beyond: float
    places: tuple[float, float, float]

    @classmethod
    def of(cls, space: SearchSpace, variant: int) -> _Setting:
        a, b, c = np.random.default_rng([7, variant]).uniform(0.15, 0.85, 3)
        return replace(_ranges(space.to_toml()), places=(float(a), float(b), float(c)))

    @property
    def excess(self) -> tuple[float, float]:
        """Log range of M/Na - 6."""
        low, high = np.log(np.array(self.density) - 6)
        return float(low), float(high)

    def density_at(self, place: float) -> float:
        """M/Na at a place in its range, log scale of M/Na - 6."""
        low, high = self.excess
        return float(6 + np.exp(low + place * (high - low)))

    def expansion_at(self, place: float) -> float:
        """N/Na at a place in its range."""
        return self.expansion[0] + place * (self.expansion[1] - self.expansion[0])

    # Terms that several families share.

    def density_term(self) -> ComputeDensity:
        return ComputeDensity(PowerLaw(self.density_at(self.places[0]) - 6, -0.142, self.at))

    def expansion_term(self) -> ExpansionRatio:
        best = (self.expansion_at(self.places[1]) - 1) / (self.pole - 1)
        return ExpansionRatio(self.pole, best, drift=0.02, at=self.at)

    def width_term(self) -> Shape:
        factor = 0.85 + 0.3 * self.places[2]
        return Shape("d_model", PowerLaw(factor * self.d_model, self.width_growth + 0.01, self.at))

    def allocation_term(self) -> Allocation:
        return Allocation(PowerLaw(0.6 + 0.8 * self.places[2], -0.02, self.at))


@lru_cache(maxsize=16)
def _ranges(text: str) -> _Setting:
    """What the lattices of a space, as TOML, span; the optima in the middle."""
    space = SearchSpace.from_toml(text)
    budgets = space.budgets
    at = budgets[len(budgets) // 2]
    lattice = space.phase_one(at).lattice.arrays
    flops, active, total = (lattice[name].astype(float) for name in COUNTS)
    layers = lattice["n_dense_layers"] + lattice["n_moe_layers"]
    visited = lattice["top_k"] + lattice["n_shared_experts"]
    widths = [float(np.median(space.phase_one(c).lattice.arrays["d_model"])) for c in (budgets[0], budgets[-1])]
    sparse, dense = np.quantile(flops / active, [0.02, 0.98])
    thin, thick = np.quantile(total / active, [0.02, 0.98])
    return _Setting(
        at=at,
        density=(float(sparse), float(dense)),
        expansion=(float(thin), float(thick)),
        pole=float(((lattice["n_experts"] + lattice["n_shared_experts"]) / visited).max()),
        d_model=float(np.exp(np.median(np.log(lattice["d_model"])))),
        aspect=float(np.exp(np.median(np.log(lattice["d_model"] / layers)))),
        width_growth=float(np.log(widths[1] / widths[0]) / (np.log(budgets[-1] / budgets[0]) or 1.0)),
        beyond=float(np.sqrt(budgets[-1] * budgets[max(len(budgets) - 2, 0)])),
        places=(0.5, 0.5, 0.5),
    )


def _holistic(s: _Setting) -> tuple[Term, ...]:
    """The laws of arXiv:2603.21862: poles in M/Na and N/Na, a quadratic in log d_model."""
    return s.density_term(), s.expansion_term(), s.width_term(), s.allocation_term()


def _leverage(s: _Setting) -> tuple[Term, ...]:
    """Efficiency leverage over A, G and C, a depth-width term, M/Na and N/Na as in holistic, half as strong or so."""
    aspect = Shape("aspect", PowerLaw(s.aspect, s.width_growth / 2, s.at), 0.01)
    density = ComputeDensity(PowerLaw(s.density_at(s.places[0]) - 6, -0.1, s.at), 0.006)
    best = (s.expansion_at(s.places[1]) - 1) / (s.pole - 1)
    return EfficiencyLeverage(), aspect, density, ExpansionRatio(s.pole, best, 0.005), s.allocation_term()


def _valley(s: _Setting) -> tuple[Term, ...]:
    """Breaks additivity: a diagonal valley, in which the best N/Na depends on M/Na."""
    scale = (float(np.log(s.density[1] / s.density[0]) / 2), float(np.log(s.expansion[1] / s.expansion[0]) / 2))
    centre = (
        PowerLaw(s.density_at(s.places[0]), -0.03, s.at),
        PowerLaw(s.expansion_at(s.places[1]), 0.01, s.at),
    )
    return Valley(("compute_density", "expansion_ratio"), centre, scale), s.width_term(), s.allocation_term()


def _jump(s: _Setting) -> tuple[Term, ...]:
    """Breaks the power laws: at the largest budget the optima stand elsewhere than the smaller budgets say."""
    low, high = s.excess
    near, far = (0.8, 0.2) if s.places[0] > 0.5 else (0.2, 0.8)
    law = PowerLaw(s.density_at(near) - 6, -0.05, s.at)
    density = ComputeDensity(Jump(law, s.beyond, float(np.exp((far - near) * (high - low)))))
    width = Shape("d_model", Jump(PowerLaw(s.d_model, s.width_growth, s.at), s.beyond, 0.8))
    return density, s.expansion_term(), width, s.allocation_term()


def _basins(s: _Setting) -> tuple[Term, ...]:
    """Breaks convexity: two minima in M/Na and two in the width."""
    low, high = (0.15, 0.8) if s.places[0] > 0.5 else (0.8, 0.15)
    density = TwoBasins(
        "compute_density", PowerLaw(s.density_at(high), -0.02, s.at), PowerLaw(s.density_at(low), -0.02, s.at)
    )
    width = TwoBasins(
        "d_model",
        PowerLaw(1.15 * s.d_model, s.width_growth, s.at),
        PowerLaw(0.85 * s.d_model, s.width_growth, s.at),
    )
    return density, s.expansion_term(), width, s.allocation_term()


def _edge(s: _Setting) -> tuple[Term, ...]:
    """Breaks the interior optimum: the best architecture lies on the edge of what is feasible."""
    signs = np.sign(np.array(s.places) - 0.5)
    slopes = (
        Slope("compute_density", 0.02 * float(signs[0])),
        Slope("expansion_ratio", 0.01 * float(signs[1])),
        Slope("d_model", 0.01 * float(signs[2])),
    )
    return *slopes, s.allocation_term()


def _rough(s: _Setting) -> tuple[Term, ...]:
    """Breaks smoothness: the holistic laws, and an offset of every architecture's own of the size of the band."""
    return *_holistic(s), Roughness(0.0007)


@dataclass(frozen=True)
class Family:
    """Problems of one kind.

    Attributes:
        terms: What makes up the loss, from a space's setting.
        noise, fails: As `Problem` has them.
    """

    terms: Callable[[_Setting], tuple[Term, ...]]
    noise: float = 0.001
    fails: tuple[float, float] = (0.0, 0.0)


FAMILIES: dict[str, Family] = {
    "holistic": Family(_holistic),
    "leverage": Family(_leverage, noise=0.0005),
    "noisy": Family(_holistic, noise=0.005),
    "failing": Family(_holistic, fails=(0.1, 0.1)),
    "valley": Family(_valley),
    "jump": Family(_jump),
    "basins": Family(_basins),
    "edge": Family(_edge),
    "rough": Family(_rough, noise=0.0005),
}
"""Families by name."""


def make(family: str, space: SearchSpace | str = "cpu", *, variant: int = 0) -> Problem:
    """The problem of a family on a search space.

    Args:
        family: A name of `FAMILIES`.
        space: A search space, its name, or its path.
        variant: Which draw of where the optima lie.

    Raises:
        InputError: On an unknown family.
    """
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}{did_you_mean(family, FAMILIES)}", where="problem")
    chosen = FAMILIES[family]
    space = SearchSpace.load(space) if isinstance(space, str) else space
    terms = chosen.terms(_Setting.of(space, variant))
    return Problem(f"{family}/{variant}", space, terms, noise=chosen.noise, fails=chosen.fails)
