"""The band pruner: forecasts with honest intervals, stops only what will end outside the band."""

import math
from typing import Any

import numpy as np
import optuna
import pytest

from moe_optuna.errors import InputError
from moe_optuna.pruners import BandPruner, forecast

optuna.logging.set_verbosity(optuna.logging.WARNING)

POINTS = 20


def curves(n: int, seed: int, spread: float = 0.02, noise: float = 0.0005) -> list[tuple[dict[int, float], float]]:
    """Runs whose loss falls as a power law and then with the learning rate; rates differ, so curves cross."""
    random = np.random.default_rng(seed)
    fraction = np.arange(1, POINTS + 1) / POINTS
    runs = []
    for _ in range(n):
        final = 3.0 * math.exp(spread * random.random())
        climb, fall = 0.1 * math.exp(0.15 * random.normal()), 0.03 * math.exp(0.2 * random.normal())
        shape = climb * (fraction**-0.5 - 1) + fall * np.clip((1 - fraction) / 0.2, 0, 1)
        losses = final * np.exp(shape + noise * random.normal(size=POINTS) * np.sqrt(1 - fraction))
        runs.append((dict(enumerate(losses.tolist(), start=1)), float(losses[-1])))
    return runs


@pytest.mark.parametrize(("n", "most"), [(6, 1.0), (40, 0.97)])
def test_forecast_intervals_cover_what_they_say(n: int, most: float) -> None:
    # With few curves the prior keeps them wide.
    inside = total = 0
    for seed in range(150):
        *finished, (curve, final) = curves(n + 1, seed)
        for step in (4, 10, 15):
            running = {s: loss for s, loss in curve.items() if s <= step}
            ahead = forecast(running, finished)
            assert ahead is not None
            low, high = ahead.interval(0.9)
            inside += low <= final <= high
            total += 1
    assert 0.87 <= inside / total <= most  # 450 draws at 0.9: sd 0.014


def test_all_reports_at_step_zero() -> None:
    ahead = forecast({0: 3.2}, [({0: 3.1}, 3.1), ({0: 3.0}, 3.0)])
    assert ahead is not None
    assert 3.0 < ahead.loss < 3.3


def test_forecast_narrows_with_reports_and_with_finished_curves() -> None:
    finished = curves(30, 1)
    curve, _ = curves(1, 2)[0]

    def scale(step: int, n: int) -> float:
        ahead = forecast({s: loss for s, loss in curve.items() if s <= step}, finished[:n])
        assert ahead is not None
        low, high = ahead.interval()
        return high - low

    assert scale(19, 30) < scale(8, 30) < scale(8, 3)


@pytest.mark.parametrize("finished", [[], curves(1, 0)])
def test_no_forecast_from_fewer_than_two_curves(finished: list[tuple[dict[int, float], float]]) -> None:
    assert forecast({1: 4.0, 2: 3.9}, finished) is None


def test_forecast_of_parallel_curves_lies_between_them() -> None:
    # Their slope is 1, where it is held before there are data.
    def ahead(n: int) -> float:
        levels = np.linspace(3.0, 3.3, n)
        found = forecast({1: 4.8, 2: 3.84}, [({1: x * 1.5, 2: x * 1.2, 3: x}, x) for x in levels.tolist()])
        assert found is not None
        assert found.above(3.0) > 0.95 > 0.5 > found.above(3.5)
        return found.loss

    assert ahead(4) == pytest.approx(3.2, rel=3e-3)
    assert ahead(60) == pytest.approx(3.2, rel=1e-4)


@pytest.mark.parametrize("final", [6.0, 1e9, 1e300])
def test_a_training_that_collapsed_tells_nothing_of_others(final: float) -> None:
    """Its curve may have been like theirs: it diverged at the end, or a penalty was told."""
    (curve, _), *finished = curves(6, 0)
    running = {step: loss for step, loss in curve.items() if step <= 10}
    expected = forecast(running, finished)
    assert forecast(running, [*finished, (curve, final)]) == expected
    parents = [curves(6, 1)]
    helped = forecast(running, finished, parents, parents)
    strayed = [[*parents[0], (curve, final)]]
    assert forecast(running, finished, strayed, strayed) == helped != expected


def test_what_is_common_to_a_study_changes_no_forecast() -> None:
    # Another fall of the learning rate, the same for all trials: the gaps are what counts.
    finished, (curve, _) = curves(12, 5), curves(1, 6)[0]
    running = {step: loss for step, loss in curve.items() if step <= 10}
    fall = {step: 1 + 0.3 * (1 - step / POINTS) ** 2 for step in range(1, POINTS + 1)}
    plain = forecast(running, finished)
    scaled = forecast(
        {step: loss * fall[step] for step, loss in running.items()},
        [({step: loss * fall[step] for step, loss in each.items()}, final) for each, final in finished],
    )
    assert plain is not None
    assert scaled is not None
    assert scaled.loss == pytest.approx(plain.loss, rel=2e-3)


def test_parents_sharpen_a_forecast_whatever_their_level() -> None:
    finished, (curve, final) = curves(3, 7), curves(1, 8)[0]
    running = {step: loss for step, loss in curve.items() if step <= 12}
    parent = [({step: 1.7 * loss for step, loss in each.items()}, 1.7 * end) for each, end in curves(25, 9)]
    alone, helped = forecast(running, finished), forecast(running, finished, [parent])
    assert alone is not None
    assert helped is not None
    low, high = helped.interval()
    assert low < final < high
    assert high - low < 0.75 * (alone.interval()[1] - alone.interval()[0])


def test_a_study_at_the_same_budget_tells_the_level_too() -> None:
    # With two curves of its own the fall of the learning rate is hardly known; a sister's is the same.
    finished, sister, (curve, _) = curves(2, 11), curves(25, 12), curves(1, 13)[0]
    running = {step: loss for step, loss in curve.items() if step <= 8}
    parent, related = forecast(running, finished, [sister]), forecast(running, finished, [sister], [sister])
    assert parent is not None
    assert related is not None
    assert related.scale < 0.9 * parent.scale
    assert related.degrees == parent.degrees
    # Its level counts, of which other parents are free.
    raised = [({step: 1.1 * loss for step, loss in each.items()}, 1.2 * final) for each, final in sister]
    moved = forecast(running, finished, [raised], [raised])
    assert moved is not None
    assert moved.loss > 1.02 * related.loss


@pytest.mark.parametrize(("compute", "is_sister"), [(1e12, True), (2e12, False), (None, False)])
def test_sisters_are_the_parents_with_the_study_s_budget(compute: float | None, is_sister: bool) -> None:
    """Asked for a probability between what the forecasts with and without a sister give, the pruner does as either."""

    def study(runs: list[tuple[dict[int, float], float]], budget: float | None) -> optuna.Study:
        made = optuna.create_study()
        if budget is not None:
            made.set_user_attr("compute", budget)
        for curve, final in runs:
            made.add_trial(optuna.trial.create_trial(value=final, intermediate_values=curve))
        return made

    finished, sister, (curve, _) = curves(2, 11), curves(25, 12), curves(1, 13)[0]
    running = {step: 1.02 * loss for step, loss in curve.items() if step <= 8}
    bound = 1.001 * min(final for _, final in finished)
    forecasts = forecast(running, finished, [sister], [sister]), forecast(running, finished, [sister])
    related, unrelated = (ahead.above(bound) for ahead in forecasts if ahead is not None)
    assert 0.5 < unrelated < related < 1
    own = study(finished, compute)
    trial = own.ask()
    for step, loss in running.items():
        trial.report(loss, step)
    pruner = BandPruner(probability=(related + unrelated) / 2, noise=0.0, parents=[study(sister, 1e12)])
    assert pruner.prune(own, own.trials[trial.number]) is is_sister


def run_study(
    pruner: optuna.pruners.BasePruner, runs: list[tuple[dict[int, float], float]]
) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        curve, final = runs[trial.number]
        for step, loss in curve.items():
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return final

    study.optimize(objective, n_trials=len(runs))
    return study.trials


def test_saves_much_and_stops_no_band_member() -> None:
    saved = stopped = 0.0
    for seed in range(10):
        runs = curves(30, seed, spread=0.06)
        best = min(final for _, final in runs)
        pruner = BandPruner(probability=0.99)
        for trial, (_, final) in zip(run_study(pruner, runs), runs, strict=True):
            pruned = trial.state == optuna.trial.TrialState.PRUNED
            saved += (POINTS - (trial.last_step or 0)) / POINTS
            stopped += pruned and final <= best * 1.001
    assert saved / 300 > 0.25
    assert stopped <= 1


def test_stops_nothing_before_enough_curves_have_finished() -> None:
    runs = [*curves(3, 0), (dict.fromkeys(range(1, POINTS + 1), 9.0), 9.0)]
    states = [trial.state.name for trial in run_study(BandPruner(probability=0.99, n_startup_trials=4), runs)]
    assert states == ["COMPLETE"] * 4
    assert run_study(BandPruner(probability=0.99, n_startup_trials=3), runs)[3].state.name == "PRUNED"


def test_seed_noise_makes_it_more_careful() -> None:
    runs = curves(20, 3)
    pruned = [
        sum(trial.state == optuna.trial.TrialState.PRUNED for trial in run_study(BandPruner(noise=noise), runs))
        for noise in (0.0, 0.01)
    ]
    assert pruned[0] > pruned[1]


def test_stops_a_diverged_trial_at_once() -> None:
    study = optuna.create_study(pruner=BandPruner())
    trial = study.ask()
    trial.report(math.nan, 1)
    assert trial.should_prune()


@pytest.mark.parametrize("loss", [0.0, -0.1])
def test_refuses_a_report_that_is_not_positive(loss: float) -> None:
    study = optuna.create_study(study_name="excess", pruner=BandPruner())
    trial = study.ask()
    trial.report(loss, 1)
    with pytest.raises(
        InputError, match=f"excess: report {loss} of trial 0, expected a positive loss, in nats per token"
    ):
        trial.should_prune()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("probability", 1.0), ("probability", 0.1), ("probability", "0.9"), ("probability", None)),
        *(("band", 0.0), ("band", [0.001]), ("noise", -0.1), ("noise", math.nan), ("noise", "0.01"), ("noise", False)),
        *(("warmup", 1.0), ("warmup", None)),
        *(("n_startup_trials", 1), ("n_startup_trials", 2.5), ("n_startup_trials", "3")),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*, expected"):
        BandPruner(**{name: value})
    BandPruner(band=np.float64(0.01), noise=0, n_startup_trials=np.int64(3))  # numpy's numbers are numbers


def test_refuses_a_study_that_maximises() -> None:
    study = optuna.create_study(direction="maximize", pruner=BandPruner())
    trial = study.ask()
    trial.report(1.0, 1)
    with pytest.raises(InputError, match="minimises"):
        trial.should_prune()


def test_trials_without_parameters_are_no_repeats() -> None:
    # A training told from outside Optuna has none; their spread is the architectures', not the seeds'.
    def stopped(suggests: bool) -> int:
        study, found = optuna.create_study(pruner=BandPruner(probability=0.95)), 0
        for curve, final in curves(20, 3, spread=0.06):
            trial = study.ask()
            if suggests:
                trial.suggest_float("x", 0, 1)
            for step, loss in curve.items():
                trial.report(loss, step)
                if trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    found += 1
                    break
            else:
                study.tell(trial, final)
        return found

    assert stopped(False) == stopped(True) > 5


@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.6])
def test_stops_nothing_in_the_first_part_but_what_is_no_number(warmup: float) -> None:
    far = (dict.fromkeys(range(1, POINTS + 1), 90.0), 90.0)
    broken = ({1: math.nan}, math.nan)
    *_, bad, nan = run_study(BandPruner(probability=0.99, warmup=warmup), [*curves(8, 0), far, broken])
    assert bad.state.name == nan.state.name == "PRUNED"
    assert bad.last_step is not None
    assert warmup * POINTS < bad.last_step < warmup * POINTS + 5
    assert nan.last_step == 1


@pytest.mark.parametrize(("lasts", "state"), [(1, "COMPLETE"), (2, "PRUNED")])
def test_a_first_rise_is_waited_for(lasts: int, state: str) -> None:
    """Early on, where losses fall fast: to stand still for one report is a spike, for two it is not."""
    grid = np.arange(1, POINTS + 1)
    falls = 3.0 * np.exp(np.outer([0, *np.linspace(0.02, 0.1, 7)], np.ones(POINTS)) + 3 * (1 / grid - 1 / POINTS))
    best, *finished = ((dict(enumerate(fall.tolist(), start=1)), float(fall[-1])) for fall in falls)
    step = POINTS // 8 + 1
    spiked = best[0] | {step + later: 2 * best[0][1] for later in range(lasts)}
    *_, trial = run_study(BandPruner(), [*finished, (spiked, best[1])])
    assert trial.state.name == state


@pytest.mark.parametrize(
    ("spread", "further", "state"),
    [
        (0.001, [], "PRUNED"),
        (0.2, [], "COMPLETE"),
        (0.001, [6.0], "PRUNED"),  # one diverged seed is no noise
        (0.001, [1e300], "PRUNED"),  # nor is a penalty
    ],
)
def test_repeats_of_the_parents_say_how_lucky_the_best_may_be(spread: float, further: list[float], state: str) -> None:
    parent = optuna.create_study()
    for loss in (3.0, 3.0 * (1 + spread), 3.0 * (1 - spread), *further):
        x = optuna.distributions.FloatDistribution(0, 1)
        parent.add_trial(optuna.trial.create_trial(value=loss, params={"x": 0.5}, distributions={"x": x}))
    finished = [({step: end * (1 + 1 / step) for step in range(1, POINTS + 1)}, end) for end in (3.0, 3.05, 3.1)]
    worse = ({step: 3.5 * (1 + 1 / step) for step in range(1, POINTS + 1)}, 3.5)
    assert run_study(BandPruner(parents=[parent]), [*finished, worse])[-1].state.name == state
