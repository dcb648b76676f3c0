"""The triad: FLOPs per token, active and total parameters, held within tolerances (arXiv:2603.21862, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from moe_optuna.architecture import COUNTS, MoEArchitecture
from moe_optuna.errors import InputError

__all__ = ["ROUNDING", "Budget", "Tolerances", "Triad"]

ROUNDING = 1e-12
"""Excess over a tolerance that is put down to the rounding of floats."""


def _number(value: object) -> float:
    """A number, numpy's too, as Python's own, whole where it is; NaN, which lies in no range, for all else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return int(value) if isinstance(value, Integral) else float(value)


def _positive(name: str, value: object) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise InputError(f"{value!r}, expected a positive finite number", where=name)
    return number


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Relative half-widths of the band around each target; 0.05 admits 95 % to 105 %."""

    flops_per_token: float = 0.05
    active_params: float = 0.05
    total_params: float = 0.05

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            number = _number(value)
            if not 0 < number < 1:
                raise InputError(f"{value!r}, expected a fraction above 0 and below 1", where=f"tolerance {name}")
            object.__setattr__(self, name, number)


@dataclass(frozen=True, slots=True)
class Triad:
    """Targets for M, Na and N in the `non_embedding` convention.

    Attributes:
        flops_per_token: M, training FLOPs per token; above ``6 * active_params``, since attention costs something.
        active_params: Na.
        total_params: N; at least Na.
        tolerances: How far an architecture may be from each.
    """

    flops_per_token: float
    active_params: float
    total_params: float
    tolerances: Tolerances = Tolerances()

    def __post_init__(self) -> None:
        for name in COUNTS:
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.total_params < self.active_params:
            raise InputError(
                f"{self.total_params:.4g}, expected at least active_params = {self.active_params:.4g}",
                where="total_params",
            )
        if self.flops_per_token <= 6 * self.active_params:
            raise InputError(
                f"{self.flops_per_token:.4g}, expected more than 6 active_params = {6 * self.active_params:.4g}",
                where="flops_per_token",
            )

    @classmethod
    def at(
        cls,
        flops_per_token: float,
        compute_density: float,
        expansion_ratio: float,
        tolerances: Tolerances = Tolerances(),
    ) -> Triad:
        """The triad at the Phase-1 coordinates: Na = M / compute_density, N = Na * expansion_ratio."""
        density, expansion = _number(compute_density), _number(expansion_ratio)
        if not 6 < density < math.inf:
            raise InputError(f"{compute_density!r}, expected a finite number above 6", where="compute_density")
        if not 1 < expansion < math.inf:
            raise InputError(f"{expansion_ratio!r}, expected a finite number above 1", where="expansion_ratio")
        flops = _positive("flops_per_token", flops_per_token)
        active = flops / density
        return cls(flops, active, active * expansion, tolerances)

    @property
    def compute_density(self) -> float:
        """M / Na."""
        return self.flops_per_token / self.active_params

    @property
    def expansion_ratio(self) -> float:
        """N / Na."""
        return self.total_params / self.active_params

    def deviations(self, architecture: MoEArchitecture) -> dict[str, float]:
        """Relative deviation of each count from its target, signed."""
        return {name: getattr(architecture.non_embedding, name) / target - 1 for name, target in self.targets.items()}

    def violations(self, architecture: MoEArchitecture) -> dict[str, float]:
        """How far each count is outside its tolerance, a share of the target; at most 0 where met (Optuna's sign)."""
        return {
            name: abs(deviation) - getattr(self.tolerances, name)
            for name, deviation in self.deviations(architecture).items()
        }

    def admits(self, architecture: MoEArchitecture) -> bool:
        """Whether the architecture meets all three."""
        return all(excess <= ROUNDING for excess in self.violations(architecture).values())

    @property
    def targets(self) -> dict[str, float]:
        """The three targets by name."""
        return {
            "flops_per_token": self.flops_per_token,
            "active_params": self.active_params,
            "total_params": self.total_params,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back: the targets and, under `tolerances`, the tolerances."""
        return {**self.targets, "tolerances": asdict(self.tolerances)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "triad") -> Triad:
        """The inverse of `to_dict`.

        Raises:
            InputError: Where the data are not a triad's, named with `where`.
        """
        try:
            return cls(**{**data, "tolerances": Tolerances(**data["tolerances"])})
        except InputError as error:
            raise InputError(str(error), where=where) from None
        except (KeyError, TypeError) as error:
            raise InputError(f"not a triad ({error!r})", where=where) from None


@dataclass(frozen=True, slots=True)
class Budget:
    """A compute budget C and its division into M and D, ``C = M D`` exactly.

    Attributes:
        compute: Training FLOPs of a run.
        flops_per_token: M that the run aims at.
    """

    compute: float
    flops_per_token: float

    def __post_init__(self) -> None:
        for name in ("compute", "flops_per_token"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))

    @property
    def tokens(self) -> float:
        """D = C / M."""
        return self.compute / self.flops_per_token
