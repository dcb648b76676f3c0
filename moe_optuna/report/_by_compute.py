"""What changes over compute: optima, bands, loss and shape, with their laws, and the held-out budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.laws import LadderLaws
from moe_optuna.report import _words as words
from moe_optuna.report._drawing import (
    BLUE,
    GREEN,
    GREY,
    LINEAR,
    ORANGE,
    PURPLE,
    VERMILLION,
    Array,
    hover,
    inner,
    padded,
    spaced,
)
from moe_optuna.report._panels import Panels
from moe_optuna.report._run import Run, quantity

__all__ = ["bands", "held_out", "loss_by_compute", "optima", "shape"]

SHARES = {"attention": BLUE, "dense_ffn": ORANGE, "moe": GREEN}


def optima(run: Run) -> go.Figure | None:
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
            told = f"blueprint, C = {words.compute(target)}<br>{name} {words.value(name, chosen)}"
            panels.points([target], [chosen], "blueprint", GREEN, symbol="square", size=10, hover=[told])
        _over_compute(panels, name, grid, ticks, shown)
    return panels.figure()


def bands(run: Run) -> go.Figure | None:
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


def held_out(run: Run) -> go.Figure | None:
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
            y_range=padded(shown, name not in LINEAR),
            log="" if name in LINEAR else "y",
            x_ticks=[0, 1],
            x_text=lambda x: "found" if x else "predicted",
            y_text=partial(words.tick, name),
        )
    return panels.figure()


def loss_by_compute(run: Run) -> go.Figure | None:
    complete = [trial for trial in run.select() if trial.state == "complete"]
    if not complete:
        return None
    panels = Panels(height=330)
    panels.begin("held-out loss")
    losses, computes = [trial.loss for trial in complete], list(run.budgets)
    shown = inner(losses)
    panels.points(
        [t.compute for t in complete], losses, "trial", GREY, size=6, hover=[hover(trial) for trial in complete]
    )
    if run.laws is not None and run.laws.knows_loss:
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
        x_range=padded([*computes, *run.budgets], True),
        y_range=padded(shown, True),
        log="xy",
        x_ticks=computes,
        x_text=words.compute,
    )
    return panels.figure()


def shape(run: Run) -> go.Figure | None:
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
        x_range=padded(list(grid), True),
        y_range=padded(shown, name not in LINEAR),
        log="x" if name in LINEAR else "xy",
        x_ticks=ticks,
        x_text=words.compute,
        y_text=partial(words.tick, name),
    )


def _ladder(run: Run, laws: LadderLaws) -> tuple[Array, list[float]]:
    """Budgets to draw laws over, from the ladder's least to the target, and those to name."""
    named = sorted({*laws.budgets, *([run.target] if run.target else [])})
    return spaced(named[0], named[-1], True), named


def _exponent(laws: LadderLaws, name: str) -> str:
    power = laws.power_laws[name]
    low, high = power.b_interval
    return f"{power.b:z.3f} ({low:z.3f} to {high:z.3f})".replace("-", "−")


def _verdict(laws: LadderLaws, name: str) -> str:
    growth = laws.growth.get(name, {}).get("relative")
    return growth.verdict if growth is not None else "unknown"
