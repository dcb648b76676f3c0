"""The triad solved in integers: every architecture inside the bands, none twice (derived in docs/solve.md).

Nothing is drawn and rejected. For each combination of the discrete dimensions the bands of M and Na leave a range of
depths; each depth divides into dense and MoE layers; for each division the bands of Na and N leave an interval of
d_model, and at each d_model one of a free d_dense; and there the three bands are linear in d_expert, so that what is
left is one *run* of consecutive multiples. Work is in proportion to combinations and runs, not to the box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moe_optuna.space._dimensions import Dimensions
from moe_optuna.triad import ROUNDING, Triad

__all__ = ["Bands", "Columns", "Piece", "Problem", "Runs", "counts"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, Integers]

_ROWS = 1 << 18
"""Rows that one step of the expansion may make: it bounds the memory, not the result."""

_COMBINATION = ("n_heads", "n_kv_heads", "d_head", "n_experts", "top_k", "n_shared_experts", "context_length")

_LARGEST = 1 << 60
"""The largest count that a band holds, far above any model: 6 Na stays an int64."""


def counts(columns: Mapping[str, Integers]) -> Columns:
    """M, Na and N in the `non_embedding` convention for columns of dimensions, (n,) each."""
    c = columns
    layers = c["n_dense_layers"] + c["n_moe_layers"]
    attention = 2 * c["d_model"] * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers
    dense = 3 * c["d_model"] * c["d_dense"] * c["n_dense_layers"]
    expert = 3 * c["d_model"] * c["d_expert"] * c["n_moe_layers"]
    active = attention + dense + expert * (c["top_k"] + c["n_shared_experts"])
    return {
        "flops_per_token": 6 * active + 6 * c["context_length"] * c["n_heads"] * c["d_head"] * layers,
        "active_params": active,
        "total_params": active + expert * (c["n_experts"] - c["top_k"]),
    }


@dataclass(frozen=True)
class Bands:
    """The smallest and the largest integer that a target admits: `low` and `high`, (n, 3), in the order M, Na, N."""

    low: Integers
    high: Integers

    @classmethod
    def around(cls, targets: Floats, tolerances: tuple[float, float, float]) -> Bands:
        """Exactly the integers that `Triad.admits`, for targets (n, 3)."""
        width = np.array(tolerances)

        def admits(numbers: Integers) -> NDArray[np.bool_]:
            return np.asarray(np.abs(numbers / targets - 1) - width <= ROUNDING)

        # Within one of the edge; then the comparison itself, in floats as `Triad.admits` makes it, decides.
        bands = cls.between(targets * (1 - width - ROUNDING), targets * (1 + width + ROUNDING))
        low = bands.low - admits(bands.low - 1) + ~admits(bands.low)
        high = bands.high + admits(bands.high + 1) - ~admits(bands.high)
        return cls(np.maximum(low, 1), high)

    @classmethod
    def between(cls, low: Floats, high: Floats) -> Bands:
        """The integers from `low` to `high`, (n, 3) each; none above `_LARGEST`."""
        first, last = np.minimum(np.ceil(low), _LARGEST + 1), np.minimum(np.floor(high), _LARGEST)
        return cls(first.astype(np.int64), last.astype(np.int64))

    @classmethod
    def of(cls, triad: Triad) -> Bands:
        """The bands of one triad, (1, 3)."""
        held = triad.tolerances
        tolerances = (held.flops_per_token, held.active_params, held.total_params)
        return cls.around(np.array([list(triad.targets.values())]), tolerances)

    def __getitem__(self, rows: Integers) -> Bands:
        return Bands(self.low[rows], self.high[rows])


@dataclass(frozen=True)
class Runs:
    """Runs of architectures that differ in d_expert alone, (n,) each.

    Attributes:
        columns: `pair`, the row of the problem that is solved, `d_model`, `d_dense`, `n_dense_layers`, `n_moe_layers`.
        combinations: The problem's combinations, (pairs,) each.
        first: The lowest d_expert.
        count: How many, `step` apart.
    """

    columns: Columns
    combinations: Columns
    first: Integers
    count: Integers
    step: int

    def __len__(self) -> int:
        return len(self.first)

    def at(self, rows: Integers, position: Integers) -> Columns:
        """The architecture at a position in each of these runs: all columns, and `pair`."""
        pair = self.columns["pair"][rows]
        columns = {name: column[rows] for name, column in self.columns.items()}
        columns |= {name: self.combinations[name][pair] for name in _COMBINATION}
        return columns | {"d_expert": self.first[rows] + self.step * position}

    def every(self) -> Columns:
        """All architectures."""
        return self.at(*_expand(self.count))

    def nearest(self, targets: Floats) -> tuple[Columns, Floats]:
        """The architecture of each run nearest to targets (pairs, 3) for M, Na and N, and its distance: the root mean
        square of the relative deviations. They are linear in d_expert, so that the nearest is a rounded quotient."""
        rows = np.arange(len(self))
        c = self.at(rows, np.zeros_like(rows))
        aim = targets[c["pair"]]
        visited, held = c["top_k"] + c["n_shared_experts"], c["n_experts"] + c["n_shared_experts"]
        slope = np.stack([6 * visited, visited, held], axis=1) * (3 * c["d_model"] * c["n_moe_layers"])[:, None] / aim
        missing = 1 - np.stack(list(counts(c).values()), axis=1) / aim
        steps = np.rint((slope * missing).sum(1) / (slope**2).sum(1) / self.step).astype(np.int64)
        steps = np.clip(steps, 0, self.count - 1)
        deviation = slope * (steps * self.step)[:, None] - missing
        return c | {"d_expert": self.first + self.step * steps}, np.sqrt((deviation**2).mean(1))


@dataclass(frozen=True)
class Piece:
    """A part of the work of a problem: pairs, and of their divisions into layers these rows."""

    pairs: tuple[int, int]
    rows: tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """What to solve: `n` pairs of a combination of the discrete dimensions and of bands to meet.

    Attributes:
        combinations: `n_heads`, `n_kv_heads`, `d_head`, `n_experts`, `top_k`, `n_shared_experts`, `context_length`.
        bands: Of M, Na and N.
        dimensions: Ranges and multiples of what is solved.
        layer_multiple: What the number of layers divides by.
        admit: A rule on whole architectures, from columns to truth values; what it admits, it admits with narrower
            experts too.
        window: Lowest and highest d_model of each pair, in multiples, where only a part of it is asked for.
    """

    combinations: Columns
    bands: Bands
    dimensions: Dimensions
    layer_multiple: int = 1
    admit: Callable[[Columns], NDArray[np.bool_]] | None = None
    window: tuple[Integers, Integers] | None = None

    def __len__(self) -> int:
        return len(self.bands.low)

    def part(self, pairs: Integers, window: tuple[Integers, Integers]) -> Problem:
        """Some of the pairs, and a window of d_model for each."""
        combinations = {name: column[pairs] for name, column in self.combinations.items()}
        return replace(self, combinations=combinations, bands=self.bands[pairs], window=window)

    def runs(self) -> Iterator[Runs]:
        """All solutions in parts of bounded size, in an order that never changes."""
        return (runs for _, runs in self.pieces())

    def pieces(self) -> Iterator[tuple[Piece, Runs]]:
        """All solutions, each part with what it takes to solve it again."""
        for pairs in _slices(self._splits):
            divisions = self._divisions(pairs)
            for rows in _slices(divisions.work):
                yield Piece(pairs, rows), self._solve(divisions[slice(*rows)])

    def solve(self, piece: Piece) -> Runs:
        """One part again."""
        return self._solve(self._divisions(piece.pairs)[slice(*piece.rows)])

    @cached_property
    def _splits(self) -> Integers:
        """At most how many divisions into dense and MoE layers each pair has."""
        fewest, most = self._depths
        splits: Integers = np.maximum(most - fewest + 1, 0) * np.maximum(most, 1) * self.layer_multiple
        return splits

    @cached_property
    def _rates(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Of each pair: attention's parameters a layer for each unit of d_model; active and all parameters a MoE layer
        for each unit of d_model d_expert; attention's FLOPs a layer."""
        c = self.combinations
        return (
            2 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]),
            3 * (c["top_k"] + c["n_shared_experts"]),
            3 * (c["n_experts"] + c["n_shared_experts"]),
            6 * c["context_length"] * c["n_heads"] * c["d_head"],
        )

    @cached_property
    def _depths(self) -> tuple[Integers, Integers]:
        """Fewest and most layers of each pair, in multiples: 6 S q L = M - 6 Na, and what the space allows."""
        flops, (low, high), limits = self._rates[3], (self.bands.low, self.bands.high), self.dimensions
        least = -((6 * high[:, 1] - low[:, 0]) // flops)
        most = (high[:, 0] - 6 * low[:, 1]) // flops
        floor = max(limits.n_layers.low, limits.n_dense_layers.low + limits.n_moe_layers.low, 1)
        ceiling = min(limits.n_layers.high, limits.n_dense_layers.high + limits.n_moe_layers.high)
        return -(-np.maximum(least, floor) // self.layer_multiple), np.minimum(most, ceiling) // self.layer_multiple

    def _divisions(self, pairs: tuple[int, int]) -> _Divisions:
        """Every depth divided into dense and MoE layers, with bounds of f, the active parameters outside experts, and
        the steps of d_model between the real bounds that these leave."""
        limits, (fewest, most) = self.dimensions, self._depths
        pair = np.arange(*pairs)
        rows, offset = _expand(most[pair] - fewest[pair] + 1)
        pair = pair[rows]
        layers = (fewest[pair] + offset) * self.layer_multiple
        moe_low = np.maximum(limits.n_moe_layers.low, layers - limits.n_dense_layers.high)
        moe_high = np.minimum(limits.n_moe_layers.high, layers - limits.n_dense_layers.low)
        rows, offset = _expand(moe_high - moe_low + 1)
        pair, layers, moe = pair[rows], layers[rows], moe_low[rows] + offset
        attention, visited, held, flops = (rate[pair] for rate in self._rates)

        # M = 6 Na + flops L: at a known depth the band of M is one of Na.
        low, high, spent = self.bands.low[pair], self.bands.high[pair], flops * layers
        active_low = np.maximum(low[:, 1], -((spent - low[:, 0]) // 6))
        active_high = np.minimum(high[:, 1], (high[:, 0] - spent) // 6)

        # The bands of N - Na bound Q = d_model d_expert L_m, and so f = Na - 3 (top_k + shared) Q.
        spare = (held - visited).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.where(spare > 0, np.maximum((low[:, 2] - active_high) / spare, 0), 0)
            volume = np.where(spare > 0, (high[:, 2] - active_low) / spare, np.inf)
        volume = np.minimum(volume, active_high / visited)
        rest_low: Floats = np.maximum(active_low - visited * volume, 0)
        rest_high: Floats = active_high - visited * least
        linear = (attention * layers).astype(np.float64)
        first, last = self._d_model(rest_low, rest_high, linear, layers - moe)
        # Wide bands leave f nearly free: then Na at the widest experts is what d_model has to reach.
        experts = float(limits.d_expert.high) * visited * moe
        first = np.maximum(first, self._d_model(active_low, active_low, linear + experts, layers - moe)[0])

        # d_expert has bounds of its own: d_model = Q / (d_expert L_m). A relative 1e-9 covers the rounding of floats;
        # runs are exact in integers, so a step of d_model too many costs nothing.
        d, e = limits.d_model, limits.d_expert
        first = np.maximum(np.maximum(first, least / (moe * e.high)) * (1 - 1e-9), d.low)
        last = np.minimum(np.minimum(last, volume / (moe * e.low)) * (1 + 1e-9), d.high)
        low_step = np.ceil(first / d.multiple).astype(np.int64)
        high_step = np.floor(np.maximum(last, 0) / d.multiple).astype(np.int64)
        if self.window is not None:
            low_step = np.maximum(low_step, self.window[0][pair])
            high_step = np.minimum(high_step, self.window[1][pair])
        keep = (active_low <= active_high) & (rest_low <= rest_high) & (low_step <= high_step)
        count = high_step - low_step + 1
        work = count * (1 + self._dense_steps(rest_high - rest_low, layers - moe, low_step))
        return _Divisions(pair, layers, moe, active_low, active_high, rest_low, rest_high, low_step, count, work).where(
            keep
        )

    def _d_model(
        self, rest_low: Floats, rest_high: Floats, attention: Floats, dense_layers: Integers
    ) -> tuple[Floats, Floats]:
        """Real bounds of d_model where attention and dense layers hold `rest_low` to `rest_high` parameters."""
        dense, layers = self.dimensions.d_dense, 3 * dense_layers.astype(float)
        if dense.ratio is None:
            narrowest, widest = dense.bounds
            return rest_low / (attention + widest * layers), rest_high / (attention + narrowest * layers)
        # A rounded width is at most one multiple above the ratio's, and at most half of one below it.
        square, slack = float(dense.fraction) * layers, dense.multiple * layers
        return _root(square, attention + slack, rest_low), _root(square, attention - slack / 2, rest_high)

    def _dense_steps(self, spread: Floats, layers: Integers, first: Integers) -> Integers:
        """At most how many widths a free d_dense has at one d_model, less one, where f spreads this far."""
        dense = self.dimensions.d_dense
        if dense.ratio is not None:
            return np.zeros_like(layers)
        step = 3 * np.maximum(layers * first, 1) * self.dimensions.d_model.multiple
        widths = np.minimum(np.abs(spread) / step, dense.bounds[1] - dense.bounds[0]) / dense.multiple
        return np.where(layers > 0, np.ceil(widths), 0).astype(np.int64)

    def _solve(self, rows: _Divisions) -> Runs:
        """The runs of these divisions: every d_model, every free d_dense, and then d_expert exactly in integers."""
        index, offset = _expand(rows.count)
        d_model = (rows.first[index] + offset) * self.dimensions.d_model.multiple
        d_dense = self.dimensions.d_dense
        if d_dense.ratio is not None:
            width = d_dense.of(d_model)
        else:
            inner, width = self._dense_widths(rows, index, d_model)
            index, d_model = index[inner], d_model[inner]
        pair, layers, moe = rows.pair[index], rows.layers[index], rows.moe[index]
        attention, visited, held, _ = self._rates
        other = d_model * (attention[pair] * layers + 3 * width * (layers - moe))
        area = d_model * moe
        visited, held = visited[pair] * area, held[pair] * area
        low = np.maximum(-((other - rows.active_low[index]) // visited), -((other - self.bands.low[pair, 2]) // held))
        high = np.minimum((rows.active_high[index] - other) // visited, (self.bands.high[pair, 2] - other) // held)
        spec = self.dimensions.d_expert
        first = -(-np.maximum(low, spec.low) // spec.multiple)
        count = np.minimum(high, spec.high) // spec.multiple - first + 1
        columns = {
            "pair": pair, "d_model": d_model, "d_dense": width, "n_dense_layers": layers - moe, "n_moe_layers": moe,
        }  # fmt: skip
        found = np.flatnonzero(count > 0)
        columns = {name: column[found] for name, column in columns.items()}
        runs = Runs(columns, self.combinations, first[found] * spec.multiple, count[found], spec.multiple)
        return runs if self.admit is None else self._admitted(runs)

    def _dense_widths(self, rows: _Divisions, index: Integers, d_model: Integers) -> tuple[Integers, Integers]:
        """Every free d_dense at each d_model: the row of `index`, and the width. Without dense layers their width
        means nothing, and is 0."""
        dense = self.dimensions.d_dense
        narrowest, widest = dense.bounds
        layers = (rows.layers - rows.moe)[index]
        attention = (self._rates[0][rows.pair] * rows.layers)[index]
        with np.errstate(divide="ignore", invalid="ignore"):
            low = (rows.rest_low[index] / d_model - attention) / (3 * layers)
            high = (rows.rest_high[index] / d_model - attention) / (3 * layers)
        low = np.where(layers > 0, np.clip(low * (1 - 1e-9) - 1e-6, narrowest, widest + 1), 0)
        high = np.where(layers > 0, np.clip(high * (1 + 1e-9) + 1e-6, 0, widest), 0)
        first = np.ceil(low / dense.multiple).astype(np.int64)
        inner, position = _expand(np.floor(high / dense.multiple).astype(np.int64) - first + 1)
        return inner, (first[inner] + position) * dense.multiple

    def _admitted(self, runs: Runs) -> Runs:
        """What the rule on whole architectures leaves: the narrower experts of each run, how many by bisection."""
        assert self.admit is not None
        rows = np.arange(len(runs))
        low, high = np.zeros_like(runs.count), runs.count.copy()
        while (low < high).any():
            middle = (low + high + 1) // 2
            kept = self.admit(runs.at(rows, np.maximum(middle - 1, 0)))
            low, high = np.where(kept & (low < high), middle, low), np.where(kept | (low >= high), high, middle - 1)
        found = np.flatnonzero(low)
        columns = {name: column[found] for name, column in runs.columns.items()}
        return Runs(columns, self.combinations, runs.first[found], low[found], runs.step)


@dataclass(frozen=True)
class _Divisions:
    """Depths divided into dense and MoE layers, (n,) each.

    Attributes:
        active_low, active_high: Na, by the bands of Na and M.
        rest_low, rest_high: f, active parameters outside experts, real.
        first, count: Steps of d_model.
        work: Rows that its solution expands to, at most about.
    """

    pair: Integers
    layers: Integers
    moe: Integers
    active_low: Integers
    active_high: Integers
    rest_low: Floats
    rest_high: Floats
    first: Integers
    count: Integers
    work: Integers

    def __getitem__(self, rows: slice) -> _Divisions:
        return _Divisions(*(column[rows] for column in vars(self).values()))

    def where(self, keep: NDArray[np.bool_]) -> _Divisions:
        return _Divisions(*(column[keep] for column in vars(self).values()))


def _expand(count: Integers) -> tuple[Integers, Integers]:
    """Row numbers, each repeated `count` times, and the position 0 ... count - 1 in the repetition."""
    count = np.maximum(count, 0)
    rows = np.repeat(np.arange(len(count)), count)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)


def _slices(work: Integers) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows that add up to about `_ROWS`."""
    ends = np.cumsum(work)
    start = 0
    while start < len(ends):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + _ROWS, side="right")), start + 1)
        yield start, stop
        start = stop


def _root(square: Floats, linear: Floats, rest: Floats) -> Floats:
    """The positive root of ``square d^2 + linear d = rest``."""
    rest = np.maximum(rest, 0)
    discriminant = np.sqrt(linear**2 + 4 * square * rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two forms of the same root, each free of cancellation where it is used.
        return np.where(linear > 0, 2 * rest / (linear + discriminant), (discriminant - linear) / (2 * square))
