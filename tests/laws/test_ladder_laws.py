"""The laws of simulated ladders whose optima are known power laws, down to small noisy ladders."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.laws.ladder import LadderLaws, fit_ladder
from moe_optuna.laws.published import PUBLISHED

POLE = 289 / 9
AXES = {0: ("flops_per_token",), 1: ("compute_density", "expansion_ratio"), 2: ("d_model",)}
QUANTITIES = ("flops_per_token", "compute_density", "expansion_ratio", "d_model")


def optimum(compute: float) -> dict[str, float]:
    scale = compute / 1e18
    return {
        "flops_per_token": 0.04368 * compute**0.5437,
        "compute_density": 6 + 4.65 * scale**-0.142,
        "expansion_ratio": 19.2 * scale**0.0243,
        "d_model": 470 * scale**0.22,
    }


def coordinate(name: str, x: np.ndarray) -> np.ndarray:
    if name == "compute_density":
        return np.log(x - 6)
    return np.log((x - 1) / (POLE - x)) if name == "expansion_ratio" else np.log(x)


def least(compute: float) -> float:
    return 1.7 + 1.5 * (compute / 1e18) ** -0.1


def excess(name: str, compute: float, x: np.ndarray) -> np.ndarray:
    delta = coordinate(name, x) - coordinate(name, optimum(compute)[name])
    flatter = (compute / 1e18) ** -0.02
    if name in ("compute_density", "expansion_ratio"):
        return {"compute_density": 0.016, "expansion_ratio": 0.03}[name] * flatter * (np.cosh(delta) - 1)
    return {"flops_per_token": 0.02, "d_model": 0.06}[name] * flatter * delta**2


def runs(budgets: list[float], each: tuple[int, int, int], noise: float, seed: int) -> dict[str, np.ndarray]:
    """Columns of runs.csv of a ladder, `each` runs a phase."""
    rng = np.random.default_rng(seed)
    rows = []
    for compute in budgets:
        best = optimum(compute)
        for phase, count in enumerate(each):
            for _ in range(count):
                row = best | {"phase": phase, "compute": compute, "n_experts": 288, "top_k": 8, "n_shared_experts": 1}
                row["state"] = "complete"
                if phase == 0:
                    row["flops_per_token"] = best["flops_per_token"] * np.exp(rng.uniform(-1.5, 1.5))
                elif phase == 1:
                    row["compute_density"] = 6 + 11 ** rng.random()
                    row["expansion_ratio"] = rng.uniform(12, 30)
                else:
                    row["d_model"] = best["d_model"] * np.exp(rng.uniform(-0.5, 0.5))
                shape = sum(excess(name, compute, row[name]) for name in AXES[phase])
                row["loss"] = least(compute) * (1 + shape) * np.exp(noise * rng.standard_normal())
                rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_planted_laws_are_recovered_and_extrapolated() -> None:
    laws = fit_ladder(runs([1e18, 3e18, 1e19, 3e19], (10, 30, 20), 0.0005, 0))
    truth = optimum(3e20)
    for name in QUANTITIES:
        value, (low, high) = laws.predict(name, 3e20)
        assert value == pytest.approx(truth[name], rel=0.06), name
        assert low <= truth[name] <= high, name
    assert laws.power_laws["flops_per_token"].b == pytest.approx(0.5437, abs=0.02)
    assert laws.power_laws["compute_density"].b == pytest.approx(-0.142, abs=0.02)
    assert laws.power_laws["compute_density"](1e20) == pytest.approx(6 + 4.65 * 100**-0.142, rel=0.01)
    assert laws.power_laws["d_model"].b == pytest.approx(0.22, abs=0.02)
    assert laws.predict("active_params", 3e20)[0] == pytest.approx(
        truth["flops_per_token"] / truth["compute_density"], rel=0.06
    )
    assert laws.predict("tokens", 3e20)[0] == pytest.approx(3e20 / laws.predict("flops_per_token", 3e20)[0])
    loss, (low, high) = laws.predict("loss", 3e20)
    assert loss == pytest.approx(least(3e20), rel=0.005)
    assert low <= least(3e20) <= high


def test_intervals_of_small_noisy_ladders_cover_what_they_extrapolate_to() -> None:
    covered, growths = [], []
    for seed in range(12):
        laws = fit_ladder(runs([1e18, 3e18, 1e19], (5, 12, 6), (0.003, 0.01)[seed % 2], seed), score=False)
        truth = optimum(1e20) | {"loss": least(1e20)}
        for name, value in truth.items():
            low, high = laws.predict(name, 1e20)[1]
            covered.append(low <= value <= high)
        growths.append(laws.growth["d_model"]["relative"].verdict)
    assert 0.88 <= np.mean(covered) <= 1.0
    assert growths.count("can't tell") >= 8  # so few and so noisy runs cannot tell the growth of a band


def test_runs_that_diverged_end_no_fit() -> None:
    """A tenth of the runs end 5 to 80 % too high, as where the rate was too large for them."""
    covered = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (6, 16, 17, 24):
            columns = runs([1e18, 3e18, 1e19], (0, 20, 0), 0.002, seed)
            rng = np.random.default_rng(seed)
            bad = rng.random(len(columns["loss"])) < 0.1
            columns["loss"] *= np.exp(np.where(bad, rng.uniform(0.05, 0.6, len(bad)), 0.0))
            laws = fit_ladder(columns, score=False)
            for name in ("compute_density", "expansion_ratio"):
                low, high = laws.predict(name, 1e20)[1]
                covered.append(low <= optimum(1e20)[name] <= high)
            low, high = laws.predict("loss", 1e20)[1]
            covered.append(low <= least(1e20) <= high)
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize("compute", [1e20, 1e24, 1e26, 1e28])
def test_a_published_optimum_follows_its_line_however_far(compute: float) -> None:
    """Value and interval against the textbook's line and its standard error; 6 is the floor of compute density."""
    budgets, optima = [1e18, 3e18, 1e19, 3e19, 1e20, 3e20], np.array([10.95, 9.90, 9.22, 8.77, 8.35, 8.22])
    h = np.log(budgets) - np.mean(np.log(budgets))
    line, covariance = np.polyfit(h, np.log(optima - 6), 1, cov=True)
    at = np.array([np.log(compute) - np.mean(np.log(budgets)), 1.0])
    value, (low, high) = LadderLaws.published().predict("compute_density", compute)
    assert value == pytest.approx(6 + np.exp(at @ line), rel=1e-9)
    error = np.sqrt(at @ covariance @ at)
    assert np.log((high - 6) / (low - 6)) == pytest.approx(2 * 1.96 * error, rel=0.15)  # 400 draws


@pytest.mark.parametrize("compute", [1e16, 1e18, 3e20, 3e22, 1e26])
def test_published_allocation_widens_outside_its_range_as_the_law_does(compute: float) -> None:
    (value, (low, high)), published = LadderLaws.published().predict("flops_per_token", compute), PUBLISHED
    centre, (bottom, top) = published["holistic_flops_per_token"].quietly(compute)
    assert value == pytest.approx(centre)
    assert np.log([low / value, high / value]) == pytest.approx(np.log([bottom / centre, top / centre]), rel=0.15)


def test_extrapolations_get_less_sure_and_nothing_overflows() -> None:
    """A ladder whose optima move fast, from a decade beyond its largest budget (place and drift of an optimum tell of
    each other, so that it is known best near there) up to where they leave what was searched many times over."""
    table = runs([1e10, 3e10, 1e11], (5, 12, 6), 0.003, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laws = fit_ladder(table, score=False)
        for name in ("flops_per_token", "compute_density", "d_model"):
            spans = [laws.predict(name, compute)[1] for compute in 10.0 ** np.arange(12, 29)]
            widths = [np.ptp(coordinate(name, np.array(span))) for span in spans]
            assert np.isfinite(widths).all(), name
            assert (np.diff(widths) > 0).all(), name


def test_a_narrow_search_does_not_hide_an_unusual_exponent() -> None:
    """Widths of 0.86 to 1.16 times the best, which grows by the power of 0.33 where 0.22 is usual."""
    covered = []
    for seed in range(8):
        columns = runs([4e10, 8e10, 1.6e11, 3.2e11], (6, 8, 9), 0.0003, seed)
        rows, rng = columns["phase"] == 2, np.random.default_rng(seed)
        best = 64 * (columns["compute"][rows] / 4e10) ** 0.33
        columns["d_model"][rows] = best * np.exp(rng.uniform(-0.15, 0.15, rows.sum()))
        shape = 1 + 0.06 * np.log(columns["d_model"][rows] / best) ** 2
        noise = np.exp(0.0003 * rng.standard_normal(rows.sum()))
        columns["loss"][rows] = [least(compute) for compute in columns["compute"][rows]] * shape * noise
        low, high = fit_ladder(columns, score=False, seed=seed).predict("d_model", 4e12)[1]
        covered.append(low <= 64 * 100**0.33 <= high)
    assert sum(covered) >= 6


def test_fits_of_a_budget_use_its_own_runs_where_they_suffice() -> None:
    laws = fit_ladder(runs([1e18, 1e19], (4, 36, 20), 0.001, 0))
    own = {(f.axis, f.compute): f for f in laws.axes}
    assert own["flops_per_token", 1e18].pooled
    assert not own["compute_density", 1e18].pooled
    for name in QUANTITIES[1:]:
        fit = own[name, 1e19]
        assert coordinate(name, fit.optimum) == pytest.approx(coordinate(name, optimum(1e19)[name]), abs=0.06)
        assert fit.interval[0] <= optimum(1e19)[name] <= fit.interval[1]
        assert fit.band[0] <= fit.optimum <= fit.band[1]
        assert fit.loss == pytest.approx(least(1e19), rel=0.002)
        assert fit.predict(fit.optimum)[0] == pytest.approx(fit.loss, rel=1e-6)
    pooled = own["flops_per_token", 1e18]
    grid = np.geomspace(*pooled.range, 2001)
    assert grid[pooled.predict(grid).argmin()] == pytest.approx(pooled.optimum, rel=0.01)
    assert pooled.predict(pooled.optimum)[0] == pytest.approx(pooled.loss, rel=1e-4)


def test_runs_that_are_given_again_count_once() -> None:
    """With a blank column and one that is pruned, too: a file pasted together twice tells no more than one."""
    table = runs([1e18, 1e19], (4, 36, 20), 0.001, 0)
    table["n_heads"] = np.where(table["phase"] == 2, 4.0, np.nan)
    table["state"][5] = "pruned"
    twice = {name: np.concatenate([column, column]) for name, column in table.items()}
    assert fit_ladder(twice).to_dict() == fit_ladder(table).to_dict()


def test_the_band_widens_where_curvature_falls() -> None:
    laws = fit_ladder(runs([1e18, 1e19, 1e20, 1e21], (10, 40, 40), 0.0003, 0), score=False)
    assert laws.growth["d_model"]["relative"].verdict == "widens"
    assert laws.growth["d_model"]["absolute"].verdict == "widens"
    (low, high), low_span, high_span = laws.band("d_model", 1e20)
    reach = np.sqrt(0.001 / (0.06 * 100**-0.02))
    assert (low, high) == pytest.approx(optimum(1e20)["d_model"] * np.exp([-reach, reach]), rel=0.05)
    assert low_span[0] < low < low_span[1] < high_span[0] < high < high_span[1]


def test_the_largest_budget_is_held_out_and_compared() -> None:
    table = runs([1e18, 3e18, 1e19], (8, 24, 16), 0.001, 1)
    held_out = fit_ladder(table).held_out
    assert held_out["compute"] == 1e19
    assert held_out["rows"] == 48
    assert held_out["rmse_log"] < 0.006
    assert 0.85 <= held_out["coverage"] <= 1
    assert abs(held_out["loss"]["error"]) < 0.005
    for name in QUANTITIES:
        assert abs(held_out["axes"][name]["error_in_band_widths"]) < 1
        assert held_out["axes"][name]["consistent"]


def test_the_held_out_loss_is_that_of_the_repeated_architecture_alone() -> None:
    """Where the largest budget's losses are moved, what is found there moves as much, however few they are."""
    table = runs([1e18, 3e18, 1e19], (8, 24, 16), 0.001, 1)
    few = (table["compute"] < 1e19) | (np.arange(len(table["loss"])) % 8 == 0)
    table = {name: column[few] for name, column in table.items()}
    table |= {name: np.arange(few.sum()) for name in ("d_dense", "d_expert", "d_head")}  # no two alike so far
    last = np.flatnonzero((table["compute"] == 1e19) & (table["phase"] == 2))
    best = last[table["loss"][last].argmin()]
    repeated = {name: np.append(column, column[[best, best]]) for name, column in table.items()}
    for times in (1.0, 1.05):
        repeated["loss"] = np.append(table["loss"], table["loss"][best] * np.array([1.001, 0.996]))
        repeated["loss"] = np.where(repeated["compute"] == 1e19, times * repeated["loss"], repeated["loss"])
        found = fit_ladder(repeated).held_out["loss"]
        assert (found["trainings"], found["pooled"]) == (3, False)
        assert found["found"] == pytest.approx(times * table["loss"][best] * (1 + 1.001 + 0.996) / 3)
        assert found["found_interval"][0] < found["found"] < found["found_interval"][1]
        assert found["consistent"] is (times == 1.0)
    alone = fit_ladder(table).held_out["loss"]
    assert (alone["trainings"], alone["pooled"]) == (1, True)


def test_pruned_runs_count_as_worse_than_the_best() -> None:
    table = runs([1e18, 1e19], (6, 24, 12), 0.001, 2)
    bad = (table["phase"] == 1) & (table["compute_density"] > 11)
    pruned = table | {"state": np.where(bad, "pruned", "complete"), "loss": np.where(bad, 9.0, table["loss"])}
    laws = fit_ladder(pruned, score=False)
    assert laws.predict("compute_density", 1e19)[0] == pytest.approx(optimum(1e19)["compute_density"], rel=0.06)
    assert laws.predict("loss", 1e19)[0] == pytest.approx(least(1e19), rel=0.003)


def test_what_pruned_runs_foretold_tells_how_steep_the_law_is() -> None:
    """Where all but the best few are pruned: bounds leave open how much worse the others are, forecasts do not."""
    off: dict[str, list[float]] = {"bounds": [], "forecasts": []}
    for seed in range(4):
        table = runs([1e18, 1e19], (6, 20, 12), 0.001, seed)
        study, loss = table["compute"] * (1 + table["phase"]), table["loss"]
        kept = np.array([np.sum(loss[study == study[i]] < loss[i]) < 4 for i in range(len(loss))])
        pruned = table | {"state": np.where(kept, "complete", "pruned"), "loss": np.where(kept, loss, 9.0)}
        noise = np.random.default_rng(seed).standard_normal(len(loss))
        foretold = pruned | {
            "forecast": np.where(kept, np.nan, loss * np.exp(0.01 * noise)),
            "forecast_sd": np.where(kept, np.nan, 0.01),
        }
        last = (table["phase"] == 1) & (table["compute"] == 1e19)
        searched = {name: table[name][last] for name in ("compute_density", "expansion_ratio")}
        worst = [fit_ladder(each, score=False).excess(1e19, searched)[0].max() for each in (table, pruned, foretold)]
        off["bounds"].append(abs(np.log(worst[1] / worst[0])))
        off["forecasts"].append(abs(np.log(worst[2] / worst[0])))
    assert np.mean(off["forecasts"]) < 0.2
    assert np.mean(off["forecasts"]) < 0.5 * np.mean(off["bounds"])


def test_forecasts_count_where_no_run_of_a_phase_and_budget_is_complete() -> None:
    """Forecasts that hit stand in for the runs' losses, whatever those say; without them the rows count for nothing."""
    table = runs([1e18, 3e18, 1e19], (0, 12, 8), 0.001, 0)
    last = (table["compute"] == 1e19) & (table["phase"] == 2)
    pruned = table | {"state": np.where(last, "pruned", "complete"), "loss": np.where(last, 9.0, table["loss"])}
    forecasts = {"forecast": np.where(last, table["loss"], np.nan), "forecast_sd": np.where(last, 1e-6, np.nan)}
    whole, without = (fit_ladder(each, score=False) for each in (table, pruned))
    assert (whole.phases[2].points, without.phases[2].points) == (24, 16)
    for loss in (pruned["loss"], np.where(last, np.nan, table["loss"])):
        laws = fit_ladder(pruned | forecasts | {"loss": loss})
        assert laws.phases[2].points == 24
        assert laws.predict("d_model", 1e20)[0] == pytest.approx(whole.predict("d_model", 1e20)[0], rel=1e-6)
        assert laws.predict("loss", 1e20)[0] == pytest.approx(whole.predict("loss", 1e20)[0], rel=1e-6)
        assert laws.held_out["loss"]["phase"] == 2
        assert (laws.held_out["loss"]["trainings"], laws.held_out["loss"]["pooled"]) == (0, True)


def test_repeats_of_an_architecture_tell_the_noise() -> None:
    table = runs([1e18, 1e19], (0, 20, 0), 0.0, 3)
    table = {name: np.repeat(column, 3) for name, column in table.items()}
    for name in ("d_dense", "d_expert", "n_heads"):
        table[name] = np.repeat(np.arange(40), 3)
    table["loss"] = table["loss"] * np.exp(0.01 * np.random.default_rng(0).standard_normal(120))
    assert fit_ladder(table, score=False).noise == pytest.approx(0.01, rel=0.3)
    assert fit_ladder(table, noise=0.012, score=False).noise == pytest.approx(0.012, rel=0.1)


def test_one_budget_and_few_runs_still_give_laws_with_wide_intervals() -> None:
    laws = fit_ladder(runs([1e18], (4, 6, 4), 0.003, 0))
    assert laws.held_out is None
    assert laws.growth == {}
    for name in QUANTITIES:
        low, high = laws.predict(name, 1e20)[1]
        assert low < optimum(1e20)[name] < high, name
        assert coordinate(name, np.float64(high)) - coordinate(name, np.float64(low)) > 0.2


def test_one_budget_says_little_of_what_a_larger_one_needs() -> None:
    """FLOPs per token that nothing varied: as they were, and beyond as they usually grow, which is no certainty."""
    columns = runs([1e18], (0, 12, 0), 0.001, 0)
    laws = fit_ladder(columns)
    value, (low, high) = laws.predict("flops_per_token", 1e18)
    assert low == pytest.approx(high) == pytest.approx(value) == pytest.approx(columns["flops_per_token"][0])
    value, (low, high) = laws.predict("flops_per_token", 1e20)
    for exponent in (0.4, 0.7):  # as spaces of one's own may have it
        assert low < columns["flops_per_token"][0] * 100**exponent < high
    low, high = laws.predict("active_params", 1e20)[1]
    assert high / low > 2


def test_a_file_of_runs_gives_the_laws_of_its_columns(tmp_path: Path) -> None:
    columns = runs([1e18, 3e18], (4, 6, 5), 0.002, seed=3)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows.append(rows[0] | {"state": "failed", "loss": ""})
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["study", *columns], restval="a/1e+18/phase-0")
        writer.writeheader()
        writer.writerows(rows)
    laws = fit_ladder(columns, score=False).to_dict()
    assert fit_ladder(path, score=False).to_dict() == laws
    more = {"state": [f" TrialState.{state.upper()}" for state in columns["state"]], "note": "x", "tags": np.arange(3)}
    assert fit_ladder(columns | more).to_dict() | {"held_out": None} == laws


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("phase,compute,loss,loss\n1,1e9,2.5,2.6\n", "two columns loss, expected one"),
        ("phase,compute\n1,2\n", "no column loss, expected phase, compute, loss"),
        ("phase,compute,loss\n1,1e9,2.5\n1,1e9,much\n", "row 2, column loss: 'much', expected a number"),
    ],
)
def test_a_wrong_file_of_runs_is_named(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "runs.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"runs\.csv.*{expected}"):
        fit_ladder(path)


@pytest.mark.parametrize("compute", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_named(compute: float) -> None:
    laws = LadderLaws.published()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quantity in ("loss", "tokens", "expansion_ratio"):
            with pytest.raises(InputError, match=f"compute: {compute:g}, expected a positive finite number"):
                laws.predict(quantity, compute)
        with pytest.raises(InputError, match=r"compute: .*expected a positive finite number"):
            laws.band("expansion_ratio", compute)


def test_a_space_is_told_by_its_name() -> None:
    with pytest.raises(InputError, match="space: a dict, expected the name of a search space"):
        fit_ladder(runs([1e18, 1e19], (6, 24, 12), 0.001, 2), space={})  # type: ignore[arg-type]


def test_laws_json_comes_back_as_it_was(tmp_path: Path) -> None:
    laws = fit_ladder(runs([1e18, 3e18, 1e19], (5, 12, 8), 0.003, 0), space="cpu")
    laws.save(tmp_path / "laws.json")
    data = json.loads((tmp_path / "laws.json").read_text())
    assert data["format"] == 1
    assert {"space", "noise", "axes", "power_laws", "held_out"} <= set(data)
    assert {"compute", "phase", "axis", "form", "coefficients", "optimum", "interval", "band", "band_noise", "loss",
            "points"} <= set(data["axes"][0])  # fmt: skip
    again = LadderLaws.load(tmp_path / "laws.json")
    assert again.to_dict() == laws.to_dict()
    for name in (*QUANTITIES, "loss", "total_params"):
        value, interval = laws.predict(name, 1e20)
        assert again.predict(name, 1e20)[0] == pytest.approx(value)
        assert again.predict(name, 1e20)[1] == pytest.approx(interval)


def test_the_published_laws_say_that_they_give_no_loss() -> None:
    with pytest.raises(InputError, match=r"^laws: the laws do not give the loss itself"):
        LadderLaws.published().predict("loss", 1e20)


def test_the_published_laws_come_back_from_a_file_of_plain_json(tmp_path: Path) -> None:
    laws = LadderLaws.published()
    laws.save(tmp_path / "laws.json")
    data = json.loads((tmp_path / "laws.json").read_text(), parse_constant=pytest.fail)
    assert data["loss"] is None
    again = LadderLaws.load(tmp_path / "laws.json")
    assert not again.knows_loss
    assert again.source == laws.source
    for name in (*QUANTITIES, "total_params"):
        assert again.draws(name, 1e22) == pytest.approx(laws.draws(name, 1e22))
    data["phases"][0]["theta"][1] = None  # only the level may be unknown
    with pytest.raises(InputError, match="not finite"):
        LadderLaws.from_dict(data)


def test_the_published_laws_are_those_of_the_reference() -> None:
    laws = LadderLaws.published()
    table = {1e18: (0.2672e9, 24.8e6, 0.538e9), 1e19: (0.9345e9, 101.5e6, 2.23e9), 3e20: (5.9390e9, 726e6, 15.85e9)}
    for compute, (flops, active, total) in table.items():
        assert laws.predict("flops_per_token", compute)[0] == pytest.approx(flops, rel=1e-3)
        assert laws.predict("active_params", compute)[0] == pytest.approx(active, rel=0.04)
        assert laws.predict("total_params", compute)[0] == pytest.approx(total, rel=0.12)
    assert not laws.knows_loss
    with pytest.raises(InputError, match=r"axis: 'expansion', expected one of .*expansion_ratio"):
        laws.band("expansion", 3e20)
    (low, high), *_ = laws.band("expansion_ratio", 3e20)
    assert 18 < low < 22.07 < high < 25


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"loss": None}, "loss: no such column"),
        ({"compute_density": ["x"] * 46}, "compute_density: not a number"),
        ({"d_model": [64.0] * 45}, "runs: columns of different lengths: phase 46, compute 46, .*d_model 45"),
        ({"state": ["complete"]}, "runs: columns of different lengths: phase 46, .*state 1"),
        ({"state": ["failed"] * 46}, "no phase with 3 complete runs"),
        ({"compute_density": [5.0, 7.0] * 23}, "above 6"),
    ],
)
def test_bad_runs_are_named(change: dict, expected: str) -> None:
    table = runs([1e18, 1e19], (5, 12, 6), 0.003, 0) | change
    with pytest.raises(InputError, match=expected):
        fit_ladder({name: column for name, column in table.items() if column is not None})


@pytest.mark.parametrize("value", [float("nan"), 0.0, -2.0])
@pytest.mark.parametrize(
    ("phase", "name"),
    [
        (0, "flops_per_token"), (1, "compute_density"), (1, "expansion_ratio"), (2, "d_model"), (2, "n_heads"),
        (1, "flops_per_token"),  # not searched, but as it was
    ],
)  # fmt: skip
def test_one_wrong_cell_of_an_axis_is_named(phase: int, name: str, value: float) -> None:
    table = runs([1e18, 1e19], (6 if (phase, name) != (1, "flops_per_token") else 0, 12, 6), 0.003, 0)
    table["n_heads"] = np.arange(len(table["loss"])) % 3 + 1.0
    wrong = int(np.flatnonzero(table["phase"] == phase)[-2])
    table[name] = np.where(np.arange(len(table["loss"])) == wrong, value, table[name])
    with pytest.raises(InputError, match=rf"^row {wrong + 1}, column {name}: {value:g}, expected a positive number$"):
        fit_ladder(table)
    table["state"] = np.where(np.arange(len(table["loss"])) == wrong, "failed", "complete")
    assert name in fit_ladder(table, score=False).power_laws


@pytest.mark.parametrize("name", ["n_shared_experts", "n_experts", "top_k"])
def test_a_count_that_is_0_in_some_run_has_no_law(name: str) -> None:
    table = runs([1e18, 1e19], (0, 12, 12), 0.003, 0)
    last, counts = table["phase"] == 2, np.arange(len(table["loss"])) % 3
    searched, with_none = (np.where(last, each, table[name]) for each in (counts + 1, counts))
    assert name in fit_ladder(table | {name: searched}, score=False).axes_known
    known = fit_ladder(table | {name: with_none}, score=False).axes_known
    assert known == ("compute_density", "expansion_ratio", "d_model")


def test_the_pole_is_that_of_the_runs_whose_experts_are_told() -> None:
    table = runs([1e18, 1e19], (0, 12, 0), 0.003, 0)
    for name in ("n_experts", "top_k", "n_shared_experts"):
        table[name] = np.where(np.arange(24) == 5, np.nan, table[name])
        assert fit_ladder(table, score=False).phases[1].axes[1].form.pole == pytest.approx(POLE)
    for blank in (np.full(24, np.nan), None):
        left = {key: column for key, column in (table | {"top_k": blank}).items() if column is not None}
        pole = fit_ladder(left, score=False).phases[1].axes[1].form.pole
        assert pole == pytest.approx(1.05 * table["expansion_ratio"].max())


@pytest.mark.parametrize("noise", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_noise_that_is_none_is_named(noise: float) -> None:
    with pytest.raises(InputError, match=f"^noise: {noise}, expected a positive number$"):
        fit_ladder(runs([1e18, 1e19], (0, 6, 0), 0.003, 0), noise=noise)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "not a JSON object, expected the laws of a ladder"),
        ("{", "not JSON"),
        ('{"format": 2}', "format 2, expected 1"),
        ('{"format": 1}', "no key 'phases', expected the laws of a ladder"),
    ],
)
def test_a_wrong_laws_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "laws.json"
    path.write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        LadderLaws.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        LadderLaws.load(tmp_path / "none.json")


def test_nothing_at_or_beyond_a_pole_is_near_optimal() -> None:
    """Architectures of another triad may lie where the law has no loss: they never come out as the best."""
    laws = fit_ladder(runs([1e18, 1e19], (4, 36, 20), 0.001, 0), score=False)
    ratios = np.array([0.5, 1.0, 5.0, POLE, 2 * POLE])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        excess = laws.excess(1e19, {"expansion_ratio": ratios, "compute_density": np.full(5, 9.0)}, draws=3)
    assert (excess[:, [0, 1, 3, 4]] > 1e3).all()
    assert np.isfinite(excess[:, 2]).all()
    assert (excess.argmin(1) == 2).all()
