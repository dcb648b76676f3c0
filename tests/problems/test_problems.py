"""Problems: the optimum is the optimum, the laws are the papers', noise, curves and failures are what they say."""

import math

import numpy as np
import optuna
import pytest

from moe_optuna import problems
from moe_optuna.errors import InputError
from moe_optuna.problems import _terms
from moe_optuna.problems._terms import Features
from moe_optuna.space import Phase, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.load("cpu")


@pytest.fixture(scope="module")
def phase(space: SearchSpace) -> Phase:
    return space.phase_one(space.budgets[-1])


@pytest.mark.parametrize("family", list(problems.FAMILIES))
def test_optimum_and_band_by_brute_force(family: str, space: SearchSpace, phase: Phase) -> None:
    problem = problems.make(family, space)
    losses = np.array([problem.true_loss(architecture, phase.compute) for architecture in phase.lattice])
    assert losses == pytest.approx(problem.true_losses(phase))
    losses[problem.failing(phase)] = np.inf
    best = problem.optimum(phase)
    assert best.index == int(np.argmin(losses))
    assert best.architecture == phase.lattice[best.index]
    assert best.loss == pytest.approx(losses.min())
    inside = problem.band(phase)
    assert inside.tolist() == (losses <= losses.min() * 1.001).tolist()
    assert problem.in_band(best.architecture, phase)
    assert not problem.in_band(phase.lattice[int(np.argmax(np.where(np.isinf(losses), 0, losses)))], phase)


@pytest.mark.parametrize("name", ["cpu", "lab", "holistic"])
def test_every_family_lives_on_every_space_and_budget(name: str) -> None:
    space = SearchSpace.load(name)
    phases = [space.phase_one(compute) for compute in (space.budgets[0], space.budgets[-1])]
    for family in problems.FAMILIES:
        problem = problems.make(family, space, variant=3)
        small, large = (problem.optimum(phase) for phase in phases)
        assert math.isfinite(small.loss)
        assert large.loss < small.loss  # compute helps
        assert problem.optimum(space.phase_zero(space.budgets[0])).loss > 0


def test_variants_move_the_optimum(space: SearchSpace, phase: Phase) -> None:
    found = {problems.make("holistic", space, variant=variant).optimum(phase).index for variant in range(6)}
    assert len(found) > 3


def test_a_seed_repeats_and_noise_has_the_stated_size(space: SearchSpace) -> None:
    problem = problems.make("noisy", space)
    phase = space.phase_one(space.budgets[0])
    best = problem.optimum(phase)
    assert problem.loss(best.architecture, phase.compute, 4) == problem.loss(best.architecture, phase.compute, 4)
    logs = np.log([problem.loss(best.architecture, phase.compute, seed) for seed in range(400)])
    excess = math.log(best.loss / (problem.floor + problem.scale * phase.compute**-problem.slope))
    assert logs.std() == pytest.approx(0.005 * (1 + 10 * excess), rel=0.12)  # 400 draws: sd 3.5 %
    assert logs.mean() == pytest.approx(math.log(best.loss), abs=4 * 0.006 / 20)


@pytest.mark.parametrize(
    ("family", "name", "variant", "times"),
    [("edge", "cpu", 0, 1.85), ("edge", "cpu", 2, 1.0), ("leverage", "cpu", 0, 1.40), ("holistic", "cpu", 0, 1.01)],
)
def test_noise_goes_with_the_sum_of_the_terms(family: str, name: str, variant: int, times: float) -> None:
    problem = problems.make(family, name, variant=variant)
    phase = problem.space.phase_one(problem.space.budgets[0])
    law = np.log(problem.scale) - problem.slope * np.log(phase.compute)
    terms = np.log(problem.true_losses(phase)) - law
    for index in (problem.optimum(phase).index, int(np.argmax(terms))):
        runs = [problem.loss(phase.lattice[index], phase.compute, seed) for seed in range(400)]
        stated = 1 + 10 * min(max(float(terms[index]), 0), 0.2)
        assert np.log(runs).std() / problem.noise == pytest.approx(stated, rel=0.12)  # 400 draws: sd 3.5 %
    assert 1 + 10 * max(float(terms.min()), 0) == pytest.approx(times, abs=0.005)


def test_noise_is_three_times_as_much_at_most() -> None:
    problem = problems.make("basins", "holistic")
    phase = problem.space.phase_one(problem.space.budgets[0])
    worst = int(np.argmax(losses := problem.true_losses(phase)))
    assert losses[worst] > math.exp(0.2) * problem.scale * phase.compute**-problem.slope
    runs = [problem.loss(phase.lattice[worst], phase.compute, seed) for seed in range(400)]
    assert np.log(runs).std() == pytest.approx(3 * problem.noise, rel=0.12)


def test_noise_shrinks_with_compute_and_grows_away_from_the_optimum(space: SearchSpace) -> None:
    problem = problems.make("holistic", space)

    def sd(phase: Phase, index: int) -> float:
        losses = [problem.loss(phase.lattice[index], phase.compute, seed) for seed in range(300)]
        return float(np.std(np.log(losses)))

    small, large = (space.phase_one(compute) for compute in (space.budgets[0], space.budgets[-1]))
    assert sd(large, problem.optimum(large).index) < sd(small, problem.optimum(small).index)
    worst = int(np.argmax(problem.true_losses(large)))
    assert sd(large, worst) > 1.3 * sd(large, problem.optimum(large).index)


def test_curves_end_in_the_loss_fall_and_cross(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("holistic", space)
    curves = []
    for index in range(0, len(phase.lattice), 5):
        architecture = phase.lattice[index]
        curve = problem.curve(architecture, phase.compute, 2, points=20)
        assert [fraction for fraction, _ in curve] == pytest.approx(np.arange(1, 21) / 20)
        assert curve[-1][1] == pytest.approx(problem.loss(architecture, phase.compute, 2))
        assert curve[0][1] > curve[10][1] > curve[-1][1]
        curves.append([loss for _, loss in curve])
    ranks = np.argsort(np.argsort(np.array(curves), axis=0), axis=0)
    assert (ranks[:, 5] != ranks[:, -1]).any()


def test_failures_are_remembered_by_place(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("failing", space)
    failing = problem.failing(phase)
    assert 0.05 < failing.mean() < 0.3
    for index in np.flatnonzero(~failing)[::10]:
        assert math.isfinite(problem.loss(phase.lattice[int(index)], phase.compute, 0))
    outcomes = []
    for index in np.flatnonzero(failing):
        for seed in range(4):
            try:
                outcomes.append(
                    "nan" if math.isnan(problem.loss(phase.lattice[int(index)], phase.compute, seed)) else ""
                )
            except MemoryError:
                outcomes.append("memory")
    assert {"nan", "memory"} <= set(outcomes)
    assert outcomes.count("") < 0.3 * len(outcomes)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_tenth_is_too_large_and_a_tenth_too_deep(space: SearchSpace, budget: int) -> None:
    """By total parameters alone, and by layers over width, of the phase-1 lattice."""
    problem, at = problems.make("failing", space), space.phase_one(space.budgets[budget])
    total = [architecture.non_embedding.total_params for architecture in at.lattice]
    depth = [(one.n_dense_layers + one.n_moe_layers) / one.d_model for one in at.lattice]
    large, deep = np.array(total) > np.quantile(total, 0.9), np.array(depth) > np.quantile(depth, 0.9)
    assert large.any()
    assert deep.any()
    assert problem.failing(at).tolist() == (large | deep).tolist()


def features(**columns: object) -> Features:
    return {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()}


def test_compute_density_is_the_papers_form() -> None:
    x = np.linspace(6.3, 20, 40)
    term = _terms.ComputeDensity(_terms.PowerLaw(3.0, -0.142, 1e18), 0.01)
    values = term(features(compute_density=x), 1e18)
    design = np.column_stack([1 / (x - 6), x, np.ones_like(x)])
    coefficients, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    assert float(residual.sum()) < 1e-20
    assert 6 + math.sqrt(coefficients[0] / coefficients[1]) == pytest.approx(9.0)


def test_expansion_ratio_is_the_papers_form() -> None:
    x = np.linspace(2, 31, 60)
    term = _terms.ExpansionRatio(289 / 9, optimum=0.62, strength=0.01)
    values = term(features(expansion_ratio=x), 1e18)
    design = np.column_stack([1 / (x - 1), 1 / (289 / 9 - x), np.ones_like(x)])
    _, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    assert float(residual.sum()) < 1e-20
    grid = np.linspace(2, 31, 10001)
    best = grid[np.argmin(term(features(expansion_ratio=grid), 1e18))]
    assert best == pytest.approx(1 + 0.62 * (289 / 9 - 1), abs=0.01)
    # "flat (< 1 %) over 18 to 25", section 4.2
    assert term(features(expansion_ratio=[18.0, 25.0]), 1e18).max() < 0.01


def test_allocation_is_chinchilla_along_a_budget() -> None:
    m = np.geomspace(0.2, 5, 50)
    term = _terms.Allocation(_terms.PowerLaw(1.0, 0.0, 1.0))
    values = term(features(allocation=m), 1.0)
    design = np.column_stack([m**-0.34, m**0.28, np.ones_like(m)])
    _, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    assert float(residual.sum()) < 1e-20
    assert m[np.argmin(values)] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("activation", "granularity", "compute", "expected"),
    [(0.03125, 12, 1e22, 7.22), (0.03125, 8, 1e22, 7.13), (0.03125, 8, 1e20, 4.49), (0.0078, 2, 1e20, 4.31)],
)
def test_efficiency_leverage(activation: float, granularity: float, compute: float, expected: float) -> None:
    term = _terms.EfficiencyLeverage(slope=0.0694)
    value = float(term(features(activation_ratio=activation, granularity=granularity), compute)[0])
    assert math.exp(-value / 0.0694) == pytest.approx(expected, rel=5e-3)


def test_jump_deceives_the_smaller_budgets(space: SearchSpace) -> None:
    problem = problems.make("jump", space)
    term = next(term for term in problem.terms if isinstance(term, _terms.ComputeDensity))
    places = [term.optimum(compute) for compute in space.budgets]
    assert abs(math.log(places[-1] / places[-2])) > 5 * abs(math.log(places[-2] / places[0]))


def test_basins_have_two_minima() -> None:
    law = _terms.PowerLaw(9.0, 0.0, 1.0)
    term = _terms.TwoBasins("compute_density", law, _terms.PowerLaw(14.0, 0.0, 1.0), gap=0.003, strength=0.04)
    values = term(features(compute_density=np.linspace(7, 18, 500)), 1.0)
    assert ((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])).sum() == 2


def test_edge_is_better_towards_an_end_of_each_feature(space: SearchSpace, phase: Phase) -> None:
    for variant in range(3):
        problem = problems.make("edge", space, variant=variant)
        arrays = phase.lattice.arrays
        columns = [
            arrays["flops_per_token"] / arrays["active_params"],
            arrays["total_params"] / arrays["active_params"],
            arrays["d_model"].astype(float),
        ]
        signs = [math.copysign(1, term.strength) for term in problem.terms if isinstance(term, _terms.Slope)]
        table = np.column_stack([sign * column for sign, column in zip(signs, columns, strict=True)])
        best = table[problem.optimum(phase).index]
        # Nothing lies further out in all of them (M, and with it the allocation, varies within its tolerance).
        assert not (table < best - 0.02 * np.abs(best)).all(1).any()


def test_objective_suggests_reports_and_prunes(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("holistic", space)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.MedianPruner(n_startup_trials=2)
    )
    study.optimize(problem.objective(phase, points=10), n_trials=12)
    states = {trial.state for trial in study.trials}
    assert {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED} <= states
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))[0]
    assert sorted(done.intermediate_values) == list(range(1, 11))
    index = phase.index(done.params)
    assert index is not None
    assert done.value == pytest.approx(problem.loss(phase.lattice[index], phase.compute, 0))


def test_unknown_family_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match="did you mean 'holistic'"):
        problems.make("holistik")
