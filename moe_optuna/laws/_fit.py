"""A law fitted to runs: what is printed, saved, and predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.errors import InputError
from moe_optuna.files import read_object, write_whole
from moe_optuna.laws._formulas import Array
from moe_optuna.laws._intervals import widening
from moe_optuna.laws._misfit import Curve, missed
from moe_optuna.laws.forms import Form, form

__all__ = ["Fit", "HeldOut", "log_interval"]

FORMAT = 1
HELD_OUT_RULE = "runs whose compute is at least that of the largest tenth, within 10 %"


@dataclass(frozen=True)
class HeldOut:
    """How well a fit to the smaller runs predicts the largest.

    Attributes:
        rows: Runs held out; 0 where too few would be left.
        rmse_log: Of the predictions, in log units.
        coverage: Share of them inside their 95 % prediction interval.
        bias_log: Mean of log prediction over outcome.
        rule: Which runs.
    """

    rows: int
    rmse_log: float | None = None
    coverage: float | None = None
    bias_log: float | None = None
    rule: str = HELD_OUT_RULE


@dataclass(frozen=True)
class Fit:
    """A law fitted to runs; `predict` and `interval` take columns by name.

    Attributes:
        law: Name of the form.
        coefficients: By name.
        intervals: 95 % interval of each, by profile; an end that the data do not set is where the physical region ends.
        bootstrap_intervals: 95 % percentiles over `draws`.
        identifiability: For each coefficient `identified`, or what is wrong with it.
        objective: Sum over runs of Huber's loss of the log residual.
        delta: Its threshold.
        rmse_log: Root mean square of the log residuals.
        noise: Relative standard deviation of a run.
        noise_source: `repeats` (runs with equal inputs) or `residuals`.
        rows, groups: Runs, and groups that the bootstrap draws.
        again: Further rows of the table, each the same as one of these runs in all columns, that do not count.
        held_out: Score on the largest runs.
        influential: The few runs without which a coefficient moves by errors of its own, with the coefficients without
            them; rows count from 1.
        misfit: What the law misses: by input, the parabola in its natural log t that the residuals follow, (a, b, c) of
            a t^2 + b t + c.
        draws: Coefficients of each bootstrap fit.
        edges: Coefficients at each end of `intervals`: one is held there, and all others are fitted.
    """

    law: str
    coefficients: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    bootstrap_intervals: dict[str, tuple[float, float]]
    identifiability: dict[str, str]
    objective: float
    delta: float
    rmse_log: float
    noise: float
    noise_source: str
    rows: int
    again: int
    groups: int
    held_out: HeldOut
    influential: dict[str, Any] | None
    misfit: dict[str, Curve]
    draws: dict[str, list[float]] = field(repr=False)
    edges: dict[str, list[float]] = field(repr=False)

    @property
    def form(self) -> Form:
        """The law's form."""
        return form(self.law)

    @property
    def notes(self) -> list[str]:
        """What a reader of the coefficients must know."""
        found = [f"{name} is {verdict}" for name, verdict in self.identifiability.items() if verdict != "identified"]
        if self.again:
            found.append(f"{self.again} of {self.rows + self.again} rows give a run again: each run counts once")
        if self.influential:
            rows = ", ".join(str(row) for row in self.influential["rows"])
            name, shift = self.influential["coefficient"], self.influential["shift"]
            found.append(f"runs {rows} move {name} by {shift:.1f} standard errors")
        found += [
            f"the residuals bend along {name}: the law misses something there, and intervals are wider for it"
            for name in self.misfit
        ]
        return found

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """The law's value at columns that broadcast."""
        return self.form.predict(columns, self.coefficients)

    def interval(
        self, columns: Mapping[str, ArrayLike], *, level: float = 0.95, noise: bool = False
    ) -> tuple[Array, Array]:
        """Interval of the law's value, or with `noise` of a run there, in the shape of the columns.

        Quantiles of the bootstrap fits about the optimum, wider where runs are few (`_intervals.widening`). It reaches
        at least as far as the fits at the ends of `intervals` (`edges`) do: a bootstrap stays near the optimum where a
        coefficient is not identified. Where the residuals bend along an input (`misfit`), the size of the bend at the
        columns counts as an error of the law.

        Raises:
            InputError: Where the level is not a fraction, or the fit was made without a bootstrap.
        """
        if not any(self.draws.values()):
            raise InputError("0, expected some: an interval is that of the fits to resampled runs", where="bootstraps")
        if not 0 < level < 1:
            raise InputError(f"{level!r}, expected a fraction above 0 and below 1, such as 0.95", where="level")
        shape = np.broadcast_shapes(*(np.shape(columns[name]) for name in self.form.inputs if name in columns))
        features = self.form.read(columns)
        draws, edges = (self.form.log_model(features, self.form.coordinates(c))[0] for c in (self.draws, self.edges))
        given = {name: np.broadcast_to(np.asarray(columns[name], float), shape).ravel() for name in self.misfit}
        error = np.hypot(missed(self.misfit, given), max(self.noise, self.rmse_log) if noise else 0.0)
        centre = np.log(self.predict(columns)).ravel()
        wider = widening(level, self.rows, len(self.coefficients), self.groups)
        low, high = log_interval(centre, draws, edges, error, level, wider)
        return np.exp(low).reshape(shape), np.exp(high).reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, what ``moe-optuna fit --json`` prints."""
        return {
            "format": FORMAT,
            "law": self.law,
            "formula": self.form.formula,
            "coefficients": self.coefficients,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "bootstrap_intervals": {name: list(ends) for name, ends in self.bootstrap_intervals.items()},
            "identifiability": self.identifiability,
            "rmse_log": self.rmse_log,
            "noise": self.noise,
            "noise_source": self.noise_source,
            "objective": self.objective,
            "delta": self.delta,
            "rows": self.rows,
            "again": self.again,
            "groups": self.groups,
            "held_out": dict(vars(self.held_out)),
            "influential": self.influential,
            "misfit": {name: list(curve) for name, curve in self.misfit.items()},
            "notes": self.notes,
            "draws": self.draws,
            "edges": self.edges,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "fit") -> Fit:
        """The inverse of `to_dict`.

        Raises:
            InputError: Where the data are not of this format.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"format {data.get('format')!r}, expected {FORMAT}", where=where)
        if missing := [name for name in cls.__dataclass_fields__ if name not in data]:
            raise InputError(f"no key {missing[0]!r}, expected what `fit --json` prints", where=where)
        try:
            names = form(data["law"]).names
            values = {key: data[key] for key in cls.__dataclass_fields__}
            values["coefficients"] = {name: float(data["coefficients"][name]) for name in names}
            for key in ("intervals", "bootstrap_intervals"):
                values[key] = {name: (float(low), float(high)) for name, (low, high) in data[key].items()}
            values["held_out"] = HeldOut(**data["held_out"])
            values["misfit"] = {name: (float(a), float(b), float(c)) for name, (a, b, c) in data["misfit"].items()}
        except InputError as error:
            raise InputError(str(error), where=where) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not what `fit --json` prints: {error!r}", where=where) from None
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_whole(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Fit:
        """Read what `save` wrote or ``moe-optuna fit --json`` printed.

        Raises:
            InputError: Where the file is missing or is not such a file.
        """
        return cls.from_dict(read_object(path, expected="what `fit --json` prints"), where=path)


def log_interval(
    centre_N: Array, draws_SN: Array, edges_EN: Array, noise: Array | float, level: float, wider: float
) -> tuple[Array, Array]:
    """Ends ``(n,)`` of an interval of log values.

    Args:
        centre_N: At the optimum.
        draws_SN: Of a bootstrap, whose quantiles about the optimum are `wider` than normal.
        edges_EN: At the ends of the coefficients' 95 % intervals; not finite where the law has no value there. Where
            a law is identified they lie inside: a value moves less with one coefficient than with the worst of all.
        noise: Standard deviation of normal noise, a number or ``(n,)``; it is at evenly spread quantiles.
    """
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(41) + 0.5) / 41) if np.any(noise) else np.zeros(1)
    logs_SN = centre_N + (draws_SN - centre_N) * wider
    blurred = (logs_SN[:, None, :] + quantiles[:, None] * noise).reshape(-1, len(centre_N))
    low, high = np.quantile(blurred, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    normal = ndtri(0.5 + level / 2)
    away_EN = np.where(np.isfinite(edges_EN), edges_EN - centre_N, 0.0) * normal / ndtri(0.975)
    below, above = np.minimum(away_EN, 0.0).min(0), np.maximum(away_EN, 0.0).max(0)
    return (
        np.minimum(low, centre_N - np.hypot(below, normal * noise)),
        np.maximum(high, centre_N + np.hypot(above, normal * noise)),
    )
