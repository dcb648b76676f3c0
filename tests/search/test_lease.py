import os
import subprocess

import optuna
import pytest
from optuna.trial import TrialState

from moe_optuna.search._lease import Leases


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def ask(study, leases):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    leases.take(study, trial._trial_id)
    return trial


def elsewhere(name):
    """The name of a controller on another machine."""
    return "other/machine" + name[name.index("/") :]


def test_a_controller_that_beats_keeps_its_trials_and_a_silent_one_loses_them(study):
    mine, theirs = Clock(), Clock()
    theirs.now = 1e9  # their clock has nothing to do with mine
    leases = Leases(exclusive=False, clock=mine, term=40)
    other = Leases(exclusive=False, clock=theirs, term=40)
    other.name = elsewhere(other.name)
    trial = ask(study, other)
    for _ in range(20):
        mine.now += 15
        theirs.now += 15
        assert other.beat(study)
        assert leases.reap(study) == []
    theirs.now = 0.0  # and may jump
    for _ in range(2):
        mine.now += 19
        assert leases.reap(study) == []
    mine.now += 3
    assert leases.reap(study) == [trial.number]
    again = study.ask()
    assert again.number == trial.number
    assert again.params == trial.params
    leases.take(study, again._trial_id)
    assert leases.holds(study.trials[0])
    assert not other.holds(study.trials[0])


def test_a_dead_process_of_this_machine_is_known_at_once(study):
    ended = subprocess.Popen(["true"])
    ended.wait()
    other = Leases(exclusive=False)
    other.name = other.name.replace(f"/{os.getpid()}/", f"/{ended.pid}/")
    number = ask(study, other).number
    assert Leases(exclusive=False).reap(study) == [number]


def test_a_process_number_that_was_given_to_another_is_not_the_controller(study):
    other = Leases(exclusive=False)
    head, started, tail = other.name.rsplit("/", 2)
    other.name = f"{head}/{int(started) - 1}/{tail}"
    ask(study, other)
    assert Leases(exclusive=False).reap(study) == [0]


def test_a_living_controller_of_this_machine_is_left_alone(study):
    clock = Clock()
    first, second = Leases(exclusive=False, clock=clock), Leases(exclusive=False, clock=clock)
    ask(study, first)
    assert second.reap(study) == []
    assert first.reap(study, mine=[0]) == []


def test_a_trial_that_this_controller_has_but_does_not_run_goes_back(study):
    leases = Leases(exclusive=False)  # its ask was lost on the way from the database
    ask(study, leases)
    assert leases.reap(study, mine=[]) == [0]


def test_a_pause_of_the_observer_is_not_held_against_the_others(study):
    clock = Clock()
    leases, other = Leases(exclusive=False, clock=clock, term=40), Leases(exclusive=False, clock=clock)
    other.name = elsewhere(other.name)
    ask(study, other)
    for _ in range(4):
        assert leases.reap(study) == []
        clock.now += 10
    clock.now += 1000  # the database was away, or the machine slept
    assert leases.reap(study) == []
    for _ in range(4):
        clock.now += 10
        assert leases.reap(study) == []
    clock.now += 1
    assert leases.reap(study) == [0]


def test_whoever_holds_the_folder_need_not_wait(study):
    ask(study, Leases(exclusive=False))
    study.ask()  # whose controller died before it could sign
    assert Leases(exclusive=True).reap(study) == [0, 1]
    assert {trial.state for trial in study.trials} == {TrialState.WAITING}


def test_a_trial_that_ends_while_it_is_reaped_stays_ended(study, monkeypatch):
    """Its controller tells the result between the look at the trials and the moment that they are given back."""
    leases, other = Leases(exclusive=True), Leases(exclusive=False)
    first, second = ask(study, other), ask(study, other)
    look, give = study._storage.get_study_system_attrs, study._storage.set_trial_state_values

    def tell_first(study_id):
        study.tell(first, 1.0)
        return look(study_id)

    def tell_second(trial_id, state, values=None):
        if state == TrialState.WAITING:
            give(second._trial_id, TrialState.COMPLETE, (2.0,))
        return give(trial_id, state, values)

    monkeypatch.setattr(study._storage, "get_study_system_attrs", tell_first)
    monkeypatch.setattr(study._storage, "set_trial_state_values", tell_second)
    assert leases.reap(study) == []
    assert [trial.value for trial in study.trials] == [1.0, 2.0]


def test_a_dead_controller_s_trial_is_taken_once_by_two_that_see_it(study, monkeypatch):
    one, two = Leases(exclusive=True), Leases(exclusive=True)
    ask(study, Leases(exclusive=False))
    look = study._storage.get_study_system_attrs

    def before(study_id):
        monkeypatch.undo()
        assert one.reap(study) == [0]
        one.take(study, study.ask()._trial_id)
        return look(study_id)

    monkeypatch.setattr(study._storage, "get_study_system_attrs", before)
    assert two.reap(study) == []
    assert one.holds(study.trials[0])
