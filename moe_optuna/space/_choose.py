"""From all solutions to the one that stands for its place: at the proxy width, or nearest to the triad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_optuna.space._solve import Columns, Problem

__all__ = ["at_width", "join", "nearest_each"]

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
        chosen, deviation = runs.nearest(targets)
        chosen, kept = _first_of_each(chosen, keys, [deviation])
        best.append(chosen)
        deviations.append(deviation[kept])
    if not best:
        return {}
    return _first_of_each(join(best), keys, [np.concatenate(deviations)])[0]


def at_width(problem: Problem, targets: Floats, d_model: Floats) -> Columns:
    """One solution for each pair that has any: the nearest to the wished d_model (pairs,), and of those the nearest to
    the targets (pairs, 3). Looks at a window of d_model that grows until it holds a solution."""
    step = problem.dimensions.d_model.multiple
    wished = np.isfinite(d_model) & (d_model > 0)
    centre = np.rint(np.where(wished, d_model, 0) / step).astype(np.int64)
    open_pairs, found, reach = np.flatnonzero(wished), [], 0
    while len(open_pairs):
        at = centre[open_pairs]
        part = problem.part(open_pairs, (at - reach, at + reach))
        pieces, orders = [], []
        for runs in part.runs():
            chosen, deviation = runs.nearest(targets[open_pairs])
            pieces.append(chosen)
            orders.append(deviation)
        solved = np.empty(0, dtype=np.int64)
        if pieces and sum(len(order) for order in orders):
            columns = join(pieces)
            distance = np.abs(columns["d_model"] // step - at[columns["pair"]]).astype(float)
            columns, _ = _first_of_each(columns, ["pair"], [distance, np.concatenate(orders)])
            solved = columns["pair"]
            found.append(columns | {"pair": open_pairs[solved]})
        left = np.ones(len(open_pairs), dtype=bool)
        left[solved] = False
        # The proxy is the middle of the interval, so that four times it is far beyond its end.
        open_pairs = open_pairs[left & (reach < 3 * at)]
        reach = 2 * reach + 1
    columns = join(found)
    order = np.argsort(columns["pair"]) if columns else None
    return {name: column[order] for name, column in columns.items()}
