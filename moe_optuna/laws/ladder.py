"""The laws of a ladder of budgets, from its runs: what is best at each budget, how that moves with compute, and how
far to trust it.

For each phase one law over all budgets (`moe_optuna.laws._phase_law`); for each budget the fit of its own runs where
they suffice (`moe_optuna.laws.axis`); power laws in compute for what a larger budget needs: FLOPs per token, compute
density, expansion ratio, active and total parameters, width, and the edges of the near-optimal bands. The largest
budget is also predicted from the others alone and compared.

`LadderLaws.to_dict` is laws.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_optuna.architecture import DIMENSIONS
from moe_optuna.errors import InputError
from moe_optuna.laws._ladder_laws import FittedAxis, LadderLaws, growth_of, power_laws_of
from moe_optuna.laws._phase_law import USUAL_ERROR, USUAL_EXPONENT, PhaseLaw
from moe_optuna.laws._power_law import PowerLaw, points_of
from moe_optuna.laws._runs import ended, read_columns
from moe_optuna.laws.axis import Array, AxisForm, fit_axes
from moe_optuna.laws.band import interval

__all__ = ["FittedAxis", "LadderLaws", "PowerLaw", "fit_ladder"]

COLUMNS = ("phase", "compute", "loss")
MORE = ("flops_per_token", "compute_density", "expansion_ratio", "forecast", "forecast_sd", *DIMENSIONS)
MAY_BE_0 = ("n_experts", "top_k", "n_shared_experts")
FREED = (*MAY_BE_0, "n_heads")
"""Dimensions beside the width along which phase 2 has a law where it searched them."""
LEAST_RUNS = 3
"""Complete runs of a phase from which it has a law."""


def fit_ladder(
    runs: Mapping[str, ArrayLike] | str | Path,
    *,
    space: str | None = None,
    noise: float | None = None,
    seed: int = 0,
    score: bool = True,
) -> LadderLaws:
    """The laws of a ladder from its runs.

    Args:
        runs: A search's runs.csv, or its columns: `phase`, `compute`, `loss`, and those that the phases searched
            (`flops_per_token`; `compute_density`, `expansion_ratio`; `d_model`, ...); `state` where not all are
            complete, and the dimensions, which tell repeats. A pruned run counts with what its curve foretold
            (`forecast`, `forecast_sd`: nats per token, relative), or else as one that would not have beaten the best
            complete one of its phase and budget. Rows that are equal in all these columns are the same training, given
            again: it counts once. A count that is 0 in some run of a phase has no law there.
        space: Name of the search space.
        noise: Relative sd of a run over seeds where it is known; from repeats and residuals by default.
        seed: For the draws behind the intervals.
        score: Whether to predict the largest budget from the others as well.

    Raises:
        InputError: Where a column is missing or holds no number, an axis that a phase searched is blank or not positive
            in some of its runs, no phase has three complete runs, or the noise is not positive.
    """
    if space is not None and not isinstance(space, str):
        raise InputError(f"a {type(space).__name__}, expected the name of a search space", where="space")
    if isinstance(runs, str | Path):
        runs = read_columns(runs, COLUMNS, MORE)
    table = _table(runs)
    budgets = np.unique(table["compute"])
    laws, axes = {}, []
    for phase in (0, 1, 2):
        part = {name: column[table["phase"] == phase] for name, column in table.items()}
        forms = _forms(phase, part)
        if forms:
            law = PhaseLaw.fit(phase, forms, part, noise=noise, seed=seed)
            laws[phase] = law
            axes += [fitted for c in np.unique(part["compute"]) for fitted in _fits(law, part, float(c), noise, seed)]
    if not laws:
        raise InputError(
            f"no phase with {LEAST_RUNS} complete runs that differ along its axes, expected at least one", where="runs"
        )
    best = laws[max(laws)]
    ladder = LadderLaws(space, best.noise, tuple(map(float, budgets)), laws, tuple(axes), {}, {}, None)
    ladder = replace(ladder, power_laws=_allocation(laws, table))
    ladder = replace(ladder, power_laws=power_laws_of(ladder), growth=growth_of(ladder))
    if not score or len(budgets) < 2:
        return ladder
    return replace(ladder, held_out=_hold_out(runs, table, ladder, noise, seed))


def _table(runs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """The usable rows as arrays, each run once: numbers, `row`, `censored`, `vague` (relative sd of a forecast) and
    `group`.
    """
    for name in COLUMNS:
        if name not in runs:
            raise InputError(f"no such column, expected {', '.join(COLUMNS)} and the searched axes", where=name)
    lengths = {name: len(np.asarray(runs[name])) for name in (*COLUMNS, *MORE, "state") if name in runs}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"columns of different lengths: {listed}", where="runs")
    n = lengths["loss"]
    told = np.asarray(runs["state"], str) if "state" in runs else [""] * n
    state = np.array([ended(text) for text in told], str)
    complete = state == "complete"
    table: dict[str, NDArray[Any]] = {"row": np.arange(1, n + 1), "censored": ~complete, "vague": np.zeros(n)}
    for name in (*COLUMNS, *MORE):
        if name in runs:
            try:
                table[name] = np.asarray(runs[name]).astype(float)
            except ValueError as error:
                raise InputError(f"not a number ({error})", where=name) from None
    columns = [np.nan_to_num(table[name], nan=-1.0) for name in (*COLUMNS, *MORE) if name in table]
    once = np.isin(np.arange(n), np.unique(_numbered([*columns, complete]), return_index=True)[1])  # of equal rows one
    foretold = np.zeros(n, bool)
    if "forecast" in table and "forecast_sd" in table:
        ahead = np.stack([table["forecast"], table["forecast_sd"]])
        foretold = ~complete & ((ahead > 0) & np.isfinite(ahead)).all(0)
        table["loss"] = np.where(foretold, table["forecast"], table["loss"])
        table["vague"] = np.where(foretold, table["forecast_sd"], 0.0)
    with np.errstate(invalid="ignore"):
        usable = np.isin(state, ("complete", "pruned")) & (table["compute"] > 0) & (table["loss"] > 0)
    usable &= np.isfinite(table["loss"]) & np.isfinite(table["compute"]) & once
    # A pruned run without a forecast stands for what it could not beat: the best complete one of its phase and budget.
    for phase, compute in {(p, c) for p, c in zip(table["phase"][usable], table["compute"][usable], strict=True)}:
        member = usable & (table["phase"] == phase) & (table["compute"] == compute)
        bound = member & ~complete & ~foretold
        if (member & complete).any():
            table["loss"] = np.where(bound, table["loss"][member & complete].min(), table["loss"])
        else:
            usable &= ~bound
    identity = [table[name] for name in ("compute", *DIMENSIONS) if name in table]
    # Compute and a few dimensions would make one architecture of many, and the spread of their losses noise.
    table["group"] = _numbered(identity) if len(identity) > 5 else np.arange(n)
    return {name: column[usable] for name, column in table.items()}


def _numbered(columns: Sequence[Array]) -> NDArray[np.intp]:
    """A number for each distinct row of columns (n,), (n,)."""
    return np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].reshape(-1)


def _forms(phase: int, part: Mapping[str, NDArray[Any]]) -> dict[str, AxisForm]:
    """The axes that a phase searched: their columns are there and have at least two values at some budget."""
    if (~part["censored"]).sum() < LEAST_RUNS:
        return {}
    forms: dict[str, AxisForm] = {}
    names = {0: ("flops_per_token",), 1: ("compute_density", "expansion_ratio"), 2: ("d_model", *FREED)}[phase]
    for name in names:
        x = _told(part, name)
        if x is None:
            continue
        if max(len(np.unique(x[part["compute"] == c])) for c in np.unique(part["compute"])) < 2:
            continue
        if name == "compute_density":
            forms[name] = AxisForm("pole_linear")
        elif name == "expansion_ratio":
            forms[name] = AxisForm("two_pole", _pole(part))
        else:
            forms[name] = AxisForm("quadratic_log")
        forms[name].check(x, name)
    return forms


def _told(part: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any] | None:
    """A column of the runs; None where it is not there, tells nothing, or is a count that is 0 in some.

    Raises:
        InputError: Where it is blank or not positive in some runs alone.
    """
    x = part.get(name)
    if x is None or not (good := np.isfinite(x) & (x > 0)).any():
        return None
    allowed = good | ((name in MAY_BE_0) & (x == 0))
    if not allowed.all():
        first = allowed.argmin()
        raise InputError(f"{x[first]:g}, expected a positive number", where=f"row {part['row'][first]}, column {name}")
    return x if good.all() else None


def _pole(part: Mapping[str, NDArray[Any]]) -> float:
    """The expansion ratio's upper pole, from the experts of the runs; just above the runs where these are not told."""
    if all(name in part for name in MAY_BE_0):
        shared = part["n_shared_experts"]
        poles = (part["n_experts"] + shared) / np.maximum(part["top_k"] + shared, 1)
        if (known := np.isfinite(poles)).any():
            return float(np.max(poles[known]))
    return 1.05 * float(part["expansion_ratio"].max())


def _fits(
    law: PhaseLaw, part: Mapping[str, NDArray[Any]], compute: float, noise: float | None, seed: int
) -> list[FittedAxis]:
    """The fits of a phase's axes at one budget: of its own complete runs, or the pooled law where these are too
    few.
    """
    rows = (part["compute"] == compute) & ~part["censored"]
    forms = {axis.name: axis.form for axis in law.axes}
    own = {name: part[name][rows] for name in forms}
    enough = rows.sum() >= 4 + 4 * len(forms) and all(len(np.unique(x)) >= 3 for x in own.values())
    if enough:
        fits = fit_axes(forms, own, part["loss"][rows], noise=noise or law.noise, seed=seed)
    else:
        fits = {name: law.axis_fit(name, compute, int(rows.sum())) for name in forms}
    return [FittedAxis.of(compute, law.phase, name, fit, pooled=not enough) for name, fit in fits.items()]


def _allocation(laws: Mapping[int, PhaseLaw], table: Mapping[str, NDArray[Any]]) -> dict[str, PowerLaw]:
    """FLOPs per token as they were, where no phase searched them; beyond a single budget as they usually grow."""
    flops_per_token = None if 0 in laws else _told(table, "flops_per_token")
    if flops_per_token is None:
        return {}
    budgets = np.unique(table["compute"])
    used = np.array([np.median(flops_per_token[table["compute"] == c]) for c in budgets])
    if len(budgets) == 1:
        b, error = USUAL_EXPONENT["flops_per_token"], 1.96 * USUAL_ERROR
        a = float(used[0] / budgets[0] ** b)
        span, points = (b - error, b + error), points_of(budgets, used[None])
        return {"flops_per_token": PowerLaw("flops_per_token", a, b, (a, a), span, 0.0, points)}
    law = PowerLaw.through("flops_per_token", budgets, np.vstack([used, used]), points_of(budgets, used[None]))
    return {"flops_per_token": law}


def _hold_out(
    runs: Mapping[str, ArrayLike], table: Mapping[str, NDArray[Any]], ladder: LadderLaws, noise: float | None, seed: int
) -> dict[str, Any] | None:
    """The largest budget by the laws of the others, against its own runs."""
    compute = ladder.budgets[-1]
    smaller = np.asarray(runs["compute"]).astype(float) < compute * (1 - 1e-9)
    try:
        known = {name: np.asarray(runs[name])[smaller] for name in (*COLUMNS, *MORE, "state") if name in runs}
        others = fit_ladder(known, noise=noise, seed=seed, score=False)
    except InputError:
        return None
    shared = [f for f in ladder.axes if f.compute == compute and f.phase in others.phases]
    axes = {}
    for fitted in shared:
        if fitted.axis not in others.axes_known:
            continue
        value, span = others.predict(fitted.axis, compute)
        form, edges = fitted.curve, ladder.band(fitted.axis, compute)[0]
        axes[fitted.axis] = {
            "predicted": value,
            "interval": list(span),
            "band": list(others.band(fitted.axis, compute)[0]),
            "found": fitted.optimum,
            "found_interval": list(fitted.interval),
            "found_band": list(fitted.band),
            "pooled": fitted.pooled,
            "error_in_band_widths": float(
                (form.t(value) - form.t(fitted.optimum)) / (form.t(edges[1]) - form.t(edges[0]))
            ),
            "consistent": _overlap(span, fitted.interval),
        }
    return {
        "compute": compute,
        "loss": _held_out_loss(others, shared, table, ladder.noise),
        "axes": axes,
        **_score_runs(others, table, compute),
    }


def _held_out_loss(
    others: LadderLaws, found: list[FittedAxis], table: Mapping[str, NDArray[Any]], noise: float
) -> dict[str, Any] | None:
    """The least loss of the largest budget in its last phase that smaller ones have too, predicted and found.

    Found is the mean of the architecture that was trained most often there, at least twice: a search repeats what it
    recommends. Without repeats it is the fit's, which is `pooled` with the runs of other budgets where there are few.
    """
    if not found:
        return None
    last = max(found, key=lambda fitted: fitted.phase)
    draws = others.phases[last.phase].level([last.compute])[:, 0]
    span, loss, loss_span, pooled = interval(draws[1:]), last.loss, last.loss_interval, last.pooled
    rows = (table["phase"] == last.phase) & (table["compute"] == last.compute) & ~table["censored"]
    groups, counts = np.unique(table["group"][rows], return_counts=True)
    trainings = int(counts.max(initial=0))
    if trainings > 1:
        loss = float(table["loss"][rows & (table["group"] == groups[counts.argmax()])].mean())
        reach = 1.96 * noise / trainings**0.5
        loss_span, pooled = (loss * (1 - reach), loss * (1 + reach)), False
    return {
        "phase": last.phase,
        "predicted": float(draws[0]),
        "interval": list(span),
        "found": loss,
        "found_interval": list(loss_span),
        "pooled": pooled,
        "trainings": trainings,
        "error": float(draws[0]) / loss - 1,
        "consistent": _overlap(span, loss_span),
    }


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]


def _score_runs(others: LadderLaws, table: Mapping[str, NDArray[Any]], compute: float) -> dict[str, Any]:
    """How the smaller budgets' surrogates predict each complete run of the largest: rows, rmse_log, coverage at 95
    %.
    """
    errors, inside = [], []
    for phase, law in others.phases.items():
        rows = (table["phase"] == phase) & (table["compute"] == compute) & ~table["censored"]
        if not rows.any() or law.surrogate is None:
            continue
        h = np.full(int(rows.sum()), np.log(compute) - law.reference)
        unit = np.column_stack([axis.w(table[axis.name][rows], h) + 0.5 for axis in law.axes])
        mean, sd = law.surrogate.predict(compute, unit)
        error = np.log(table["loss"][rows] / mean)
        errors.append(error)
        inside.append(np.abs(error) <= 1.96 * np.hypot(sd / mean, law.noise))
    if not errors:
        return {"rows": 0, "rmse_log": None, "coverage": None}
    every = np.concatenate(errors)
    return {
        "rows": len(every),
        "rmse_log": float(np.sqrt(np.mean(every**2))),
        "coverage": float(np.concatenate(inside).mean()),
    }
