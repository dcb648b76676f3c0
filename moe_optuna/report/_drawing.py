"""What the figures of a search share: colours, ranges, and what is told of a trial under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from moe_optuna.report import _words as words
from moe_optuna.report._run import Trial

Array = NDArray[np.float64]

# Okabe and Ito's palette, told apart by every kind of colour vision; its blue a little lighter, for dark pages too.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, GREY = "#1F81C2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A9099"
LINEAR = ("expansion_ratio",)
"""Axes that are read on a linear scale."""
FAR = 0.08
"""Share of the loss beyond which a trial no longer tells where the optimum is."""
GRID = 80
"""Points of a curve."""


def inner(losses: Sequence[float]) -> list[float]:
    """Losses without the few, near a pole of the form, that would flatten all others."""
    least, middle = min(losses), float(np.median(losses))
    return [loss for loss in losses if loss - least <= max(8 * (middle - least), FAR * least)]


def spaced(low: float, high: float, logarithmic: bool) -> Array:
    return np.geomspace(low, high, GRID) if logarithmic else np.linspace(low, high, GRID)


def padded(values: Sequence[float], logarithmic: bool = False) -> tuple[float, float]:
    """The range of the values and a little more."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.001)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - room, high + room


def hover(trial: Trial) -> str:
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
