"""The figures of a search, as plotly figures: what was measured, the fit through it, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.laws import LadderLaws
from moe_optuna.report import _words as words
from moe_optuna.report._panels import Panels
from moe_optuna.report._run import Run, Trial, quantity

__all__ = ["figures", "study_figures"]

Array = NDArray[np.float64]

# Okabe and Ito's palette, told apart by every kind of colour vision; its blue a little lighter, for dark pages too.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, GREY = "#1F81C2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A9099"
MARKS = {
    "trial": ("circle", BLUE),
    "seed repeat": ("diamond", PURPLE),
    "pruned": ("x-thin-open", GREY),
    "far off on another axis": ("circle-open", GREY),
    "above the scale": ("triangle-up", BLUE),
}
SHARES = {"attention": BLUE, "dense_ffn": ORANGE, "moe": GREEN}
LINEAR = ("expansion_ratio",)
"""Axes that are read on a linear scale."""
COUNTED = ("n_experts", "top_k", "n_shared_experts", "n_heads")
"""Axes of a few whole numbers."""
FAR = 0.08
"""Share of the loss beyond which a trial no longer tells where the optimum is."""
GRID = 80
"""Points of a curve."""


def figures(out: str | Path | Run) -> dict[str, go.Figure]:
    """Every figure that the folder of a search has the data for, by its id.

    ``loss-<axis>``
        Loss against an axis, a panel a budget: trials, fit, optimum and near-optimal band.
    ``optimum``, ``band``
        Optima and band edges against compute, their power laws extrapolated to the target.
    ``held-out``
        What the smaller budgets predicted for the largest against what came out.
    ``loss``
        Loss against compute.
    ``shape``
        Where the FLOPs of a token go: the best architecture of each budget, and the blueprint.

    Raises:
        InputError: Where the folder is not one of a search, or a file in it is not what its name says.
    """
    run = out if isinstance(out, Run) else Run.read(out)
    drawn = {f"loss-{axis}": _loss_by_axis(run, phase, axis, run.budgets) for phase, axis in run.axes}
    drawn |= {
        "optimum": _optima(run),
        "band": _bands(run),
        "held-out": _held_out(run),
        "loss": _loss_by_compute(run),
        "shape": _shape(run),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def study_figures(run: Run, study: str) -> dict[str, go.Figure]:
    """The figures of one study: loss against each of its axes, by id."""
    phase, compute = next(((t.phase, t.compute) for t in run.trials if t.study == study), (-1, 0.0))
    drawn = {f"loss-{axis}": _loss_by_axis(run, p, axis, (compute,)) for p, axis in run.axes if p == phase}
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    for figure in found.values():  # the dashboard shows them narrow: the legend goes below, one under another
        figure.update_layout(height=500, margin_b=230)
    return found


def _loss_by_axis(run: Run, phase: int, axis: str, budgets: Sequence[float]) -> go.Figure | None:
    drawn = {c: trials for c in budgets if (trials := [t for t in run.select(phase=phase, compute=c) if t[axis] > 0])}
    panels = Panels()
    for compute, trials in drawn.items():
        law, values = run.fit(phase, axis, compute), [trial[axis] for trial in trials]
        beyond = law is not None and not min(values) <= law.optimum <= max(values)
        panels.begin(f"C = {words.compute(compute)} FLOPs" + ("<br>optimum beyond what was tried" if beyond else ""))
        losses = [_along(run, trial, axis) for trial in trials]
        kinds = _kinds(trials, losses)
        near = [loss for loss, kind in zip(losses, kinds, strict=True) if kind in ("trial", "seed repeat")]
        heights = _padded([*_inner(near or losses), *([law.loss] if law else [])])
        kinds = [
            "above the scale" if kind == "trial" and loss > heights[1] else kind
            for kind, loss in zip(kinds, losses, strict=True)
        ]
        inside = np.clip(losses, heights[0], heights[1] - 0.02 * (heights[1] - heights[0]))
        if law:
            panels.area(law.band_noise, heights, "within the noise of the optimum", ORANGE, 0.16)
            panels.area(law.band, heights, "near-optimal band, 0.1 %", GREEN, 0.3)
        for kind, (symbol, colour) in MARKS.items():
            if members := [i for i, each in enumerate(kinds) if each == kind]:
                panels.points(
                    [trials[i][axis] for i in members],
                    [inside[i] for i in members],
                    kind,
                    colour,
                    symbol=symbol,
                    hover=[_hover(trials[i]) for i in members],
                )
        shown = [*values, law.optimum, *law.band] if law and beyond else values
        if law:
            grid = _spaced(min(shown), max(shown), axis not in LINEAR)
            panels.line(grid, law.predict(grid), "fit", VERMILLION)
            panels.points(
                [law.optimum],
                [law.loss],
                "optimum of the fit, 95 % interval",
                VERMILLION,
                symbol="star",
                size=12,
                x_intervals=[law.interval],
                hover=[
                    f"optimum {words.value(axis, law.optimum)} ({words.interval(axis, law.interval)})<br>"
                    f"0.1 % band {words.interval(axis, law.band)}<br>loss {words.value('loss', law.loss)} "
                    f"({words.interval('loss', law.loss_interval)})<br>{law.points} runs"
                    + (", with those of other budgets" if law.pooled else "")
                    + ("; extrapolated beyond what was tried here" if beyond else "")
                ],
            )
        panels.axes(
            x=words.title(axis),
            y=f"loss {words.unit('loss')}",
            x_range=_padded(shown, axis not in LINEAR),
            y_range=heights,
            log="" if axis in LINEAR else "x",
            x_ticks=sorted(set(values)) if axis in COUNTED else None,
            x_text=partial(words.tick, axis),
        )
    return panels.figure()


def _inner(losses: Sequence[float]) -> list[float]:
    """Losses without the few, near a pole of the form, that would flatten all others."""
    least, middle = min(losses), float(np.median(losses))
    return [loss for loss in losses if loss - least <= max(8 * (middle - least), FAR * least)]


def _along(run: Run, trial: Trial, axis: str) -> float:
    """The loss that the trial would have had with the other axes of its phase at their best, by their fits: what the
    curve along this axis stands for."""
    loss = trial.loss
    for phase, other in run.axes:
        law = run.fit(phase, other, trial.compute)
        if phase == trial.phase and other != axis and law is not None and math.isfinite(trial[other]):
            loss -= float(law.predict(trial[other])[0]) - law.loss
    return loss


def _kinds(trials: Sequence[Trial], losses: Sequence[float]) -> list[str]:
    """For each trial its mark; a seed repeat is complete, of an architecture trained before it."""
    seen: set[tuple[float, ...]] = set()
    kinds = []
    for trial, loss in zip(trials, losses, strict=True):
        kind = "seed repeat" if trial.shape in seen else "trial"
        if trial.state != "complete":
            kind = "pruned"
        elif trial.loss - loss > FAR * loss:
            kind = "far off on another axis"
        if trial.state == "complete":
            seen.add(trial.shape)
        kinds.append(kind)
    return kinds


def _optima(run: Run) -> go.Figure | None:
    laws = run.laws
    if laws is None:
        return None
    quantities = [name for name in laws.power_laws if not name.endswith(("_low", "_high"))]
    grid, ticks = _ladder(run, laws)
    panels = Panels()
    for name in quantities:
        panels.begin(f"{name}<br>exponent {_exponent(laws, name)}")
        power, draws = laws.power_laws[name], laws.draws(name, grid)
        low, high = np.quantile(draws[1:], (0.025, 0.975), axis=0)
        compute, values, *ends = (list(column) for column in zip(*power.points, strict=True))
        panels.fan(grid, low, high, "95 % interval of the law", BLUE)
        panels.line(grid, power(grid), "power law", BLUE)
        panels.points(
            compute,
            values,
            "optimum at a budget, 95 % interval",
            VERMILLION,
            symbol="star",
            size=11,
            y_intervals=list(zip(*ends, strict=True)),
            hover=[
                f"C = {words.compute(c)}<br>{name} {words.value(name, v)} ({words.interval(name, (lo, hi))})"
                for c, v, lo, hi in power.points
            ],
        )
        shown = [*values, *ends[0], *ends[1], float(low.min()), float(high.max())]
        if run.blueprint is not None:
            target, chosen = run.blueprint.compute, quantity(run.blueprint.architecture, name)
            shown.append(chosen)
            hover = f"blueprint, C = {words.compute(target)}<br>{name} {words.value(name, chosen)}"
            panels.points([target], [chosen], "blueprint", GREEN, symbol="square", size=10, hover=[hover])
        _over_compute(panels, name, grid, ticks, shown)
    return panels.figure()


def _bands(run: Run) -> go.Figure | None:
    laws = run.laws
    if laws is None:
        return None
    axes = [name for name in laws.power_laws if f"{name}_low" in laws.power_laws]
    grid, ticks = _ladder(run, laws)
    panels = Panels()
    for name in axes:
        panels.begin(f"{name}: relative extent {_verdict(laws, name)}")
        law = next(law for law in laws.phases.values() if name in [axis.name for axis in law.axes])
        low, high = law.edges(name, grid)  # the best in row 0, then draws
        lowest, highest = np.quantile(low[1:], 0.025, axis=0), np.quantile(high[1:], 0.975, axis=0)
        panels.fan(grid, lowest, highest, "95 % interval of the edges", GREY)
        panels.fan(grid, low[0], high[0], "near-optimal band, 0.1 %", GREEN, 0.3)
        panels.line(grid, laws.power_laws[name](grid), "optimum", VERMILLION)
        shown = [*lowest, *highest]
        for edge, symbol in (("low", "triangle-up"), ("high", "triangle-down")):
            points = laws.power_laws[f"{name}_{edge}"].points
            panels.points(
                [point[0] for point in points],
                [point[1] for point in points],
                f"{edge} edge at a budget, 95 % interval",
                GREEN,
                symbol=symbol,
                y_intervals=[point[2:] for point in points],
                hover=[
                    f"C = {words.compute(c)}<br>{edge} edge of {name} {words.value(name, v)} "
                    f"({words.interval(name, (lo, hi))})"
                    for c, v, lo, hi in points
                ],
            )
            shown += [x for point in points for x in point[1:]]
        _over_compute(panels, name, grid, ticks, shown)
    return panels.figure()


def _held_out(run: Run) -> go.Figure | None:
    panels = Panels(across=4, height=250)
    for each in run.held_out:
        name = each.quantity
        panels.begin(name)
        shown = [each.predicted, each.found, *(each.interval or ()), *(each.found_interval or ()), *(each.band or ())]
        if each.band:
            panels.fan([-0.5, 1.5], [each.band[0]] * 2, [each.band[1]] * 2, "predicted band, 0.1 %", GREEN, 0.3)
        for place, label, value, interval, colour, symbol in (
            (0, "predicted from the smaller budgets, 95 % interval", each.predicted, each.interval, BLUE, "circle"),
            (1, "found at the largest budget, 95 % interval", each.found, each.found_interval, VERMILLION, "star"),
        ):
            panels.points(
                [place],
                [value],
                label,
                colour,
                symbol=symbol,
                size=11,
                y_intervals=[interval or (value, value)],
                hover=[f"{label}<br>{name} {words.value(name, value)} ({words.interval(name, interval)})"],
            )
        panels.axes(
            x="",
            y=words.unit(name),
            x_range=(-0.5, 1.5),
            y_range=_padded(shown, name not in LINEAR),
            log="" if name in LINEAR else "y",
            x_ticks=[0, 1],
            x_text=lambda x: "found" if x else "predicted",
            y_text=partial(words.tick, name),
        )
    return panels.figure()


def _loss_by_compute(run: Run) -> go.Figure | None:
    complete = [trial for trial in run.select() if trial.state == "complete"]
    if not complete:
        return None
    panels = Panels(height=330)
    panels.begin("held-out loss")
    losses, computes = [trial.loss for trial in complete], list(run.budgets)
    shown = _inner(losses)
    panels.points(
        [t.compute for t in complete], losses, "trial", GREY, size=6, hover=[_hover(trial) for trial in complete]
    )
    if run.laws is not None:
        grid, computes = _ladder(run, run.laws)
        draws = run.laws.draws("loss", grid)
        low, high = np.quantile(draws[1:], (0.025, 0.975), axis=0)
        panels.fan(grid, low, high, "95 % interval of the law", BLUE)
        panels.line(grid, draws[0], "least loss by the law", BLUE)
        shown = [*shown, float(low.min())]
    last = max((phase for phase, _ in run.axes), default=None)
    if fits := [fit for fit in run.fits if fit.phase == last]:
        panels.points(
            [fit.compute for fit in fits],
            [fit.loss for fit in fits],
            "least loss of the fit, 95 % interval",
            VERMILLION,
            symbol="star",
            size=11,
            y_intervals=[fit.loss_interval for fit in fits],
            hover=[f"C = {words.compute(f.compute)}<br>least loss {words.value('loss', f.loss)}" for f in fits],
        )
    for each in run.held_out:
        if each.quantity == "loss":
            panels.points(
                [run.budgets[-1]],
                [each.predicted],
                "predicted from the smaller budgets, 95 % interval",
                PURPLE,
                symbol="diamond-open",
                size=12,
                y_intervals=[each.interval or (each.predicted, each.predicted)],
                hover=[f"predicted {words.value('loss', each.predicted)} ({words.interval('loss', each.interval)})"],
            )
    if run.blueprint is not None and run.blueprint.predicted_loss is not None:
        loss = run.blueprint.predicted_loss
        sure = run.blueprint.intervals.get("predicted_loss", (loss, loss))
        shown += [loss, *sure]
        panels.points(
            [run.blueprint.compute],
            [loss],
            "blueprint",
            GREEN,
            symbol="square",
            size=10,
            y_intervals=[sure],
            hover=[
                f"blueprint, C = {words.compute(run.blueprint.compute)}<br>predicted loss {words.value('loss', loss)}"
            ],
        )
    panels.axes(
        x=f"compute {words.unit('compute')}",
        y=f"loss {words.unit('loss')}",
        x_range=_padded([*computes, *run.budgets], True),
        y_range=_padded(shown, True),
        log="xy",
        x_ticks=computes,
        x_text=words.compute,
    )
    return panels.figure()


def _shape(run: Run) -> go.Figure | None:
    rows: list[tuple[str, MoEArchitecture]] = []
    for compute in run.budgets:
        best = run.best(compute)
        if best is not None and (found := best.architecture()) is not None:
            rows.append((f"best of C = {words.compute(compute)}", found))
    if run.blueprint is not None:
        rows.append((f"<b>blueprint, C = {words.compute(run.blueprint.compute)}</b>", run.blueprint.architecture))
    if not rows:
        return None
    places = [-float(place) for place in range(len(rows))]
    panels = Panels(height=34 * len(rows))
    panels.begin("shares of flops_per_token, non_embedding")
    for name, colour in SHARES.items():
        shares = [architecture.shares[name] for _, architecture in rows]
        panels.add(
            type="bar",
            name=name,
            x=[round(100 * share, 2) for share in shares],
            y=places,
            orientation="h",
            marker={"color": colour},
            text=[f"{100 * share:.0f} %" if share > 0.04 else "" for share in shares],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            insidetextfont={"color": "white" if colour == BLUE else "black"},
            customdata=[words.sketch(architecture) for _, architecture in rows],
            hovertemplate=f"{name} %{{x:.1f}} %<br>%{{customdata}}<extra></extra>",
        )
    panels.axes(
        x="share [%]",
        y="",
        x_range=(0, 100),
        y_range=(places[-1] - 0.6, 0.6),
        y_ticks=places,
        y_text=lambda place: rows[-int(place)][0],
    )
    return panels.figure(barmode="stack", bargap=0.35, margin={"l": 190, "r": 24, "t": 60, "b": 90})


def _over_compute(panels: Panels, name: str, grid: Array, ticks: Sequence[float], shown: Sequence[float]) -> None:
    panels.axes(
        x=f"compute {words.unit('compute')}",
        y=words.unit(name),
        x_range=_padded(list(grid), True),
        y_range=_padded(shown, name not in LINEAR),
        log="x" if name in LINEAR else "xy",
        x_ticks=ticks,
        x_text=words.compute,
        y_text=partial(words.tick, name),
    )


def _ladder(run: Run, laws: LadderLaws) -> tuple[Array, list[float]]:
    """Budgets to draw laws over, from the ladder's least to the target, and those to name."""
    named = sorted({*laws.budgets, *([run.target] if run.target else [])})
    return _spaced(named[0], named[-1], True), named


def _exponent(laws: LadderLaws, name: str) -> str:
    power = laws.power_laws[name]
    low, high = power.b_interval
    return f"{power.b:z.3f} ({low:z.3f} to {high:z.3f})".replace("-", "−")


def _verdict(laws: LadderLaws, name: str) -> str:
    growth = laws.growth.get(name, {}).get("relative")
    return growth.verdict if growth is not None else "unknown"


def _spaced(low: float, high: float, logarithmic: bool) -> Array:
    return np.geomspace(low, high, GRID) if logarithmic else np.linspace(low, high, GRID)


def _padded(values: Sequence[float], logarithmic: bool = False) -> tuple[float, float]:
    """The range of the values and a little more."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.001)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - room, high + room


def _hover(trial: Trial) -> str:
    """What a trial trained, for whoever points at it."""
    found = trial.architecture()
    counts = f"M {words.flops(trial['flops_per_token'])} · Na {words.large(trial['active_params'])}"
    lines = [
        f"{escape(trial.study)}, trial {trial.number}" + ("" if trial.state == "complete" else f", {trial.state}"),
        f"loss {words.value('loss', trial.loss)}" + ("" if trial.state == "complete" else " when it was stopped"),
        *([words.sketch(found)] if found is not None else []),
        f"{counts} · N {words.large(trial['total_params'])} (non_embedding)",
        f"M/Na {words.number(trial['compute_density'])} · N/Na {words.number(trial['expansion_ratio'])}",
        f"D {words.large(trial['tokens'])} tokens · seed {words.number(trial['seed'])}",
    ]
    return "<br>".join(lines)
