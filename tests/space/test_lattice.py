"""The lattice as a sequence: the same architectures however they are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_optuna.space._lattice as lattice_module
import moe_optuna.space._solve as solve_module
from moe_optuna.architecture import DIMENSIONS
from moe_optuna.errors import InputError
from moe_optuna.space import Lattice, SearchSpace
from moe_optuna.space._solve import Bands
from moe_optuna.triad import Tolerances, Triad


@pytest.fixture
def lattice(small: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> Lattice:
    """Some hundred architectures, solved in parts of a few."""
    monkeypatch.setattr(solve_module, "_ROWS", 16)
    return small.lattice(small.triad(small.allocation(small.budgets[1]).flops_per_token, 8.0, 3.0))


def test_length_items_iteration_chunks_and_arrays_agree(lattice: Lattice) -> None:
    assert bool(lattice)
    walked = list(lattice)
    assert len(walked) == len(lattice) > 100
    assert sum(len(chunk["d_model"]) for chunk in lattice.chunks()) == len(lattice)
    rows = [0, 7, len(lattice) // 2, len(lattice) - 1, -1]
    assert [lattice[row] for row in rows] == [walked[row] for row in rows]
    assert lattice[3:6] == walked[3:6]
    assert [lattice.index(walked[row]) for row in rows[:4]] == rows[:4]
    arrays = lattice.arrays
    assert all(column.dtype == np.int64 and column.shape == (len(walked),) for column in arrays.values())
    assert [lattice[row] for row in rows] == [walked[row] for row in rows]
    assert walked[5] in lattice
    with pytest.raises(IndexError):
        lattice[len(walked)]


def test_arrays_count_what_architectures_count(lattice: Lattice) -> None:
    for row, architecture in enumerate(lattice):
        for name in DIMENSIONS:
            assert lattice.arrays[name][row] == getattr(architecture, name)
        for name in ("flops_per_token", "active_params", "total_params"):
            assert lattice.arrays[name][row] == getattr(architecture.non_embedding, name)


def test_what_is_larger_than_memory_is_counted_and_walked_but_not_held(
    lattice: Lattice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lattice_module, "MOST_HELD", 50)
    assert len(lattice) > 50
    assert lattice[len(lattice) - 1].d_model > 0
    with pytest.raises(InputError, match="use `chunks`"):
        _ = lattice.arrays


def test_an_architecture_of_another_space_is_not_in_it(lattice: Lattice, small: SearchSpace) -> None:
    other = small.lattice(small.triad(small.allocation(small.budgets[0]).flops_per_token, 8.0, 3.0))[0]
    assert other not in lattice
    with pytest.raises(ValueError, match="not in the lattice"):
        lattice.index(other)


@given(
    st.floats(1e3, 1e15),
    st.floats(6.01, 50.0),
    st.floats(1.0, 50.0),
    st.tuples(*[st.floats(1e-6, 0.99)] * 3),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_bands_are_the_integers_that_the_triad_admits(
    flops: float, density: float, ratio: float, tolerances: tuple[float, float, float]
) -> None:
    triad = Triad(flops, flops / density, flops / density * ratio, Tolerances(*tolerances))
    bands = Bands.of(triad)
    for i, (name, target) in enumerate(triad.targets.items()):

        def admits(number: int, target: float = target, held: float = getattr(triad.tolerances, name)) -> bool:
            return abs(number / target - 1) - held <= 1e-12

        low, high = int(bands.low[0, i]), int(bands.high[0, i])
        if low <= high:
            assert admits(low)
            assert admits(high)
        assert low <= 1 or not admits(low - 1)
        assert not admits(high + 1)
