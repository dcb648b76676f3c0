"""`Observations`: the runs that a surrogate learns from, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError
from moe_optuna.laws._gp import Array

__all__ = ["Observations"]


@dataclass(frozen=True)
class Observations:
    """Runs, as arrays over them.

    Attributes:
        compute: FLOPs (n,).
        coordinates: In the unit cube (n, p).
        loss: Nats per token (n,).
        censored: Whether `loss` is only a lower bound of the final loss, as of a pruned run (n,). The last value
            that a pruned run reported is no such bound, since losses fall: give the loss that it could not be
            expected to beat.
        group: The same number for runs of the same architecture (n,).
        vague: Relative sd of what `loss` is off beside seed noise, as of the forecast of a pruned run (n,).

    Raises:
        InputError: Where shapes disagree, or a value is not finite, or a loss or budget is not positive.
    """

    compute: Array
    coordinates: Array
    loss: Array
    censored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    group: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    vague: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        n = len(self.loss)
        filled = {
            "compute": np.broadcast_to(np.asarray(self.compute, float), (n,)),
            "coordinates": np.atleast_2d(np.asarray(self.coordinates, float).T).T,
            "loss": np.asarray(self.loss, float),
            "censored": np.asarray(self.censored, bool) if len(self.censored) else np.zeros(n, bool),
            "group": np.asarray(self.group) if len(self.group) else np.arange(n),
            "vague": np.asarray(self.vague, float) if len(self.vague) else np.zeros(n),
        }
        for name, values in filled.items():
            if len(values) != n:
                raise InputError(f"{len(values)} rows, expected {n}, one a loss", where=name)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError("holds a value that is not finite; leave failed runs out", where=name)
            object.__setattr__(self, name, values)
        for name in ("compute", "loss"):
            if n and filled[name].min() <= 0:
                raise InputError(f"{filled[name].min():g}, expected positive numbers", where=name)

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Observations:
        return Observations(*(getattr(self, each.name)[rows] for each in fields(self)))

    def distinct(self) -> Observations:
        """Without what is there twice: the same loss of an architecture again is the same training again, and tells
        nothing of the noise."""
        same = np.stack([self.compute, self.group, self.loss, self.censored])
        return self[np.sort(np.unique(same, axis=1, return_index=True)[1])]

    def repeat_sd(self) -> float | None:
        """Relative sd of repeated runs around their group's mean, or None with fewer than two repeats."""
        y = np.log(self.loss)
        squares, freedom = 0.0, 0
        whole = ~self.censored & (self.vague == 0)
        for group in np.unique(self.group[whole]):
            member = y[(self.group == group) & whole]
            squares += float(((member - member.mean()) ** 2).sum())
            freedom += len(member) - 1
        return max(float(np.sqrt(squares / freedom)), 1e-4) if freedom >= 2 else None
