"""The surrogate against other libraries, closed forms and counted coverage."""

import time

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from moe_optuna.errors import InputError
from moe_optuna.laws import _gp, _means
from moe_optuna.laws.surrogate import Observations, Surrogate

POLE = 289 / 9
GRID = np.stack(np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 1, 21)), -1).reshape(-1, 2)


class Density:
    name = "compute_density"

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        return 6 + 11.0 ** np.asarray(unit)


class Ratio:
    name = "expansion_ratio"

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        return 12 + 18 * np.asarray(unit)


AXES = (Density(), Ratio())


def holistic(compute: float, unit: np.ndarray, bend: float = 0.0) -> np.ndarray:
    """The forms of arXiv:2603.21862 with optima and curvatures that are power laws of compute; with a bend the optima's
    exponents change by this part of themselves a decade."""
    scale = compute / 1e18
    z, y = Density().from_unit(unit[:, 0]) - 6, Ratio().from_unit(unit[:, 1])
    changed = 1 + bend * np.log10(scale)
    best_z, best_y = 4.65 * scale ** (-0.142 * changed), 19.2 * scale ** (0.0243 * changed)
    t, best_t = np.log((y - 1) / (POLE - y)), np.log((best_y - 1) / (POLE - best_y))
    excess = 0.016 * (np.cosh(np.log(z / best_z)) - 1) + 0.024 * (np.cosh(t - best_t) - 1)
    return (1.7 + 1.5 * scale**-0.1) * (1 + scale**-0.02 * excess)


def foreign(compute: float, unit: np.ndarray) -> np.ndarray:
    """A loss whose optimum jumps to the other corner at the largest budget."""
    place = np.array([0.15, 0.15]) if compute < 5e19 else np.array([0.85, 0.85])
    return 3.0 * (compute / 1e18) ** -0.05 * (1 + 0.08 * ((unit - place) ** 2).sum(1))


def runs(loss, budgets: dict[float, int], noise: float, seed: int) -> Observations:
    rng = np.random.default_rng(seed)
    parts = [(c, rng.random((n, 2))) for c, n in budgets.items()]
    clean = np.concatenate([loss(c, unit) for c, unit in parts])
    return Observations(
        np.concatenate([np.full(len(unit), c) for c, unit in parts]),
        np.vstack([unit for _, unit in parts]),
        clean * np.exp(noise * rng.standard_normal(len(clean))),
    )


# ---------------------------------------------------------------- the algebra


def test_the_posterior_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    X, new, y = rng.random((30, 3)), rng.random((7, 3)), rng.standard_normal(30)
    eta = _gp.Hyperparameters(np.log(0.7), np.log(0.2), 0.0, np.log([0.3, 0.9, 2.0]))
    posterior = _gp.Posterior.of(y, eta.kernel(X, X) + np.diag(eta.noise_variance(np.zeros(30))))
    projected = posterior.project(eta.kernel(X, new))
    kernel = ConstantKernel(0.49, "fixed") * Matern([0.3, 0.9, 2.0], "fixed", nu=2.5)
    peer = GaussianProcessRegressor(kernel, alpha=0.04, optimizer=None).fit(X, y)
    mean, covariance = peer.predict(new, return_cov=True)
    assert projected.T @ posterior.white == pytest.approx(mean)
    assert eta.kernel(new, new) - projected.T @ projected == pytest.approx(covariance, abs=1e-9)


def test_log_density_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    root, y = rng.standard_normal((6, 6)), rng.standard_normal(6)
    covariance = root @ root.T + np.eye(6)
    assert _gp.log_density(y, covariance) == pytest.approx(multivariate_normal(cov=covariance).logpdf(y))


def test_the_gradient_of_the_evidence_is_its_derivative() -> None:
    rng = np.random.default_rng(3)
    X, y = rng.random((25, 3)), 0.1 * rng.standard_normal(25)
    squares = (X.T[:, :, None] - X.T[:, None, :]) ** 2
    prior = _gp.Prior(np.array([-2.0, -3.0, 0.0, 0.0, -0.5, -0.7]), np.ones(6))
    fixed = (squares, y, 0.01 * np.outer(X[:, 0], X[:, 0]), X[:, 0], np.ones(25), np.full(25, 1e-3), prior)
    eta = prior.mean + 0.3 * rng.standard_normal(6)
    numeric = [
        (_gp.objective(eta + step, *fixed)[0] - _gp.objective(eta - step, *fixed)[0]) / 2e-6
        for step in 1e-6 * np.eye(6)
    ]
    assert _gp.objective(eta, *fixed)[1] == pytest.approx(np.array(numeric), rel=1e-5)
    covariance = _gp.matern(X / np.exp(eta[3:]), X / np.exp(eta[3:])) * np.exp(2 * eta[0]) + fixed[2]
    covariance += np.diag(np.exp(2 * (eta[1] + eta[2] * X[:, 0])) + 1e-3)
    density = multivariate_normal(cov=covariance).logpdf(y) + norm.logpdf(eta, prior.mean, prior.sd).sum()
    other = prior.mean
    again = _gp.matern(X / np.exp(other[3:]), X / np.exp(other[3:])) * np.exp(2 * other[0]) + fixed[2]
    again += np.diag(np.exp(2 * other[1]) + np.full(25, 1e-3))
    reference = multivariate_normal(cov=again).logpdf(y) + norm.logpdf(other, prior.mean, prior.sd).sum()
    assert _gp.objective(other, *fixed)[0] - _gp.objective(eta, *fixed)[0] == pytest.approx(
        density - reference, abs=1e-4
    )


def test_extending_a_posterior_is_conditioning_on_all_at_once() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.random((12, 2)), rng.standard_normal(12)
    covariance = _gp.matern(X, X) + 0.1 * np.eye(12)
    whole = _gp.Posterior.of(y, covariance)
    first = _gp.Posterior.of(y[:8], covariance[:8, :8])
    grown = first.extend(y[8:], first.project(covariance[:8, 8:]), covariance[8:, 8:])
    assert grown.factor == pytest.approx(whole.factor, abs=1e-6)
    assert grown.white == pytest.approx(whole.white, abs=1e-6)


def test_leave_one_out_is_leaving_one_out() -> None:
    rng = np.random.default_rng(2)
    X, y = rng.random((10, 2)), rng.standard_normal(10)
    covariance = _gp.matern(X, X) + 0.1 * np.eye(10)
    residual, sd = _gp.Posterior.of(y, covariance).leave_one_out()
    rest = np.arange(10) != 4
    weights = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, 4])
    assert residual[4] == pytest.approx(y[4] - weights @ y[rest], abs=1e-6)
    assert sd[4] ** 2 == pytest.approx(covariance[4, 4] - weights @ covariance[rest, 4], abs=1e-6)


def test_a_censored_site_has_the_moments_of_the_tilted_density() -> None:
    covariance, noise, bound = np.array([[0.5]]), np.array([0.2]), np.array([0.8])
    target, variance = _gp.censored_sites(bound, covariance, noise, np.array([True]))
    spread = 1 / (1 / covariance[0, 0] + 1 / variance[0])
    mean = spread * target[0] / variance[0]

    def tilted(f: float, power: int) -> float:
        return f**power * norm.pdf(f, scale=np.sqrt(0.5)) * norm.cdf((f - 0.8) / np.sqrt(0.2))

    mass, first, second = (quad(tilted, -8, 8, args=(power,))[0] for power in range(3))
    assert mean == pytest.approx(first / mass, rel=0.02)
    assert spread == pytest.approx(second / mass - (first / mass) ** 2, rel=0.02)


@pytest.mark.parametrize(
    "build",
    [
        lambda: _means.law(np.array([2.4, 0.0]), 0.02, 1.1, np.array([0.05, 0.1])),
        lambda: _means.quadratic(2, 0.02, 1.1),
    ],
)
def test_jacobians_of_the_means_are_their_derivatives(build) -> None:
    mean = build()
    rng = np.random.default_rng(0)
    theta = mean.prior_mean + 0.3 * mean.prior_sd * rng.standard_normal(len(mean.prior_mean))
    h, w = rng.uniform(-2, 2, 9), rng.uniform(-0.5, 0.5, (9, 2))
    jacobian = mean.evaluate(theta, h, w)[1]
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-6
        numeric = (mean.evaluate(theta + step, h, w)[0] - mean.evaluate(theta - step, h, w)[0]) / 2e-6
        assert jacobian[:, i] == pytest.approx(numeric, abs=1e-6)


# ---------------------------------------------------------------- what it learns


@pytest.mark.parametrize("noise", [0.0005, 0.003])
def test_the_largest_budget_is_predicted_from_the_smaller_ones(noise: float) -> None:
    errors, covered, regrets = [], [], []
    for seed in range(6):
        observations = runs(holistic, {1e18: 24, 3e18: 24, 1e19: 24}, noise, seed)
        surrogate = Surrogate(AXES).fit(observations)
        mean, sd = surrogate.predict(1e20, GRID)
        truth = holistic(1e20, GRID)
        errors.append(np.abs(mean / truth - 1).mean())
        covered.append((np.abs(mean - truth) <= 1.96 * sd).mean())
        regrets.append(truth[surrogate.optimum(1e20, GRID).index] / truth.min() - 1)
        assert noise > 0.001 or surrogate.mean_ == "law"
        assert surrogate.noise_ == pytest.approx(noise, rel=0.5)
    assert np.mean(errors) < 2 * noise + 0.001
    assert np.mean(covered) > 0.85
    assert np.median(regrets) < 0.001


def test_a_law_whose_exponents_change_does_not_make_extrapolations_sure_and_wrong() -> None:
    """Many runs of little noise, half a decade below: what they cannot show must not be taken for impossible."""
    covered = []
    for seed in range(4):
        observations = runs(
            lambda c, unit: holistic(c, unit, bend=0.25), dict.fromkeys((1e18, 1e19, 3e19), 36), 5e-4, seed
        )
        mean, sd = Surrogate(AXES).fit(observations).predict(1e20, GRID)
        covered.append((np.abs(mean - holistic(1e20, GRID, bend=0.25)) <= 1.96 * sd).mean())
    assert np.mean(covered) > 0.8


def test_six_runs_at_one_budget_are_enough_to_answer_and_know_that_they_are_few() -> None:
    inside = []
    for seed in range(10):
        surrogate = Surrogate(AXES).fit(runs(holistic, {1e18: 6}, 0.002, seed))
        mean, sd = surrogate.predict(1e18, GRID)
        inside.append((np.abs(mean - holistic(1e18, GRID)) <= 1.96 * sd).mean())
    assert np.mean(inside) > 0.85


def test_many_runs_at_one_budget_find_the_band() -> None:
    surrogate = Surrogate(AXES).fit(runs(holistic, {1e18: 120}, 0.002, 0))
    truth = holistic(1e18, GRID)
    best = surrogate.optimum(1e18, GRID)
    assert truth[best.index] <= truth.min() * 1.0005
    assert best.in_band > 0.8
    assert best.interval[0] <= truth[best.index] <= best.interval[1]
    near = GRID[truth <= truth.min() * 1.001, 0]
    band = surrogate.band(1e18, GRID, 0)
    assert band.low_interval[0] - 1e-9 <= near.min() <= band.low_interval[1] + 1e-9
    assert band.high_interval[0] - 1e-9 <= near.max() <= band.high_interval[1] + 1e-9


def test_a_law_that_the_largest_budget_contradicts_is_dropped() -> None:
    regrets = []
    for seed in range(5):
        observations = runs(foreign, {1e18: 20, 1e19: 20, 1e20: 10}, 0.002, seed)
        warm = Surrogate(AXES).fit(observations)
        truth = foreign(1e20, GRID)
        regrets.append(truth[warm.optimum(1e20, GRID).index] / truth.min() - 1)
    alone = foreign(1e20, GRID)[Surrogate(AXES).fit(runs(foreign, {1e18: 20}, 0.002, 0)).optimum(1e18, GRID).index]
    assert np.median(regrets) < 0.005 < alone / truth.min() - 1


def test_a_bad_run_of_a_smaller_budget_bends_little_at_a_large_one() -> None:
    """What is handed on is where a budget's good runs are: in bad ones noise is larger, and the law less true."""
    bent: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(6):
        told = runs(holistic, {1e18: 12, 1e19: 6, 1e20: 4}, 0.002, seed)
        smaller = np.flatnonzero(told.compute == 1e18)
        loss = told.loss.copy()
        loss[smaller[loss[smaller].argmax()]] *= 1.02
        for wary, found in bent.items():
            before, after = (
                Surrogate(AXES)
                .fit(Observations(told.compute, told.coordinates, each), wary=wary)
                .predict(1e20, GRID)[0]
                for each in (told.loss, loss)
            )
            found.append(float(np.abs(np.log(after / before)).mean()))
    assert np.mean(bent[True]) < 0.6 * np.mean(bent[False])


def test_repeats_tell_the_noise() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(rng.random((12, 2)), 3, axis=0)
    loss = holistic(1e18, unit) * np.exp(0.01 * rng.standard_normal(36))
    group = np.repeat(np.arange(12), 3)
    surrogate = Surrogate(AXES).fit(Observations(np.full(36, 1e18), unit, loss, np.zeros(36, bool), group))
    assert surrogate.noise_ == pytest.approx(0.01, rel=0.35)
    told = Surrogate(AXES).fit(Observations(np.full(36, 1e18), unit, loss), noise=0.02)
    assert told.noise_ == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("noise", [0.0005, 0.003])
def test_seed_noise_without_repeats_is_found_within_a_factor(noise: float) -> None:
    found = []
    for seed in range(8):
        observations = runs(holistic, {1e19: 14}, noise, seed)
        found.append(Surrogate(("compute_density", "expansion_ratio"), seed=0).fit(observations).noise_)
    assert noise / 2.5 < np.median(found) < 2.5 * noise


def test_pruned_runs_bound_the_loss_from_below() -> None:
    """A half in which every run was pruned is predicted better with the bounds than without those runs."""
    corner = GRID[GRID[:, 0] > 0.7]
    truth = foreign(1e18, corner)
    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        unit = rng.random((40, 2))
        loss = foreign(1e18, unit) * np.exp(0.002 * rng.standard_normal(40))
        pruned = unit[:, 0] > 0.5
        bounded = Observations(np.full(40, 1e18), unit, np.where(pruned, 3.05, loss), pruned)
        without = Surrogate(AXES).fit(Observations(np.full(40, 1e18), unit, loss)[~pruned])
        mean, sd = Surrogate(AXES).fit(bounded).predict(1e18, corner)
        assert mean.min() > 3.05
        assert (np.abs(mean - truth) <= 1.96 * sd).mean() > 0.9
        errors.append([np.abs(mean - truth).mean(), np.abs(without.predict(1e18, corner)[0] - truth).mean()])
    with_bounds, ignored = np.mean(errors, axis=0)
    assert with_bounds < 0.75 * ignored


def test_a_diverged_run_does_not_hide_the_optimum() -> None:
    observations = runs(holistic, {1e18: 40}, 0.002, 4)
    loss = observations.loss.copy()
    truth = holistic(1e18, GRID)
    nearest = ((observations.coordinates - GRID[truth.argmin()]) ** 2).sum(1).argmin()
    loss[nearest] *= 1.4
    surrogate = Surrogate(AXES).fit(Observations(observations.compute, observations.coordinates, loss))
    assert truth[surrogate.optimum(1e18, GRID).index] < truth.min() * 1.002


def test_conditioning_moves_the_prediction_to_the_new_run_and_leaves_the_old_surrogate_alone() -> None:
    surrogate = Surrogate(AXES).fit(runs(holistic, {1e18: 20}, 0.002, 0))
    point = np.array([[0.4, 0.6]])
    mean, sd = surrogate.predict(1e18, point)
    further = surrogate.condition(
        Observations(np.full(8, 1e18), np.repeat(point, 8, 0), np.full(8, float(mean[0]) * 1.004))
    )
    moved, less = further.predict(1e18, point)
    assert mean[0] < moved[0] < mean[0] * 1.004
    assert less[0] < sd[0]
    assert surrogate.predict(1e18, point)[0] == mean


def test_a_field_takes_in_runs_as_the_surrogate_does() -> None:
    surrogate = Surrogate(AXES).fit(runs(holistic, {1e18: 14}, 0.004, 1))
    assert len(surrogate._mixture) > 1
    places, losses = [30, 31, 300, 30], 2.5 + 0.01 * np.arange(4)
    field = surrogate.field(1e18, GRID)
    for place, loss in zip(places, losses, strict=True):
        field = field.observe(place, float(loss))
    mean, covariance = surrogate.condition(Observations(np.full(4, 1e18), GRID[places], losses)).joint(1e18, GRID)
    assert field.joint()[0] == pytest.approx(mean, abs=1e-7)
    assert field.joint()[1] == pytest.approx(covariance, abs=1e-3 * np.diag(covariance).min())


def test_the_same_training_again_tells_nothing_of_the_noise() -> None:
    observed = runs(holistic, {1e18: 14}, 0.004, 1)
    places = np.concatenate([np.arange(14), np.arange(6)])
    again = Observations(observed.compute[places], observed.coordinates[places], observed.loss[places], group=places)
    once, twice = (Surrogate(AXES).fit(each).noise_ for each in (observed, again))
    assert twice > 0.7 * once


def test_a_field_takes_in_a_forecast_as_the_surrogate_does() -> None:
    """The vaguer the forecast, the less it moves what is believed."""
    surrogate = Surrogate(AXES).fit(runs(holistic, {1e18: 14}, 0.004, 1))
    before = surrogate.predict(1e18, GRID[200:201])[0]
    told = before * 1.02
    field = surrogate.field(1e18, GRID).observe(200, float(told[0]), vague=0.01)
    further = surrogate.condition(Observations(np.array([1e18]), GRID[200:201], told, vague=np.array([0.01])))
    mean, covariance = further.joint(1e18, GRID)
    vaguer = surrogate.condition(Observations(np.array([1e18]), GRID[200:201], told, vague=np.array([0.1])))
    assert before < vaguer.predict(1e18, GRID[200:201])[0] < mean[200] < told
    assert field.joint()[0] == pytest.approx(mean, abs=1e-7)
    assert field.joint()[1] == pytest.approx(covariance, abs=1e-3 * np.diag(covariance).min())


def test_the_same_runs_give_the_same_answers() -> None:
    observations = runs(holistic, {1e18: 30, 1e19: 20}, 0.003, 7)
    first, second = (Surrogate(AXES, seed=3).fit(observations) for _ in range(2))
    assert np.array_equal(first.predict(1e20, GRID)[0], second.predict(1e20, GRID)[0])
    assert first.optimum(1e20, GRID) == second.optimum(1e20, GRID)


def test_axes_without_a_law_are_learned_too() -> None:
    rng = np.random.default_rng(0)
    unit = rng.random((40, 3))
    unit[:, 1] = np.round(unit[:, 1] * 2) / 2
    loss = 3 * (1 + 0.05 * (unit[:, 0] - 0.3) ** 2 + 0.02 * np.abs(unit[:, 1] - 0.5) + 0.03 * (unit[:, 2] - 0.8) ** 2)
    surrogate = Surrogate(("width", "top_k", "n_experts")).fit(Observations(np.full(40, 1e18), unit, loss))
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 21), [0, 0.5, 1], np.linspace(0, 1, 21)), -1).reshape(-1, 3)
    assert grid[surrogate.optimum(1e18, grid).index] == pytest.approx([0.3, 0.5, 0.8], abs=0.06)


@pytest.mark.parametrize("runs_", [1, 2, 9])
@pytest.mark.parametrize("kind", ["equal places", "equal losses", "all pruned", "wild losses", "every budget its own"])
def test_degenerate_runs_give_finite_answers(runs_: int, kind: str) -> None:
    rng = np.random.default_rng(runs_)
    unit = np.full((runs_, 2), 0.5) if kind == "equal places" else rng.random((runs_, 2))
    loss = {"equal losses": np.full(runs_, 3.0), "wild losses": np.exp(3 * rng.standard_normal(runs_))}.get(
        kind, 3 * np.exp(0.02 * rng.standard_normal(runs_))
    )
    compute = 10 ** rng.uniform(8, 25, runs_) if kind == "every budget its own" else np.full(runs_, 1e12)
    surrogate = Surrogate(AXES).fit(Observations(compute, unit, loss, np.full(runs_, kind == "all pruned")))
    mean, sd = surrogate.predict(1e12, GRID)
    assert np.isfinite(mean).all()
    assert (sd > 0).all()
    assert 0 <= surrogate.optimum(1e12, GRID).in_band <= 1
    assert surrogate.band(1e12, GRID, 1).low <= surrogate.band(1e12, GRID, 1).high


def test_a_fit_of_300_runs_and_an_answer_over_10000_candidates_are_fast() -> None:
    observations = runs(holistic, {1e18: 100, 1e19: 100, 1e20: 100}, 0.003, 0)
    surrogate = Surrogate(AXES)
    begin = time.process_time()
    surrogate.fit(observations)
    learned = time.process_time()
    surrogate.predict(1e20, np.random.default_rng(0).random((10_000, 2)))
    assert learned - begin < 4  # seconds of one core; about 0.7 where nothing else runs
    assert time.process_time() - learned < 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"compute": np.ones(2), "coordinates": np.ones((3, 2)), "loss": np.ones(2)}, "coordinates"),
        ({"compute": np.ones(2), "coordinates": np.ones((2, 2)), "loss": np.array([1.0, np.nan])}, "loss"),
        ({"compute": np.array([1.0, 0.0]), "coordinates": np.ones((2, 2)), "loss": np.ones(2)}, "compute"),
        ({"compute": np.ones(2), "coordinates": np.ones((2, 2)), "loss": np.ones(2), "group": np.zeros(3)}, "group"),
    ],
)
def test_bad_observations_are_named(arguments: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Observations(**arguments)


def test_bad_calls_are_named() -> None:
    with pytest.raises(InputError, match="no runs"):
        Surrogate(("width",)).fit(Observations(np.zeros(0), np.zeros((0, 1)), np.zeros(0)))
    with pytest.raises(InputError, match="expected 1: width"):
        Surrogate(("width",)).fit(Observations(np.ones(1), np.ones((1, 2)), np.ones(1)))
    with pytest.raises(InputError, match=r"means: \['cubic'\], expected some of law, quadratic, constant"):
        Surrogate(("width",), means=("law", "cubic"))
    with pytest.raises(InputError, match="means: none, expected some of law, quadratic, constant"):
        Surrogate(("width",), means=())
    with pytest.raises(InputError, match="noise: -1, expected a positive number"):
        Surrogate(("width",)).fit(Observations(np.ones(1), np.ones((1, 1)), np.ones(1)), noise=-1)
