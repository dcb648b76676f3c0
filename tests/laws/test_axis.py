"""Fits along one axis against closed forms: planted optima and bands, and intervals counted over many repetitions."""

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.laws.axis import AxisForm, fit_axes, fit_axis

POLE = 289 / 9
CASES = {
    # form: loss(x), optimum and 0.1 % band in closed form, searched range
    "pole_linear": (lambda x: 0.9 / (x - 6) + 0.04 * x + 2.0, 6 + np.sqrt(0.9 / 0.04), (7.0, 17.0)),
    "two_pole": (lambda x: 0.9 / (x - 1) + 0.2 / (POLE - x) + 3.0, None, (12.0, 30.0)),
    "quadratic_log": (lambda x: 0.1 * np.log(x / 500) ** 2 + 3.0, 500.0, (250.0, 900.0)),
}


def values(form: str, n: int) -> np.ndarray:
    shape = AxisForm(form, POLE)
    low, high = CASES[form][2]
    return shape.x(np.linspace(shape.t(low), shape.t(high), n))


def truth(form: str) -> tuple[float, float, float]:
    """Optimum and band edges by brute force on a fine grid."""
    loss, _, (low, high) = CASES[form]
    x = np.linspace(low, high, 200_001)
    y = loss(x)
    inside = x[y <= y.min() * 1.001]
    return float(x[y.argmin()]), float(inside[0]), float(inside[-1])


@pytest.mark.parametrize("form", CASES)
def test_recovers_a_planted_curve_exactly(form: str) -> None:
    x = values(form, 9)
    fit = fit_axis(form, x, CASES[form][0](x), pole=POLE)
    optimum, low, high = truth(form)
    band = fit.band()
    assert fit.optimum == pytest.approx(optimum, rel=1e-4)
    assert (band.low, band.high) == pytest.approx((low, high), rel=1e-3)
    assert fit.predict(x) == pytest.approx(CASES[form][0](x), rel=1e-8)
    assert fit.noise < 1e-6
    assert fit.loss == pytest.approx(CASES[form][0](np.array([optimum]))[0], rel=1e-8)


def test_the_optimum_of_the_pole_form_is_where_its_derivative_vanishes() -> None:
    x = values("pole_linear", 12)
    assert fit_axis("pole_linear", x, CASES["pole_linear"][0](x)).optimum == pytest.approx(CASES["pole_linear"][1])


@pytest.mark.parametrize("form", CASES)
@pytest.mark.parametrize(("noise", "runs"), [(0.002, 8), (0.01, 24)])
def test_intervals_cover_the_truth_in_90_to_99_percent_of_repetitions(form: str, noise: float, runs: int) -> None:
    optimum, low, high = truth(form)
    x = values(form, runs)
    covered = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        fit = fit_axis(form, x, CASES[form][0](x) * np.exp(noise * rng.standard_normal(runs)), pole=POLE, seed=seed)
        band = fit.band()
        covered.append(
            [
                fit.interval[0] <= optimum <= fit.interval[1],
                band.low_interval[0] <= low <= band.low_interval[1] + 1e-9,
                band.high_interval[0] - 1e-9 <= high <= band.high_interval[1],
            ]
        )
    share = np.mean(covered)
    assert 0.90 <= share <= 0.99, share


def test_where_the_runs_do_not_pin_the_optimum_its_interval_is_the_range() -> None:
    x = values("quadratic_log", 8)
    noise = np.random.default_rng(3).standard_normal(8)
    fit = fit_axis("quadratic_log", x, 3.0 * np.exp(0.02 * noise))
    low, high = fit.range
    assert fit.interval[1] - fit.interval[0] > 0.9 * (high - low)
    assert fit.noise_width > 0.001
    noisy = fit.band(fit.noise_width)
    assert noisy.high - noisy.low >= fit.band().high - fit.band().low


def test_one_diverged_run_does_not_move_the_optimum() -> None:
    x = values("pole_linear", 15)
    y = CASES["pole_linear"][0](x) * np.exp(0.002 * np.random.default_rng(0).standard_normal(15))
    y[4] *= 1.5
    assert fit_axis("pole_linear", x, y).optimum == pytest.approx(CASES["pole_linear"][1], rel=0.05)


def test_known_noise_narrows_the_interval_of_few_runs() -> None:
    x = values("quadratic_log", 5)
    y = CASES["quadratic_log"][0](x) * np.exp(0.004 * np.random.default_rng(1).standard_normal(5))
    free, told = fit_axis("quadratic_log", x, y), fit_axis("quadratic_log", x, y, noise=0.004)
    assert told.interval[1] - told.interval[0] < free.interval[1] - free.interval[0]


def test_axes_that_varied_together_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(7, 17, 36), rng.uniform(12, 30, 36)
    loss = CASES["pole_linear"][0](first) + CASES["two_pole"][0](second)
    fits = fit_axes(
        {"compute_density": AxisForm("pole_linear"), "expansion_ratio": AxisForm("two_pole", POLE)},
        {"compute_density": first, "expansion_ratio": second},
        loss,
    )
    assert fits["compute_density"].optimum == pytest.approx(CASES["pole_linear"][1], rel=1e-4)
    assert fits["expansion_ratio"].optimum == pytest.approx(truth("two_pole")[0], rel=1e-3)
    least = CASES["pole_linear"][0](CASES["pole_linear"][1]) + CASES["two_pole"][0](truth("two_pole")[0])
    assert fits["compute_density"].loss == pytest.approx(least, rel=1e-6)
    assert fits["expansion_ratio"].loss == fits["compute_density"].loss


@pytest.mark.parametrize(
    ("form", "x", "loss", "expected"),
    [
        ("pole_linear", [5.0, 7, 8, 9], [3.0] * 4, "above 6"),
        ("two_pole", [12.0, 20, 33, 14], [3.0] * 4, "below 32.1111"),
        ("quadratic_log", [1.0, 2, 3], [3.0] * 3, "at least 4"),
        ("quadratic_log", [1.0, 2, 1, 2], [3.0] * 4, "at least 3"),
        ("quadratic_log", [1.0, 2, 3, 4], [3.0, 3, np.nan, 3], "positive finite"),
        ("quadratic_log", [1.0, 2, 3, 4], [3.0, 3, 3], "one a loss"),
        ("cubic", [1.0, 2, 3, 4], [3.0] * 4, "expected one of"),
    ],
)
def test_bad_input_is_named(form: str, x: list[float], loss: list[float], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit_axis(form, x, loss, pole=POLE)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"draws": 0}, "draws: 0, expected an integer of at least 1"),
        ({"draws": 2.5}, "draws: 2.5, expected an integer"),
        ({"noise": -0.01}, "noise: -0.01, expected a number of at least 0"),
        ({"noise": np.nan}, "noise: nan, expected a number of at least 0"),
    ],
)
def test_bad_options_are_named(option: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit_axis("quadratic_log", [1.0, 2, 3, 4, 5], [3.1, 3, 2.9, 3, 3.1], **option)
