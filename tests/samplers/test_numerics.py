"""The pure numerics behind the sampler, against Monte Carlo and direct conditioning."""

from dataclasses import replace

import numpy as np
import pytest

from moe_optuna.samplers._acquisition import Odds, believe, expected_improvement, value_of_information
from moe_optuna.samplers._belief import _scheduled
from moe_optuna.samplers._design import fill, squared_distances
from moe_optuna.samplers._features import SHAPE, Features
from moe_optuna.space import Phase, SearchSpace


def process(m: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, means and covariance of a smooth Gaussian process."""
    random = np.random.default_rng(seed)
    unit = random.random((m, 2))
    cov = 4e-4 * np.exp(-0.5 * squared_distances(unit, unit) / 0.3**2) + 1e-10 * np.eye(m)
    return unit, 3 + 0.02 * random.standard_normal(m), cov


def test_squared_distances() -> None:
    random = np.random.default_rng(0)
    left, right = random.random((5, 3)), random.random((7, 3))
    assert squared_distances(left, right) == pytest.approx(((left[:, None] - right) ** 2).sum(-1))


def test_expected_improvement_by_monte_carlo() -> None:
    random = np.random.default_rng(0)
    mean, sd = np.array([3.0, 3.1, 2.9]), np.array([0.1, 0.2, 0.001])
    draws = mean + sd * random.standard_normal((400_000, 3))
    expected = np.maximum(3.0 - draws, 0).mean(0)
    assert expected_improvement(mean, sd, 3.0) == pytest.approx(expected, abs=5e-4)


def test_believe_is_conditioning_without_a_change_of_mean() -> None:
    _, _, cov = process(12, 1)
    pending, noise = np.array([2, 7, 9]), 1e-5
    observed = cov[np.ix_(pending, pending)] + noise * np.eye(3)
    expected = cov - cov[:, pending] @ np.linalg.solve(observed, cov[pending])
    assert believe(cov, noise, pending) == pytest.approx(expected, abs=1e-12)


def test_value_of_information_by_monte_carlo() -> None:
    _, mean, cov = process(10, 2)
    noise, width = 4e-5, 0.001
    random = np.random.default_rng(3)

    def misjudged(centre: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Of means (n, 10), by draws of the losses around each."""
        edge = centre.min(-1, keepdims=True) * (1 + width)
        f = centre + sd * random.standard_normal((200, *centre.shape))
        wrong = np.where(centre <= edge, np.maximum(f - edge, 0), np.maximum(edge - f, 0))
        return np.asarray(wrong.mean((0, -1)))

    def worth(x: int) -> float:
        change = cov[x] / np.sqrt(cov[x, x] + noise)
        sd = np.sqrt(np.maximum(np.diag(cov) - change**2, 0))
        after = mean + change * random.standard_normal((4000, 1))
        now = misjudged(np.tile(mean, (500, 1)), np.sqrt(np.diag(cov))).mean()
        return float(mean.min() - after.min(1).mean() + now - misjudged(after, sd).mean())

    among = np.array([0, 2, 3, 7, 9])
    found = value_of_information(mean, cov, noise, width, among)
    expected = np.array([worth(x) for x in among])
    assert found == pytest.approx(expected, abs=0.1 * expected.max())  # nine nodes across kinks


def test_a_run_that_says_nothing_is_worth_nothing() -> None:
    _, mean, cov = process(10, 4)
    cov = believe(cov, 0.0, np.array([3]))
    found = value_of_information(mean, cov, 1e-6, 0.001, np.arange(10))
    assert found[3] < 1e-3 * found.max()
    assert value_of_information(mean, cov, 1e6, 0.001, np.arange(10)).max() < 1e-6


def test_odds_fall_near_failures_only() -> None:
    random = np.random.default_rng(0)
    failed, finished = 0.2 * random.random((6, 2)), 0.4 + 0.6 * random.random((12, 2))
    odds = Odds(np.vstack([failed, finished, [[0.1, 0.1], [0.8, 0.8]]]))
    found = odds.finishing(dict.fromkeys(range(6), True) | dict.fromkeys(range(6, 18), False))
    assert found[18] < 0.2 < 0.9 < found[19]
    assert (found[:6] == 0).all()
    assert (Odds(finished).finishing(dict.fromkeys(range(12), False)) == 1).all()


def test_one_failure_does_not_condemn_the_lattice() -> None:
    grid = np.random.default_rng(0).random((200, 2))
    odds = Odds(np.vstack([grid, [[0.5, 0.5], [0.1, 0.1]]]))
    assert np.median(odds.finishing({200: True, 201: False})[:200]) > 0.6


def test_odds_are_the_vote_of_the_kernel_that_foretells_each_run_best() -> None:
    random = np.random.default_rng(1)
    unit = random.random((60, 2))
    failing = unit[:, 0] + 0.2 * random.standard_normal(60) < 0.4
    ended = {int(place): bool(failing[place]) for place in random.permutation(60)[:25]}
    odds = Odds(unit)
    for count in range(1, 26):  # as they end, and one that failed first and finished then
        odds.finishing(dict(list(ended.items())[:count]))
    finally_ = {place: failed and place != min(p for p in ended if ended[p]) for place, failed in ended.items()}
    places, bad = np.array(list(finally_)), np.array(list(finally_.values()))
    share = bad.sum() / 26

    def failure(point: np.ndarray, runs: np.ndarray, length: float) -> float:
        votes = np.exp(-0.5 * ((unit[places[runs]] - point) ** 2).sum(1) / length**2)
        return float((votes @ bad[runs] + 0.5 * share) / (votes.sum() + 0.5))

    def foretold(length: float) -> float:
        each = [failure(unit[places[i]], np.arange(25) != i, length) for i in range(25)]
        return float(np.log(np.where(bad, each, 1 - np.array(each))).sum())

    best = max((0.05, 0.1, 0.2, 0.4), key=foretold)
    expected = np.array([1 - failure(point, np.arange(25) >= 0, best) for point in unit])
    expected[places[bad]] = 0
    assert odds.finishing(finally_) == pytest.approx(expected, abs=1e-12)


def test_fill_covers_a_lattice_better_than_chance() -> None:
    unit = np.random.default_rng(0).random((300, 2)) ** [1.0, 2.0]

    def gap(places: list[int]) -> float:
        return float(np.sqrt(squared_distances(unit, unit[places])).min(1).mean())

    taken: list[int] = []
    for step in range(8):
        random = np.random.default_rng([1, step])
        allowed = np.setdiff1d(np.arange(300), taken)
        taken.append(fill(unit, allowed, np.array(taken, dtype=np.intp), random))
    assert len(set(taken)) == 8
    chance = [gap(list(np.random.default_rng(seed).choice(300, 8, replace=False))) for seed in range(50)]
    assert gap(taken) < np.quantile(chance, 0.02)


def test_fill_keeps_to_what_is_allowed() -> None:
    unit = np.random.default_rng(0).random((5000, 3))
    allowed = np.arange(17, 20)
    assert fill(unit, allowed, np.arange(5), np.random.default_rng(0)) in allowed


def test_features_lie_in_the_unit_cube_and_follow_shape(phase: Phase) -> None:
    features = Features.of(phase)
    p = len(phase.axes)
    assert features.names == tuple(SHAPE)
    assert (features.all[:, :p] == phase.unit).all()
    assert features.all.min() >= 0
    assert features.all.max() <= 1
    arrays = phase.lattice.arrays
    assert np.corrcoef(features.all[:, p], np.log(arrays["d_model"]))[0, 1] > 0.99
    granularity = arrays["d_model"] / arrays["d_expert"]
    assert np.corrcoef(features.all[:, p + 1], np.log(granularity))[0, 1] > 0.999


def test_features_of_a_trial_are_those_of_its_architecture(phase: Phase) -> None:
    features = Features.of(phase)
    arrays = phase.lattice.arrays
    attributes = {name: int(arrays[name][5]) for name in ("d_model", "d_expert", "flops_per_token")}
    assert features.of_trial(phase.unit[5], attributes) == pytest.approx(features.all[5])
    assert features.of_trial(phase.unit[5], {})[-2:] == pytest.approx([0.5, 0.5])


def test_features_that_do_not_vary_are_left_out(space: SearchSpace) -> None:
    phase = space.phase_zero(space.budgets[0])
    columns = {name: values[:1] for name, values in phase.lattice.arrays.items()}
    lattice = type(phase.lattice)(space.dimensions, columns=columns)
    assert Features.of(replace(phase, lattice=lattice, coordinates=phase.coordinates[:1])).names == ()


def test_refits_are_scheduled_by_the_count_alone() -> None:
    sizes = [_scheduled(n) for n in range(1, 1001)]
    assert sizes[:16] == list(range(1, 17))
    assert all(n >= size >= n / 1.2 for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 60
