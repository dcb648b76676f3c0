"""The near-optimal band and its growth against closed forms."""

import numpy as np
import pytest

from moe_optuna.laws.band import band_of_draws, growth


def test_the_band_of_a_parabola_is_where_its_excess_is_the_width() -> None:
    x = np.linspace(0, 1, 10_001)
    loss = 3 * (1 + 0.4 * (x - 0.35) ** 2)
    band = band_of_draws(np.stack([loss, loss]), x)
    reach = np.sqrt(0.001 / 0.4)
    assert (band.low, band.high) == pytest.approx((0.35 - reach, 0.35 + reach), abs=2e-4)


def test_the_edges_of_an_uncertain_optimum_have_intervals() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 401)
    optimum = 0.5 + 0.05 * rng.standard_normal(2000)
    draws = 3 * (1 + 0.4 * (x - optimum[:, None]) ** 2)
    band = band_of_draws(draws, x)
    reach = np.sqrt(0.001 / 0.4)
    assert band.low_interval == pytest.approx((0.5 - reach - 0.098, 0.5 - reach + 0.098), abs=0.01)
    assert band.high_interval == pytest.approx((0.5 + reach - 0.098, 0.5 + reach + 0.098), abs=0.01)


@pytest.mark.parametrize(
    ("exponent", "noise", "verdict"),
    [(0.1, 0.02, "widens"), (-0.1, 0.02, "narrows"), (0.0, 0.05, "can't tell"), (0.1, 1.0, "can't tell")],
)
def test_growth_finds_the_planted_exponent_and_says_what_it_means(exponent: float, noise: float, verdict: str) -> None:
    compute = np.array([1e18, 1e19, 1e20, 1e21])
    rng = np.random.default_rng(1)
    extents = 0.3 * (compute / 1e18) ** exponent * np.exp(noise * rng.standard_normal((800, 4)))
    found = growth(compute, extents)
    assert found.verdict == verdict
    assert found.interval[0] <= exponent <= found.interval[1]
    assert found.exponent == pytest.approx(exponent, abs=0.02 + 0.05 * noise)
