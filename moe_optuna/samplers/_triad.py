"""`TriadSampler`: choose the next architecture of a phase's lattice so that the optimum and its band become known."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, of_kind, whole_number
from moe_optuna.pruners import parental
from moe_optuna.samplers import _compat
from moe_optuna.samplers._belief import Belief, Parent, budget_of
from moe_optuna.samplers._design import fill
from moe_optuna.samplers._features import Features
from moe_optuna.samplers._history import ABSURD, History
from moe_optuna.samplers._opening import Opening

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from moe_optuna.laws import LadderLaws
    from moe_optuna.space import Phase

__all__ = ["Recommendation", "TriadSampler"]

_logger = logging.getLogger("optuna.moe_optuna")
_NEAR = 128  # lattice points whose fixed coordinates are nearest, tried where a float coordinate is fixed

Indices = NDArray[np.intp]
Histories = WeakKeyDictionary[BaseStorage, dict[int, History]]
"""What has been read of a study, by its number in its storage; an id would come back with another study."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The surrogate's optimum: what a study has found, rather than its luckiest trial.

    Attributes:
        architecture: The one for which expected loss plus a quarter of its standard deviation is least.
        coordinates: Its reduced coordinates by name.
        loss: The expected loss without seed noise, nats per token.
        interval: Its 95 % interval.
        in_band: Probability that the loss is within the near-optimal band, 0.1 % of the least over the lattice.
    """

    architecture: MoEArchitecture
    coordinates: dict[str, float]
    loss: float
    interval: tuple[float, float]
    in_band: float


class TriadSampler(BaseSampler):
    """Sampler over a phase's lattice: every proposal is an architecture that meets the triad, and none comes twice.

    It starts with points that cover the lattice, or, with parents, with the optimum that they predict and, until a run
    has ended, the edges of its band. Then a surrogate, a scaling law with a Gaussian process on what the law misses, is
    asked at every architecture of the lattice what a run there would tell about the optimum and the band. Running
    trials count as run; pruned trials count with what their curve foretold; what lies near failed trials is avoided.

    What it proposes follows from `seed` and the trials in the storage alone, so that a study continues after a reload
    as if it had not been interrupted, and processes that share a storage do not propose the same.

    Once every architecture has been proposed, `Study.optimize` is stopped after the trial at hand. Whoever asks further
    gets repeats, the most telling first, for runs with another seed.

    Example::

        phase = SearchSpace.load("cpu").phase_one(3e11)
        sampler = TriadSampler(phase, seed=0)
        study = optuna.create_study(sampler=sampler)
        study.optimize(LightningObjective(phase), n_trials=20, catch=(TrainingFailure,))
        sampler.recommend(study)

    Args:
        phase: What to search.
        parents: Studies of the same phase at other budgets, each with its budget in FLOPs in the user attribute
            `compute`. They are read where they are, at every call, and never copied.
        laws: Those of an earlier search (`LadderLaws`, its laws.json), or the published ones: without parents, the
            first trials are the optimum that they predict and the edges of its band. What is found then counts alone.
        seed: Seed of everything random here.
        n_startup: Trials before the surrogate chooses; by default one for each axis and one. Where a
            parent has runs there is no such start.
        independent_sampler: Sampler of parameters that are not of the phase; `RandomSampler` by default.

    Raises:
        InputError: Where an argument is of another kind, a parent does not minimise one value or does not say its
            budget, or the laws know none of the phase's axes; at a call, where a study is its own parent.
    """

    def __init__(
        self,
        phase: Phase,
        *,
        parents: Sequence[Study] = (),
        laws: LadderLaws | None = None,
        seed: int | None = None,
        n_startup: int | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        from moe_optuna.space import Phase

        of_kind(phase, Phase, "a phase of a space", where="phase")
        if n_startup is not None:
            n_startup = whole_number(n_startup, "n_startup", least=0)
        if seed is not None:
            seed = whole_number(seed, "seed", least=0)
        self._phase = phase
        self._parents = parental(parents)
        for parent in self._parents:
            budget_of(parent)
        self._opening = Opening(laws, phase) if laws is not None else None
        self._seed = seed
        self._n_startup = n_startup
        # Optuna's seeds have 32 bits.
        self._independent_sampler = independent_sampler or RandomSampler(seed=None if seed is None else seed % 2**32)
        self._entropy: int | None = seed
        self._belief: Belief | None = None
        self._histories: Histories = WeakKeyDictionary()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # What has been read and learned can be read and learned again; locks do not travel.
        return self.__dict__ | {"_belief": None, "_histories": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _histories=WeakKeyDictionary(), _lock=threading.RLock())

    def reseed_rng(self) -> None:
        """Reseed the independent sampler; threads of one study see each other's proposals and need no other seed."""
        self._independent_sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._independent_sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: item for name, item in self._phase.distributions.items() if not item.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._check(study)
        names = [name for name in search_space if name in self._phase.distributions]
        params = {
            name: self._independent_sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in names
        }
        if names:
            chosen = self._propose(study, trial)
            params |= {name: chosen[name] for name in names}
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._check(study)
        if param_name in self._phase.distributions:
            raise InputError(
                f"suggested with {param_distribution}, expected {self._phase.distributions[param_name]}; "
                f"let `phase.suggest(trial)` do it",
                where=param_name,
            )
        return self._independent_sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._independent_sampler.after_trial(study, trial, state, values)
        with self._lock:
            history = self._read(study)
            exhausted = not history.waiting and len(history.taken) >= len(self._phase.lattice)
        if exhausted:
            try:
                study.stop()
            except RuntimeError:  # ask and tell: nothing runs that could be stopped
                return
            _logger.info(f"All {len(self._phase.lattice)} architectures of {self._phase.name} have been proposed.")

    def recommend(self, study: Study) -> Recommendation:
        """The architecture that the surrogate expects to be best, with its uncertainty, a quarter of whose standard
        deviation counts against it: of two that promise the same the better known is chosen.

        Architectures that failed, and those most of whose neighbours failed, are left out.

        Raises:
            InputError: Where neither the study nor a parent has a finished trial, or a loss is not positive.
        """
        self._check(study)
        with self._lock:
            belief = self._learned(study)
            if not belief.informed:
                found = "no finished trial"
                if count := sum(trial.state == TrialState.COMPLETE for trial in _compat.all_trials(study)):
                    trials = f"{count} finished trial{'s' * (count > 1)}"
                    found = f"{trials}, none of the phase with a positive loss below {ABSURD:.0e} nats per token"
                raise InputError(f"{found}; expected at least one", where=study.study_name)
            index, optimum = belief.optimum()
        coordinates = self._phase.coordinates[index]
        return Recommendation(
            architecture=self._phase.lattice[index],
            coordinates={axis.name: float(x) for axis, x in zip(self._phase.axes, coordinates, strict=True)},
            loss=optimum.loss,
            interval=optimum.interval,
            in_band=optimum.in_band,
        )

    # ---- proposing

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Parameters, the fixed ones among them, that mean a new architecture, claimed in the storage.

        Where two processes claim the same one, at least one sees the other's claim after its own and chooses anew, so
        that no two keep it.
        """
        decided = _compat.fixed_params(study, trial)
        fixed = {name: decided[name] for name in self._phase.distributions if name in decided}
        refused: set[int] = set()
        with self._lock:
            # By an earlier attempt, which ended before it had suggested all.
            claimed = self._locate(_compat.claimed(trial) or {}, {})
            if claimed is not None and claimed not in self._read(study).taken_but(trial.number):
                params = self._phase.params(claimed)
                if fixed.items() <= params.items():
                    return params
            while True:
                source, index, new = self._choose(study, trial, fixed, refused)
                if index is None:
                    break
                _compat.claim(study, trial, self._phase.params(index))
                if not new or index not in self._read(study).taken_but(trial.number):
                    break
                refused.add(index)
        return {**self._phase.params(source), **fixed}

    def _choose(
        self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any], refused: set[int]
    ) -> tuple[int, int | None, bool]:
        """The lattice point whose parameters to propose, the one that they mean together with the fixed ones, and
        whether no trial has proposed that yet."""
        belief = self._learned(study)
        history = self._read(study)
        history.pending.pop(trial.number, None)  # what an earlier attempt of this trial claimed is not taken
        sources, meant = self._conditioned(fixed)
        if not len(meant):
            return int(sources[0]), None, False  # `phase.suggest` will say why nothing is near
        taken = history.taken | refused
        untried = np.ones(len(self._phase.lattice), dtype=bool)
        untried[list(taken)] = False
        open_ = untried[meant]
        new = bool(open_.any())
        if not new:
            failed = np.array([history.ended.get(int(index), False) for index in meant])
            open_ = ~failed if not failed.all() else ~open_
            _logger.warning(f"Trial {trial.number} repeats an architecture: all that it may propose have been.")
        allowed = meant[open_]
        begun = len(history.taken)
        index = self._opening.choose(begun, allowed) if self._opening is not None and not self._parents else None
        if index is None:
            index = belief.choose(allowed)
        if index is None:
            random = np.random.default_rng([self._base(), trial.number, len(refused)])
            index = fill(self._phase.unit, allowed, np.flatnonzero(~untried), random)
        return int(sources[meant == index][0]), index, new

    def _conditioned(self, fixed: Mapping[str, Any]) -> tuple[Indices, Indices]:
        """Lattice points to take the free parameters from, and those that they mean with the fixed ones, both (n,)."""
        everything = np.arange(len(self._phase.lattice))
        if not fixed:
            return everything, everything
        distance = np.zeros(len(everything))
        exact = True
        for position, axis in enumerate(self._phase.axes):
            if axis.name not in fixed:
                continue
            if axis.choices:
                distance[self._phase.coordinates[:, position] != fixed[axis.name]] = np.inf
            else:
                exact = False
                distance += np.abs(self._phase.unit[:, position] - axis.to_unit([fixed[axis.name]])[0])
        order = np.argsort(distance, kind="stable")
        near = order[np.isfinite(distance[order])]
        if exact:
            return (near, near) if len(near) else (order[:1], near)
        sources: dict[int, int] = {}
        for source in near[:_NEAR]:
            index = self._phase.index({**self._phase.params(int(source)), **fixed})
            if index is not None:
                sources.setdefault(index, int(source))
        if not sources:
            return order[:1], np.empty(0, dtype=np.intp)
        return np.array(list(sources.values())), np.array(list(sources))

    # ---- reading and learning

    def _read(self, study: Study) -> History:
        storage, number = _compat.study_key(study)
        histories = self._histories.setdefault(storage, {})
        if (history := histories.get(number)) is None:
            history = histories[number] = History(self._locate, study.study_name)
        history.read(_compat.all_trials(study))
        return history

    def _learned(self, study: Study) -> Belief:
        """What the study and its parents say, kept until they say more."""
        if self._belief is None:
            features = Features.of(self._phase)
            parents = tuple(Parent.of(parent, self._phase, features) for parent in self._parents)
            self._belief = Belief(self._phase, features, parents, seed=self._base(), n_startup=self._n_startup)
        self._belief.learn(self._read(study))
        return self._belief

    def _locate(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> int | None:
        if not self._phase.distributions.keys() <= params.keys():
            return None
        return self._phase.index(params)

    def _base(self) -> int:
        if self._entropy is None:
            self._entropy = int(np.random.SeedSequence().generate_state(1)[0])
        return self._entropy

    def _check(self, study: Study) -> None:
        self._raise_error_if_multi_objective(study)
        if study.direction != StudyDirection.MINIMIZE:
            raise InputError("maximises, expected a study that minimises the loss", where=study.study_name)
        # By name and budget, not by identity: a study is often loaded twice, each time with a storage of its own.
        for parent in self._parents:
            if parent.study_name == study.study_name and budget_of(parent) == self._phase.compute:
                raise InputError("its own parent, expected studies at other budgets", where=study.study_name)
