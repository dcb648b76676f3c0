"""Phases on which samplers are tried, and the assertion rewriting that Optuna's conformance suites ask for."""

import optuna
import pytest

from moe_optuna.space import Phase, SearchSpace

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")
optuna.logging.set_verbosity(optuna.logging.ERROR)


SPACE = """
format = 1
name = "samplers"
budgets = [5e10, 1.5e11, 4.5e11]
target = 1e13
allocation_law = { coefficient = 1.6, exponent = 0.5 }
reference = { compute_density = 9.0, expansion_ratio = 3.0 }
axes = { allocation = [0.2, 5.0], compute_density = [6.4, 24.0], expansion_ratio = [1.4, 5.6], resolution = 0.05 }
tolerances = { flops_per_token = 0.05, active_params = 0.1, total_params = 0.1 }

[dimensions]
d_model = { low = 16, high = 512, multiple = 8 }
d_expert = { low = 8, high = 512, multiple = 8 }
d_dense = { ratio = 3, multiple = 8 }
n_layers = { low = 1, high = 32 }
n_heads = 2
queries_per_kv_head = 2
d_head = 16
n_experts = [16, 8, 12, 24, 32]
top_k = [2, 1, 3, 4]
n_shared_experts = 1
context_length = 256
vocab_size = 256
tied_embeddings = false
qk_norm = true
"""


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """A small space of its own, so that what is shipped can change."""
    return SearchSpace.from_toml(SPACE)


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
