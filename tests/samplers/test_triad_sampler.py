"""No infeasible proposal and no duplicate, whoever asks and however; the recommendation finds the band."""

import contextlib
import copy
import math
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import PartialFixedSampler
from optuna.trial import FrozenTrial, TrialState

from moe_optuna import problems
from moe_optuna.errors import InputError
from moe_optuna.pruners import BandPruner
from moe_optuna.samplers import TriadSampler, _compat
from moe_optuna.space import Phase, SearchSpace

Objective = Callable[[optuna.Trial], float]


def smooth(phase: Phase, noise: float = 0.0, fails: bool = False) -> Objective:
    """A bowl over the unit coordinates; with `fails`, its left third fails."""

    def objective(trial: optuna.Trial) -> float:
        phase.suggest(trial)
        index = phase.index(trial.params)
        assert index is not None
        unit = phase.unit[index]
        if fails and unit[0] < 0.33:
            raise MemoryError
        random = np.random.default_rng(trial.number)
        return float(3 + 0.3 * ((unit - 0.6) ** 2).sum() + noise * random.standard_normal())

    return objective


def assert_sound(study: optuna.Study, phase: Phase, *, exact: bool = True) -> None:
    """Every trial proposed an architecture of the lattice, none twice, and the parameters are exactly its own."""
    trials = [trial for trial in study.trials if trial.state != TrialState.WAITING]
    assert not any("infeasible" in trial.user_attrs for trial in trials)
    indices = [phase.index(trial.params) for trial in trials]
    assert None not in indices
    assert len(set(indices)) == len(indices)
    if exact:
        for index, trial in zip(indices, trials, strict=True):
            assert index is not None
            assert trial.params == phase.params(index)


def test_serial(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=25)
    assert_sound(study, phase)
    assert all(type(value) in (int, float) for trial in study.trials for value in trial.params.values())


def test_discrete_axes(phase_two: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase_two, seed=0))
    study.optimize(smooth(phase_two), n_trials=min(20, len(phase_two.lattice)))
    assert_sound(study, phase_two)


def test_phase_zero(space: SearchSpace) -> None:
    phase = space.phase_zero(space.budgets[0])
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=10)
    assert_sound(study, phase)


def test_threads(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=24, n_jobs=2)
    assert len(study.trials) == 24
    assert_sound(study, phase)


def test_parallel_asks_spread(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=8)
    asked = [study.ask(phase.distributions) for _ in range(8)]
    assert_sound(study, phase)
    units = np.array([phase.unit[phase.index(trial.params)] for trial in asked])
    gaps = np.abs(units[:, None] - units[None]).max(-1)[np.triu_indices(8, 1)]
    assert gaps.max() > 0.1  # a batch is no heap of neighbours


def test_two_processes_that_choose_at_once(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both samplers have read the storage and chosen before either writes: the worst interleaving."""
    storage = optuna.storages.InMemoryStorage()
    claim, both, claims = _compat.claim, threading.Barrier(2), []

    def claim_together(study: optuna.Study, trial: FrozenTrial, params: dict[str, float]) -> None:
        claims.append(params)
        with contextlib.suppress(threading.BrokenBarrierError):  # the other has finished
            both.wait(timeout=60)
        claim(study, trial, params)

    def work(study: optuna.Study) -> None:
        try:
            study.optimize(smooth(phase), n_trials=9)
        finally:
            both.abort()

    studies = [
        optuna.create_study(
            storage=storage, study_name="shared", load_if_exists=True, sampler=TriadSampler(phase, seed=3)
        )
        for _ in range(2)
    ]
    studies[0].optimize(smooth(phase), n_trials=6)  # from which both draw the same conclusion
    monkeypatch.setattr(_compat, "claim", claim_together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, studies))
    assert claims[0] == claims[1]  # they met
    assert len(studies[0].trials) == 24
    assert_sound(studies[0], phase)


def test_what_ran_over_another_lattice_means_what_its_parameters_mean(space: SearchSpace, phase: Phase) -> None:
    """As after a kill and a change of the space: what was claimed there may lie beyond the end of this lattice."""
    finer = space.model_copy(update={"axes": space.axes.model_copy(update={"resolution": 0.02})})
    larger = finer.phase_one(phase.compute)
    study = optuna.create_study(sampler=TriadSampler(larger, seed=0))
    last = len(larger.lattice) - 1
    study.enqueue_trial({"compute_density": larger.params(last)["compute_density"]})
    assert larger.lattice.index(larger.suggest(study.ask())) > len(phase.lattice)
    study.sampler = TriadSampler(phase, seed=0)
    study.optimize(smooth(phase), n_trials=5)
    proposed = [phase.index(trial.params) for trial in study.trials]
    assert len(set(proposed)) == 6


def test_one_study_after_another(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that has seen a study knows nothing of it in the next, even where that stands at the same address."""
    monkeypatch.setattr(_compat, "id", lambda thing: 0, raising=False)
    used = TriadSampler(phase, seed=0)
    for sampler in (used, TriadSampler(phase, seed=0)):
        study = optuna.create_study(sampler=sampler)
        study.optimize(smooth(phase), n_trials=8)
        assert_sound(study, phase)
    again = optuna.create_study(sampler=used)
    again.optimize(smooth(phase), n_trials=8)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]


def test_reload_continues_as_if_uninterrupted(phase: Phase, tmp_path) -> None:  # type: ignore[no-untyped-def]
    def run(name: str, parts: list[int]) -> list[dict[str, float]]:
        for n_trials in parts:
            backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / f"{name}.log"))
            study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="s",
                load_if_exists=True,
                sampler=TriadSampler(phase, seed=5),
            )
            study.optimize(smooth(phase, noise=0.003), n_trials=n_trials)
        assert_sound(study, phase)
        return [trial.params for trial in study.trials]

    assert run("whole", [26]) == run("parts", [3, 9, 8, 6])


def test_same_seed_same_proposals_other_seed_others(phase: Phase) -> None:
    def params(seed: int) -> list[dict[str, float]]:
        study = optuna.create_study(sampler=TriadSampler(phase, seed=seed))
        study.optimize(smooth(phase, noise=0.01), n_trials=15)
        return [trial.params for trial in study.trials]

    assert params(0) == params(0)
    assert params(0) != params(1)


@settings(max_examples=10, deadline=None, phases=[HypothesisPhase.explicit, HypothesisPhase.generate], derandomize=True)
@given(data=st.data())
def test_enqueued_trials(phase: Phase, phase_two: Phase, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from([phase, phase_two]))
    study = optuna.create_study(sampler=TriadSampler(chosen, seed=data.draw(st.integers(0, 9))))
    for _ in range(data.draw(st.integers(1, 4))):
        params = chosen.params(data.draw(st.integers(0, len(chosen.lattice) - 1)))
        for name in data.draw(st.lists(st.sampled_from(sorted(params)), min_size=1, unique=True)):
            if len(params) > 1:
                del params[name]  # partly fixed: the sampler fills in the rest
        if data.draw(st.booleans()):
            axis = next(axis for axis in chosen.axes if axis.name in params)
            if not axis.choices:  # a float that no architecture has exactly
                params[axis.name] = float(axis.from_unit([data.draw(st.floats(0.25, 0.75))])[0])
        study.enqueue_trial(params)
        study.optimize(smooth(chosen), n_trials=data.draw(st.integers(1, 3)))
    proposed: set[int | None] = set()
    for trial in study.trials:
        fixed = trial.system_attrs.get("fixed_params", {})
        assert {name: trial.params[name] for name in fixed} == fixed
        index = chosen.index(trial.params)
        meant = {chosen.index({**chosen.params(i), **fixed}) for i in range(len(chosen.lattice))} - {None}
        if not meant:  # what was enqueued means no architecture, whatever the rest
            assert index is None
        elif meant <= proposed:  # nothing new was left to propose
            assert index in meant
        else:
            assert index in meant - proposed
        proposed.add(index)


def test_trials_whose_parameters_are_no_numbers_are_passed_over(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    words = {axis.name: optuna.distributions.CategoricalDistribution((None, "low")) for axis in phase.axes}
    for word in (None, "low"):
        study.add_trial(optuna.create_trial(value=3.0, params=dict.fromkeys(words, word), distributions=words))
    trial = study.ask()
    study.enqueue_trial(dict.fromkeys(words, "low"))
    assert phase.suggest(trial) in list(phase.lattice)


def test_what_waits_in_the_queue_is_not_proposed(phase: Phase) -> None:
    def proposal(queued: dict[str, float] | None) -> dict[str, float]:
        study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
        trial = study.ask()  # from an empty queue; parameters are drawn when first asked for
        if queued:
            study.enqueue_trial(queued)
        phase.suggest(trial)
        return trial.params

    first = proposal(None)
    assert proposal(first) != first


@pytest.mark.parametrize("which", [0, 1])
def test_partial_fixed_sampler(phase: Phase, which: int) -> None:
    fixed = {phase.axes[which].name: float(phase.axes[which].from_unit([0.5])[0])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = PartialFixedSampler(fixed, TriadSampler(phase, seed=0))
    study = optuna.create_study(sampler=sampler)
    study.optimize(smooth(phase), n_trials=8)
    assert all(trial.params[name] == value for trial in study.trials for name, value in fixed.items())
    assert_sound(study, phase, exact=False)


def test_hyperband_does_not_hide_other_brackets(phase: Phase) -> None:
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0), pruner=pruner)
    study.optimize(smooth(phase), n_trials=20)
    assert_sound(study, phase)


def test_failed_architectures_are_remembered_and_their_neighbourhood_avoided(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase, fails=True), n_trials=30, catch=MemoryError)
    assert_sound(study, phase)
    failing = phase.unit[:, 0] < 0.33
    fails = [trial.state == TrialState.FAIL for trial in study.trials]
    assert sum(fails[:15]) > 0
    assert sum(fails[15:]) <= 1  # where it fails has been learned
    recommended = study.sampler.recommend(study)  # type: ignore[attr-defined]
    assert not failing[phase.lattice.index(recommended.architecture)]


def test_pruned_trials_are_learned_from(phase: Phase) -> None:
    def objective(trial: optuna.Trial) -> float:
        loss = smooth(phase)(trial)
        for step in range(1, 5):
            trial.report(loss + 0.1 / step, step)
            if step == 2 and loss > 3.01 and trial.number > 3:
                raise optuna.TrialPruned
        return loss

    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(objective, n_trials=25)
    assert sum(trial.state == TrialState.PRUNED for trial in study.trials) > 3
    assert_sound(study, phase)
    sampler = study.sampler
    assert isinstance(sampler, TriadSampler)
    unit = phase.unit[phase.lattice.index(sampler.recommend(study).architecture)]
    assert ((unit - 0.6) ** 2).sum() < 0.02


def test_a_pruned_search_finds_what_an_unpruned_one_does() -> None:
    """What a curve foretold is believed no further than it was sure: else a corner full of pruned trials looks good."""
    excess = []
    for seed in (0, 2, 4):
        problem = problems.make("leverage", "lab", variant=seed)
        phase = problem.space.phase_one(problem.space.budgets[-1])
        study = optuna.create_study(sampler=TriadSampler(phase, seed=seed), pruner=BandPruner())
        study.optimize(problem.objective(phase, seed=seed, points=16), n_trials=16)
        assert sum(trial.state == TrialState.PRUNED for trial in study.trials) > 3
        found = study.sampler.recommend(study).architecture  # type: ignore[attr-defined]
        excess.append(problem.true_loss(found, phase.compute) / problem.optimum(phase).loss - 1)
    assert np.median(excess) < 0.001


def test_a_training_that_learned_nothing_counts_as_failed(phase: Phase) -> None:
    """Its loss, that of guessing, would say the same of all around it, and a penalty overflow."""
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))

    def objective(trial: optuna.Trial) -> float:
        loss = smooth(phase)(trial)
        index = phase.index(trial.params)
        assert index is not None
        collapsed = phase.unit[index, 0] < 0.3
        return loss if not collapsed else 1e300 if trial.number % 2 else 6.9

    study.optimize(objective, n_trials=24)
    assert_sound(study, phase)
    assert sum(trial.value > 6 for trial in study.trials[15:] if trial.value) <= 1
    found = study.sampler.recommend(study)  # type: ignore[attr-defined]
    unit = phase.unit[phase.lattice.index(found.architecture)]
    assert ((unit - 0.6) ** 2).sum() < 0.02
    assert 2.9 < found.interval[0] < found.interval[1] < 3.1


def test_what_was_interrupted_may_come_again(phase: Phase) -> None:
    """Ctrl-C says nothing against an architecture."""
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=4)
    trial = study.ask()
    chosen = phase.suggest(trial)
    trial.set_user_attr("interrupted", True)
    study.tell(trial, state=TrialState.FAIL)
    assert phase.suggest(study.ask()) == chosen


def test_runs_that_end_out_of_order_are_all_learned_from(phase: Phase) -> None:
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(smooth(phase), n_trials=6)
    asked = [study.ask(phase.distributions) for _ in range(4)]
    for place in (2, 1, 3, 0):  # the first ends last
        index = phase.index(asked[place].params)
        assert index is not None
        study.tell(asked[place], 3 + 0.3 * float(((phase.unit[index] - 0.6) ** 2).sum()))
        assert sampler.recommend(study) == TriadSampler(phase, seed=0).recommend(study)  # who reads all anew
    assert_sound(study, phase)


def test_exhausted_lattice_stops_optimize_and_repeats_for_whoever_asks_on(space: SearchSpace) -> None:
    phase = space.phase_zero(space.budgets[0])
    size = len(phase.lattice)
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    study.optimize(smooth(phase), n_trials=size + 20)
    assert len(study.trials) == size
    assert_sound(study, phase)
    again = study.ask(phase.distributions)
    index = phase.index(again.params)
    assert index is not None
    assert again.params == phase.params(index)


def test_recommendation_needs_a_finished_trial(phase: Phase) -> None:
    sampler = TriadSampler(phase)
    with pytest.raises(InputError, match="no finished trial"):
        sampler.recommend(optuna.create_study(sampler=sampler))


@pytest.mark.parametrize("loss", [0.0, -0.005, -math.inf])
def test_a_loss_that_is_not_positive_is_refused(phase: Phase, loss: float) -> None:
    """An excess loss, say: its best trials are no failures. Each time, not the first alone."""
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(study_name="excess", sampler=sampler)
    study.optimize(smooth(phase), n_trials=2)
    study.tell(study.ask(phase.distributions), loss)
    for use in (lambda: study.ask(phase.distributions), lambda: sampler.recommend(study)) * 2:
        with pytest.raises(
            InputError, match=f"excess: loss {loss} of trial 2, expected a positive number, in nats per"
        ):
            use()
    study.set_user_attr("compute", 1e10)
    with pytest.raises(InputError, match=f"excess: loss {loss} of trial 2"):
        TriadSampler(phase, parents=[study]).recommend(optuna.create_study())


@pytest.mark.parametrize(
    ("losses", "found"), [([math.inf, 2e6], "2 finished trials"), ([math.inf], "1 finished trial")]
)
def test_losses_that_are_none_are_counted(phase: Phase, losses: list[float], found: str) -> None:
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    for loss in losses:
        study.tell(study.ask(phase.distributions), loss)
    expected = f"{found}, none of the phase with a positive loss below 1e+06 nats per token; expected at least one"
    with pytest.raises(InputError, match=re.escape(expected)):
        sampler.recommend(study)


def test_recommendation_is_an_architecture_of_the_lattice_with_its_coordinates(phase: Phase) -> None:
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(smooth(phase, noise=0.003), n_trials=12)
    found = sampler.recommend(study)
    index = phase.lattice.index(found.architecture)
    assert found.coordinates == pytest.approx(phase.params(index))
    assert found.interval[0] < found.loss < found.interval[1]
    assert 0 < found.in_band <= 1


@pytest.mark.parametrize("family", ["holistic", "leverage", "edge"])
def test_recommendation_finds_the_band(family: str, space: SearchSpace, phase: Phase) -> None:
    inside = 0
    for seed in range(3):
        problem = problems.make(family, space, variant=seed)
        sampler = TriadSampler(phase, seed=seed)
        study = optuna.create_study(sampler=sampler)
        study.optimize(problem.objective(phase, seed=seed), n_trials=20)
        inside += problem.in_band(sampler.recommend(study).architecture, phase)
    assert inside == 3


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_other_parameters_go_to_the_independent_sampler(phase: Phase) -> None:
    sampler = TriadSampler(phase, independent_sampler=optuna.samplers.QMCSampler(seed=0), seed=0)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        return smooth(phase)(trial) + trial.suggest_int("warmup", 1, 3)

    study.optimize(objective, n_trials=6)
    assert {trial.params["warmup"] for trial in study.trials} <= {1, 2, 3}


def test_an_axis_suggested_with_another_range_is_refused(phase: Phase) -> None:
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    trial = study.ask()
    name = phase.axes[0].name
    with pytest.raises(InputError, match="suggested with"):
        trial.suggest_float(name, 1000, 1001, log=phase.axes[0].log)


def test_copies_and_pickles(phase: Phase) -> None:
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(smooth(phase), n_trials=9)
    twin = pickle.loads(pickle.dumps(sampler))
    assert twin.recommend(study) == sampler.recommend(study) == copy.deepcopy(sampler).recommend(study)


def test_constructor_takes_keywords_only(phase: Phase) -> None:
    with pytest.raises(TypeError):
        TriadSampler(phase, 0)  # type: ignore[misc]


def test_a_seed_may_be_of_any_size(phase: Phase) -> None:
    """Such as `time.time_ns()`, which Optuna's own samplers refuse."""
    twice = []
    for _ in range(2):
        study = optuna.create_study(sampler=TriadSampler(phase, seed=2**70 + 1))
        study.optimize(lambda trial: smooth(phase)(trial) + trial.suggest_float("rate", 0, 1), n_trials=2)
        twice.append([trial.params for trial in study.trials])
    assert twice[0] == twice[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phase": None}, "phase: a NoneType, expected a phase of a space"),
        ({"n_startup": -1}, "n_startup: -1, expected an integer of at least 0"),
        ({"n_startup": 2.5}, "n_startup: 2.5, expected an integer"),
        ({"seed": -1}, "seed: -1, expected an integer of at least 0"),
        ({"laws": "laws.json"}, "laws: a str, expected laws, such as `LadderLaws.load` reads from a laws.json"),
    ],
)
def test_wrong_arguments_are_named(phase: Phase, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TriadSampler(**{"phase": phase, **arguments})
