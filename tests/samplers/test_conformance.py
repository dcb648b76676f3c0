"""Optuna's own conformance suites for samplers."""

from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase


class TestTriadSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """All but `MultiObjectiveSamplerTestCase`: a band has one objective."""

    @pytest.fixture
    def sampler(self, phase: Phase) -> Callable[[], BaseSampler]:
        return lambda: TriadSampler(phase, seed=0)


def test_refuses_to_maximise(phase: Phase) -> None:
    study = optuna.create_study(direction="maximize", sampler=TriadSampler(phase))
    with pytest.raises(ValueError, match="expected a study that minimises"):
        study.ask(phase.distributions)
