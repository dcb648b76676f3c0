"""`Belief`: what the runs of a study and of its parents say about every architecture of a phase's lattice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError
from moe_optuna.laws import BAND
from moe_optuna.samplers import _compat
from moe_optuna.samplers._acquisition import Odds, believe, expected_improvement, value_of_information
from moe_optuna.samplers._features import Features
from moe_optuna.samplers._history import History, Run
from moe_optuna.samplers._opening import best_near

if TYPE_CHECKING:
    from optuna.study import Study

    from moe_optuna.laws.band import Optimum
    from moe_optuna.laws.surrogate import Field, Observations, Surrogate
    from moe_optuna.space import Axis, Phase

__all__ = ["Belief", "Parent", "budget_of"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

_SHORTLIST = 256  # candidates whose joint posterior is worked out
_EACH = 16  # runs up to which every new one refits the surrogate; beyond, one in _GROWTH of them
_GROWTH = 1.125


@dataclass
class Parent:
    """A study at another budget, read where it is.

    Attributes:
        study: The study.
        compute: Its budget in FLOPs.
        phase, features: What it is read for.
        inputs: The surrogate's inputs of the architectures tried; an architecture's number is its place here.
    """

    study: Study
    compute: float
    phase: Phase
    features: Features
    inputs: list[Array] = field(default_factory=list)
    _places: dict[tuple[float, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, phase: Phase, features: Features) -> Parent:
        """The parent, with its budget as `budget_of` reads it."""
        return cls(study, budget_of(study), phase, features)

    @cached_property
    def history(self) -> History:
        return History(self._locate, self.study.study_name)

    def runs(self) -> list[Run]:
        """Runs with a loss or a forecast of it, as of now.

        Raises:
            InputError: Where trials have finished but none has the phase's parameters.
        """
        trials = _compat.all_trials(self.study)
        self.history.read(trials)
        if not self.history.runs:  # of the phase's trials some may have been interrupted, which says nothing
            finished = [trial for trial in trials if trial.state.is_finished() and trial.params]
            if finished and not any(self._has_axes(trial.params) for trial in finished):
                names = ", ".join(axis.name for axis in self.phase.axes)
                raise InputError(f"no trial has the parameters {names}, expected a study of the same phase",
                                 where=self.study.study_name)  # fmt: skip
        return self.history.informative

    def _locate(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> int | None:
        if not self._has_axes(params):
            return None
        unit = np.array([float(axis.to_unit([params[axis.name]])[0]) for axis in self.phase.axes])
        inputs = self.features.of_trial(unit, attributes)
        place = self._places.setdefault(tuple(np.round(inputs, 9)), len(self.inputs))
        if place == len(self.inputs):
            self.inputs.append(inputs)
        return place

    def _has_axes(self, params: Mapping[str, Any]) -> bool:
        return all(isinstance(params.get(axis.name), Real) for axis in self.phase.axes)


def budget_of(study: Study) -> float:
    """The budget of a study in FLOPs, its user attribute `compute`.

    Raises:
        InputError: Where it has none.
    """
    compute = _compat.study_user_attrs(study).get("compute")
    if isinstance(compute, bool) or not isinstance(compute, (int, float)) or not 0 < compute < math.inf:
        raise InputError(
            f"user attribute 'compute' is {compute!r}, expected the budget in FLOPs", where=study.study_name
        )
    return float(compute)


class Belief:
    """The surrogate over a phase's lattice, and the choice of the next run.

    Args:
        phase: Whose lattice.
        features: What the surrogate sees of it.
        parents: Studies at other budgets.
        seed: For draws inside the surrogate.
        n_startup: Runs before the surrogate chooses where no parent tells anything.
    """

    def __init__(
        self, phase: Phase, features: Features, parents: Sequence[Parent], *, seed: int, n_startup: int | None
    ) -> None:
        self._phase = phase
        self._inputs = features.all
        self._axes: tuple[Axis | str, ...] = (*phase.axes, *features.names)
        self._parents = parents
        self._seed = seed % 2**31
        self._n_startup = len(phase.axes) + 1 if n_startup is None else n_startup
        self._history = History(lambda *_: None)
        self._odds = Odds(self._inputs)
        self._learned: tuple[list[Run], ...] = ()
        self._base: Surrogate | None = None
        self._since: list[Run] = []
        self._known: tuple[int, Surrogate] | None = None
        self._field: tuple[Indices, Field, int] | None = None
        self._inherited = 0

    # ---- learning

    def learn(self, history: History) -> None:
        """Take in all finished runs.

        The law and the kernel are learned anew at run numbers that grow geometrically; between them further runs are
        conditioned on. Which numbers these are depends on nothing but the count, so a reloaded study learns the same.
        """
        if history is not self._history:
            self._history, self._odds, self._learned = history, Odds(self._inputs), ()
        inherited = [(parent, parent.runs()) for parent in self._parents]
        own = history.informative
        self._inherited = sum(len(runs) for _, runs in inherited)
        size = _scheduled(len(own))
        # Runs, not their number: what collapses goes out while others come in, and what is told late comes in between.
        learned = (own[:size], *(runs for _, runs in inherited))
        if self._learned != learned or self._since != own[size:][: len(self._since)]:
            self._base = self._fit(inherited, own[:size]) if size or self._inherited else None
            self._learned, self._known, self._field = learned, None, None
        self._since = own[size:]

    @property
    def informed(self) -> bool:
        """Whether there is anything to learn from."""
        return self._base is not None

    def _fit(self, inherited: Sequence[tuple[Parent, list[Run]]], own: Sequence[Run]) -> Surrogate:
        from moe_optuna.laws.surrogate import Surrogate

        arrays = self._phase.lattice.arrays
        shared = arrays["n_shared_experts"]
        pole = float(((arrays["n_experts"] + shared) / np.maximum(arrays["top_k"] + shared, 1)).max())
        surrogate = Surrogate(self._axes, pole=max(pole, 1 + 1e-6), seed=self._seed)
        return surrogate.fit(self._observations(inherited, own), compute=self._phase.compute)

    def _observations(self, inherited: Sequence[tuple[Parent, list[Run]]], own: Sequence[Run]) -> Observations:
        from moe_optuna.laws.surrogate import Observations

        rows = [
            (parent.compute, parent.inputs[run.index], run, (number + 1) * 10**9 + run.index)
            for number, (parent, runs) in enumerate(inherited)
            for run in runs
        ]
        rows += [(self._phase.compute, self._inputs[run.index], run, run.index) for run in own]
        return Observations(
            compute=np.array([compute for compute, *_ in rows]),
            coordinates=np.array([unit for _, unit, *_ in rows]),
            loss=np.array([run.loss for *_, run, _ in rows], dtype=float),
            group=np.array([group for *_, group in rows], dtype=np.int64),
            vague=np.array([run.vague for *_, run, _ in rows]),
        )

    # ---- answers

    def optimum(self) -> tuple[int, Optimum]:
        """The architecture to recommend, among those that can be expected to finish."""
        usable = np.flatnonzero(_hopeful(self._odds.finishing(self._history.ended)))
        found = self._surrogate.optimum(self._phase.compute, self._inputs[usable], width=BAND)
        return int(usable[found.index]), found

    def choose(self, allowed: Indices) -> int | None:
        """The architecture to run next, out of `allowed` (a,); ``None`` while the start is not complete.

        Parents take the start's place: the optimum that they foretell and, until a run has ended and says what tells
        more, the edges of its band.
        """
        begun = len(self._history.taken)
        odds = self._odds.finishing(self._history.ended)
        hopeful = _hopeful(odds)
        allowed = allowed[hopeful[allowed]] if hopeful[allowed].any() else allowed
        if self._inherited:
            if begun <= 2 * len(self._phase.axes) and not self._history.informative:
                return self._foretold(begun, allowed, hopeful)
        elif begun < self._n_startup or not self.informed:
            return None
        return self._most_telling(allowed, odds)

    def _foretold(self, begun: int, allowed: Indices, hopeful: Mask) -> int:
        """First the predicted optimum; then, axis by axis, the best architecture near each edge of the band."""
        mean, _ = self._surrogate.predict(self._phase.compute, self._inputs[allowed])
        if not begun:
            return int(allowed[np.argmin(mean)])
        axis, side = divmod(begun - 1, 2)
        band = self._surrogate.band(self._phase.compute, self._inputs[hopeful], axis, width=BAND)
        distance = np.abs(self._inputs[allowed, axis] - (band.low, band.high)[side])
        return int(allowed[best_near(distance, mean)])

    def _most_telling(self, allowed: Indices, odds: Array) -> int:
        """The allowed architecture a run of which has the greatest value of information."""
        assert self._base is not None
        places, mean, cov = self._joint(allowed)
        may_run = _mask(allowed, len(odds))
        kept = (_hopeful(odds) | may_run)[places]
        if not kept.all():
            places, mean, cov = places[kept], mean[kept], cov[np.ix_(kept, kept)]
        noise = (self._base.noise_ * float(mean.min())) ** 2
        pending = _mask(list(self._history.pending.values()), len(odds))[places]
        cov, among = believe(cov, noise, np.flatnonzero(pending)), np.flatnonzero(may_run[places])
        worth = value_of_information(mean, cov, noise, BAND, among) * odds[places[among]]
        return int(places[among[worth.argmax()]])

    def _joint(self, allowed: Indices) -> tuple[Indices, Array, Array]:
        """Places (k,) in the lattice with the mean (k,) and covariance (k, k) of their losses.

        All of the lattice up to `_SHORTLIST`. Of a larger one those that led when the surrogate was last learned, by
        expected improvement or by their best case, for which it is traversed as a whole, and where runs have ended
        since; where what is fixed in a trial allows none of these, the leading ones of those that it does.
        """
        assert self._base is not None
        places, field, seen = self._field or (self._leading(self._base, np.arange(len(self._inputs))), None, 0)
        outside = np.setdiff1d(np.array([run.index for run in self._since[seen:]], dtype=np.intp), places)
        if field is None or len(outside):
            places = np.union1d(places, outside)
            field, seen = self._base.field(self._phase.compute, self._inputs[places]), 0
        for run in self._since[seen:]:
            assert run.loss is not None
            field = field.observe(int(np.searchsorted(places, run.index)), run.loss, vague=run.vague)
        self._field = places, field, len(self._since)
        if _mask(allowed, len(self._inputs))[places].any():
            return places, *field.joint()
        places = np.union1d(places, self._leading(self._surrogate, allowed))
        return places, *self._surrogate.joint(self._phase.compute, self._inputs[places])

    def _leading(self, surrogate: Surrogate, places: Indices) -> Indices:
        if len(places) <= _SHORTLIST:
            return places
        mean, sd = surrogate.predict(self._phase.compute, self._inputs[places])
        scores = -expected_improvement(mean, sd, float(mean.min())), mean - 2 * sd
        best = [np.argsort(score, kind="stable")[: _SHORTLIST // 2] for score in scores]
        return np.sort(places[np.union1d(*best)])

    @property
    def _surrogate(self) -> Surrogate:
        """The surrogate with all runs; conditioned on those since it was learned when it is first asked for."""
        assert self._base is not None
        if self._known is None or self._known[0] != len(self._since):
            runs = self._observations([], self._since)
            self._known = len(self._since), self._base.condition(runs) if self._since else self._base
        return self._known[1]


def _hopeful(odds: Array) -> Mask:
    """Which architectures of the lattice are likelier to finish than to fail, (m,); all where none is."""
    likely: Mask = odds >= 0.5
    return likely if likely.any() else ~likely


def _mask(places: Indices | list[int], size: int) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[places] = True
    return mask


def _scheduled(count: int) -> int:
    """The largest number of runs up to `count` at which the surrogate is learned anew."""
    size = min(count, _EACH)
    while size < count and (grown := max(size + 1, int(size * _GROWTH))) <= count:
        size = grown
    return size
