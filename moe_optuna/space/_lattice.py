"""The lattice: all architectures that meet a triad, as a sequence that is solved when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import COUNTS, DIMENSIONS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.space._solve import Columns, Piece, Problem, counts

if TYPE_CHECKING:
    from moe_optuna.space._dimensions import Dimensions

__all__ = ["Lattice"]

Integers = NDArray[np.int64]

MOST_HELD = 2_000_000
"""Architectures that `Lattice.arrays` holds at most: 256 MB."""


class Lattice(Sequence[MoEArchitecture]):
    """Architectures in a fixed order, none twice.

    Nothing is solved before it is asked for. Length, iteration, single items and `chunks` hold one part of the
    solution at a time, so that a lattice larger than memory can be counted and walked through; `arrays` holds all.

    Args:
        dimensions: What all architectures share: vocabulary, tied embeddings, QK norm.
        problem: What to solve; or
        columns: the dimensions of architectures that are already chosen, (n,) each.
    """

    def __init__(self, dimensions: Dimensions, *, problem: Problem | None = None, columns: Columns | None = None):
        self._dimensions = dimensions
        self._problem = problem
        self._columns = columns
        self._last: tuple[Piece, dict[str, Integers]] | None = None

    def chunks(self) -> Iterator[dict[str, Integers]]:
        """What `arrays` holds, in parts of bounded size, in the same order."""
        if self._problem is None:
            yield self._complete(self._columns or {})
            return
        for runs in self._problem.runs():
            if len(runs):
                yield self._complete(runs.every())

    def _complete(self, columns: Columns) -> dict[str, Integers]:
        empty = np.empty(0, dtype=np.int64)
        columns = {name: columns.get(name, empty) for name in DIMENSIONS}
        columns["vocab_size"] = np.full(len(columns["d_expert"]), self._dimensions.vocab_size, dtype=np.int64)
        return columns | counts(columns)

    @cached_property
    def arrays(self) -> dict[str, Integers]:
        """Every dimension and, in the `non_embedding` convention, the three counts, (n,) int64 each.

        Raises:
            InputError: Where there are more than memory should hold; `chunks` walks through them.
        """
        if len(self) > MOST_HELD:
            raise InputError(f"{len(self)} architectures, more than the {MOST_HELD} of `arrays`: use `chunks`")
        pieces = list(self.chunks()) or [self._complete({})]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in (*DIMENSIONS, *COUNTS)}

    @cached_property
    def _offsets(self) -> tuple[list[Piece], Integers]:
        """The parts that hold a solution, and how many solutions stand before the end of each."""
        assert self._problem is not None
        sizes = [(piece, int(runs.count.sum())) for piece, runs in self._problem.pieces() if len(runs)]
        return [piece for piece, _ in sizes], np.cumsum([size for _, size in sizes], dtype=np.int64)

    def __len__(self) -> int:
        if self._problem is None:
            return len((self._columns or {}).get("d_expert", ()))
        ends = self._offsets[1]
        return int(ends[-1]) if len(ends) else 0

    def __bool__(self) -> bool:
        """Whether there is any architecture, without a count of all."""
        if self._problem is None or "_offsets" in vars(self):
            return len(self) > 0
        return any(len(runs) for runs in self._problem.runs())

    def __iter__(self) -> Iterator[MoEArchitecture]:
        for piece in self.chunks():
            yield from (self._architecture(piece, row) for row in range(len(piece["d_model"])))

    @overload
    def __getitem__(self, index: int) -> MoEArchitecture: ...
    @overload
    def __getitem__(self, index: slice) -> list[MoEArchitecture]: ...
    def __getitem__(self, index: int | slice) -> MoEArchitecture | list[MoEArchitecture]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index}, expected below {len(self)}")
        index = int(index) % len(self)
        if self._problem is None or "arrays" in vars(self):
            return self._architecture(self.arrays, index)
        pieces, ends = self._offsets
        part = int(np.searchsorted(ends, index, side="right"))
        return self._architecture(self._part(pieces[part]), index - int(ends[part - 1] if part else 0))

    def _part(self, piece: Piece) -> dict[str, Integers]:
        """One part of the solution; the last one asked for is kept."""
        assert self._problem is not None
        if self._last is None or self._last[0] != piece:
            self._last = (piece, self._complete(self._problem.solve(piece).every()))
        return self._last[1]

    def _architecture(self, columns: Mapping[str, Integers], row: int) -> MoEArchitecture:
        values: dict[str, Any] = {name: int(columns[name][row]) for name in DIMENSIONS}
        shared = self._dimensions
        return MoEArchitecture(**values, tied_embeddings=shared.tied_embeddings, qk_norm=shared.qk_norm)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The position of an architecture.

        Raises:
            ValueError: Where it is not in the lattice.
        """
        before = 0
        for columns in [self.arrays] if "arrays" in vars(self) else self.chunks():
            same = np.logical_and.reduce([columns[name] == getattr(value, name, None) for name in DIMENSIONS])
            for row in np.flatnonzero(same).tolist():
                found = before + row
                if start <= found < (len(self) if stop is None else stop) and self._architecture(columns, row) == value:
                    return found
            before += len(same)
        raise ValueError("the architecture is not in the lattice")

    def __contains__(self, value: object) -> bool:
        try:
            self.index(value)
        except ValueError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<Lattice of {len(self)} architectures>"
