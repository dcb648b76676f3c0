"""A start from laws alone."""

import optuna
import pytest
from optuna.trial import TrialState

from moe_optuna.errors import InputError
from moe_optuna.laws import LadderLaws
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase, SearchSpace


def test_the_first_trials_are_the_published_optimum_and_the_edges_of_its_band() -> None:
    laws, phase = LadderLaws.published(), SearchSpace.load("holistic").phase_one(3e20)
    study = optuna.create_study(sampler=TriadSampler(phase, laws=laws, seed=0))
    tried = [phase.suggest(study.ask()) for _ in range(7)]
    assert len(set(tried)) == 7
    density, ratio = (laws.predict(name, 3e20)[0] for name in ("compute_density", "expansion_ratio"))
    assert tried[0].compute_density == pytest.approx(density, rel=0.03)
    assert tried[0].expansion_ratio == pytest.approx(ratio, rel=0.05)
    for axis, first in (("compute_density", 1), ("expansion_ratio", 3)):
        for edge, architecture in zip(laws.band(axis, 3e20)[0], tried[first : first + 2], strict=True):
            assert getattr(architecture, axis) == pytest.approx(edge, rel=0.05)


def test_the_optimum_comes_first_after_what_was_enqueued_or_when_it_was_interrupted() -> None:
    laws, phase = LadderLaws.published(), SearchSpace.load("holistic").phase_one(3e20)
    first, edge = (phase.index(study.ask(phase.distributions).params) for study in [started(phase, laws)] * 2)
    study = started(phase, laws)
    study.enqueue_trial(phase.params(7))
    asked = [study.ask(phase.distributions) for _ in range(3)]
    assert [phase.index(trial.params) for trial in asked[:2]] == [7, first]
    assert phase.index(asked[2].params) not in (7, first)
    asked[1].set_user_attr("interrupted", True)
    study.tell(asked[1], state=TrialState.FAIL)
    assert phase.index(study.ask(phase.distributions).params) == first != edge


def started(phase: Phase, laws: LadderLaws) -> optuna.Study:
    return optuna.create_study(sampler=TriadSampler(phase, laws=laws, seed=0))


def test_laws_of_another_phase_are_refused() -> None:
    with pytest.raises(InputError, match="laws: none of phase 0"):
        TriadSampler(SearchSpace.load("holistic").phase_zero(3e20), laws=LadderLaws.published())
