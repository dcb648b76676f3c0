"""Fitting a law to runs: coefficients, intervals, what is not identified, influential runs, a held-out score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_optuna.errors import InputError
from moe_optuna.laws._formulas import Array
from moe_optuna.laws._influence import influence
from moe_optuna.laws._intervals import Profile, bootstrap_weights, profile
from moe_optuna.laws._runs import checked
from moe_optuna.laws._solver import Problem, minimise
from moe_optuna.laws.forms import Form, form

__all__ = ["Fit", "HeldOut", "fit"]

FORMAT = 1
_STARTS = 24
"""Starting points a coefficient."""
_BASIN = 0.02
"""Threshold at which the starts are compared: wide enough to converge fast, narrow enough to ignore wild runs."""
_COARSE = 400
"""Runs that the starts see; the best few of them then see all."""
_KEPT = 16
_WIDE, _OPEN = 10.0, 1000.0
"""Factors between the ends of an interval from which a coefficient is `hardly identified` and `not identified`."""
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
        held_out: Score on the largest runs.
        influential: The few runs without which a coefficient moves by errors of its own, with the coefficients without
            them; rows count from 1.
        draws: Coefficients of each bootstrap fit.
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
    groups: int
    held_out: HeldOut
    influential: dict[str, Any] | None
    draws: dict[str, list[float]] = field(repr=False)

    @property
    def form(self) -> Form:
        """The law's form."""
        return form(self.law)

    @property
    def notes(self) -> list[str]:
        """What a reader of the coefficients must know."""
        found = [f"{name} is {verdict}" for name, verdict in self.identifiability.items() if verdict != "identified"]
        if self.influential:
            rows = ", ".join(str(row) for row in self.influential["rows"])
            name, shift = self.influential["coefficient"], self.influential["shift"]
            found.append(f"runs {rows} move {name} by {shift:.1f} standard errors")
        return found

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """The law's value at columns that broadcast."""
        return self.form.predict(columns, self.coefficients)

    def interval(
        self, columns: Mapping[str, ArrayLike], *, level: float = 0.95, noise: bool = False
    ) -> tuple[Array, Array]:
        """Interval of the law's value, or with `noise` of a run there, in the shape of the columns."""
        shape = np.broadcast_shapes(*(np.shape(columns[name]) for name in self.form.inputs if name in columns))
        drawn = self.draws if next(iter(self.draws.values()), []) else {n: [v] for n, v in self.coefficients.items()}
        logs, _ = self.form.log_model(self.form.read(columns), self.form.coordinates(drawn))
        low, high = _log_interval(logs, max(self.noise, self.rmse_log) if noise else 0.0, level)
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
            "groups": self.groups,
            "held_out": dict(vars(self.held_out)),
            "influential": self.influential,
            "notes": self.notes,
            "draws": self.draws,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object = "fit") -> Fit:
        """The inverse of `to_dict`.

        Raises:
            InputError: Where the data are not of this format.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"format {data.get('format')!r}, expected {FORMAT}", where=where)
        try:
            names = form(data["law"]).names
            values = {key: data[key] for key in cls.__dataclass_fields__}
            values["coefficients"] = {name: float(data["coefficients"][name]) for name in names}
            for key in ("intervals", "bootstrap_intervals"):
                values[key] = {name: (float(low), float(high)) for name, (low, high) in data[key].items()}
            values["held_out"] = HeldOut(**data["held_out"])
        except InputError as error:
            raise InputError(str(error), where=where) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not what `fit --json` prints: {error!r}", where=where) from None
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Fit:
        """Read what `save` wrote or ``moe-optuna fit --json`` printed.

        Raises:
            InputError: Where the file is missing or is not such a file.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(error.strerror or "cannot be read", where=path) from None
        except ValueError:
            raise InputError("not JSON", where=path) from None
        if not isinstance(data, dict):
            raise InputError("not an object, expected what `fit --json` prints", where=path)
        return cls.from_dict(data, where=path)


def fit(
    law: str,
    columns: Mapping[str, ArrayLike],
    *,
    bootstraps: int = 200,
    seed: int = 0,
    groups: ArrayLike | None = None,
    delta: float | None = None,
) -> Fit:
    """Fit a law to runs: the least sum of Huber's loss of the log residuals, over the physical region, globally.

    Args:
        law: Name of a form (`forms.FORMS`).
        columns: The columns that it reads, ``(n,)`` each; others are passed over.
        bootstraps: Fits to resampled runs, for `bootstrap_intervals` and prediction intervals.
        seed: Of the resampling.
        groups: Labels ``(n,)``; runs with one label err together (one architecture, one figure) and are drawn together.
        delta: Threshold of Huber's loss in log units; the form's own (1e-3 for losses, as Chinchilla) unless given.

    Raises:
        InputError: On an unknown law, columns that are missing or outside their domain, or fewer runs than the law
            has coefficients, plus one.
    """
    wanted = form(law)
    table = checked(wanted, columns)
    rows, p = len(table[wanted.target]), len(wanted.parameters)
    if rows <= p:
        raise InputError(f"{rows} runs, expected more than its {p} coefficients", where=law)
    if isinstance(bootstraps, bool) or bootstraps < 0:
        raise InputError(f"{bootstraps!r}, expected a count of at least 0", where="bootstraps")
    delta = wanted.delta if delta is None else delta
    if not delta > 0:
        raise InputError(f"{delta!r}, expected a positive number", where="delta")
    labels = _labels(groups, rows)

    problem = Problem.of(wanted, wanted.read(table), table[wanted.target])
    optima_SP, objective = _search(problem, delta)
    for _ in range(3):
        walked = profile(problem, optima_SP, objective, delta, labels)
        if walked.better is None:
            break
        optima_SP, objective = _refine(problem, np.concatenate([walked.better[None], optima_SP]), delta)
    rng = np.random.default_rng(seed)
    draws_BP = problem.coordinates(_bootstrap(problem, optima_SP, delta, labels, bootstraps, rng))
    residuals = problem.residuals(optima_SP[:1])[0][0]
    noise, noise_source = _noise(wanted, table, residuals, p)
    values = problem.coefficients(optima_SP[:1])[0]
    names = wanted.names
    ends = [wanted.coefficients(coordinates[None])[0] for coordinates in (walked.low, walked.high)]
    drawn = wanted.coefficients(draws_BP) if bootstraps else np.tile(values, (1, 1))
    return Fit(
        law=law,
        coefficients=dict(zip(names, map(float, values), strict=True)),
        intervals=_ordered(names, *ends),
        bootstrap_intervals=_ordered(names, *np.quantile(drawn, [0.025, 0.975], axis=0)),
        identifiability=_verdicts(wanted, walked),
        objective=objective,
        delta=delta,
        rmse_log=float(np.sqrt(np.mean(residuals**2))),
        noise=noise,
        noise_source=noise_source,
        rows=rows,
        groups=int(labels.max()) + 1,
        held_out=_held_out(wanted, table, labels, delta, min(bootstraps, 100), rng),
        influential=_influential(wanted, table, problem, optima_SP[0], delta, labels),
        draws={name: [float(f"{v:.10g}") for v in column] for name, column in zip(names, drawn.T, strict=True)}
        if bootstraps
        else {name: [] for name in names},
    )


def _labels(groups: ArrayLike | None, rows: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(rows)
    given = np.asarray(groups)
    if given.shape != (rows,):
        raise InputError(f"shape {given.shape}, expected ({rows},), one label a run", where="groups")
    labels = np.unique(given, return_inverse=True)[1].astype(np.intp)
    if labels.max() == 0:
        raise InputError("one group, expected at least 2", where="groups")
    return labels


def _search(problem: Problem, delta: float) -> tuple[Array, float]:
    """The global optimum among many starts, and other basins that fit nearly as well, ``(k, p)``, best first."""
    n = len(problem.log_target)
    seen = np.sort(np.argsort(sum(problem.features))[:: -(-n // _COARSE)])  # every k-th run in the order of size
    coarse, weights = problem.of_runs(seen), np.ones((1, len(seen)))
    starts = problem.form.starts(_STARTS * len(problem.low))
    found_SP, value_S = minimise(coarse, starts, weights, max(delta, _BASIN), wide=0.5, steps=6)
    best_SP = found_SP[np.argsort(value_S)]
    return _refine(problem, _distinct(problem, best_SP)[:_KEPT], delta)


def _refine(problem: Problem, start_SP: Array, delta: float) -> tuple[Array, float]:
    found_SP, value_S = minimise(problem, start_SP, np.ones((1, len(problem.log_target))), delta, wide=0.05)
    order = np.argsort(value_S)
    near = order[value_S[order] <= 1.1 * value_S[order[0]]]
    return _distinct(problem, found_SP[near])[:3], float(value_S[order[0]])


def _distinct(problem: Problem, phi_SP: Array) -> Array:
    """Without the points that lie within a hundredth of the region from an earlier one."""
    unit_SP = (phi_SP - problem.low) / (problem.high - problem.low)
    kept: list[int] = []
    for row, point in enumerate(unit_SP):
        if all(np.abs(point - unit_SP[other]).max() > 0.01 for other in kept):
            kept.append(row)
    return phi_SP[kept]


def _bootstrap(
    problem: Problem,
    optima_SP: Array,
    delta: float,
    labels: NDArray[np.intp],
    count: int,
    rng: np.random.Generator,
) -> Array:
    """Optima ``(count, p)`` on resampled groups, each the best over the basins of the whole."""
    weights_BN = bootstrap_weights(labels, count, rng)
    basins = len(optima_SP)
    starts_SP, weights_SN = np.repeat(optima_SP, count, axis=0), np.tile(weights_BN, (basins, 1))
    found, value = minimise(problem, starts_SP, weights_SN, delta, wide=20 * delta)
    best_B = value.reshape(basins, count).argmin(0)
    return np.asarray(found.reshape(basins, count, optima_SP.shape[1])[best_B, np.arange(count)])


def _noise(wanted: Form, table: Mapping[str, Array], residuals: Array, p: int) -> tuple[float, str]:
    """Relative standard deviation of a run: pooled over runs with equal inputs, or else of the residuals."""
    inputs = np.stack([table[name] for name in wanted.inputs], axis=1)
    cell = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
    counts = np.bincount(cell)
    freedom = int((counts - 1).sum())
    if freedom >= 5:
        logs = np.log(table[wanted.target])
        means = np.bincount(cell, logs) / counts
        return float(np.sqrt(((logs - means[cell]) ** 2).sum() / freedom)), "repeats"
    return float(np.sqrt((residuals**2).sum() / (len(residuals) - p))), "residuals"


def _ordered(names: tuple[str, ...], one: Array, other: Array) -> dict[str, tuple[float, float]]:
    ends = zip(names, np.minimum(one, other), np.maximum(one, other), strict=True)
    return {name: (float(low), float(high)) for name, low, high in ends}


def _verdicts(wanted: Form, walked: Profile) -> dict[str, str]:
    verdicts = {}
    for i, parameter in enumerate(wanted.parameters):
        low, high = bool(walked.open_low[i]), bool(walked.open_high[i])
        if parameter.kind == "negative":
            low, high = high, low
        magnitude = parameter.kind in ("positive", "negative")
        if low and high:
            verdicts[parameter.name] = "not identified: the data set neither end of its interval"
        elif low or high:
            end = "lower" if low else "upper"
            verdicts[parameter.name] = f"not identified: the data set no {end} end of its interval"
        elif magnitude and walked.high[i] - walked.low[i] > np.log(_WIDE):
            factor = np.exp(walked.high[i] - walked.low[i])
            how = "not" if factor > _OPEN else "hardly"
            verdicts[parameter.name] = f"{how} identified: the ends of its interval differ by a factor of {factor:.2g}"
        else:
            verdicts[parameter.name] = "identified"
    return verdicts


def _log_interval(logs_SN: Array, noise: float, level: float) -> tuple[Array, Array]:
    """Quantiles ``(n,)`` over draws, widened by normal noise taken at evenly spread quantiles."""
    from scipy.special import ndtri

    spread = ndtri((np.arange(41) + 0.5) / 41) * noise if noise else np.zeros(1)
    blurred = (logs_SN[:, None, :] + spread[None, :, None]).reshape(-1, logs_SN.shape[1])
    low, high = np.quantile(blurred, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low, high


def _held_out(
    wanted: Form,
    table: Mapping[str, Array],
    labels: NDArray[np.intp],
    delta: float,
    bootstraps: int,
    rng: np.random.Generator,
) -> HeldOut:
    """Fit the smaller runs, predict the largest."""
    size = np.prod([table[name] for name in wanted.scale], axis=0)
    if wanted.scale == ("activation_ratio",):
        size = 1.0 / size
    outside = size >= np.quantile(size, 0.9) / 1.1
    p = len(wanted.parameters)
    if (~outside).sum() < p + 3 or len(np.unique(labels[~outside])) < 2:
        return HeldOut(rows=0)
    inner = {name: values[~outside] for name, values in table.items()}
    problem = Problem.of(wanted, wanted.read(inner), inner[wanted.target])
    optima_SP, _ = _search(problem, delta)
    kept = np.unique(labels[~outside], return_inverse=True)[1]
    draws_BP = np.concatenate([optima_SP[:1], _bootstrap(problem, optima_SP, delta, kept, bootstraps, rng)])
    residuals = problem.residuals(optima_SP[:1])[0][0]
    features = wanted.read({name: values[outside] for name, values in table.items()})
    logs, _ = wanted.log_model(features, problem.coordinates(draws_BP))
    truth = np.log(table[wanted.target][outside])
    low, high = _log_interval(logs, float(np.sqrt((residuals**2).sum() / (len(residuals) - p))), 0.95)
    error = logs[0] - truth
    return HeldOut(
        rows=int(outside.sum()),
        rmse_log=float(np.sqrt(np.mean(error**2))),
        coverage=float(np.mean((low <= truth) & (truth <= high))),
        bias_log=float(error.mean()),
    )


def _influential(
    wanted: Form,
    table: Mapping[str, Array],
    problem: Problem,
    phi_P: Array,
    delta: float,
    labels: NDArray[np.intp],
) -> dict[str, Any] | None:
    found = influence(problem, phi_P, delta, labels)
    if found is None:
        return None
    values = map(float, problem.coefficients(found.phi[None])[0])
    return {
        "rows": [int(row) + 1 for row in found.rows],
        "runs": [{name: float(table[name][row]) for name in wanted.columns} for row in found.rows],
        "coefficient": wanted.names[found.coefficient],
        "shift": found.shift,
        "coefficients": dict(zip(wanted.names, values, strict=True)),
        "objective": found.objective,
    }
