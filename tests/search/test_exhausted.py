"""A study that is to have as many trials as its phase has architectures, some of which fail."""

import optuna
import pytest
from here import Here
from optuna.trial import TrialState
from tiny_space import tiny_space

from moe_optuna import InputError, TriadSampler
from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._work import Work

PHASE = tiny_space(axes=tiny_space().to_dict()["axes"] | {"resolution": 0.2}).phase_one(1e9)
WIDTHS = [architecture.d_model for architecture in PHASE.lattice]
ALL = len(WIDTHS)


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=TriadSampler(PHASE, seed=0), pruner=optuna.pruners.NopPruner())


def bring(study, folder, *, trials=ALL, diverging=()):
    work = Work(study, PHASE, trials, {"reports": 4, "diverging": list(diverging)}, "text", 0, folder)
    Controller(Here(), Leases(exclusive=True)).run(work)


def trained(study):
    """The architectures that were begun, one a training."""
    return [PHASE.index(trial.params) for trial in study.trials if trial.intermediate_values]


def test_where_every_architecture_fails_the_search_stops_with_the_reason(study, tmp_path):
    for _ in range(2):  # the same command again neither trains nor records anything
        with pytest.raises(InputError, match=rf"{len(WIDTHS)} trials failed, the last: the loss is nan at report 2"):
            bring(study, tmp_path, diverging=WIDTHS)
        assert sorted(trained(study)) == list(range(len(WIDTHS)))
        assert [trial.state for trial in study.trials] == [TrialState.FAIL] * len(WIDTHS)


def test_one_that_fails_is_not_replaced_by_one_that_was_trained(study, tmp_path):
    lost = WIDTHS[0]
    for _ in range(2):
        bring(study, tmp_path, diverging=[lost])
        assert sorted(trained(study)) == list(range(len(WIDTHS)))
        assert sum(trial.state == TrialState.FAIL for trial in study.trials) == WIDTHS.count(lost)


def test_a_trial_whose_parameters_another_controller_still_asks_for_is_no_architecture_yet(study, tmp_path):
    bring(study, tmp_path, trials=len(WIDTHS) - 1)
    study.ask().suggest_float("compute_density", *tiny_space().axes.compute_density, log=True)
    assert not Work(study, PHASE, len(WIDTHS), {}, "text", 0, tmp_path).exhausted()
    bring(study, tmp_path)
    assert sorted(trained(study)) == list(range(len(WIDTHS)))


def test_repeats_are_trained_all_the_same(study, tmp_path):
    bring(study, tmp_path, diverging=[WIDTHS[0]])
    for seed in (1, 2):
        study.enqueue_trial(PHASE.params(len(WIDTHS) - 1), user_attrs={"seed": seed})
    bring(study, tmp_path, trials=len(WIDTHS) + 2)
    assert [trial.user_attrs["seed"] for trial in study.trials[len(WIDTHS) :]] == [1, 2]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials[len(WIDTHS) :])
