"""Loss against an axis of the search, a panel a budget: trials, fit, optimum and near-optimal band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go

from moe_optuna.report import _words as words
from moe_optuna.report._drawing import (
    BLUE,
    FAR,
    GREEN,
    GREY,
    LINEAR,
    ORANGE,
    PURPLE,
    VERMILLION,
    hover,
    inner,
    padded,
    spaced,
)
from moe_optuna.report._panels import Panels
from moe_optuna.report._run import Run, Trial

__all__ = ["loss_by_axis"]

MARKS = {
    "trial": ("circle", BLUE),
    "seed repeat": ("diamond", PURPLE),
    "pruned": ("x-thin-open", GREY),
    "far off on another axis": ("circle-open", GREY),
    "above the scale": ("triangle-up", BLUE),
}
COUNTED = ("n_experts", "top_k", "n_shared_experts", "n_heads")
"""Axes of a few whole numbers."""


def loss_by_axis(run: Run, phase: int, axis: str, budgets: Sequence[float]) -> go.Figure | None:
    drawn = {c: trials for c in budgets if (trials := [t for t in run.select(phase=phase, compute=c) if t[axis] > 0])}
    panels = Panels()
    for compute, trials in drawn.items():
        law, values = run.fit(phase, axis, compute), [trial[axis] for trial in trials]
        beyond = law is not None and not min(values) <= law.optimum <= max(values)
        panels.begin(f"C = {words.compute(compute)} FLOPs" + ("<br>optimum beyond what was tried" if beyond else ""))
        losses = [_along(run, trial, axis) for trial in trials]
        kinds = _kinds(trials, losses)
        near = [loss for loss, kind in zip(losses, kinds, strict=True) if kind in ("trial", "seed repeat")]
        heights = padded([*inner(near or losses), *([law.loss] if law else [])])
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
                    hover=[hover(trials[i]) for i in members],
                )
        shown = [*values, law.optimum, *law.band] if law and beyond else values
        if law:
            grid = spaced(min(shown), max(shown), axis not in LINEAR)
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
            x_range=padded(shown, axis not in LINEAR),
            y_range=heights,
            log="" if axis in LINEAR else "x",
            x_ticks=sorted(set(values)) if axis in COUNTED else None,
            x_text=partial(words.tick, axis),
        )
    return panels.figure()


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
