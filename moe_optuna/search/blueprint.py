"""`Blueprint`: what a search or a plan ends in, as a value and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_optuna.architecture import COUNTS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.files import read_object, write_whole
from moe_optuna.triad import Triad

__all__ = ["QUANTITIES", "Alternative", "Blueprint", "Span"]

FORMAT = 1
CONVENTION = "non_embedding"
QUANTITIES = ("flops_per_token", "tokens", "active_params", "total_params")

Span = tuple[float, float]


@dataclass(frozen=True)
class Alternative:
    """Another architecture, within 0.1 % of the blueprint's predicted loss.

    Attributes:
        why: What it is better at.
        excess, interval: Predicted loss over the blueprint's, as a share, and its 95 % interval.
    """

    architecture: MoEArchitecture
    why: str
    excess: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.to_dict(), "why": self.why, "excess": self.excess,
            "interval": list(self.interval), **_counts(self.architecture),
        }  # fmt: skip


@dataclass(frozen=True)
class Blueprint:
    """The architecture for a compute budget.

    Attributes:
        compute: Training FLOPs.
        flops_per_token, tokens: The optimal M and D by the laws, ``compute = flops_per_token * tokens``.
        triad: What the architecture is held to, in the `non_embedding` convention.
        architecture: The lattice architecture of the least predicted loss.
        band: For each axis the values within 0.1 % of the least loss, by the laws.
        band_intervals: For each axis the 95 % intervals of both edges.
        alternatives: Architectures within 0.1 % of its predicted loss that suit the hardware better.
        predicted_loss: Of the architecture, nats per token, or None with the reason in `no_loss`.
        intervals: 95 % intervals of what the laws give.
        source: Where the laws are from.
        notes: What a reader should know about this answer.
    """

    compute: float
    flops_per_token: float
    tokens: float
    triad: Triad
    architecture: MoEArchitecture
    band: Mapping[str, tuple[float, float]]
    band_intervals: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]
    alternatives: tuple[Alternative, ...]
    predicted_loss: float | None
    no_loss: str | None
    intervals: Mapping[str, tuple[float, float]]
    source: str
    space: str
    notes: tuple[str, ...] = ()
    held_out: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def training_tokens(self) -> float:
        """Tokens that spend the budget on this architecture, whose M is the laws' only within a tolerance."""
        return self.compute / self.architecture.non_embedding.flops_per_token

    def to_dict(self) -> dict[str, Any]:
        """Plain data of blueprint.json and of `moe-optuna plan --json`, which `from_dict` reads back."""
        return {
            "format": FORMAT,
            "compute": self.compute,
            "flops_per_token": self.flops_per_token,
            "tokens": self.tokens,
            "training_tokens": self.training_tokens,
            "triad": self.triad.to_dict(),
            "architecture": self.architecture.to_dict(),
            **_counts(self.architecture),
            "band": {axis: list(edges) for axis, edges in self.band.items()},
            "band_intervals": {axis: [list(edge) for edge in edges] for axis, edges in self.band_intervals.items()},
            "alternatives": [alternative.to_dict() for alternative in self.alternatives],
            "predicted_loss": self.predicted_loss,
            "no_loss": self.no_loss,
            "intervals": {name: list(span) for name, span in self.intervals.items()},
            "source": self.source,
            "space": self.space,
            "convention": CONVENTION,
            "notes": list(self.notes),
            "held_out": self.held_out,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "blueprint") -> Blueprint:
        """The inverse of `to_dict`.

        Raises:
            InputError: Where the data are not a blueprint's, named with `where`.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"format {data.get('format')!r}, expected {FORMAT}", where=where)
        try:
            return cls(
                compute=float(data["compute"]),
                flops_per_token=float(data["flops_per_token"]),
                tokens=float(data["tokens"]),
                triad=Triad.from_dict(data["triad"]),
                architecture=MoEArchitecture.from_dict(data["architecture"]),
                band={axis: (low, high) for axis, (low, high) in data["band"].items()},
                band_intervals={
                    axis: (tuple(low), tuple(high)) for axis, (low, high) in data["band_intervals"].items()
                },
                alternatives=tuple(
                    Alternative(
                        MoEArchitecture.from_dict(each["architecture"], where="alternatives"),
                        each["why"], float(each["excess"]), tuple(each["interval"]),
                    )
                    for each in data["alternatives"]
                ),
                predicted_loss=data["predicted_loss"],
                no_loss=data["no_loss"],
                intervals={name: (low, high) for name, (low, high) in data["intervals"].items()},
                source=data["source"],
                space=data["space"],
                notes=tuple(data["notes"]),
                held_out=data.get("held_out"),
            )  # fmt: skip
        except InputError as error:
            raise InputError(str(error), where=where) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a blueprint ({error!r})", where=where) from None

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_whole(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Blueprint:
        """Read what `save` wrote.

        Raises:
            InputError: Where the file is missing or is not a blueprint.
        """
        return cls.from_dict(read_object(path, expected="a blueprint"), where=path)


def _counts(architecture: MoEArchitecture) -> dict[str, Any]:
    """Counts in both conventions and the ratios."""
    return {
        **{
            name: {count: getattr(getattr(architecture, name), count) for count in COUNTS}
            for name in ("non_embedding", "full")
        },
        "compute_density": architecture.compute_density,
        "expansion_ratio": architecture.expansion_ratio,
    }
