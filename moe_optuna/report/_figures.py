"""The figures of a search, as plotly figures: what was measured, the fit through it, and how sure it is."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from moe_optuna.report._by_axis import loss_by_axis
from moe_optuna.report._by_compute import bands, held_out, loss_by_compute, optima, shape
from moe_optuna.report._run import Run

__all__ = ["figures", "study_figures"]


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
    drawn = {f"loss-{axis}": loss_by_axis(run, phase, axis, run.budgets) for phase, axis in run.axes}
    drawn |= {
        "optimum": optima(run),
        "band": bands(run),
        "held-out": held_out(run),
        "loss": loss_by_compute(run),
        "shape": shape(run),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def study_figures(run: Run, study: str) -> dict[str, go.Figure]:
    """The figures of one study: loss against each of its axes, by id."""
    phase, compute = next(((t.phase, t.compute) for t in run.trials if t.study == study), (-1, 0.0))
    drawn = {f"loss-{axis}": loss_by_axis(run, p, axis, (compute,)) for p, axis in run.axes if p == phase}
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    for figure in found.values():  # the dashboard shows them narrow: the legend goes below, one under another
        figure.update_layout(height=500, margin_b=230)
    return found
