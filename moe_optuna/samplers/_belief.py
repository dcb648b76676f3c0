"""`Belief`: what the runs of a study and of its parents say about every architecture of a phase's lattice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError
from moe_optuna.samplers import _compat
from moe_optuna.samplers._acquisition import believe, expected_improvement, success, value_of_information
from moe_optuna.samplers._features import Features
from moe_optuna.samplers._history import History, Run
from moe_optuna.samplers._opening import best_near

if TYPE_CHECKING:
    from optuna.study import Study

    from moe_optuna.laws.band import Optimum
    from moe_optuna.laws.surrogate import Observations, Surrogate
    from moe_optuna.space import Axis, Phase

__all__ = ["Belief", "Parent"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_BAND = 0.001
_SHORTLIST = 256  # candidates whose joint posterior is worked out
_DECEIVED = 0.05  # a law that fits is found wrong this often, which costs it no more than the edges of its band
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
        """The parent, checked.

        Raises:
            InputError: Where the study does not say its budget.
        """
        compute = _compat.study_user_attrs(study).get("compute")
        if not isinstance(compute, (int, float)) or not compute > 0:
            raise InputError(
                f"user attribute 'compute' is {compute!r}, expected the budget in FLOPs", where=study.study_name
            )
        return cls(study, float(compute), phase, features)

    @cached_property
    def history(self) -> History:
        return History(self._locate)

    def runs(self) -> list[Run]:
        """Runs with a loss or a bound of it, as of now.

        Raises:
            InputError: Where trials have finished but none has the phase's parameters.
        """
        trials = _compat.all_trials(self.study)
        self.history.read(trials)
        if not self.history.runs and any(trial.state.is_finished() and trial.params for trial in trials):
            names = ", ".join(axis.name for axis in self.phase.axes)
            raise InputError(f"no trial has the parameters {names}, expected a study of the same phase",
                             where=self.study.study_name)  # fmt: skip
        return self.history.informative

    def _locate(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> int | None:
        if not all(axis.name in params for axis in self.phase.axes):
            return None
        unit = np.array([float(axis.to_unit([params[axis.name]])[0]) for axis in self.phase.axes])
        inputs = self.features.of_trial(unit, attributes)
        place = self._places.setdefault(tuple(np.round(inputs, 9)), len(self.inputs))
        if place == len(self.inputs):
            self.inputs.append(inputs)
        return place


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
        self._n_startup = 2 * len(phase.axes) + 1 if n_startup is None else n_startup
        self._base: tuple[tuple[int, ...], Surrogate] | None = None
        self._state: tuple[tuple[int, ...], Surrogate] | None = None
        self._inheritance: tuple[tuple[int, ...], Surrogate] | None = None
        self._focus: Indices | None = None
        self._field: tuple[Indices, Array, Array] | None = None
        self._inherited = 0

    # ---- learning

    def learn(self, history: History) -> None:
        """Take in all finished runs.

        The law and the kernel are learned anew at run numbers that grow geometrically; between them further runs are
        conditioned on. Which numbers these are depends on nothing but the count, so a reloaded study learns the same.
        """
        inherited = [(parent, parent.runs()) for parent in self._parents]
        own = history.informative
        self._inherited = sum(len(runs) for _, runs in inherited)
        if not own and not self._inherited:
            self._base = self._state = None
            return
        size = _scheduled(len(own))
        parents = tuple(len(runs) for _, runs in inherited)
        base, state = (id(history), size, *parents), (id(history), len(own), *parents)
        if self._state and self._state[0] == state:
            return
        if not self._base or self._base[0] != base:
            self._base, self._focus = (base, self._fit(inherited, own[:size])), None
        surrogate = self._base[1]
        if own[size:]:
            surrogate = surrogate.condition(self._observations([], own[size:]))
        self._state, self._field = (state, surrogate), None

    @property
    def informed(self) -> bool:
        """Whether there is anything to learn from."""
        return self._state is not None

    def _fit(self, inherited: Sequence[tuple[Parent, list[Run]]], own: Sequence[Run]) -> Surrogate:
        from moe_optuna.laws.surrogate import Surrogate

        arrays = self._phase.lattice.arrays
        shared = arrays["n_shared_experts"]
        pole = float(((arrays["n_experts"] + shared) / np.maximum(arrays["top_k"] + shared, 1)).max())
        surrogate = Surrogate(self._axes, pole=max(pole, 1 + 1e-6), seed=self._seed)
        return surrogate.fit(self._observations(inherited, own))

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
            censored=np.array([run.censored for *_, run, _ in rows], dtype=bool),
            group=np.array([group for *_, group in rows], dtype=np.int64),
        )

    # ---- answers

    def optimum(self, history: History) -> tuple[int, Optimum]:
        """The architecture of the least expected loss among those that can be expected to finish."""
        usable = np.flatnonzero(self._hopeful(history))
        found = self._surrogate.optimum(self._phase.compute, self._inputs[usable], width=_BAND)
        return int(usable[found.index]), found

    def choose(self, history: History, allowed: Indices) -> int | None:
        """The architecture to run next, out of `allowed` (a,); ``None`` while the start is not complete.

        Parents take the start's place: what they foretell comes first, and once they prove wrong, what tells most.
        """
        begun = len(history.taken)
        hopeful = np.flatnonzero(self._hopeful(history))
        hoped = allowed[np.isin(allowed, hopeful)]
        allowed = hoped if len(hoped) else allowed
        if self._inherited:
            if begun <= 2 * len(self._phase.axes) and not self._deceived(history):
                return self._foretold(begun, allowed, hopeful)
        elif begun < self._n_startup or not self.informed:
            return None
        return self._most_telling(history, allowed, hopeful)

    def _foretold(self, begun: int, allowed: Indices, hopeful: Indices) -> int:
        """First the predicted optimum; then, axis by axis, the best architecture near each edge of the band."""
        mean, _ = self._surrogate.predict(self._phase.compute, self._inputs[allowed])
        if not begun:
            return int(allowed[np.argmin(mean)])
        axis, side = divmod(begun - 1, 2)
        band = self._surrogate.band(self._phase.compute, self._inputs[hopeful], axis, width=_BAND)
        distance = np.abs(self._inputs[allowed, axis] - (band.low, band.high)[side])
        return int(allowed[best_near(distance, mean)])

    def _deceived(self, history: History) -> bool:
        """Whether the study's first runs contradict what its parents predicted for them: a chi-square test."""
        from scipy.special import chdtrc

        runs = [run for run in history.informative if not run.censored]
        if not runs:
            return False
        inherited = [(parent, parent.runs()) for parent in self._parents]
        key = tuple(len(found) for _, found in inherited)
        if self._inheritance is None or self._inheritance[0] != key:
            self._inheritance = key, self._fit(inherited, [])
        parental = self._inheritance[1]
        mean, cov = parental.joint(self._phase.compute, self._inputs[[run.index for run in runs]])
        missed = np.array([run.loss for run in runs]) - mean
        cov = cov + np.diag((parental.noise_ * mean) ** 2)
        return bool(chdtrc(len(runs), missed @ np.linalg.solve(cov, missed)) < _DECEIVED)

    def _most_telling(self, history: History, allowed: Indices, hopeful: Indices) -> int:
        """The allowed architecture a run of which has the greatest value of information."""
        places, mean, cov = self._joint(allowed)
        kept = np.isin(places, hopeful) | np.isin(places, allowed)
        places, mean, cov = places[kept], mean[kept], cov[np.ix_(kept, kept)]
        noise = (self._surrogate.noise_ * float(mean.min())) ** 2
        cov = believe(cov, noise, np.flatnonzero(np.isin(places, list(history.pending.values()))))
        worth = value_of_information(mean, cov, noise, _BAND) * self._success(history, places)
        return int(places[np.argmax(np.where(np.isin(places, allowed), worth, -1.0))])

    def _joint(self, allowed: Indices) -> tuple[Indices, Array, Array]:
        """Places (k,) in the lattice with the mean (k,) and covariance (k, k) of their losses.

        All of the lattice up to `_SHORTLIST`. Of a larger one those that led when the surrogate was last learned, by
        expected improvement or by their best case, for which it is traversed as a whole; where what is fixed in a
        trial allows none of these, the leading ones of those that it does.
        """
        if self._focus is None:
            assert self._base is not None
            self._focus = self._leading(self._base[1], np.arange(len(self._inputs)))
        if self._field is None:
            self._field = self._focus, *self._surrogate.joint(self._phase.compute, self._inputs[self._focus])
        if np.isin(self._focus, allowed).any():
            return self._field
        places = np.union1d(self._focus, self._leading(self._surrogate, allowed))
        return places, *self._surrogate.joint(self._phase.compute, self._inputs[places])

    def _leading(self, surrogate: Surrogate, places: Indices) -> Indices:
        if len(places) <= _SHORTLIST:
            return places
        mean, sd = surrogate.predict(self._phase.compute, self._inputs[places])
        scores = -expected_improvement(mean, sd, float(mean.min())), mean - 2 * sd
        best = [np.argsort(score, kind="stable")[: _SHORTLIST // 2] for score in scores]
        return np.sort(places[np.union1d(*best)])

    def _success(self, history: History, indices: Indices) -> Array:
        """Probability that a run of each architecture ends with a loss, (len(indices),)."""
        failed = history.failed
        if not failed:
            return np.ones(len(indices))
        good = sorted({run.index for run in history.runs if not run.failed})
        odds = success(self._inputs[indices], self._inputs[failed], self._inputs[good])
        odds[np.isin(indices, failed)] = 0.0
        return odds

    def _hopeful(self, history: History) -> NDArray[np.bool_]:
        """Which architectures of the lattice are likelier to finish than to fail, (m,); all where none is."""
        likely: NDArray[np.bool_] = self._success(history, np.arange(len(self._inputs))) >= 0.5
        return likely if likely.any() else ~likely

    @property
    def _surrogate(self) -> Surrogate:
        assert self._state is not None
        return self._state[1]


def _scheduled(count: int) -> int:
    """The largest number of runs up to `count` at which the surrogate is learned anew."""
    size = min(count, _EACH)
    while size < count and (grown := max(size + 1, int(size * _GROWTH))) <= count:
        size = grown
    return size
