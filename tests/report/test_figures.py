"""What the figures draw, by their data: the planted truth lies where they say it does."""

import csv
import math

import numpy as np
import pytest

from moe_optuna.report import figures
from moe_optuna.report._figures import study_figures
from moe_optuna.report._run import Run

AXES = ("flops_per_token", "compute_density", "expansion_ratio", "d_model")


@pytest.fixture(scope="module")
def drawn(finished):
    return figures(finished.folder)


def named(figure, name):
    """The traces of a name, a panel each; at least one."""
    found = [trace for trace in figure.data if trace.name == name]
    assert found, f"no {name!r} among {sorted({trace.name for trace in figure.data})}"
    return found


def axis(figure, trace, letter):
    return figure.layout[trace[f"{letter}axis"].replace(letter, f"{letter}axis", 1)]


def test_every_figure_of_a_finished_search(drawn):
    axes = {f"loss-{name}" for name in (*AXES, "n_experts")}
    assert set(drawn) == axes | {"optimum", "band", "held-out", "loss", "shape"}


@pytest.mark.parametrize("name", AXES)
def test_the_planted_optimum_lies_in_the_shaded_band(finished, drawn, name):
    bands = named(drawn[f"loss-{name}"], "near-optimal band, 0.1 %")
    wider = named(drawn[f"loss-{name}"], "within the noise of the optimum")
    assert len(bands) == len(wider) == len(finished.space.budgets)
    for compute, band, noise in zip(finished.space.budgets, bands, wider, strict=True):
        assert min(band.x) <= finished.optimum(name, compute) <= max(band.x)
        assert min(noise.x) <= min(band.x)
        assert max(band.x) <= max(noise.x)


@pytest.mark.parametrize("name", AXES)
def test_the_fit_runs_through_the_trials_and_its_optimum(drawn, name):
    figure = drawn[f"loss-{name}"]
    for fit, optimum in zip(
        named(figure, "fit"), named(figure, "optimum of the fit, 95 % interval"), strict=True
    ):  # fmt: skip
        assert np.interp(optimum.x[0], fit.x, fit.y) == pytest.approx(optimum.y[0], rel=1e-4)
        assert min(fit.y) == pytest.approx(optimum.y[0], rel=1e-4)
        trials = next(t for t in named(figure, "trial") if t.xaxis == fit.xaxis)
        away = np.abs(np.interp(trials.x, fit.x, fit.y) / trials.y - 1)
        assert np.median(away) < 0.003


def test_an_optimum_beyond_the_trials_is_inside_its_panel_and_said(planted):
    budget = planted.space.budgets[1]
    path = planted.folder / "runs.csv"
    header, *lines = path.read_text().splitlines()
    rows = csv.DictReader([header, *lines])
    kept = [
        line
        for line, row in zip(lines, rows, strict=True)
        if (float(row["compute"]), row["phase"]) != (budget, "1") or float(row["compute_density"]) > 12
    ]
    path.write_text("\n".join([header, *kept, ""]))
    figure = figures(planted.folder)["loss-compute_density"]
    assert ["beyond what was tried" in title.text for title in figure.layout.annotations] == [False, True, False]
    star = named(figure, "optimum of the fit, 95 % interval")[1]
    assert "extrapolated" in star.text[0]
    low, high = axis(figure, star, "x").range
    band = named(figure, "near-optimal band, 0.1 %")[1]
    assert low < math.log10(min(band.x)) < math.log10(star.x[0]) < high


def test_every_trial_of_a_phase_is_a_point_and_marked_for_what_it_is(finished, drawn):
    run = Run.read(finished.folder)
    for phase, name in ((0, "flops_per_token"), (1, "compute_density"), (2, "d_model")):
        points = [t for t in drawn[f"loss-{name}"].data if t.mode == "markers" and "optimum" not in t.name]
        assert sum(len(t.x) for t in points) == len(run.select(phase=phase))
    pruned = named(drawn["loss-compute_density"], "pruned")
    assert sum(len(t.x) for t in pruned) == run.counts["pruned"]
    repeats = sum(len(t.x) for t in named(drawn["loss-d_model"], "seed repeat"))
    assert repeats == sum(trial["seed"] > 0 for trial in run.trials)
    assert len({t.marker.symbol for t in drawn["loss-d_model"].data if t.mode == "markers"}) >= 3


def test_pointing_at_a_trial_tells_its_architecture(finished, drawn):
    run = Run.read(finished.folder)
    trial = run.select(phase=0, compute=finished.space.budgets[0])[0]
    text = named(drawn["loss-flops_per_token"], "trial")[0].text[0]
    for part in (f"d_model {trial['d_model']:.0f}", f"loss {trial.loss:.4f}", "non_embedding", trial.study, "seed 0"):
        assert part in text


def test_axes_name_their_unit_and_convention_and_scale(drawn):
    for name in AXES[:3]:
        trace = named(drawn[f"loss-{name}"], "trial")[0]
        assert "non_embedding" in axis(drawn[f"loss-{name}"], trace, "x").title.text
        assert "nats per token" in axis(drawn[f"loss-{name}"], trace, "y").title.text
    figure = drawn["loss-flops_per_token"]
    assert axis(figure, named(figure, "trial")[0], "x").type == "log"
    for figure in (drawn["optimum"], drawn["band"], drawn["loss"]):
        assert all(axis(figure, trace, "x").type == "log" for trace in figure.data)
        assert all("training FLOPs" in axis(figure, trace, "x").title.text for trace in figure.data)


@pytest.mark.parametrize("name", AXES)
def test_the_power_law_reaches_the_planted_optimum_of_the_target(finished, drawn, name):
    place = list(Run.read(finished.folder).laws.power_laws)
    place = [quantity for quantity in place if not quantity.endswith(("_low", "_high"))].index(name)
    fan, law = (named(drawn["optimum"], each)[place] for each in ("95 % interval of the law", "power law"))
    truth, target = finished.optimum(name, finished.space.target), finished.space.target
    assert law.x[-1] == pytest.approx(target)
    at_target = [y for x, y in zip(fan.x, fan.y, strict=True) if x == law.x[-1]]
    assert min(at_target) < law.y[-1] < max(at_target)
    assert law.y[-1] == pytest.approx(truth, rel=0.15)
    # twice the interval's half-width: a truth outside it once in twenty does not fail the test
    assert abs(law.y[-1] - truth) < max(at_target) - min(at_target)


def test_the_fan_widens_beyond_the_ladder(finished, drawn):
    for fan in named(drawn["optimum"], "95 % interval of the law"):
        half = len(fan.x) // 2
        low, high = np.array(fan.y[:half]), np.array(fan.y[half:])[::-1]
        inside = np.searchsorted(fan.x[:half], finished.space.budgets[1])
        assert high[-1] / low[-1] > high[inside] / low[inside]


def test_prediction_stands_beside_outcome(finished, drawn):
    run = Run.read(finished.folder)
    predicted = named(drawn["held-out"], "predicted from the smaller budgets, 95 % interval")
    found = named(drawn["held-out"], "found at the largest budget, 95 % interval")
    assert [t.y[0] for t in predicted] == pytest.approx([each.predicted for each in run.held_out])
    assert [t.y[0] for t in found] == pytest.approx([each.found for each in run.held_out], rel=1e-5)
    interval = run.held_out[0].interval
    bar = predicted[0].error_y
    assert predicted[0].y[0] - bar.arrayminus[0] == pytest.approx(interval[0])
    assert predicted[0].y[0] + bar.array[0] == pytest.approx(interval[1])


def test_shares_of_the_blueprint_add_up(finished, drawn):
    bars = drawn["shape"].data
    assert [bar.name for bar in bars] == ["attention", "dense_ffn", "moe"]
    assert len(bars[0].x) == len(finished.space.budgets) + 1
    assert np.sum([bar.x for bar in bars], axis=0) == pytest.approx(100, abs=0.05)


def test_a_search_that_still_runs_shows_its_trials(planted):
    for name in ("laws.json", "blueprint.json"):
        (planted.folder / name).unlink()
    drawn = figures(planted.folder)
    assert set(drawn) == {*(f"loss-{name}" for name in AXES), "loss", "shape"}
    assert "fit" not in {trace.name for trace in drawn["loss-d_model"].data}
    assert named(drawn["loss-d_model"], "trial")


def test_a_study_gets_the_figures_of_its_own_phase_and_budget(finished):
    run = Run.read(finished.folder)
    study = next(trial.study for trial in run.trials if trial.phase == 1)
    drawn = study_figures(run, study)
    assert set(drawn) == {"loss-compute_density", "loss-expansion_ratio"}
    assert len(named(drawn["loss-compute_density"], "fit")) == 1
    assert study_figures(run, "another") == {}


def test_figures_are_finite_and_small(drawn):
    """They travel in the journal of the search and in the page."""
    for figure in drawn.values():
        text = figure.to_json()
        assert len(text) < 150_000
        assert "NaN" not in text
        for trace in figure.data:
            assert all(math.isfinite(value) for value in trace.y)
