"""Efficiency leverage: the published law, fitted laws, and measured from runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.laws import FORMS, PUBLISHED, Fit, OutsideRangeWarning, fit, leverage, leverage_from_runs


@pytest.mark.filterwarnings("ignore::moe_optuna.laws.OutsideRangeWarning")
@pytest.mark.parametrize(
    ("ratio", "granularity", "compute", "expected"),
    [(0.03125, 12, 1e22, 7.22), (0.03125, 8, 1e20, 4.485), (0.0078125, 2, 1e20, 4.312), (1.0, 2, 1e20, 1.0)],
)
def test_check_values(ratio, granularity, compute, expected):
    answer = leverage(ratio, granularity, compute)
    assert answer.value == pytest.approx(expected, rel=0.007)
    assert answer.interval[0] < answer.value < answer.interval[1]
    assert answer.to_dict()["leverage"] == answer.value
    assert answer.to_dict()["interval"] == list(answer.interval)


def test_outside_the_range_it_warns_says_so_and_widens():
    inside = leverage(0.03125, 8, 1e20)
    assert inside.notes == ()
    with pytest.warns(OutsideRangeWarning, match="1.2 decades outside"):
        outside = leverage(0.03125, 8, 1e22)
    assert "decades outside" in outside.notes[0]
    assert outside.interval[1] / outside.interval[0] > 1.2 * inside.interval[1] / inside.interval[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, 8, 1e20), "activation_ratio"),
        ((1.5, 8, 1e20), "activation_ratio"),
        ((0.1, -2, 1e20), "granularity"),
        ((0.1, 2, math.nan), "compute"),
        ((0.1, 2, math.inf), "compute"),
    ],
)
def test_bad_numbers_are_named(arguments, name):
    with pytest.raises(InputError, match=f"{name}: .*expected a number above 0"):
        leverage(*arguments)


def points(rows: int = 80, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "activation_ratio": 0.5 ** rng.integers(0, 8, rows),
        "granularity": 2.0 ** rng.integers(1, 5, rows),
        "compute": 10 ** rng.uniform(18, 21, rows),
    }
    law = PUBLISHED["leverage"]
    return columns | {"leverage": law.form.predict(columns, law.coefficients) * np.exp(0.02 * rng.normal(size=rows))}


def test_a_fitted_law_predicts_with_its_own_interval(tmp_path: Path):
    found = fit("leverage", points(), bootstraps=50)
    found.save(tmp_path / "fit.json")
    answer = leverage(0.03125, 8, 1e20, law=Fit.load(tmp_path / "fit.json"))
    assert answer.value == pytest.approx(4.485, rel=0.03)
    assert answer.interval[0] < 4.485 < answer.interval[1]
    assert answer.interval[1] / answer.interval[0] < 1.2
    assert answer.source == "fit to 80 points"
    with pytest.raises(InputError, match="a fit of 'power'"):
        leverage(0.1, 8, 1e20, law=fit("power", {"compute": [1e18, 1e19, 1e20], "loss": [3, 2.7, 2.4]}, bootstraps=2))


def families(noise: float, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs of a dense and of MoE families whose leverage is the published law's, L = 50.43 C_dense^-0.0663."""
    rng = np.random.default_rng(seed)
    budgets = np.repeat(10.0 ** np.arange(18, 21.1, 0.5), 2)

    def losses(equivalent: np.ndarray) -> np.ndarray:
        return 50.43 * equivalent**-0.0663 * np.exp(noise * rng.standard_normal(len(equivalent)))

    grid = [(ratio, grain) for ratio in (0.25, 0.0625, 0.03125, 0.0078125) for grain in (2.0, 4.0, 8.0, 16.0)]
    moe: dict[str, list[float]] = {"activation_ratio": [], "granularity": [], "compute": [], "loss": []}
    law = PUBLISHED["leverage"]
    for ratio, grain in grid:
        columns = {"activation_ratio": ratio, "granularity": grain, "compute": budgets}
        gain = law.form.predict(columns, law.coefficients)
        moe["activation_ratio"] += [ratio] * len(budgets)
        moe["granularity"] += [grain] * len(budgets)
        moe["compute"] += list(budgets)
        moe["loss"] += list(losses(gain * budgets))
    return {"compute": budgets, "loss": losses(budgets)}, {name: np.array(values) for name, values in moe.items()}


def test_leverage_measured_on_runs_covers_the_truth_and_gives_the_law_back():
    dense, moe = families(0.001)
    measured = leverage_from_runs(dense, moe, bootstraps=60)
    law = PUBLISHED["leverage"]
    table = measured.columns
    assert len(table["leverage"]) == 16 * 7
    assert len(measured.families) == 16
    truth = law.form.predict({name: table[name] for name in law.inputs}, law.coefficients)
    assert np.sqrt(np.mean(np.log(table["leverage"] / truth) ** 2)) < 0.03
    assert np.mean((table["low"] <= truth) & (truth <= table["high"])) > 0.8
    assert (table["low"] <= table["high"]).all()
    joint = measured.fit(bootstraps=20)
    assert joint.groups == 16
    assert leverage(0.03125, 8, 1e20, law=joint).value == pytest.approx(4.485, rel=0.04)


def test_leverage_of_few_budgets_has_intervals_that_hold():
    """Five budgets a family, two families, twenty repetitions; power laws invert in closed form."""
    compute, dense, moe = np.geomspace(1e18, 3e20, 5), (50.43, -0.0663), ((52.0, -0.0672), (53.7, -0.0694))
    covered = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = [a * compute**b * np.exp(0.002 * rng.standard_normal(5)) for a, b in (dense, *moe)]
        columns = leverage_from_runs(
            {"compute": compute, "loss": losses[0]},
            {
                "activation_ratio": np.repeat([0.125, 0.25], 5), "granularity": np.full(10, 2.0),
                "compute": np.tile(compute, 2), "loss": np.concatenate(losses[1:]),
            },
            bootstraps=100, seed=seed,
        ).columns  # fmt: skip
        truth = np.concatenate([(a * compute**b / dense[0]) ** (1 / dense[1]) / compute for a, b in moe])
        covered += list((columns["low"] <= truth) & (truth <= columns["high"]))
    assert np.mean(covered) >= 0.94


def test_without_noise_the_inversion_is_exact():
    dense = {"compute": 10.0 ** np.arange(18, 22), "loss": 50.43 * (10.0 ** np.arange(18, 22)) ** -0.0663}
    moe = {"activation_ratio": [0.1] * 4, "granularity": [2.0] * 4, "compute": dense["compute"]}
    moe["loss"] = 50.43 * (3.0 * dense["compute"]) ** -0.0663
    measured = leverage_from_runs(dense, moe, bootstraps=5)
    assert measured.columns["leverage"] == pytest.approx(3.0, rel=1e-4)
    # With a floor, families of one floor and exponent differ in compute by a factor as well.
    floor = FORMS["floored_power"]
    grid = 10.0 ** np.arange(17, 22, 0.5)
    values = {"E": 1.7, "A": 3000.0, "alpha": 0.2}
    dense = {"compute": grid, "loss": floor.predict({"compute": grid}, values)}
    moe = {"activation_ratio": [0.1] * len(grid), "granularity": [2.0] * len(grid), "compute": grid}
    moe["loss"] = floor.predict({"compute": 2 * grid}, values)
    measured = leverage_from_runs(dense, moe, curve="floored_power", bootstraps=5)
    assert measured.columns["leverage"] == pytest.approx(2.0, rel=1e-3)


def test_bad_tables_are_named():
    dense, moe = families(0.001)
    with pytest.raises(InputError, match="moe: missing column granularity"):
        leverage_from_runs(dense, {name: values for name, values in moe.items() if name != "granularity"})
    with pytest.raises(InputError, match="moe: columns of different lengths"):
        leverage_from_runs(dense, moe | {"granularity": moe["granularity"][:-1]})
    with pytest.raises(InputError, match="moe: row 1, column activation_ratio: nan, expected a number above 0"):
        leverage_from_runs(dense, moe | {"activation_ratio": np.full(len(moe["loss"]), np.nan)})
    with pytest.raises(InputError, match="moe: no runs"):
        leverage_from_runs(dense, {name: values[:0] for name, values in moe.items()})
    with pytest.raises(InputError, match="dense: power: 2 runs, expected more than its 2 coefficients"):
        leverage_from_runs({name: values[:2] for name, values in dense.items()}, moe)
    with pytest.raises(InputError, match="curve: 'line'"):
        leverage_from_runs(dense, moe, curve="line")
    with pytest.raises(InputError, match="bootstraps: 0, expected an integer of at least 1"):
        leverage_from_runs(dense, moe, bootstraps=0)
    one = {name: values[:1] for name, values in moe.items()}
    with pytest.raises(InputError, match=r"family activation_ratio 0.25, granularity 2: .*1 runs"):
        leverage_from_runs(dense, one, bootstraps=2)
