"""Phases on which samplers are tried, and the assertion rewriting that Optuna's conformance suites ask for."""

import optuna
import pytest

from moe_optuna.space import Phase, SearchSpace

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return SearchSpace.load("cpu")


@pytest.fixture(scope="session")
def phase(space: SearchSpace) -> Phase:
    """Phase 1 at the largest budget of the ladder."""
    return space.phase_one(space.budgets[-1])


@pytest.fixture(scope="session")
def phase_two(space: SearchSpace, phase: Phase) -> Phase:
    """A phase 2 with discrete axes, at the Phase-1 triad that admits most architectures."""
    import numpy as np

    places = np.linspace(0, len(phase.lattice) - 1, 24).astype(int)
    phases = [space.phase_two(phase.triad_of(int(place)), compute=phase.compute) for place in places]
    return max(phases, key=lambda candidate: len(candidate.lattice))
