"""Ax, SMAC3 and NePS as Optuna samplers, so that they search the reduced space on the terms of Optuna's own.

Each suggests the phase's axes and hears the losses; what it suggests is taken to the nearest architecture by
`phase.suggest`, as under every sampler. All run on their defaults for continuous axes: Ax's `Client`, SMAC3's
`BlackBoxFacade`, NePS' `bayesian_optimization`. They are imported when made: none need be installed.
"""

from __future__ import annotations

import logging
import random
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

__all__ = ["AxSampler", "NepsSampler", "SmacSampler"]

Space = dict[str, BaseDistribution]


class _Outside(BaseSampler):
    """A library that is asked for parameters and told losses, behind Optuna's interface; one trial at a time.

    Args:
        space: Its parameters, all floats.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._handle: Any = None
        self._worst = 0.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        return dict(self._space)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        self._handle, params = self._ask()
        return {name: float(params[name]) for name in search_space}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:  # fmt: skip  # noqa: E501
        # A value at the very edge can leave the range by rounding.
        return RandomSampler(seed=trial.number).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if values:
            self._worst = max(self._worst, values[0])
        self._tell(self._handle, values[0] if values else None)

    @abstractmethod
    def _ask(self) -> tuple[Any, dict[str, float]]:
        """What the peer calls its trial, and the parameters that it proposes."""

    @abstractmethod
    def _tell(self, handle: Any, loss: float | None) -> None:
        """The loss of that trial, `None` where it failed."""


class AxSampler(_Outside):
    """Ax's `Client`: the centre, Sobol points, then Bayesian optimization by BoTorch."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig

        logging.getLogger("ax").setLevel(logging.ERROR)
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(
            [
                RangeParameterConfig(
                    name=name, parameter_type="float", bounds=(axis.low, axis.high), scaling="log" if axis.log else None
                )
                for name, axis in _floats(space)
            ]
        )
        self._client.configure_optimization("-loss")
        self._client.configure_generation_strategy(initialization_random_seed=seed)

    def _ask(self) -> tuple[Any, dict[str, float]]:
        [(handle, params)] = self._client.get_next_trials(max_trials=1).items()
        return handle, dict(params)  # type: ignore[arg-type]

    def _tell(self, handle: Any, loss: float | None) -> None:
        if loss is None:
            self._client.mark_trial_failed(handle)
        else:
            self._client.complete_trial(handle, raw_data={"loss": loss})


class SmacSampler(_Outside):
    """SMAC3's `BlackBoxFacade`: Sobol points, then a Gaussian process; a failed run counts as the worst so far."""

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        super().__init__(space)
        from ConfigSpace import ConfigurationSpace, Float
        from smac import BlackBoxFacade, Scenario

        axes = [Float(name, (axis.low, axis.high), log=axis.log) for name, axis in _floats(space)]
        configurations = ConfigurationSpace(seed=seed)
        configurations.add(axes)
        scenario = Scenario(
            configurations, deterministic=True, n_trials=4 * trials, seed=seed, output_directory=tempfile.mkdtemp()
        )
        # As many first points as for the trainings that there will be.
        design = BlackBoxFacade.get_initial_design(scenario, max_ratio=0.25 / 4)
        self._smac = BlackBoxFacade(
            scenario, lambda config, seed=0: 0.0, initial_design=design, overwrite=True, logging_level=False
        )

    def _ask(self) -> tuple[Any, dict[str, float]]:
        handle = self._smac.ask()
        return handle, dict(handle.config)

    def _tell(self, handle: Any, loss: float | None) -> None:
        from smac.runhistory.dataclasses import TrialValue

        self._smac.tell(handle, TrialValue(cost=self._worst if loss is None else loss))


class NepsSampler(_Outside):
    """NePS' `bayesian_optimization`: first points, then a Gaussian process by BoTorch; uses the global states."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        import neps
        import torch

        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        axes = {name: neps.Float(axis.low, axis.high, log=axis.log) for name, axis in _floats(space)}
        self._neps = neps.AskAndTell(
            neps.algorithms.bayesian_optimization(type("Reduced", (neps.PipelineSpace,), axes)())
        )

    def _ask(self) -> tuple[Any, dict[str, float]]:
        handle = self._neps.ask()
        return handle, dict(handle.config)

    def _tell(self, handle: Any, loss: float | None) -> None:
        self._neps.tell(handle, RuntimeError("no loss") if loss is None else loss)


def _floats(space: Space) -> list[tuple[str, FloatDistribution]]:
    return [(name, axis) for name, axis in space.items() if isinstance(axis, FloatDistribution)]
