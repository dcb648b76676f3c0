"""Warm starts: parents are read where they are, their prediction comes first, and a wrong one costs little."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from moe_optuna import problems
from moe_optuna.errors import InputError
from moe_optuna.pruners import BandPruner
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase, SearchSpace


def ladder(problem: problems.Problem, n_trials: int, seed: int = 0) -> list[optuna.Study]:
    """Studies at all budgets but the largest, each with the smaller ones as parents."""
    studies: list[optuna.Study] = []
    for compute in problem.space.budgets[:-1]:
        phase = problem.space.phase_one(compute)
        study = optuna.create_study(sampler=TriadSampler(phase, parents=tuple(studies), seed=seed))
        study.set_user_attr("compute", compute)
        study.optimize(problem.objective(phase, seed=seed), n_trials=n_trials)
        studies.append(study)
    return studies


def test_the_first_proposal_is_the_predicted_optimum(space: SearchSpace, phase: Phase) -> None:
    inside = 0
    for seed in range(3):
        problem = problems.make("holistic", space, variant=seed)
        sampler = TriadSampler(phase, parents=ladder(problem, 12, seed), seed=seed)
        study = optuna.create_study(sampler=sampler)
        predicted = sampler.recommend(study)  # before the budget is searched
        first = phase.suggest(study.ask())
        assert first == predicted.architecture
        inside += problem.true_loss(first, phase.compute) <= 1.002 * problem.optimum(phase).loss
    assert inside == 3


def test_then_come_edges_of_the_band(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("holistic", space)
    sampler = TriadSampler(phase, parents=ladder(problem, 12), seed=0)
    study = optuna.create_study(sampler=sampler)
    units = np.array([phase.unit[phase.index(study.ask(phase.distributions).params)] for _ in range(5)])
    for axis in range(2):
        edges = units[1 + 2 * axis : 3 + 2 * axis, axis]
        assert edges.min() - 0.05 <= units[0, axis] <= edges.max() + 0.05  # to the nearest architecture
        assert edges.max() > edges.min()


def test_from_the_first_result_on_it_runs_what_tells_most(space: SearchSpace, phase: Phase) -> None:
    """With the parents' noise hiding the band, runs at its foretold edges would tell next to nothing."""
    problem = problems.make("noisy", space)
    parents, asked = ladder(problem, 8), []
    for tells in (False, True):
        study = optuna.create_study(sampler=TriadSampler(phase, parents=parents, seed=0))
        units = []
        for number in range(4):
            trial = study.ask(phase.distributions)
            index = phase.index(trial.params)
            assert index is not None
            units.append(phase.unit[index])
            if tells:
                study.tell(trial, problem.loss(phase.lattice[index], phase.compute, number))
        asked.append(np.array(units))
    in_a_batch, in_turn = asked
    assert (in_a_batch[0] == in_turn[0]).all()
    spread = [np.ptp(units[1:], axis=0).max() for units in asked]
    assert spread[1] > spread[0]


def test_parents_are_read_in_place(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("holistic", space)
    parents = ladder(problem, 8)
    sampler = TriadSampler(phase, parents=parents, seed=0)
    study = optuna.create_study(sampler=sampler)
    before = sampler.recommend(study)
    assert len(study.trials) == 0
    parents[-1].optimize(problem.objective(space.phase_one(space.budgets[-2]), seed=3), n_trials=4)
    assert sampler.recommend(study) != before  # what a parent has learned since is seen


def test_a_parent_without_its_budget_is_refused(phase: Phase) -> None:
    for compute in (None, "4e10", True, math.inf, -1.0):
        study = optuna.create_study(study_name="orphan")
        if compute is not None:
            study.set_user_attr("compute", compute)
        with pytest.raises(InputError, match=f"orphan: user attribute 'compute' is {compute!r}, expected the budget"):
            TriadSampler(phase, parents=[study])


@pytest.mark.parametrize("build", [TriadSampler, lambda phase, parents: BandPruner(parents=parents)])
@pytest.mark.parametrize(
    ("directions", "found"), [(["maximize"], "maximises"), (["minimize", "minimize"], "2 objectives")]
)
def test_a_parent_that_does_not_minimise_a_loss_is_refused(
    phase: Phase, build: Any, directions: list[str], found: str
) -> None:
    study = optuna.create_study(study_name="other", directions=directions)
    study.set_user_attr("compute", 1e10)
    with pytest.raises(InputError, match=f"other: {found}, expected a parent that minimises the loss"):
        build(phase, parents=[study])
    with pytest.raises(InputError, match="parents: a Study, expected a sequence of studies"):
        build(phase, parents=study)
    with pytest.raises(InputError, match="parents: a str among them, expected studies"):
        build(phase, parents=["other"])


def test_a_parents_trials_whose_parameters_are_no_numbers_are_passed_over(phase: Phase) -> None:
    words = {axis.name: optuna.distributions.CategoricalDistribution(("low", None)) for axis in phase.axes}
    parent = optuna.create_study()
    parent.set_user_attr("compute", phase.compute / 3)
    for word in ("low", None):
        parent.add_trial(create_trial(value=1.0, params=dict.fromkeys(words, word), distributions=words))
    parent.add_trial(create_trial(value=3.0, params=phase.params(7), distributions=phase.distributions))
    recommended = TriadSampler(phase, parents=[parent], seed=0).recommend(optuna.create_study())
    assert recommended.loss > 2.0


def test_a_parent_of_another_phase_is_refused(space: SearchSpace, phase: Phase) -> None:
    zero = space.phase_zero(space.budgets[0])
    parent = optuna.create_study(study_name="zero")
    parent.set_user_attr("compute", zero.compute)
    parent.optimize(lambda trial: float(zero.suggest(trial).d_model), n_trials=2)
    study = optuna.create_study(sampler=TriadSampler(phase, parents=[parent]))
    with pytest.raises(InputError, match="zero: no trial has the parameters compute_density, expansion_ratio"):
        study.ask(phase.distributions)


@pytest.mark.parametrize("again", [False, True], ids=["the same", "loaded again"])
def test_a_study_that_is_its_own_parent_is_refused(phase: Phase, tmp_path: Path, again: bool) -> None:
    """Each of its runs would count twice, and intervals be too narrow."""
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="own", storage=url)
    study.set_user_attr("compute", phase.compute)
    parent = optuna.load_study(study_name="own", storage=url) if again else study
    sampler = TriadSampler(phase, parents=[parent], seed=0)
    study.sampler = sampler
    with pytest.raises(InputError, match="own: its own parent, expected studies at other budgets"):
        phase.suggest(study.ask())
    with pytest.raises(InputError, match="own: its own parent"):
        sampler.recommend(study)


def test_a_parent_at_a_larger_budget_does_not_outvote_the_study(space: SearchSpace, phase: Phase) -> None:
    """Where they disagree it is the parent that is dropped, whichever budget is the larger."""

    def bowl(at: Phase, best: float, level: float) -> Any:
        def objective(trial: optuna.Trial) -> float:
            at.suggest(trial)
            index = at.index(trial.params)
            assert index is not None
            return level * math.exp(0.05 * float(((at.unit[index] - best) ** 2).sum()))

        return objective

    smaller = space.phase_one(space.budgets[-2])
    parent = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    parent.set_user_attr("compute", phase.compute)
    parent.optimize(bowl(phase, 0.85, 2.8), n_trials=12)
    study = optuna.create_study(sampler=TriadSampler(smaller, parents=[parent], seed=0))
    study.optimize(bowl(smaller, 0.15, 3.2), n_trials=14)
    found = study.sampler.recommend(study)  # type: ignore[attr-defined]
    unit = smaller.unit[smaller.lattice.index(found.architecture)]
    nearest = ((smaller.unit - 0.15) ** 2).sum(1).min()
    assert ((unit - 0.15) ** 2).sum() < nearest + 0.02


@pytest.mark.parametrize("interrupted", [0, 2])
def test_a_parent_that_says_nothing_yet_changes_nothing(space: SearchSpace, phase: Phase, interrupted: int) -> None:
    """It has not begun, or all of its trials were interrupted."""
    smaller = space.phase_one(space.budgets[-2])
    parent = optuna.create_study()
    parent.set_user_attr("compute", smaller.compute)
    for _ in range(interrupted):
        trial = parent.ask(smaller.distributions)
        trial.set_user_attr("interrupted", True)
        parent.tell(trial, state=TrialState.FAIL)
    proposals = []
    for parents in ([], [parent]):
        study = optuna.create_study(sampler=TriadSampler(phase, parents=parents, seed=0))
        proposals.append([study.ask(phase.distributions).params for _ in range(3)])
    assert proposals[0] == proposals[1]


def test_a_run_that_turns_out_to_have_collapsed_is_forgotten(space: SearchSpace, phase: Phase) -> None:
    """As many runs tell something before as after, but not the same ones."""
    smaller = space.phase_one(space.budgets[-2])
    parent = optuna.create_study()
    parent.set_user_attr("compute", smaller.compute)
    sampler, study = TriadSampler(phase, parents=[parent], seed=0), optuna.create_study()
    for place, loss in ((3, 6.9), (10, 3.0)):
        parent.add_trial(
            create_trial(value=loss, params=smaller.params(place), distributions=dict(smaller.distributions))
        )
        found = sampler.recommend(study)
        assert found == TriadSampler(phase, parents=[parent], seed=0).recommend(study)
    assert found.loss < 3.1


def test_parents_that_deceive_are_found_out(space: SearchSpace, phase: Phase) -> None:
    for seed in range(2):
        problem = problems.make("jump", space, variant=seed)
        sampler = TriadSampler(phase, parents=ladder(problem, 12, seed), seed=seed)
        study = optuna.create_study(sampler=sampler)
        study.optimize(problem.objective(phase, seed=seed), n_trials=14)
        assert problem.in_band(sampler.recommend(study).architecture, phase, width=0.002)


def test_parents_under_another_sampler_serve_too(space: SearchSpace, phase: Phase) -> None:
    problem = problems.make("holistic", space)
    smaller = space.phase_one(space.budgets[-2])
    parent = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parent.set_user_attr("compute", smaller.compute)
    parent.optimize(problem.objective(smaller), n_trials=30)  # some of these are pruned: nothing is near
    sampler = TriadSampler(phase, parents=[parent], seed=0)
    found = sampler.recommend(optuna.create_study(sampler=sampler))
    assert problem.true_loss(found.architecture, phase.compute) < 1.005 * problem.optimum(phase).loss
