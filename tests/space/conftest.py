"""A space of the tests' own, so that they do not depend on how the ready ones are tuned."""

from pathlib import Path

import pytest

from moe_optuna.space import SearchSpace


@pytest.fixture(scope="session")
def small() -> SearchSpace:
    """Byte-level models of some ten thousand parameters."""
    return SearchSpace.load(Path(__file__).with_name("small.toml"))
