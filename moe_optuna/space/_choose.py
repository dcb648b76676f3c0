"""From all solutions to the one that stands for its place: at the median width, or nearest to the triad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_optuna.space._solve import Columns, Problem

__all__ = ["at_median", "join", "nearest_each"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def join(pieces: Sequence[Columns]) -> Columns:
    """Columns one below the other."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}


def _first_of_each(columns: Columns, keys: Sequence[str], order: Sequence[Floats]) -> tuple[Columns, Integers]:
    """The row of each distinct key that comes first in `order`, sorted by key."""
    ranked = np.lexsort((*reversed(order), *(columns[key] for key in reversed(keys))))
    table = np.stack([columns[key][ranked] for key in keys], axis=1)
    chosen = ranked[np.flatnonzero(np.r_[True, (table[1:] != table[:-1]).any(1)])] if len(ranked) else ranked
    return {name: column[chosen] for name, column in columns.items()}, chosen


def nearest_each(problem: Problem, targets: Floats, keys: Sequence[str]) -> Columns:
    """Of the solutions that agree in `keys`, the one nearest to its pair's targets (pairs, 3)."""
    best: list[Columns] = []
    deviations: list[Floats] = []
    for runs in problem.runs():
        if not len(runs):
            continue
        chosen, deviation = runs.nearest(targets)
        chosen, kept = _first_of_each(chosen, keys, [deviation])
        best.append(chosen)
        deviations.append(deviation[kept])
    if not best:
        return {}
    return _first_of_each(join(best), keys, [np.concatenate(deviations)])[0]


def at_median(problem: Problem, targets: Floats) -> Columns:
    """One solution for each pair that has any, sorted by pair: at the median of the distinct d_model of the pair's
    solutions (of two in the middle the lower), and there the nearest to the targets (pairs, 3)."""
    step = problem.dimensions.d_model.multiple
    apart = problem.dimensions.d_model.high // step + 1
    keys = [np.unique(runs.columns["pair"] * apart + runs.columns["d_model"] // step) for runs in problem.runs()]
    pair, width = np.divmod(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *keys])), apart)
    solved, begin, size = np.unique(pair, return_index=True, return_counts=True)
    median = width[begin + (size - 1) // 2]
    columns = nearest_each(problem.part(solved, (median, median)), targets[solved], ["pair"])
    return columns | {"pair": solved[columns["pair"]]} if columns else {}
