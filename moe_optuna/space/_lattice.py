"""The lattice: all architectures that meet a triad, as a sequence that is solved when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import DIMENSIONS, MoEArchitecture
from moe_optuna.space._solve import Columns, Problem, counts

if TYPE_CHECKING:
    from moe_optuna.space._dimensions import Dimensions

__all__ = ["Lattice"]

Integers = NDArray[np.int64]


class Lattice(Sequence[MoEArchitecture]):
    """Architectures in a fixed order, none twice.

    Nothing is solved before it is needed, and `len`, iteration and `chunks` never hold more than a piece, so that a
    lattice larger than memory can be counted and walked through. `arrays` holds all of it.

    Args:
        dimensions: What all architectures share: vocabulary, tied embeddings, QK norm.
        problem: What to solve, or
        columns: the dimensions of architectures that are already chosen, (n,) each.
    """

    def __init__(self, dimensions: Dimensions, *, problem: Problem | None = None, columns: Columns | None = None):
        self._dimensions = dimensions
        self._problem = problem
        self._columns = columns

    def chunks(self) -> Iterator[dict[str, Integers]]:
        """The arrays of `arrays`, in pieces of bounded size."""
        if self._columns is not None:
            yield self._complete(self._columns)
            return
        assert self._problem is not None
        for runs in self._problem.runs():
            if len(runs):
                yield self._complete(runs.every())

    def _complete(self, columns: Columns) -> dict[str, Integers]:
        size = len(columns["d_expert"])
        columns = {**columns, "vocab_size": np.full(size, self._dimensions.vocab_size, dtype=np.int64)}
        return {name: columns[name] for name in DIMENSIONS} | counts(columns)

    @cached_property
    def arrays(self) -> dict[str, Integers]:
        """Every dimension and, in the `non_embedding` convention, the three counts, (n,) int64 each."""
        pieces = list(self.chunks())
        names = (*DIMENSIONS, "flops_per_token", "active_params", "total_params")
        empty = np.empty(0, dtype=np.int64)
        return {name: np.concatenate([piece[name] for piece in pieces] or [empty]) for name in names}

    @cached_property
    def _length(self) -> int:
        if self._columns is not None:
            return len(self._columns["d_expert"])
        assert self._problem is not None
        return sum(int(runs.count.sum()) for runs in self._problem.runs())

    def __len__(self) -> int:
        return self._length

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
        return self._architecture(self.arrays, index)

    def _architecture(self, columns: Mapping[str, Integers], row: int) -> MoEArchitecture:
        values: dict[str, Any] = {name: int(columns[name][row]) for name in DIMENSIONS}
        shared = self._dimensions
        return MoEArchitecture(**values, tied_embeddings=shared.tied_embeddings, qk_norm=shared.qk_norm)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The position of an architecture.

        Raises:
            ValueError: Where it is not in the lattice.
        """
        match = np.logical_and.reduce([self.arrays[name] == getattr(value, name) for name in DIMENSIONS])
        found = np.flatnonzero(match)
        if not len(found) or self[int(found[0])] != value:
            raise ValueError("the architecture is not in the lattice")
        return int(found[0])

    def __contains__(self, value: object) -> bool:
        try:
            self.index(value)
        except (ValueError, AttributeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"<Lattice of {len(self)} architectures>"
