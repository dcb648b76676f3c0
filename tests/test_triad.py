"""Triads, tolerances and budgets."""

import json
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.triad import Budget, Tolerances, Triad

ARCHITECTURE = MoEArchitecture(
    d_model=64, n_dense_layers=1, n_moe_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
    n_experts=8, top_k=2, n_shared_experts=1, context_length=64, vocab_size=300,
)  # fmt: skip
COUNTS = ARCHITECTURE.non_embedding
NAMES = ("flops_per_token", "active_params", "total_params")


def test_an_architecture_meets_its_own_triad() -> None:
    triad = Triad(COUNTS.flops_per_token, COUNTS.active_params, COUNTS.total_params)
    assert triad.admits(ARCHITECTURE)
    assert triad.deviations(ARCHITECTURE) == dict.fromkeys(NAMES, 0)
    assert triad.violations(ARCHITECTURE) == dict.fromkeys(NAMES, -0.05)
    assert triad.targets == {name: getattr(COUNTS, name) for name in NAMES}


@given(st.sampled_from(NAMES), st.floats(0.8, 1.2), st.floats(0.01, 0.2))
def test_each_tolerance_holds_its_own_count(name: str, factor: float, tolerance: float) -> None:
    """A target shifted by a factor is met exactly where the count lies within its tolerance of it."""
    targets = {each: float(getattr(COUNTS, each)) for each in NAMES}
    targets[name] *= factor
    if targets["flops_per_token"] <= 6 * targets["active_params"]:
        return
    triad = Triad(**targets, tolerances=Tolerances(**{name: tolerance}))
    deviation = getattr(COUNTS, name) / targets[name] - 1
    violations = triad.violations(ARCHITECTURE)
    assert violations[name] == pytest.approx(abs(deviation) - tolerance)
    assert all(violations[each] == -0.05 for each in NAMES if each != name)
    if abs(abs(deviation) - tolerance) > 1e-9:
        assert triad.admits(ARCHITECTURE) == (abs(deviation) < tolerance)


@given(st.floats(1e3, 1e12), st.floats(6.01, 30), st.floats(1.01, 40))
def test_coordinates_and_triads_are_the_same_thing(flops: float, density: float, expansion: float) -> None:
    triad = Triad.at(flops, density, expansion)
    assert triad.flops_per_token == flops
    assert triad.compute_density == pytest.approx(density)
    assert triad.expansion_ratio == pytest.approx(expansion)


def test_plain_data() -> None:
    triad = Triad(700.0, 100.0, 300.0, Tolerances(total_params=0.1))
    assert triad.to_dict() == {
        "flops_per_token": 700.0, "active_params": 100.0, "total_params": 300.0,
        "tolerances": {"flops_per_token": 0.05, "active_params": 0.05, "total_params": 0.1},
    }  # fmt: skip
    assert len({triad, Triad(700.0, 100.0, 300.0, Tolerances(total_params=0.1))}) == 1
    assert Triad.from_dict(triad.to_dict()) == triad


def test_numpy_s_numbers_are_python_s() -> None:
    """A row of a lattice's arrays; whole numbers stay whole, and files are those of the same numbers in Python's."""
    row = [np.int64(700), np.float32(100.5), np.float64(300.25)]
    triad = Triad(*row, tolerances=Tolerances(np.float32(0.25)))
    assert triad == Triad(700, 100.5, 300.25, Tolerances(0.25))
    assert [type(value) for value in (*triad.targets.values(), *astuple(triad.tolerances))] == [int, *5 * [float]]
    assert json.dumps(triad.to_dict()) == json.dumps(Triad(700, 100.5, 300.25, Tolerances(0.25)).to_dict())
    assert Triad.at(np.int64(700), np.float32(7), np.int64(3)) == Triad.at(700, 7, 3)
    assert Budget(np.int64(4 * 10**10), np.float32(2)).tokens == 2e10
    assert type(Budget(np.int64(4 * 10**10), 2.0).compute) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((600.0, 100.0, 300.0), "flops_per_token: 600, expected more than 6 active_params = 600"),
        ((700.0, 100.0, 99.0), "total_params: 99, expected at least active_params = 100"),
        ((0.0, 100.0, 300.0), "flops_per_token: 0.0, expected a positive finite number"),
        ((700.0, float("nan"), 300.0), "active_params: nan, expected a positive finite number"),
        ((float("inf"), 100.0, 300.0), "flops_per_token: inf, expected a positive finite number"),
        (("700", 100.0, 300.0), "flops_per_token: '700', expected a positive finite number"),
        ((700.0, True, 300.0), "active_params: True, expected a positive finite number"),
    ],
)
def test_impossible_triads_are_named(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Triad(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e9, 6.0, 2.0), "compute_density: 6.0, expected a finite number above 6"),
        ((1e9, 9.0, 1.0), "expansion_ratio: 1.0, expected a finite number above 1"),
        ((1e9, float("inf"), 2.0), "compute_density: inf"),
        ((-1.0, 9.0, 2.0), "flops_per_token: -1.0"),
        ((1e9, "9", 2.0), "compute_density: '9', expected a finite number above 6"),
    ],
)
def test_impossible_coordinates_are_named(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Triad.at(*arguments)


@pytest.mark.parametrize("value", [0, 1, -0.1, float("nan"), "0.1", None, True])
def test_tolerances_are_fractions(value: Any) -> None:
    with pytest.raises(InputError, match=r"tolerance active_params: .*expected a fraction above 0 and below 1"):
        Tolerances(active_params=value)


@given(st.floats(1e6, 1e26), st.floats(1e3, 1e13))
def test_a_budget_is_flops_times_tokens(compute: float, flops: float) -> None:
    budget = Budget(compute, flops)
    assert budget.tokens * budget.flops_per_token == pytest.approx(compute, rel=1e-15)


def test_impossible_budgets_are_named() -> None:
    with pytest.raises(InputError, match="compute: -1, expected a positive finite number"):
        Budget(-1, 1e9)
    with pytest.raises(InputError, match="compute: True, expected a positive finite number"):
        Budget(True, 1)
