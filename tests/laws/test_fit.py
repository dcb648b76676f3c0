"""Fitting laws to runs: against published refits, against SciPy, and against laws that are known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.stats import linregress, t

from moe_optuna.errors import InputError
from moe_optuna.laws import FORMS, PUBLISHED, Fit, fit, read_runs

REFIT = {"E": (1.8172, 0.03), "A": (482, 125), "B": (2085, 1293), "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}


@pytest.fixture(scope="module")
def chinchilla(shared_data: Path) -> dict[str, np.ndarray]:
    with (shared_data / "chinchilla_figure4_points.csv").open() as file:
        points = list(csv.DictReader(file))
    size = np.array([float(point["Model Size"]) for point in points])
    compute = np.array([float(point["Training FLOP"]) for point in points])
    loss = np.array([float(point["loss"]) for point in points])
    return {"total_params": size, "tokens": compute / (6 * size), "loss": loss}


@pytest.fixture(scope="module")
def trimmed(chinchilla) -> dict[str, np.ndarray]:
    kept = np.argsort(chinchilla["loss"])[:-5]
    return {name: values[kept] for name, values in chinchilla.items()}


@pytest.fixture(scope="module")
def refit(trimmed) -> Fit:
    return fit("chinchilla", trimmed)


@pytest.fixture(scope="module")
def everything(chinchilla) -> Fit:
    return fit("chinchilla", chinchilla, bootstraps=20)


def objective(values: dict[str, float], runs: dict[str, np.ndarray], delta: float = 1e-3) -> float:
    """Sum of Huber's loss of the log residuals, written out once more."""
    residual = np.abs(np.log(FORMS["chinchilla"].predict(runs, values)) - np.log(runs["loss"]))
    return float(np.where(residual < delta, residual**2 / 2, delta * (residual - delta / 2)).sum())


def simulate(law: str, rows: int, seed: int, noise: float = 0.01, **truth: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    runs = {
        "compute": 10 ** rng.uniform(18, 22, rows),
        "total_params": 10 ** rng.uniform(8, 10.3, rows),
        "active_params": 10 ** rng.uniform(7, 10, rows),
        "tokens": 10 ** rng.uniform(9, 11.3, rows),
        "n_experts": 2.0 ** rng.integers(0, 10, rows),
    }
    runs["loss"] = FORMS[law].predict(runs, truth) * np.exp(noise * rng.standard_normal(rows))
    return runs


TRUTH = dict(PUBLISHED["chinchilla_refit"].coefficients)


def test_the_refit_of_chinchilla_lands_inside_the_published_errors(refit, trimmed):
    for name, (value, error) in REFIT.items():
        assert abs(refit.coefficients[name] - value) < error
        low, high = refit.intervals[name]
        assert low < value < high
    assert refit.objective == pytest.approx(objective(refit.coefficients, trimmed))
    assert refit.rows == refit.groups == 240
    assert set(refit.identifiability.values()) == {"identified"}
    assert refit.influential is None


def test_its_objective_is_no_worse_than_any_public_fit(refit, trimmed):
    assert refit.objective <= objective(TRUTH, trimmed)
    assert refit.objective <= objective(dict(PUBLISHED["chinchilla"].coefficients), trimmed)

    def log_sum(t: np.ndarray) -> float:
        return objective(dict(zip(("A", "B", "E", "alpha", "beta"), (*np.exp(t[:3]), *t[3:]), strict=True)), trimmed)

    start = np.array([6.0, 7.5, 0.6, 0.35, 0.36])
    for _ in range(3):
        found = minimize(log_sum, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000})
        start = found.x
    assert refit.objective <= found.fun * (1 + 1e-7)
    assert refit.coefficients["alpha"] == pytest.approx(found.x[3], abs=1e-4)
    assert refit.coefficients["beta"] == pytest.approx(found.x[4], abs=1e-4)


def test_a_fit_of_all_245_runs_names_the_five_with_fewest_tokens_per_parameter(everything, refit, chinchilla):
    assert everything.coefficients["beta"] == pytest.approx(0.453, abs=0.002)
    assert everything.coefficients["E"] == pytest.approx(1.891, abs=0.002)
    assert everything.coefficients["B"] == pytest.approx(12800, rel=0.02)
    named = everything.influential
    fewest = np.argsort(chinchilla["tokens"] / chinchilla["total_params"])[:5]
    assert named["rows"] == sorted(int(row) + 1 for row in fewest)
    assert named["runs"][0]["loss"] == chinchilla["loss"][0]
    for name, value in refit.coefficients.items():
        assert named["coefficients"][name] == pytest.approx(value, rel=1e-3)
    assert any("runs 1, 2, 3, 4, 5 move" in note for note in everything.notes)


def test_innocent_runs_are_not_named():
    for seed in range(3):
        assert fit("chinchilla", simulate("chinchilla", 200, seed, **TRUTH), bootstraps=0).influential is None


def test_the_leverage_law_on_the_points_of_figure_8(shared_data: Path):
    with (shared_data / "efficiency_leverage_fig8_points.csv").open() as file:
        points = list(csv.DictReader(file))
    names = {"activation_ratio": "A_ea_over_E", "granularity": "G", "compute": "C_flops", "leverage": "EL"}
    columns = {word: np.array([float(point[name]) for point in points]) for word, name in names.items()}
    found = fit("leverage", columns, bootstraps=50)
    assert found.rmse_log <= 0.055
    assert found.identifiability["A_start"].startswith(("hardly identified", "not identified"))
    assert found.identifiability["A_max"].startswith("not identified")
    for name in ("a", "d", "gamma", "beta"):
        assert found.identifiability[name] == "identified"
        low, high = found.intervals[name]
        # The published values, whose errors are unknown, lie within twice the interval.
        middle, half = (low + high) / 2, (high - low) / 2
        assert abs(PUBLISHED["leverage"].coefficients[name] - middle) < 4 * half


@pytest.mark.parametrize(
    ("law", "truth", "rows"),
    [
        ("chinchilla", TRUTH, 120),
        ("routed", dict(PUBLISHED["clark_s_base"].coefficients), 120),
        ("power", {"a": 50.43, "b": -0.0663}, 40),
        ("floored_power", {"E": 1.7, "A": 3000.0, "alpha": 0.2}, 60),
    ],
)
def test_intervals_cover_the_truth(law, truth, rows):
    """A small version of the benchmark: 8 repetitions, all coefficients together."""
    covered = []
    for seed in range(8):
        found = fit(law, simulate(law, rows, seed, **truth), bootstraps=0, score=False)
        covered += [low <= truth[name] <= high for name, (low, high) in found.intervals.items()]
        assert found.rmse_log == pytest.approx(0.01, rel=0.3)
    assert np.mean(covered) > 0.85


def test_bootstrap_and_profile_agree_where_a_law_is_identified(refit):
    for name, (low, high) in refit.intervals.items():
        drawn = refit.bootstrap_intervals[name]
        assert (high - low) == pytest.approx(drawn[1] - drawn[0], rel=0.7)
        assert low < drawn[1]
        assert drawn[0] < high


@pytest.mark.parametrize("seed", [100, 104])
def test_an_end_beyond_a_plateau_is_where_the_fit_gets_worse(seed):
    """A saturation that hardly matters at the optimum ends where the likelihood ratio of SciPy's fits says."""
    rng = np.random.default_rng(seed)
    columns = 2.0 ** -rng.integers(0, 8, 40), 2.0 ** rng.integers(1, 5, 40), 10 ** rng.uniform(18, 20.8, 40)
    runs = dict(zip(("activation_ratio", "granularity", "compute"), columns, strict=True))
    truth = FORMS["leverage"].predict(runs, dict(PUBLISHED["leverage"].coefficients) | {"A_max": 1e3})
    runs["leverage"] = truth * np.exp(0.03 * rng.standard_normal(40))
    found = fit("leverage", runs, bootstraps=0, score=False)
    free = [name for name in FORMS["leverage"].names if name != "A_max"]

    def squares(saturation: float) -> float:
        def residual(values: np.ndarray) -> np.ndarray:
            values = dict(zip(free, values, strict=True)) | {"A_max": saturation}
            return np.log(FORMS["leverage"].predict(runs, values) / runs["leverage"])

        start = [found.coefficients[name] for name in free]
        bounds = [(1e-6 if name == "A_start" else -np.inf) for name in free], np.inf
        return 2 * least_squares(residual, start, bounds=bounds, x_scale=np.abs(start)).cost

    assert found.coefficients["A_max"] > 1e6
    least = squares(found.coefficients["A_max"])
    rise = (squares(found.intervals["A_max"][0]) - least) / (least / 34)
    assert rise == pytest.approx(t.ppf(0.975, 34) ** 2, rel=0.6)  # the data's own scatter stands in for the threshold


def test_a_fixed_ratio_of_tokens_to_parameters_does_not_identify_the_law():
    runs = simulate("chinchilla", 100, 0, **TRUTH)
    runs["tokens"] = 20 * runs["total_params"]
    runs["loss"] = FORMS["chinchilla"].predict(runs, TRUTH) * np.exp(0.01 * np.random.default_rng(1).normal(size=100))
    found = fit("chinchilla", runs, bootstraps=20)
    for name in ("A", "B", "alpha", "beta"):
        assert found.identifiability[name].startswith("not identified")
        assert f"{name} is {found.identifiability[name]}" in found.notes
    assert found.predict(runs) == pytest.approx(FORMS["chinchilla"].predict(runs, TRUTH), rel=0.01)


def test_a_constant_column_does_not_identify_its_term():
    runs = simulate("chinchilla", 50, 0, **TRUTH)
    runs["tokens"] = np.full(50, 1e10)
    runs["loss"] = FORMS["chinchilla"].predict(runs, TRUTH) * np.exp(0.01 * np.random.default_rng(1).normal(size=50))
    found = fit("chinchilla", runs, bootstraps=0)
    for name in ("E", "B", "beta"):
        assert found.identifiability[name].startswith("not identified")
    assert np.isfinite([end for ends in found.intervals.values() for end in ends]).all()


def test_runs_without_noise_give_the_law_back():
    found = fit("chinchilla", simulate("chinchilla", 60, 0, noise=0.0, **TRUTH), bootstraps=5)
    assert found.coefficients == pytest.approx(TRUTH, rel=1e-5)
    assert found.held_out.rmse_log == pytest.approx(0.0, abs=1e-6)


def test_outliers_move_a_robust_fit_little():
    runs = simulate("chinchilla", 200, 3, **TRUTH)
    before = fit("chinchilla", runs, bootstraps=0)
    runs["loss"] = runs["loss"].copy()
    runs["loss"][::20] *= 1.3  # ten diverged runs
    after = fit("chinchilla", runs, bootstraps=0)
    for name, value in before.coefficients.items():
        low, high = before.intervals[name]
        assert abs(after.coefficients[name] - value) < high - low


def test_noise_comes_from_repeats_and_groups_widen_intervals():
    base = simulate("chinchilla", 50, 0, noise=0.01, **TRUTH)
    rng = np.random.default_rng(0)
    runs = {name: np.tile(values, 4) for name, values in base.items()}
    runs["loss"] = runs["loss"] * np.exp(0.002 * rng.standard_normal(200))
    apart = fit("chinchilla", runs, bootstraps=40)
    together = fit("chinchilla", runs, bootstraps=40, groups=np.tile([f"run {i}" for i in range(50)], 4))
    assert apart.noise_source == together.noise_source == "repeats"
    assert apart.noise == pytest.approx(0.002, rel=0.25)
    assert (apart.groups, together.groups) == (200, 50)
    for kind in ("intervals", "bootstrap_intervals"):
        widths = [np.diff(getattr(found, kind)["alpha"])[0] for found in (apart, together)]
        assert widths[1] > 1.4 * widths[0]


def test_a_run_that_is_given_again_counts_once():
    runs = simulate("chinchilla", 40, 1, noise=0.01, **TRUTH)
    runs["loss"][[3, 30]] *= 1.3
    labels = np.arange(40) // 2
    thrice = {name: np.repeat(values, 3) for name, values in runs.items()}
    for groups in (None, labels):
        once = fit("chinchilla", runs, bootstraps=20, groups=groups).to_dict()
        labelled = None if groups is None else np.repeat(groups, 3)
        again = fit("chinchilla", thrice, bootstraps=20, groups=labelled).to_dict()
        assert (once["again"], again["again"]) == (0, 80)
        assert "80 of 120 rows give a run again: each run counts once" in again["notes"]
        named = once["influential"] and [3 * (row - 1) + 1 for row in once["influential"]["rows"]]
        assert (again["influential"] and again["influential"]["rows"]) == named
        for key in once.keys() - {"again", "notes", "influential"}:
            assert again[key] == once[key], key


def test_noise_is_not_of_runs_that_are_given_again():
    runs = simulate("chinchilla", 50, 0, noise=0.01, **TRUTH)
    rng = np.random.default_rng(0)
    repeats = {name: np.tile(values, 4) for name, values in runs.items()}
    repeats["loss"] = repeats["loss"] * np.exp(0.002 * rng.standard_normal(200))
    again = {name: np.tile(values, 3) for name, values in repeats.items()}
    once, thrice = (fit("chinchilla", each, bootstraps=0, score=False) for each in (repeats, again))
    assert thrice.noise_source == "repeats"
    assert thrice.noise == pytest.approx(once.noise, rel=1e-12)


def test_held_out_runs_are_the_largest():
    runs = simulate("chinchilla", 200, 0, **TRUTH)
    score = fit("chinchilla", runs, bootstraps=50).held_out
    assert 20 <= score.rows <= 30
    assert score.rmse_log == pytest.approx(0.01, rel=0.5)
    assert score.coverage > 0.8
    # Breaking the law for the largest runs shows in the score.
    compute = runs["total_params"] * runs["tokens"]
    bent = runs | {"loss": np.where(compute >= np.quantile(compute, 0.85), 1.1, 1.0) * runs["loss"]}
    worse = fit("chinchilla", bent, bootstraps=50).held_out
    assert worse.rmse_log > 0.07
    assert worse.coverage < 0.3
    assert worse.bias_log == pytest.approx(-0.095, abs=0.03)


def test_prediction_intervals_cover_new_runs():
    found = fit("chinchilla", simulate("chinchilla", 200, 0, **TRUTH), bootstraps=100)
    new = simulate("chinchilla", 400, 99, **TRUTH)
    low, high = found.interval(new, noise=True)
    assert 0.9 < np.mean((low <= new["loss"]) & (new["loss"] <= high)) < 0.99
    truth = FORMS["chinchilla"].predict(new, TRUTH)
    low, high = found.interval(new)
    assert np.mean((low <= truth) & (truth <= high)) > 0.8
    assert np.median(high / low) < 1.02
    for level in (95, 0, 1, -0.5, math.nan):
        with pytest.raises(InputError, match=r"level: .*, expected a fraction above 0 and below 1"):
            found.interval(new, level=level)


def test_prediction_intervals_hold_the_truth_where_one_budget_does_not_identify_the_law():
    """Twelve sizes at 1e20 FLOPs: next to them, and with ten times the tokens and the parameters of any."""
    covered = []
    for seed in range(8):
        size = 1e9 * np.geomspace(0.25, 4, 12)
        runs = {"total_params": size, "tokens": 1e20 / (6 * size)}
        noise = np.exp(0.005 * np.random.default_rng(seed).standard_normal(12))
        runs["loss"] = FORMS["chinchilla"].predict(runs, TRUTH) * noise
        found = fit("chinchilla", runs, bootstraps=50, score=False)
        asked = {"total_params": np.array([1e9, 1.5e10, 1e9]), "tokens": np.array([2e10, 2e12, 1e12])}
        low, high = found.interval(asked)
        truth = FORMS["chinchilla"].predict(asked, TRUTH)
        covered.append((low <= truth) & (truth <= high))
        assert (high[0] - low[0]) / truth[0] < 0.04  # beside the runs it still says something
    assert np.mean(covered) > 0.9


@pytest.mark.parametrize("rows", [6, 12, 30])
def test_intervals_of_few_runs_are_as_wide_as_the_textbook_s(rows):
    """A line in the logarithms under squared errors: Student's interval of ordinary regression is exact."""
    compute, at = np.geomspace(1e18, 1e20, rows), np.array([1e18, 1e19, 1e21])
    x, x_at = np.log(compute), np.log(at)
    ratios = []
    for seed in range(12):
        y = np.log(40 * compute**-0.06) + np.random.default_rng(seed).normal(0, 0.004, rows)
        found = fit("power", {"compute": compute, "loss": np.exp(y)}, delta=1.0, score=False, seed=seed)
        low, high = found.interval({"compute": at})
        line = linregress(x, y)
        sd = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / (rows - 2))
        half = t.ppf(0.975, rows - 2) * sd * np.sqrt(1 / rows + (x_at - x.mean()) ** 2 / (rows * x.var()))
        ratios.append(np.log(high / low) / (2 * half))
    assert (np.mean(ratios, axis=0) > 0.9).all()
    assert (np.mean(ratios, axis=0) < 1.5).all()


def test_the_same_seed_gives_the_same_fit_and_json_reads_it_back(tmp_path: Path):
    runs = simulate("chinchilla", 40, 0, **TRUTH)
    one, two = fit("chinchilla", runs, bootstraps=10, seed=4), fit("chinchilla", runs, bootstraps=10, seed=4)
    assert one == two
    assert one.bootstrap_intervals != fit("chinchilla", runs, bootstraps=10, seed=5).bootstrap_intervals
    one.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json") == one
    data = json.loads((tmp_path / "fit.json").read_text())
    assert {"law", "coefficients", "intervals", "rmse_log", "held_out", "rows"} <= data.keys()
    assert {"rows", "rmse_log", "coverage"} <= data["held_out"].keys()
    for text, message in (
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"format": 2}', "format 2, expected 1"),
        ('{"format": 1, "phases": []}', r"bad\.json: no key 'law', expected what `fit --json` prints"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Fit.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps(data | {"coefficients": {"E": 1}}))
    with pytest.raises(InputError, match=r"bad\.json: not what"):
        Fit.load(tmp_path / "bad.json")
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        Fit.load("nowhere.json")


def test_few_runs_are_refused_or_said_to_be_few():
    runs = simulate("chinchilla", 9, 0, **TRUTH)
    with pytest.raises(InputError, match="chinchilla: 5 runs, expected more than its 5 coefficients"):
        fit("chinchilla", {name: values[:5] for name, values in runs.items()})
    found = fit("chinchilla", {name: values[:6] for name, values in runs.items()}, bootstraps=5)
    assert found.held_out.rows == 0
    assert found.held_out.coverage is None
    assert found.influential is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "missing column tokens, expected total_params, tokens, loss for law 'chinchilla'"),
        ({"loss": [math.nan] * 20}, "row 1, column loss: nan, expected a positive number"),
        ({"loss": [-1.0] * 20}, "row 1, column loss: -1, expected a positive number"),
        ({"loss": ["x"] * 20}, "column loss: not numbers"),
        ({"loss": [1.0] * 19}, "columns of different lengths"),
        ({"loss": [[1.0]] * 20}, "column loss: 2 dimensions"),
    ],
)
def test_bad_columns_are_named(change, message):
    runs = simulate("chinchilla", 20, 0, **TRUTH) | change
    with pytest.raises(InputError, match=message):
        fit("chinchilla", {name: values for name, values in runs.items() if values is not None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstraps": -1}, "bootstraps: -1"),
        ({"bootstraps": 2.5}, "bootstraps: 2.5, expected an integer of at least 0"),
        ({"delta": 0.0}, "delta: 0.0"),
        ({"groups": [1, 2]}, "groups: shape"),
        ({"groups": [1] * 20}, "groups: one group"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        fit("chinchilla", simulate("chinchilla", 20, 0, **TRUTH), **options)


def test_read_runs_takes_complete_rows_and_passes_over_other_columns(tmp_path: Path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "\ufeffstudy, total_params ,tokens,loss,state,note\na,1e8,2e9,3.5,complete,x\nb,1e8,2e9,,pruned,\n"
        "c,2e8,4e9,3.2,TrialState.COMPLETE,\n",
        encoding="utf-8",
    )
    runs = read_runs(path, "chinchilla")
    assert {name: list(values) for name, values in runs.items()} == {
        "total_params": [1e8, 2e8],
        "tokens": [2e9, 4e9],
        "loss": [3.5, 3.2],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("total_params,loss\n1,2\n", "missing column tokens, expected total_params, tokens, loss for law 'chinchilla'"),
        ("total_params,token,loss\n1,2,3\n", "did you mean 'token'"),
        ("total_params,tokens,loss\n", "no row, expected one run a row"),
        ("total_params,tokens,loss,state\n1,2,3,failed\n", "no complete run"),
        ("total_params,tokens,loss\n1,2,3\n1,many,3\n", "row 2, column tokens: 'many', expected a positive number"),
        ("total_params,tokens,loss\n1,2,nan\n", "row 1, column loss: 'nan', expected a positive number"),
        ("total_params,tokens,loss\n1,-2,3\n", "row 1, column tokens: '-2', expected a positive number"),
        ("total_params,tokens,loss\n1,2\n", "row 1, column loss: ''"),
        ("", "missing columns"),
        ("total_params,tokens,loss\n,,\n1,2,3\n1,many,3\n,,\n", "row 2, column tokens: 'many'"),
        ("total_params;tokens;loss\n1,5;2;3\n", "cells separated by semicolons, expected commas"),
        ("total_params\ttokens\tloss\n1\t2\t3\n", "cells separated by tabs, expected commas"),
        ("active_params,loss\n1,2\n", r"for law 'chinchilla'$"),  # another quantity is no misspelling
    ],
)
def test_read_runs_says_what_is_wrong_in_one_line(tmp_path: Path, text, message):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_runs(path, "chinchilla")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_column_of_groups_is_among_the_expected(tmp_path: Path):
    path = tmp_path / "runs.csv"
    path.write_text("total_params,tokens,loss\n1,2,3\n")
    expected = "missing column foo, expected total_params, tokens, loss for law 'chinchilla' and foo to group by$"
    with pytest.raises(InputError, match=expected):
        read_runs(path, "chinchilla", group="foo")


def test_a_row_of_empty_cells_is_a_blank_line(tmp_path: Path):
    path = tmp_path / "runs.csv"
    path.write_text("total_params,tokens,loss\n1,2,3\n\n , ,\n,,,,\n")
    assert list(read_runs(path, "chinchilla")["loss"]) == [3]


def test_an_empty_width_is_the_proxy_width(tmp_path: Path):
    path = tmp_path / "runs.csv"
    words = (*FORMS["holistic"].inputs, "loss", "state")
    path.write_text(
        f"{','.join(words)}\n1e6,1e6,8,4,,16,2,1,2.5,complete\n1e6,1e6,8,4,0.25,16,2,1,2.5,complete\n", encoding="utf-8"
    )
    assert list(read_runs(path, "holistic")["width"]) == [0.5, 0.25]


def test_read_runs_of_files_that_are_none(tmp_path: Path):
    with pytest.raises(InputError, match="No such file"):
        read_runs(tmp_path / "nowhere.csv", "chinchilla")
    with pytest.raises(InputError, match="unknown law"):
        read_runs(tmp_path / "nowhere.csv", "astrology")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match="not a CSV text file"):
        read_runs(tmp_path / "binary.csv", "chinchilla")
    path = tmp_path / "leverage.csv"
    path.write_text("activation_ratio,granularity,compute,leverage\n1.5,2,1e20,3\n")
    with pytest.raises(InputError, match=r"activation_ratio: '1\.5', expected a number above 0 and at most 1"):
        read_runs(path, "leverage")
