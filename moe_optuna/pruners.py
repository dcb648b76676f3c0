"""`BandPruner`: stop a trial once it will end outside the near-optimal band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from moe_optuna.errors import InputError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["BandPruner", "Forecast", "forecast"]

Array = NDArray[np.float64]
Curve = Mapping[int, float]
"""Losses [nats per token] by step, as in `FrozenTrial.intermediate_values`."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The final loss of a trial that is still running: Student's t in log loss.

    Attributes:
        loss: Its median, nats per token.
        scale: Scale in log loss.
        degrees: Degrees of freedom.
    """

    loss: float
    scale: float
    degrees: float

    def above(self, bound: float, sd: float = 0.0) -> float:
        """Probability that the final loss is above `bound`, itself known to a relative `sd`."""
        from scipy.special import stdtr

        return float(stdtr(self.degrees, math.log(self.loss / bound) / math.hypot(self.scale, sd)))

    def interval(self, probability: float = 0.95) -> tuple[float, float]:
        """The central interval of the final loss, nats per token."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.degrees, 0.5 + probability / 2)) * self.scale
        return self.loss * math.exp(-reach), self.loss * math.exp(reach)


def forecast(running: Curve, finished: Sequence[tuple[Curve, float]]) -> Forecast | None:
    """Predict where a curve ends, from the curves of finished trials on the same grid.

    What a finished trial still gained after the step s, ``log final - log loss(s)``, is regressed on three features of
    its curve up to s, standardised: the loss at s, how far it lies off the mean of the last three, how far these lie
    below the mean of the first half. Conjugate Bayesian regression with slopes shrunk towards 0, so that two curves
    give the mean gain with a wide interval and many give a hyperplane with a narrow one (Gelman et al., Bayesian Data
    Analysis, chapter 14).

    Args:
        running: Losses reported so far.
        finished: Curves of finished trials, each with its final loss.

    Returns:
        The forecast, or ``None`` where fewer than two finished curves have all of the running one's steps.
    """
    if not running:
        return None
    steps = sorted(running)
    rows = [
        [curve[step] for step in steps] + [final]
        for curve, final in finished
        if all(step in curve for step in steps) and _positive(final, *(curve[step] for step in steps))
    ]
    if len(rows) < 2 or not _positive(*running.values()):
        return None
    logs = np.log(np.array(rows))
    own = np.log(np.array([[running[step] for step in steps]]))
    gained = logs[:, -1] - logs[:, -2]
    features, point = _features(logs[:, :-1]), _features(own)[0]
    centre, spread = features.mean(0), np.maximum(features.std(0), 1e-9)
    design = np.column_stack([np.ones(len(rows)), (features - centre) / spread])
    point = np.concatenate([[1.0], (point - centre) / spread])
    precision = design.T @ design + np.diag([0.0, 1.0, 1.0, 1.0])
    weights = np.linalg.solve(precision, design.T @ gained)
    # Two prior observations of an error of one per cent: that a few curves agree is no certainty.
    degrees = 2.0 + len(rows) - 1
    squares = 2 * 0.01**2 + float(gained @ gained - weights @ precision @ weights)
    variance = squares / degrees * (1 + float(point @ np.linalg.solve(precision, point)))
    loss = float(np.exp(own[0, -1] + point @ weights))
    return Forecast(loss, math.sqrt(variance), degrees)


def _features(curves: Array) -> Array:
    """Of log losses (n, s): (n, 3)."""
    recent = curves[:, -3:].mean(1)
    return np.stack([curves[:, -1], curves[:, -1] - recent, recent - curves[:, : curves.shape[1] // 2 + 1].mean(1)], 1)


class BandPruner(BasePruner):
    """Stop a trial that will end outside the near-optimal band with at least the asked probability.

    The final loss is forecast from the trial's reports and the curves of the finished trials, with an interval; the
    band is what ends within `band` of the best finished loss. Report losses on the fixed grid of the token budget
    (``trial.report(loss, grid index)``): curves meet at equal steps only. The fewer curves are finished, the wider
    the interval and the rarer a stop; before `n_startup_trials` have finished, nothing is stopped.

    Example::

        study = optuna.create_study(sampler=TriadSampler(phase), pruner=BandPruner())

    Args:
        probability: How sure to be before a trial is stopped, at each of its reports.
        band: Relative width of the near-optimal band.
        noise: Relative standard deviation of a loss over seeds; estimated from repeated parameters by default, 0
            without any.
        n_startup_trials: Finished trials before the first stop.

    Raises:
        InputError: Where an argument is out of its range, or a study maximises.
    """

    def __init__(
        self, *, probability: float = 0.99, band: float = 0.001, noise: float | None = None, n_startup_trials: int = 4
    ) -> None:
        if not 0.5 <= probability < 1:
            raise InputError(f"{probability!r}, expected at least 0.5 and below 1", where="probability")
        if not 0 < band < 1:
            raise InputError(f"{band!r}, expected a fraction above 0 and below 1", where="band")
        if noise is not None and not 0 <= noise < 1:
            raise InputError(f"{noise!r}, expected a fraction of at least 0 and below 1", where="noise")
        if n_startup_trials < 2:
            raise InputError(f"{n_startup_trials!r}, expected at least 2", where="n_startup_trials")
        self._probability = probability
        self._band = band
        self._noise = noise
        self._n_startup_trials = n_startup_trials

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop now."""
        if study.direction != StudyDirection.MINIMIZE:
            raise InputError("maximises, expected a study that minimises the loss", where=study.study_name)
        step = trial.last_step
        if step is None:
            return False
        if not math.isfinite(trial.intermediate_values[step]):
            return True
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finished = finished_curves(trials)
        if len(finished) < self._n_startup_trials:
            return False
        if step >= max(max(curve) for curve, _ in finished):
            return False  # the last report: nothing is left to save
        ahead = forecast(trial.intermediate_values, finished)
        if ahead is None:
            return False
        noise = self._noise if self._noise is not None else _repeat_noise(trials)
        bound = min(final for _, final in finished) * (1 + self._band)
        return ahead.above(bound, noise) >= self._probability


def finished_curves(trials: Sequence[FrozenTrial]) -> list[tuple[Curve, float]]:
    """Curves and final losses of those trials that are complete and reported."""
    return [
        (trial.intermediate_values, trial.value)
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.intermediate_values
        and trial.value is not None
        and _positive(trial.value)
    ]


def _repeat_noise(trials: Sequence[FrozenTrial]) -> float:
    """Pooled relative standard deviation of losses at equal parameters."""
    groups: dict[tuple[tuple[str, object], ...], list[float]] = {}
    for trial in trials:
        if trial.value is not None and _positive(trial.value):
            groups.setdefault(tuple(sorted(trial.params.items())), []).append(math.log(trial.value))
    repeated = [np.array(values) for values in groups.values() if len(values) > 1]
    if not repeated:
        return 0.0
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    return math.sqrt(squares / sum(len(values) - 1 for values in repeated))


def _positive(*losses: float) -> bool:
    return all(math.isfinite(loss) and loss > 0 for loss in losses)
