"""Law forms: analytic gradients, the two coordinate systems, starting points."""

from __future__ import annotations

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.laws import FORMS
from moe_optuna.laws.forms import form


def runs(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "compute": 10 ** rng.uniform(12, 22, n),
        "total_params": 10 ** rng.uniform(8, 10, n),
        "active_params": 10 ** rng.uniform(7, 9, n),
        "tokens": 10 ** rng.uniform(9, 11, n),
        "n_experts": 2.0 ** rng.integers(0, 9, n),
        "granularity": 2.0 ** rng.integers(1, 5, n),
        "activation_ratio": 0.5 ** rng.integers(0, 7, n),
        "top_k": 2.0 ** rng.integers(0, 4, n),
        "n_shared_experts": 1.0 * rng.integers(0, 3, n),
        "flops_per_token": 10 ** rng.uniform(8, 10, n),
        "compute_density": rng.uniform(6.5, 17, n),
        "expansion_ratio": rng.uniform(1.0, 8.0, n),
        "width": rng.uniform(0, 1, n),
    }


EVERY = pytest.mark.parametrize("law", FORMS.values(), ids=lambda law: law.name)


def centred(law, count=6):
    table = runs(40)
    features = law.read(table)
    matrix, offset = law.centre(features, 2.5)
    phi = law.starts(count)
    return table, features, matrix, offset, phi


@EVERY
def test_gradient_of_the_log_law_is_analytic(law):
    _, features, matrix, offset, phi = centred(law)
    coordinates = phi @ matrix.T + offset
    _, partials = law.log_model(features, coordinates)
    for index, partial in enumerate(partials):
        step = 1e-6 * max(1.0, np.abs(coordinates[:, index]).max())
        ahead, behind = coordinates.copy(), coordinates.copy()
        ahead[:, index] += step
        behind[:, index] -= step
        difference = (law.log_model(features, ahead)[0] - law.log_model(features, behind)[0]) / (2 * step)
        has_value = np.isfinite(difference)  # Zhao's is negative where many experts are shared and m, n lean so
        partial, difference = partial[has_value], difference[has_value]
        assert np.allclose(partial, difference, rtol=2e-5, atol=1e-7 * np.abs(partial).max() + 1e-9)


@EVERY
def test_coefficients_and_coordinates_are_inverse(law):
    _, _, matrix, offset, phi = centred(law)
    coordinates = phi @ matrix.T + offset
    values = dict(zip(law.names, law.coefficients(coordinates).T, strict=True))
    assert np.allclose(law.coordinates(values), coordinates, rtol=1e-9)


@EVERY
def test_starts_lie_in_the_region_and_are_spread(law):
    low, high = law.region
    phi = law.starts(64)
    assert ((phi >= low) & (phi <= high)).all()
    assert (low < high).all()
    for column in phi.T:  # a Latin hypercube leaves no large gap in any coordinate
        unit = np.sort((column - column.min()) / (column.max() - column.min()))
        assert np.diff(unit).max() < 0.04
    assert np.array_equal(phi, law.starts(64))


@EVERY
def test_centred_amplitudes_do_not_depend_on_units(law):
    """Counting tokens in billions or losses in other units moves coefficients, not centred coordinates."""
    table, features, matrix, offset, phi = centred(law)
    value, _ = law.log_model(features, phi @ matrix.T + offset)
    has_value = np.isfinite(value)
    assert has_value.mean() > 0.9
    matrix, offset = law.centre(features, 5.0)
    doubled, _ = law.log_model(features, phi @ matrix.T + offset)
    if law.name not in ("leverage", "leverage_activation"):  # those are ratios
        assert np.allclose((doubled - value)[has_value], np.log(2))
    if "tokens" in law.inputs and law.name not in ("holistic", "ludziejewski"):
        rescaled = law.read(table | {"tokens": table["tokens"] * 1e-9})
        matrix, offset = law.centre(rescaled, 2.5)
        again = law.log_model(rescaled, phi @ matrix.T + offset)[0]
        assert np.allclose(again[has_value], value[has_value])


def test_holistic_has_its_minima_where_its_coefficients_say():
    law = FORMS["holistic"]
    truth = {
        "E": 1.6,
        "A": 400,
        "alpha": 0.3,
        "B": 1500,
        "beta": 0.33,
        "x_0": 4.65e18**0.142,
        "xi": 0.142,
        "k_x": 0.02,
        "p": 0.67,
        "k_y": 0.02,
    }
    truth |= {"w_0": 0.45, "k_w": 0.02, "nu": 0.0}
    middle = {"flops_per_token": 1e9, "tokens": 1e10, "compute_density": 10.0, "expansion_ratio": 22.0, "width": 0.45}
    middle |= {"n_experts": 288, "top_k": 8, "n_shared_experts": 1}
    density, ratio, width = np.linspace(6.2, 20, 20001), np.linspace(2, 31, 20001), np.linspace(0, 1, 10001)
    best = density[law.predict(middle | {"compute_density": density}, truth).argmin()]
    assert best == pytest.approx(6 + truth["x_0"] * 1e19 ** -truth["xi"], rel=1e-3)
    best = ratio[law.predict(middle | {"expansion_ratio": ratio}, truth).argmin()]
    assert best == pytest.approx(1 + 0.67 * (289 / 9 - 1), rel=1e-3)
    assert width[law.predict(middle | {"width": width}, truth).argmin()] == pytest.approx(0.45, abs=1e-3)
    # Along compute_density it is the paper's a / (x - 6) + b x + c.
    x = np.array([7.0, 8.0, 10.0, 13.0, 17.0])
    y = law.predict(middle | {"compute_density": x}, truth)
    design = np.stack([1 / (x - 6), x, np.ones_like(x)], axis=1)
    assert design @ np.linalg.lstsq(design, y, rcond=None)[0] == pytest.approx(y, rel=1e-9)
    # And along expansion_ratio a / (x - 1) + b / (289/9 - x) + c.
    x = np.array([12.0, 16.0, 20.0, 22.0, 26.0, 30.0])
    y = law.predict(middle | {"expansion_ratio": x}, truth)
    design = np.stack([1 / (x - 1), 1 / (289 / 9 - x), np.ones_like(x)], axis=1)
    assert design @ np.linalg.lstsq(design, y, rcond=None)[0] == pytest.approx(y, rel=1e-9)


def test_unknown_law_is_named():
    with pytest.raises(InputError, match=r"unknown law 'chinchila'.*did you mean 'chinchilla'"):
        form("chinchila")


def test_missing_inputs_are_named():
    with pytest.raises(InputError, match="chinchilla: missing tokens"):
        FORMS["chinchilla"].read({"total_params": [1e9]})
