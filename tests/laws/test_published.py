"""Published laws against every figure that their papers give."""

from __future__ import annotations

import csv
import math
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.laws import PUBLISHED, OutsideRangeWarning

EFLOP = np.array([1, 3, 10, 30, 100, 300]) * 1e18


@pytest.mark.parametrize("law", PUBLISHED.values(), ids=lambda law: law.name)
def test_every_law_states_what_it_is(law):
    assert law.formula
    assert law.units
    assert law.source.startswith("arXiv:")
    assert 0 < law.error < 0.5
    assert law.error_source
    assert set(law.coefficients) == set(law.form.names)
    assert set(law.valid_range) <= set(law.inputs)


def test_the_table_of_the_documentation_is_current():
    docs = Path(__file__).resolve().parents[2] / "docs"
    if not docs.is_dir():
        pytest.skip("no docs beside the tests")
    script = runpy.run_path(str(docs / "figures" / "laws.py"))
    assert script["table"]() in (docs / "laws.md").read_text(encoding="utf-8")


# Table 2 of arXiv:2603.21862.
def test_holistic_allocation_gives_table_2():
    flops = PUBLISHED["holistic_flops_per_token"](EFLOP) / 1e9
    tokens = PUBLISHED["holistic_tokens"](EFLOP) / 1e9
    assert flops == pytest.approx([0.2672, 0.4856, 0.9345, 1.6983, 3.2681, 5.9390], rel=2e-4)
    assert tokens == pytest.approx([3.7420, 6.1775, 10.7004, 17.6649, 30.5985, 50.5138], rel=2e-4)
    assert flops * tokens * 1e18 == pytest.approx(EFLOP, rel=1e-3)  # C = M D


def test_holistic_units_with_compute_in_eflop():
    assert PUBLISHED["holistic_tokens"](1e18) / 1e9 == pytest.approx(3.742, rel=1e-3)
    assert PUBLISHED["holistic_flops_per_token"](1e18) / 1e9 == pytest.approx(0.2672, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "unit", "table", "error"),
    [
        ("holistic_compute_density", 1, [10.95, 9.90, 9.22, 8.77, 8.35, 8.22], 0.03),
        ("holistic_active_params", 1e6, [24.8, 49.8, 101.5, 200, 388, 726], 0.06),
        ("holistic_total_params", 1e9, [0.538, 1.080, 2.23, 4.24, 8.58, 15.85], 0.04),
        ("holistic_expansion_ratio", 1, [19.23, 19.33, 20.69, 20.78, 21.29, 22.07], 0.04),
        ("holistic_learning_rate", 1, [1.20e-3, 1.00e-3, 8.28e-4, 6.95e-4, 5.74e-4, 4.82e-4], 0.01),
        ("holistic_batch", 8192, [64, 80, 128, 160, 208, 288], 0.09),
    ],
)
def test_holistic_refits_pass_through_the_tables(name, unit, table, error):
    law = PUBLISHED[name]
    assert law(EFLOP) / unit == pytest.approx(table, rel=error)
    low, high = law.interval(EFLOP)
    assert np.mean((low / unit <= table) & (np.array(table) <= high / unit)) >= 5 / 6


def test_holistic_counts_are_consistent_with_each_other():
    active, total = PUBLISHED["holistic_active_params"](EFLOP), PUBLISHED["holistic_total_params"](EFLOP)
    assert total / active == pytest.approx([21.8, 21.7, 21.9, 21.2, 22.1, 21.8], rel=0.05)
    density = PUBLISHED["holistic_compute_density"](EFLOP)
    assert PUBLISHED["holistic_flops_per_token"](EFLOP) / density == pytest.approx(active, rel=0.03)
    ratio = PUBLISHED["holistic_expansion_ratio"](EFLOP)
    assert ((ratio > 18) & (ratio < 25)).all()  # flat there


@pytest.mark.filterwarnings("ignore::moe_optuna.laws.OutsideRangeWarning")
def test_where_the_published_active_params_pass_what_an_architecture_can_have_is_said():
    law = PUBLISHED["holistic_active_params"]
    below, above = (law(c) / (PUBLISHED["holistic_flops_per_token"](c) / 6) for c in (1.03e23, 1.05e23))
    assert below < 1 < above
    assert "passes M/6, which no architecture has, at C = 1.04e23" in law.conventions


@pytest.mark.parametrize(
    ("ratio", "granularity", "compute", "expected"),
    [
        (0.03125, 12, 1e22, 7.22),
        (0.03125, 8, 1e22, 7.13),
        (0.03125, 8, 1e20, 4.49),
        (0.03125, 2, 1e20, 3.30),
        (0.0078125, 2, 1e20, 4.31),
    ],
)
@pytest.mark.filterwarnings("ignore::moe_optuna.laws.OutsideRangeWarning")
def test_leverage_check_values(ratio, granularity, compute, expected):
    assert PUBLISHED["leverage"](ratio, granularity, compute) == pytest.approx(expected, rel=2e-3)


def test_leverage_is_largest_at_granularity_11():
    grid = np.linspace(2, 40, 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = grid[PUBLISHED["leverage"](0.03125, grid, 1e20).argmax()]
    law = PUBLISHED["leverage"].coefficients
    assert best == pytest.approx(2 ** (-law["beta"] / (2 * law["gamma"])), abs=0.02)
    assert best == pytest.approx(11.3, abs=0.1)


@pytest.mark.filterwarnings("ignore::moe_optuna.laws.OutsideRangeWarning")
@pytest.mark.parametrize(
    ("compute", "points"),
    [
        (1e19, [1, 1.06, 1.33, 1.72, 2.14, 2.65, 3.09, 3.52]),
        (1e20, [1, 1.14, 1.53, 2.02, 2.56, 3.22, 4.05, 4.53]),
        (1e21, [1, 1.23, 1.76, 2.40, 3.04, 3.89, 5.33, 5.81]),
        (1e22, [1, 1.34, 2.02, 2.84, 3.64, 4.69, 7.01, 7.49]),
    ],
)
def test_leverage_figure_8a(compute, points):
    ratios = 0.5 ** np.arange(8)
    residual = np.log(PUBLISHED["leverage"](ratios, 2.0, compute) / points)
    assert np.sqrt(np.mean(residual**2)) < 0.09
    assert np.abs(residual).max() < 0.16  # points of different figures differ by a tenth


@pytest.mark.filterwarnings("ignore::moe_optuna.laws.OutsideRangeWarning")
def test_leverage_conventions_fit_figure_8_best(shared_data: Path):
    with (shared_data / "efficiency_leverage_fig8_points.csv").open() as file:
        points = list(csv.DictReader(file))
    column = {name: np.array([float(p[name]) for p in points]) for name in points[0] if name != "panel"}
    measured, compute, grain = column["EL"], column["C_flops"], column["G"]

    def error(ratio):
        return np.sqrt(np.mean(np.log(PUBLISHED["leverage"](ratio, grain, compute) / measured) ** 2))

    assert error(column["A_ea_over_E"]) < 0.066
    assert error(column["A_formal_(Ea+Es)/(E+Es)"]) > 0.09
    law = PUBLISHED["leverage"].coefficients
    hat = column["A_ea_over_E"] + 1 / (1 / law["A_start"] - 1 / law["A_max"])
    natural = law["a"] + law["d"] * np.log(compute) + law["gamma"] * np.log(grain) ** 2 + law["beta"] * np.log(grain)
    assert (hat**natural).max() > 1000  # natural logarithms give nonsense


@pytest.mark.parametrize(
    ("kind", "flops", "tokens"),
    [
        ("dense", (0.0655, 0.5422), (15.2582, 0.4578)),
        ("moe", (0.1915, 0.5095), (5.2232, 0.4905)),
    ],
)
def test_leverage_allocation_adds_up_to_compute(kind, flops, tokens):
    m, d = PUBLISHED[f"leverage_{kind}_flops_per_token"], PUBLISHED[f"leverage_{kind}_tokens"]
    assert (m.coefficients["a"], m.coefficients["b"]) == flops
    assert (d.coefficients["a"], d.coefficients["b"]) == tokens
    assert m(1e20) * d(1e20) == pytest.approx(1e20, rel=2e-3)
    assert flops[1] + tokens[1] == pytest.approx(1.0)


def test_leverage_hyperparameters_and_losses():
    c = 1e20
    assert PUBLISHED["leverage_dense_learning_rate"](c) == pytest.approx(2.2177 * c**-0.1649)
    assert PUBLISHED["leverage_moe_learning_rate"](c) == pytest.approx(1.1576 * c**-0.1529)
    assert PUBLISHED["leverage_dense_batch"](c) == pytest.approx(0.1039 * c**0.3493)
    assert PUBLISHED["leverage_moe_batch"](c) == pytest.approx(0.0694 * c**0.3644)
    dense, moe = PUBLISHED["leverage_dense_loss"], PUBLISHED["leverage_moe_loss"]
    assert dense(c) == pytest.approx(50.43 * c**-0.0663)
    assert moe(c) == pytest.approx(53.7 * c**-0.0694)
    same_loss = (moe(c) / 50.43) ** (-1 / 0.0663)
    assert 2 < same_loss / c < 6  # 4 of 64 experts at G = 2: the leverage that Fig. 8 gives is 2.56


def test_the_two_models_of_the_leverage_study():
    ling = MoEArchitecture(
        d_model=2048, n_dense_layers=1, n_moe_layers=19, n_heads=16, n_kv_heads=4, d_head=128, d_dense=5120,
        d_expert=384, n_experts=384, top_k=12, n_shared_experts=1, context_length=8192, vocab_size=126464,
    )  # fmt: skip
    dense = MoEArchitecture(
        d_model=4096, n_dense_layers=28, n_moe_layers=0, n_heads=32, n_kv_heads=8, d_head=128, d_dense=14336,
        d_expert=0, n_experts=0, top_k=0, n_shared_experts=0, context_length=8192, vocab_size=126464,
    )  # fmt: skip
    assert ling.non_embedding.total_params / 1e9 == pytest.approx(17.5, rel=0.01)
    assert ling.non_embedding.active_params / 1e9 == pytest.approx(0.85, rel=0.04)
    assert dense.non_embedding.active_params / 1e9 == pytest.approx(6.11, rel=0.001)
    assert dense.non_embedding.active_params / ling.non_embedding.active_params > 7


def clark(values, n, experts):
    a, b, c, d, start, top = values
    hat = 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / top)) + 1 / top)
    n10, e10 = math.log10(n), math.log10(hat)
    return 10 ** (a * n10 + b * e10 + c * n10 * e10 + d)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clark_s_base", (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)),
        ("clark_rl_r", (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982)),
        ("clark_hash", (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741)),
    ],
)
def test_clark(name, values):
    law = PUBLISHED[name]
    for n, experts in ((1.5e7, 1), (1e8, 8), (1.3e9, 512)):
        assert law(n, experts) == pytest.approx(clark(values, n, experts))
    assert 2 < law(1e8, 64) < law(1e8, 1) < 4
    # A dense model has E = 1, where the transform gives E_start.
    a, b, c, d, start, _ = values
    n10, e10 = 8.0, math.log10(start)
    assert law(1e8, 1) == pytest.approx(10 ** (a * n10 + b * e10 + c * n10 * e10 + d))


def test_krajewski():
    n, grain, d = 1e9, 4.0, 5e10  # the paper's G is twice the column
    expected = 0.47 + (2.1 / 8.0**0.58 + 18.1) / n**0.115 + 30.8 / d**0.147
    assert PUBLISHED["krajewski"](n, grain, d) == pytest.approx(expected)


def test_ludziejewski():
    n, experts, d = 5e8, 8, 3e10
    hat = 1 / (1 / (experts - 1 + 1 / (1 / 2.0732 - 1 / 290.4521)) + 1 / 290.4521)
    log = math.log(hat)
    expected = (
        35.91 * hat**-0.2285 * n ** (-0.1889 + 0.0098 * log)
        + 35.98 * hat**0.5529 * d ** (-0.1775 - 0.0259 * log)
        + 1.3637
    )
    assert PUBLISHED["ludziejewski"](n, experts, d) == pytest.approx(expected)
    assert 2 < expected < 4


def test_abnar():
    n, d, sparsity = 3e9, 5e10, 0.9
    expected = (
        16612.5 / n**0.5962
        + 5455.67 / d**0.3954
        + 0.4598 / (1 - sparsity) ** -0.1666
        + 17.26 / ((1 - sparsity) ** 0.1603 * n**0.1595)
        + 0.94
    )
    assert PUBLISHED["abnar"](n, d, 1 - sparsity) == pytest.approx(expected)


def test_zhao():
    total, active, d, top_k, shared = 8e9, 1e9, 1e11, 6, 2
    g, s = top_k + shared, shared / (top_k + shared)
    experts = 0.1577 * g + 7.2446 / g + 5.1395 * s**2 - 3.2363 * s
    size = total**-0.2383 + 0.0013 / active**0.2383 + 0.045 * active / total
    expected = experts * size + 38.051 / total**0.2383 + 27129.05 / d**0.4694 + 31.096 / active**0.2383 + 1.8182
    assert PUBLISHED["zhao"](total, active, d, top_k, shared) == pytest.approx(expected)


def test_chinchilla_and_its_refit(shared_data: Path):
    n, d = 7e10, 1.4e12
    assert PUBLISHED["chinchilla"].form.predict(
        {"total_params": n, "tokens": d}, PUBLISHED["chinchilla"].coefficients
    ) == pytest.approx(1.69 + 406.4 / n**0.34 + 410.7 / d**0.28)
    with (shared_data / "chinchilla_figure4_points.csv").open() as file:
        points = list(csv.DictReader(file))
    size = np.array([float(p["Model Size"]) for p in points])
    tokens = np.array([float(p["Training FLOP"]) for p in points]) / (6 * size)
    loss = np.array([float(p["loss"]) for p in points])
    kept = np.argsort(loss)[:-5]
    error = {
        name: np.sqrt(np.mean(np.log(PUBLISHED[name](size, tokens) / loss)[kept] ** 2))
        for name in ("chinchilla", "chinchilla_refit")
    }
    assert error["chinchilla_refit"] == pytest.approx(0.0075, abs=2e-4)
    assert error["chinchilla"] > 2 * error["chinchilla_refit"]


def test_step_law():
    assert PUBLISHED["step_learning_rate"](1e9, 1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert PUBLISHED["step_batch"](1e11) == pytest.approx(0.58 * 1e11**0.571)


def test_outside_its_range_a_law_warns_and_its_interval_widens():
    law = PUBLISHED["holistic_flops_per_token"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = law.interval(1e20)
    with pytest.warns(OutsideRangeWarning, match=r"compute 3e\+22 is outside 1e\+18 to 3e\+20"):
        value = law(3e22)
    with pytest.warns(OutsideRangeWarning):
        outside = law.interval(3e22)
    assert law.decades_outside(3e22) == pytest.approx(2.0)
    assert outside[0] < value < outside[1]
    assert math.log(outside[1] / outside[0]) == pytest.approx(3 * math.log(inside[1] / inside[0]))
    wider = law.interval(1e20, level=0.99)
    assert wider[0] < inside[0] < inside[1] < wider[1]


def test_arguments_are_checked():
    law = PUBLISHED["chinchilla"]
    assert law(tokens=1e11, total_params=1e9) == law(1e9, 1e11)
    assert law(np.full((2, 3), 1e9), 1e11).shape == (2, 3)
    for wrong in ({"total_params": 1e9}, {"total_params": 1e9, "tokens": 1e11, "size": 1}):
        with pytest.raises(InputError, match="expected"):
            law(**wrong)
    with pytest.raises(InputError, match="3 arguments"):
        law(1, 2, 3)
    for value in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="tokens"):
            law(1e9, value)
    with pytest.raises(InputError, match="chinchilla: total_params given twice, expected once"):
        law(1e9, 1e10, total_params=1e9)
    for level in (95, 0, 1, -0.5, math.nan):
        for ask in (law.interval, law.quietly):
            with pytest.raises(InputError, match=f"level: {level}, expected a fraction above 0 and below 1"):
                ask(1e9, 1e11, level=level)


@pytest.mark.parametrize("name", ["clark_s_base", "clark_rl_r", "clark_hash", "ludziejewski"])
def test_a_dense_model_has_one_expert_or_none(name):
    law = PUBLISHED[name]
    sizes = {"active_params": 1e8} | ({"tokens": 1e10} if "tokens" in law.inputs else {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert law(**sizes, n_experts=0) == law(**sizes, n_experts=1)
        assert law.interval(**sizes, n_experts=0) == law.interval(**sizes, n_experts=1)
        assert law(**sizes, n_experts=[0, 1, 8])[1:] == pytest.approx(law(**sizes, n_experts=[1, 8]))
    with pytest.raises(InputError, match=f"{name}: n_experts: -1, expected finite numbers of at least 0"):
        law(**sizes, n_experts=-1)
    with pytest.raises(InputError, match="zhao: n_shared_experts: -1, expected finite numbers of at least 0"):
        PUBLISHED["zhao"](1e10, 1e9, 1e11, 8, -1)
