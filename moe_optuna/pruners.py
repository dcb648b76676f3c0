"""`BandPruner`: stop a trial once it will end outside the near-optimal band."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from moe_optuna.errors import InputError, whole_number
from moe_optuna.laws import BAND

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["BandPruner", "Forecast", "forecast", "parental"]

Array = NDArray[np.float64]
Curve = Mapping[int, float]
"""Losses [nats per token] by step, as in `FrozenTrial.intermediate_values`."""
Run = tuple[Curve, float]
"""A finished training: its curve and its final loss."""
COLLAPSED = 1.5
"""Times the least loss: above, a training learned nothing, and its loss says nothing about others'."""
SPREAD = 0.015
"""How far final losses scatter about what the first report says, in log loss, before there are data."""
SLOPE = 0.25
"""How far the slope may lie from 1."""
DEGREES = 3.0
"""What `SPREAD` weighs, in trials."""
PARENTS = 30
"""What the parents weigh at most, in trials."""
LEVEL = 4.0
"""What one at the same budget tells of a study's level at most, in trials."""


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

    @property
    def sd(self) -> float:
        """Standard deviation in log loss; the degrees of freedom are more than two."""
        return self.scale * math.sqrt(self.degrees / (self.degrees - 2))

    def above(self, bound: float, sd: float = 0.0) -> float:
        """Probability that the final loss is above `bound`, itself known to a relative `sd`."""
        from scipy.special import stdtr

        return float(stdtr(self.degrees, math.log(self.loss / bound) / math.hypot(self.scale, sd)))

    def interval(self, probability: float = 0.95) -> tuple[float, float]:
        """The central interval of the final loss, nats per token."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.degrees, 0.5 + probability / 2)) * self.scale
        return self.loss * math.exp(-reach), self.loss * math.exp(reach)


def forecast(
    running: Curve,
    finished: Sequence[Run],
    parents: Sequence[Sequence[Run]] = (),
    sisters: Sequence[Sequence[Run]] = (),
) -> Forecast | None:
    """Predict where a curve ends, from the curves of finished trials on the same grid.

    What is common to the trials of a study, the fall of the learning rate at the end above all, is in every curve;
    what differs is forecast from how the curves differ at the running one's last step s. Over the trials i of a study
    ::

        log final_i = a + b x_i + e_i,        e_i ~ Normal(0, variance)

    with x the lower of the last two log losses, so that a spike is not believed before it has lasted. Slope and
    variance are shared with the parents, whose trials count as one each, `PARENTS` at most; `a` is a study's own, so
    that its level may be anything, and leans on nothing but that of studies at the same budget. What is behind at s may
    fall back or catch up: b is held near 1, the variance near a spread that vanishes towards the end (`SPREAD`), and
    with few trials they stay there. Given these, Bayesian linear regression (Gelman et al., Bayesian Data Analysis,
    chapter 14).

    Args:
        running: Losses reported so far.
        finished: Curves of finished trials of the same study, each with its final loss.
        parents: The same of other studies, by study.
        sisters: Those of the parents that have the study's budget.

    Returns:
        The forecast, or ``None`` where fewer than two finished curves have the running one's last step.
    """
    if not running or not _positive(*running.values()):
        return None
    step = max(running)
    own = _table(finished, step)
    if len(own) < 2:
        return None
    levels = [own, *(table for sister in sisters if len(table := _table(sister, step)))]
    weights = [len(own), *(1 / (1 / len(table) + 1 / LEVEL) for table in levels[1:])]
    level = np.average([table.mean(0) for table in levels], axis=0, weights=weights)
    gap = _reached(running, step) - level[0]
    tables = [table for parent in parents if len(table := _table(parent, step)) > 1]
    weight = min(1.0, PARENTS / max(1, sum(map(len, tables))))
    groups = [(own, 1.0), *((table, weight) for table in tables)]
    x, y = np.concatenate([math.sqrt(share) * (table - table.mean(0)) for table, share in groups]).T
    degrees = DEGREES + sum(share * (len(table) - 1) for table, share in groups)
    last = max(max(curve, default=step) for curve, _ in finished)
    done = min(1.0, step / last) if last > 0 else 1.0
    variance = SPREAD**2 * max(1 - done, 0.02)
    squares = DEGREES * variance
    for _ in range(4):  # to and fro between slope and variance: the slope's prior does not scale with it
        precision = float(x @ x) + variance / SLOPE**2
        slope = 1 + float(x @ (y - x)) / precision
        variance = (squares + float(((y - slope * x) ** 2).sum())) / degrees
    spread = variance * (1 + 1 / sum(weights) + gap**2 / precision)
    return Forecast(math.exp(level[1] + slope * gap), math.sqrt(spread), degrees)


def _table(runs: Sequence[Run], step: int) -> Array:
    """Of the runs that have the step and did not collapse (n, 2): log loss reached there, log final loss."""
    bound = _bound(final for _, final in runs)
    rows = [
        (_reached(curve, step), math.log(final))
        for curve, final in runs
        if step in curve and _positive(final, curve[step]) and final <= bound
    ]
    return np.array(rows).reshape(-1, 2)


def _reached(curve: Curve, step: int) -> float:
    """The lower of the last two log losses up to a step."""
    before = max((other for other in curve if other < step and _positive(curve[other])), default=step)
    return math.log(min(curve[step], curve[before]))


class BandPruner(BasePruner):
    """Stop a trial that will end outside the near-optimal band with at least the asked probability.

    The final loss is forecast from the trial's reports and the curves of the finished trials, with an interval; the
    band is what ends within `band` of the best finished loss. Report losses on the fixed grid of the token budget
    (``trial.report(loss, grid index)``): curves meet at equal steps only. The fewer curves are finished, here and in
    the parents, the wider the interval and the rarer a stop; before `n_startup_trials` have finished, nothing is
    stopped, nor in the first part of a training (`warmup`), from which some come back farther than any interval says,
    nor where the loss has just risen after a fall, which may be a spike.

    Example::

        study = optuna.create_study(sampler=TriadSampler(phase), pruner=BandPruner())

    Args:
        probability: How sure to be before a trial is stopped, at each of its reports.
        band: Relative width of the near-optimal band.
        noise: Relative standard deviation of a loss over seeds; estimated from repeated parameters by default, the
            parents' too, 0 without any. A loss of more than 1.5 times the least, here and in forecasts, does not count.
        n_startup_trials: Finished trials before the first stop.
        warmup: Share of the grid up to which nothing is stopped.
        parents: Studies of other phases, or at smaller budgets, on the same grid: they say how much a gap on the way
            is worth at the end. Those with the study's own `compute` (a user attribute, in FLOPs) also say how far
            losses have to fall. Read once, when first needed.

    Raises:
        InputError: Where an argument is of another kind or out of its range, or a study does not minimise one value.
    """

    def __init__(
        self,
        *,
        probability: float = 0.99,
        band: float = BAND,
        noise: float | None = None,
        n_startup_trials: int = 2,
        warmup: float = 0.125,
        parents: Sequence[Study] = (),
    ) -> None:
        self._probability = _fraction(probability, "probability", least=0.5)
        self._band = _fraction(band, "band")
        if not self._band:
            raise InputError(f"{band!r}, expected a fraction above 0", where="band")
        self._noise = None if noise is None else _fraction(noise, "noise")
        self._n_startup_trials = whole_number(n_startup_trials, "n_startup_trials", least=2)
        self._warmup = _fraction(warmup, "warmup")
        self._studies = parental(parents)

    @cached_property
    def _inherited(self) -> tuple[list[list[Run]], list[tuple[float, int]], list[object]]:
        """The parents' curves, the scatter of their repeats and their budgets, by study."""
        studies = [study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) for study in self._studies]
        budgets = [study.user_attrs.get("compute") for study in self._studies]
        return [finished_curves(trials) for trials in studies], [_scatter(trials) for trials in studies], budgets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop now.

        Raises:
            InputError: Where the study maximises, or a report is not positive.
        """
        if study.direction != StudyDirection.MINIMIZE:
            raise InputError("maximises, expected a study that minimises the loss", where=study.study_name)
        step = trial.last_step
        if step is None:
            return False
        if not math.isfinite(trial.intermediate_values[step]):
            return True
        if (loss := trial.intermediate_values[step]) <= 0:
            raise InputError(
                f"report {loss!r} of trial {trial.number}, expected a positive loss, in nats per token",
                where=study.study_name,
            )
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finished = finished_curves(trials)
        if len(finished) < self._n_startup_trials:
            return False
        last = max(max(curve) for curve, _ in finished)
        if step <= self._warmup * last or step >= last:  # at the last report nothing is left to save
            return False
        if _has_just_risen(trial.intermediate_values):
            return False
        parents, scatters, budgets = self._inherited
        own = study.user_attrs.get("compute")
        sisters = [each for each, budget in zip(parents, budgets, strict=True) if own is not None and budget == own]
        ahead = forecast(trial.intermediate_values, finished, parents, sisters)
        if ahead is None:
            return False
        noise = self._noise
        if noise is None:
            squares, degrees = map(sum, zip(_scatter(trials), *scatters, strict=True))
            noise = math.sqrt(squares / degrees) if degrees else 0.0
        bound = min(final for _, final in finished) * (1 + self._band)
        return ahead.above(bound, noise) >= self._probability


def _fraction(value: object, name: str, *, least: float = 0.0) -> float:
    """An argument that is to be a fraction, numpy's too, of at least `least` and below 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < 1:
        raise InputError(f"{value!r}, expected a fraction of at least {least:g} and below 1", where=name)
    return float(value)


def parental(studies: Sequence[Study]) -> tuple[Study, ...]:
    """Studies that may serve as parents.

    Raises:
        InputError: Where they are no sequence of studies, or one does not minimise one value.
    """
    if not isinstance(studies, Sequence):
        raise InputError(f"a {type(studies).__name__}, expected a sequence of studies", where="parents")
    for study in studies:
        if not isinstance(study, optuna.Study):
            raise InputError(f"a {type(study).__name__} among them, expected studies", where="parents")
        if study.directions != [StudyDirection.MINIMIZE]:
            found = f"{len(study.directions)} objectives" if len(study.directions) > 1 else "maximises"
            raise InputError(f"{found}, expected a parent that minimises the loss", where=study.study_name)
    return tuple(studies)


def finished_curves(trials: Sequence[FrozenTrial]) -> list[Run]:
    """Curves and final losses of those trials that are complete and reported."""
    return [
        (trial.intermediate_values, trial.value)
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.intermediate_values
        and trial.value is not None
        and _positive(trial.value)
    ]


def _has_just_risen(curve: Curve) -> bool:
    """Whether the last loss is above the one before, which was not: early on, a curve that stands still for a report is
    soon far behind, and a spike passes."""
    rises = [curve[later] > curve[earlier] for earlier, later in pairwise(sorted(curve)[-3:])]
    return rises in ([True], [False, True])


def _scatter(trials: Sequence[FrozenTrial]) -> tuple[float, int]:
    """Squared relative deviations of losses at equal parameters from their means, added up, and their degrees of
    freedom. The same loss again is the same training again, and tells nothing, nor does one that collapsed."""
    groups: dict[tuple[tuple[str, object], ...], set[float]] = {}
    bound = _bound(trial.value for trial in trials if trial.value is not None)
    for trial in trials:
        if trial.params and trial.value is not None and _positive(trial.value) and trial.value <= bound:
            groups.setdefault(tuple(sorted(trial.params.items())), set()).add(math.log(trial.value))
    repeated = [np.array(sorted(values)) for values in groups.values() if len(values) > 1]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    return squares, sum(len(values) - 1 for values in repeated)


def _bound(finals: Iterable[float]) -> float:
    """The loss above which trainings of a study have collapsed."""
    return COLLAPSED * min((final for final in finals if _positive(final)), default=math.inf)


def _positive(*losses: float) -> bool:
    return all(math.isfinite(loss) and loss > 0 for loss in losses)
