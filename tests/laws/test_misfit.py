"""What a law misses is said, and its intervals allow for it."""

import numpy as np
import pytest

from moe_optuna.laws import Fit, fit

COMPUTE = np.geomspace(1e17, 1e21, 40)


def runs(seed: int, floor: float) -> dict[str, np.ndarray]:
    """Losses of a power law over a floor: without one the form `power` is right, with one it is wrong."""
    noise = np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(COMPUTE)))
    return {"compute": COMPUTE, "loss": (floor + 60.0 * COMPUTE**-0.08) * noise}


def covered(found: Fit, floor: float) -> np.ndarray:
    beyond = np.geomspace(1e22, 1e24, 9)
    low, high = found.interval({"compute": beyond})
    truth = floor + 60.0 * beyond**-0.08
    return (low <= truth) & (truth <= high)


@pytest.mark.parametrize("seed", range(5))
def test_a_law_without_the_floor_that_the_runs_have_says_so_and_still_covers_what_lies_beyond(seed: int) -> None:
    found = fit("power", runs(seed, floor=1.2), bootstraps=50)
    assert "compute" in found.misfit
    assert any("bend along compute" in note for note in found.notes)
    assert covered(found, floor=1.2).all()
    assert found.held_out.coverage == 1.0


def test_a_law_that_is_right_has_nothing_to_say() -> None:
    fits = [fit("power", runs(seed, floor=0.0), bootstraps=50) for seed in range(20)]
    assert not any(found.misfit for found in fits)
    assert np.mean([covered(found, floor=0.0) for found in fits]) > 0.8


def test_it_survives_being_written(tmp_path) -> None:
    found = fit("power", runs(0, floor=1.2), bootstraps=20)
    found.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json") == found
