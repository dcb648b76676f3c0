"""Fitting a law to runs: the global optimum, intervals, what is not identified, influential runs, a held-out score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_optuna.errors import InputError, whole_number
from moe_optuna.laws._fit import Fit, HeldOut, log_interval
from moe_optuna.laws._form import Form
from moe_optuna.laws._formulas import Array
from moe_optuna.laws._influence import influence
from moe_optuna.laws._intervals import Profile, bootstrap_weights, profile, widening
from moe_optuna.laws._misfit import misfit, missed
from moe_optuna.laws._runs import checked
from moe_optuna.laws._solver import Problem, minimise
from moe_optuna.laws.forms import form

__all__ = ["fit"]

_STARTS = 24
"""Starting points a coefficient."""
_BASIN = 0.02
"""Threshold at which the starts are compared: wide enough to converge fast, narrow enough to ignore wild runs."""
_COARSE = 400
"""Runs that the starts see; the best few of them then see all."""
_KEPT = 16
_WIDE, _OPEN = 10.0, 1000.0
"""Factors between the ends of an interval from which a coefficient is `hardly identified` and `not identified`."""


def fit(
    law: str,
    columns: Mapping[str, ArrayLike],
    *,
    bootstraps: int = 200,
    seed: int = 0,
    groups: ArrayLike | None = None,
    delta: float | None = None,
    score: bool = True,
) -> Fit:
    """Fit a law to runs: the least sum of Huber's loss of the log residuals, over the physical region, globally.

    Runs that are equal in all columns are the same training, given again: it counts once.

    Args:
        law: Name of a form (`forms.FORMS`).
        columns: The columns that it reads, ``(n,)`` each; others are passed over.
        bootstraps: Fits to resampled runs, for `bootstrap_intervals` and prediction intervals.
        seed: Of the resampling.
        groups: Labels ``(n,)``; runs with one label err together (one architecture, one figure) and are drawn together.
        delta: Threshold of Huber's loss in log units; the form's own (1e-3 for losses, as Chinchilla) unless given.
        score: Whether to hold out the largest runs and to look for influential ones, which takes as long as the rest.

    Raises:
        InputError: On an unknown law, columns that are missing or outside their domain, or fewer runs than the law
            has coefficients, plus one.
    """
    wanted = form(law)
    given = checked(wanted, columns)
    kept = _distinct_rows(given)
    table = {name: values[kept] for name, values in given.items()}
    again = len(given[wanted.target]) - len(kept)
    rows, p = len(kept), len(wanted.parameters)
    if rows <= p:
        different = " different" if again else ""
        raise InputError(f"{rows}{different} runs, expected more than its {p} coefficients", where=law)
    bootstraps = whole_number(bootstraps, "bootstraps", least=0)
    delta = wanted.delta if delta is None else delta
    if not delta > 0:
        raise InputError(f"{delta!r}, expected a positive number", where="delta")
    labels = _labels(groups, kept, rows + again)

    problem = Problem.of(wanted, wanted.read(table), table[wanted.target])
    optima_SP, objective = _search(problem, delta)
    walked = profile(problem, optima_SP, objective, delta, labels)
    for _ in range(3):
        if walked.better is None:
            break
        optima_SP, objective = _refine(problem, np.concatenate([walked.better[None], optima_SP]), delta)
        walked = profile(problem, optima_SP, objective, delta, labels)
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
        again=again,
        groups=int(labels.max()) + 1,
        held_out=_held_out(wanted, table, labels, delta, min(bootstraps, 100), rng) if score else HeldOut(rows=0),
        influential=_influential(wanted, table, problem, optima_SP[0], delta, labels, kept) if score else None,
        misfit=misfit(table, wanted.inputs, residuals) if score else {},
        draws=_listed(names, drawn if bootstraps else drawn[:0]),
        edges=_listed(names, wanted.coefficients(walked.edges)),
    )


def _distinct_rows(table: Mapping[str, Array]) -> NDArray[np.intp]:
    """The first of each row that is there once or more, in their order."""
    return np.sort(np.unique(np.stack(list(table.values()), axis=1), axis=0, return_index=True)[1])


def _labels(groups: ArrayLike | None, kept: NDArray[np.intp], rows: int) -> NDArray[np.intp]:
    """Labels of the runs that are kept of all rows."""
    if groups is None:
        return np.arange(len(kept))
    given = np.asarray(groups)
    if given.shape != (rows,):
        raise InputError(f"shape {given.shape}, expected ({rows},), one label a run", where="groups")
    labels = np.unique(given[kept], return_inverse=True)[1].astype(np.intp)
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


def _listed(names: tuple[str, ...], values_SP: Array) -> dict[str, list[float]]:
    return {name: [float(f"{v:.10g}") for v in column] for name, column in zip(names, values_SP.T, strict=True)}


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
    optima_SP, objective = _search(problem, delta)
    kept = np.unique(labels[~outside], return_inverse=True)[1]
    draws_BP = np.concatenate([optima_SP[:1], _bootstrap(problem, optima_SP, delta, kept, bootstraps, rng)])
    edges_EP = profile(problem, optima_SP, objective, delta, kept).edges
    residuals = problem.residuals(optima_SP[:1])[0][0]
    features = wanted.read({name: values[outside] for name, values in table.items()})
    draws, edges = (wanted.log_model(features, each)[0] for each in (problem.coordinates(draws_BP), edges_EP))
    truth = np.log(table[wanted.target][outside])
    missing = missed(misfit(inner, wanted.inputs, residuals), {name: table[name][outside] for name in wanted.inputs})
    noise = np.hypot(missing, np.sqrt((residuals**2).sum() / (len(residuals) - p)))
    wider = widening(0.95, len(residuals), p, int(kept.max()) + 1)
    low, high = log_interval(draws[0], draws, edges, noise, 0.95, wider)
    error = draws[0] - truth
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
    kept: NDArray[np.intp],
) -> dict[str, Any] | None:
    found = influence(problem, phi_P, delta, labels)
    if found is None:
        return None
    values = map(float, problem.coefficients(found.phi[None])[0])
    return {
        "rows": [int(kept[row]) + 1 for row in found.rows],
        "runs": [{name: float(table[name][row]) for name in wanted.columns} for row in found.rows],
        "coefficient": wanted.names[found.coefficient],
        "shift": found.shift,
        "coefficients": dict(zip(wanted.names, values, strict=True)),
        "objective": found.objective,
    }
