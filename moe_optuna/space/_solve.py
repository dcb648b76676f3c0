"""The triad solved in integers: every architecture inside the bands, none twice (derived in docs/solve.md).

Nothing is drawn and rejected. For each combination of the discrete dimensions the bands of M and Na leave a range of
depths L; each depth divides into dense and MoE layers; for each division the bands of Na and N leave an interval of
d_model (and of a free d_dense); and at each of these the three bands are linear in d_expert, so what is left is one
*run* of consecutive multiples. Work is in proportion to runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_optuna.space._dimensions import Dimensions
from moe_optuna.triad import Triad

__all__ = ["Bands", "Columns", "Problem", "Runs", "counts"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, Integers]

_CHUNK = 1 << 18
"""Rows that one step of the expansion may make: it bounds the memory, not the result."""


def _expand(counts: Integers) -> tuple[Integers, Integers]:
    """Row numbers repeated `counts` times, and the position 0 ... count - 1 in each repetition."""
    counts = np.maximum(counts, 0)
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def _slices(counts: Integers, size: int) -> Iterator[slice]:
    """Consecutive slices whose counts add up to about `size`."""
    ends = np.cumsum(np.maximum(counts, 0))
    start = 0
    while start < len(ends):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + size, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


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
    """The smallest and largest integer that each target admits: `low` and `high` (n, 3), in the order M, Na, N."""

    low: Integers
    high: Integers

    @classmethod
    def around(cls, targets: Floats, tolerances: tuple[float, float, float]) -> Bands:
        """The integers that `Triad.admits`, exactly; targets (n, 3)."""
        width = np.array(tolerances)

        def admits(counts: Integers) -> NDArray[np.bool_]:
            return np.asarray(np.abs(counts / targets - 1) - width <= 1e-12)

        low = np.ceil(targets * (1 - width)).astype(np.int64)
        high = np.floor(targets * (1 + width)).astype(np.int64)
        low = low - admits(low - 1) + ~admits(low)
        high = high + admits(high + 1) - ~admits(high)
        return cls(np.maximum(low, 1), high)

    @classmethod
    def of(cls, triad: Triad) -> Bands:
        """The bands of one triad, (1, 3)."""
        tolerances = triad.tolerances
        return cls.around(
            np.array([list(triad.targets.values())]),
            (tolerances.flops_per_token, tolerances.active_params, tolerances.total_params),
        )

    def __getitem__(self, rows: Integers | slice) -> Bands:
        return Bands(self.low[rows], self.high[rows])


@dataclass(frozen=True)
class Runs:
    """Runs of architectures that differ in d_expert alone; (n,) each.

    Attributes:
        columns: The dimensions but d_expert, by name, and `pair`, the row of the problem that a run solves.
        first: The lowest d_expert.
        count: How many, `step` apart.
    """

    columns: Columns
    first: Integers
    count: Integers
    step: int

    def __len__(self) -> int:
        return len(self.first)

    def at(self, rows: Integers, position: Integers) -> Columns:
        """The architectures at a position in each run."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return columns | {"d_expert": self.first[rows] + self.step * position}

    def every(self) -> Columns:
        """All architectures."""
        return self.at(*_expand(self.count))

    def nearest(self, targets: Floats) -> tuple[Columns, Floats]:
        """The architecture of each run nearest to targets (pairs, 3) for M, Na and N, and its distance: the root mean
        square of the relative deviations. They are linear in d_expert, so that the nearest is a rounded quotient."""
        c, rows = self.columns, np.arange(len(self))
        aim = targets[c["pair"]]
        slope = np.stack([6 * c["top_k"] + 6 * c["n_shared_experts"], c["top_k"] + c["n_shared_experts"],
                          c["n_experts"] + c["n_shared_experts"]], axis=1)  # fmt: skip
        slope = (3 * c["d_model"] * c["n_moe_layers"])[:, None] * slope / aim
        missing = 1 - np.stack(list(counts(self.at(rows, np.zeros_like(rows))).values()), axis=1) / aim
        best = np.rint((slope * missing).sum(1) / (slope**2).sum(1) / self.step).astype(np.int64)
        chosen = self.at(rows, np.clip(best, 0, self.count - 1))
        deviation = np.stack(list(counts(chosen).values()), axis=1) / aim - 1
        return chosen, np.sqrt((deviation**2).mean(1))


@dataclass(frozen=True)
class Problem:
    """Bands to meet, a combination of the discrete dimensions each; (n,) pairs.

    Attributes:
        combinations: `n_heads`, `n_kv_heads`, `d_head`, `n_experts`, `top_k`, `n_shared_experts`, and
            `context_length`.
        bands: M, Na and N.
        dimensions: Ranges and multiples of what is solved.
        layer_multiple: What the number of layers must divide by.
    """

    combinations: Columns
    bands: Bands
    dimensions: Dimensions
    layer_multiple: int = 1
    d_model_window: tuple[Integers, Integers] | None = None
    admit: Callable[[Mapping[str, Integers]], NDArray[np.bool_]] | None = None

    def __len__(self) -> int:
        return len(self.bands.low)

    def __getitem__(self, rows: Integers | slice) -> Problem:
        window = self.d_model_window
        return replace(
            self,
            combinations={name: column[rows] for name, column in self.combinations.items()},
            bands=self.bands[rows],
            d_model_window=None if window is None else (window[0][rows], window[1][rows]),
        )

    def runs(self, size: int = _CHUNK) -> Iterator[Runs]:
        """All solutions, in bounded pieces, always in the same order."""
        fewest, most, _ = self._depths()
        splits = (most - fewest + 1) * np.maximum(most, 1) * self.layer_multiple
        for pairs in _slices(splits, size):
            layers = self._divisions(pairs)
            for rows in _slices(layers.count, size):
                yield from self._widths(layers[rows], size)

    def _depths(self) -> tuple[Integers, Integers, Integers]:
        """Fewest and most layers, as multiples of `layer_multiple`, and attention's FLOPs a layer:
        6 S q L = M - 6 Na."""
        c, step, limits = self.combinations, self.layer_multiple, self.dimensions
        flops = 6 * c["context_length"] * c["n_heads"] * c["d_head"]
        least = -((6 * self.bands.high[:, 1] - self.bands.low[:, 0]) // flops)
        most = (self.bands.high[:, 0] - 6 * self.bands.low[:, 1]) // flops
        fewest = max(limits.n_layers.low, limits.n_dense_layers.low + limits.n_moe_layers.low, 1)
        limit = min(limits.n_layers.high, limits.n_dense_layers.high + limits.n_moe_layers.high)
        return -(-np.maximum(least, fewest) // step), np.minimum(most, limit) // step, flops

    def _divisions(self, pairs: slice) -> _Divisions:
        """Every depth divided into dense and MoE layers, with bounds of f, the active parameters outside experts, and
        the steps of d_model between the real bounds that these leave."""
        fewest, most, flops = self._depths()
        limits, step = self.dimensions, self.layer_multiple
        pair = np.arange(len(self))[pairs]
        rows, offset = _expand(most[pair] - fewest[pair] + 1)
        pair = pair[rows]
        layers = (fewest[pair] + offset) * step
        moe_low = np.maximum(limits.n_moe_layers.low, layers - limits.n_dense_layers.high)
        moe_high = np.minimum(limits.n_moe_layers.high, layers - limits.n_dense_layers.low)
        rows, offset = _expand(moe_high - moe_low + 1)
        pair, layers, moe = pair[rows], layers[rows], moe_low[rows] + offset

        # M = 6 Na + flops L: at a known depth the band of M is one of Na.
        low, high, spent = self.bands.low[pair], self.bands.high[pair], flops[pair] * layers
        active_low = np.maximum(low[:, 1], -((spent - low[:, 0]) // 6))
        active_high = np.minimum(high[:, 1], (high[:, 0] - spent) // 6)

        # Q = d_model d_expert L_m lies between the bands of N and Na, and so does f = Na - 3 (top_k + shared) Q.
        c = {name: column[pair].astype(float) for name, column in self.combinations.items()}
        visited, spare = 3 * (c["top_k"] + c["n_shared_experts"]), 3 * (c["n_experts"] - c["top_k"])
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.where(spare > 0, np.maximum((low[:, 2] - active_high) / spare, 0), 0)
            volume = np.where(spare > 0, (high[:, 2] - active_low) / spare, np.inf)
        volume = np.minimum(volume, active_high / visited)
        rest_low, rest_high = np.maximum(active_low - visited * volume, 0), active_high - visited * least
        attention = 2 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers
        first, last = self._d_model(rest_low, rest_high, attention, layers - moe)

        # d_expert itself has bounds: d_model = Q / (d_expert L_m). A relative 1e-9 covers the rounding of floats; the
        # runs of d_expert are exact, so a step of d_model too many costs nothing.
        d, e = limits.d_model, limits.d_expert
        first = np.maximum(np.maximum(first, least / (moe * e.high)) * (1 - 1e-9), d.low)
        last = np.minimum(np.minimum(last, volume / (moe * e.low)) * (1 + 1e-9), d.high)
        low_step = np.ceil(first / d.multiple).astype(np.int64)
        high_step = np.floor(np.maximum(last, 0) / d.multiple).astype(np.int64)
        if self.d_model_window is not None:
            low_step = np.maximum(low_step, self.d_model_window[0][pair])
            high_step = np.minimum(high_step, self.d_model_window[1][pair])
        keep = (active_low <= active_high) & (rest_high >= rest_low) & (high_step >= low_step)
        columns = (pair, layers, moe, active_low, active_high, rest_low, rest_high, low_step, high_step - low_step + 1)
        return _Divisions(*(column[keep] for column in columns))

    def _d_model(
        self, rest_low: Floats, rest_high: Floats, attention: Floats, dense_layers: Integers
    ) -> tuple[Floats, Floats]:
        """Real bounds of d_model where attention and dense layers hold `rest_low` to `rest_high` parameters."""
        dense = self.dimensions.d_dense
        if dense.ratio is None:
            narrowest, widest = dense.bounds
            return (
                rest_low / (attention + 3.0 * widest * dense_layers),
                rest_high / (attention + 3.0 * narrowest * dense_layers),
            )
        # A rounded width is at most one multiple above the ratio's, and at most half of one below it.
        layers = dense_layers.astype(np.float64)
        square, slack = 3 * dense.ratio * layers, 3 * dense.multiple * layers
        return _root(square, attention + slack, rest_low), _root(square, attention - slack / 2, rest_high)

    def _widths(self, rows: _Divisions, size: int) -> Iterator[Runs]:
        """Every d_model, and every d_dense where it is free."""
        dense = self.dimensions.d_dense
        index, offset = _expand(rows.count)
        d_model = (rows.first[index] + offset) * self.dimensions.d_model.multiple
        if dense.ratio is not None:
            yield self._solve(rows, index, d_model, dense.of(d_model))
            return
        layers = (rows.layers - rows.moe)[index]
        c = {name: column[rows.pair] for name, column in self.combinations.items()}
        attention = (2.0 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * rows.layers)[index]
        with np.errstate(divide="ignore", invalid="ignore"):
            low = (rows.rest_low[index] / d_model - attention) / (3 * layers)
            high = (rows.rest_high[index] / d_model - attention) / (3 * layers)
        narrowest, widest = dense.bounds
        # Without dense layers their width means nothing: one architecture, with width 0.
        low = np.where(layers > 0, np.clip(low * (1 - 1e-9) - 1e-6, narrowest, widest + 1), 0)
        high = np.where(layers > 0, np.clip(high * (1 + 1e-9) + 1e-6, 0, widest), 0)
        first = np.ceil(low / dense.multiple).astype(np.int64)
        count = np.floor(high / dense.multiple).astype(np.int64) - first + 1
        for part in _slices(count, size):
            inner, position = _expand(count[part])
            inner = inner + part.start
            yield self._solve(rows, index[inner], d_model[inner], (first[inner] + position) * dense.multiple)

    def _solve(self, rows: _Divisions, index: Integers, d_model: Integers, d_dense: Integers) -> Runs:
        """The run of d_expert at each row; rows without one are left out. Exact in integers."""
        pair, layers, moe = rows.pair[index], rows.layers[index], rows.moe[index]
        c = {name: column[pair] for name, column in self.combinations.items() if name != "queries_per_kv_head"}
        spec = self.dimensions.d_expert
        other = d_model * (2 * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers + 3 * d_dense * (layers - moe))
        visited = 3 * d_model * moe * (c["top_k"] + c["n_shared_experts"])
        held = 3 * d_model * moe * (c["n_experts"] + c["n_shared_experts"])
        low = np.maximum(-((other - rows.active_low[index]) // visited), -((other - self.bands.low[pair, 2]) // held))
        high = np.minimum((rows.active_high[index] - other) // visited, (self.bands.high[pair, 2] - other) // held)
        first = -(-np.maximum(low, spec.low) // spec.multiple)
        count = np.minimum(high, spec.high) // spec.multiple - first + 1
        keep = np.flatnonzero(count > 0)
        columns = {
            "pair": pair, "d_model": d_model, "n_dense_layers": layers - moe, "n_moe_layers": moe, "d_dense": d_dense,
        } | c  # fmt: skip
        runs = Runs(
            {name: column[keep] for name, column in columns.items()},
            first[keep] * spec.multiple,
            count[keep],
            spec.multiple,
        )
        if self.admit is None:
            return runs
        every = runs.every()
        chosen = np.flatnonzero(self.admit(every))
        d_expert = every.pop("d_expert")[chosen]
        return Runs({n: col[chosen] for n, col in every.items()}, d_expert, np.ones_like(d_expert), spec.multiple)


@dataclass(frozen=True)
class _Divisions:
    """Depths divided into dense and MoE layers; (n,) each."""

    pair: Integers
    layers: Integers
    moe: Integers
    active_low: Integers
    active_high: Integers
    rest_low: Floats
    rest_high: Floats
    first: Integers
    count: Integers

    def __getitem__(self, rows: slice) -> _Divisions:
        return _Divisions(*(column[rows] for column in vars(self).values()))


def _root(square: Floats, linear: Floats, rest: Floats) -> Floats:
    """The positive root of ``square d^2 + linear d = rest``."""
    rest = np.maximum(rest, 0)
    discriminant = np.sqrt(linear**2 + 4 * square * rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two forms of the same root, each free of cancellation where it is used.
        return np.where(linear > 0, 2 * rest / (linear + discriminant), (discriminant - linear) / (2 * square))
