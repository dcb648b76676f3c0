"""What a study says does not hang on the order in which its trials ended, or were told."""

import itertools
from collections.abc import Sequence

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from moe_optuna.samplers import TriadSampler
from moe_optuna.samplers._history import History
from moe_optuna.space import Phase

NONE = None  # the loss of a trial that was pruned before its first report
FAILED = "failed"
ENDS = [
    ([("A", 3.0), ("B", 3.2), ("A", 6.0)], {"A": False, "B": False}),
    ([("A", 3.0), ("B", FAILED), ("A", FAILED)], {"A": False, "B": True}),
    ([("A", 3.0), ("B", 6.0), ("B", FAILED)], {"A": False, "B": True}),
    ([("A", 3.0), ("B", 6.0), ("B", NONE)], {"A": False, "B": False}),
    ([("A", 3.0), ("B", 4.4), ("A", 2.9), ("B", 2.95)], {"A": False, "B": False}),
]


def ended(name: str, loss: float | str | None) -> FrozenTrial:
    state = TrialState.FAIL if loss == FAILED else TrialState.PRUNED if loss is NONE else TrialState.COMPLETE
    value = loss if isinstance(loss, float) else None
    place = {"which": float("AB".index(name))}
    return create_trial(state=state, value=value, params=place, distributions={"which": FloatDistribution(0, 1)})


@pytest.mark.parametrize(("runs", "expected"), ENDS)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_failed_does_not_hang_on_the_order(
    runs: list[tuple[str, float | str | None]], expected: dict[str, bool], at_once: bool
) -> None:
    """Failed is what no run of which ended well; one diverged seed says nothing against a good architecture."""
    for order in itertools.permutations(runs):
        study, history = optuna.create_study(), History(lambda params, _: int(params["which"]))
        for run in order:
            study.add_trial(ended(*run))
            if not at_once:
                history.read(study.trials)
        history.read(study.trials)
        assert {"AB"[index]: failed for index, failed in history.ended.items()} == expected
        good = sorted(loss for _, loss in runs if isinstance(loss, float) and loss < 4.35)
        assert sorted(run.loss for run in history.informative if run.loss is not None) == good
        assert history.collapsed == sum(isinstance(loss, float) and loss > 4.35 for _, loss in runs)


def bowl(phase: Phase, places: Sequence[int]) -> list[FrozenTrial]:
    distributions = dict(phase.distributions)
    losses = [3 + 0.3 * float(((phase.unit[place] - 0.6) ** 2).sum()) + 0.001 * (place % 7) for place in places]
    return [
        create_trial(value=loss, params=phase.params(place), distributions=distributions)
        for place, loss in zip(places, losses, strict=True)
    ]


def test_one_diverged_seed_does_not_hide_the_best_architecture(phase: Phase) -> None:
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.add_trials(bowl(phase, range(0, len(phase.lattice), 9)))
    best = phase.lattice.index(sampler.recommend(study).architecture)
    params, distributions = phase.params(best), dict(phase.distributions)
    for loss in (2.95, 2.951, 2.949):
        study.add_trial(create_trial(value=loss, params=params, distributions=distributions))
    assert phase.lattice.index(sampler.recommend(study).architecture) == best
    study.add_trial(create_trial(value=6.0, params=params, distributions=distributions))
    assert phase.lattice.index(sampler.recommend(study).architecture) == best


def test_runs_told_late_are_learned_from_as_after_a_reload(phase: Phase) -> None:
    """By a process whose clock is behind, or from another study, with the dates that they had there."""
    runs = bowl(phase, range(0, len(phase.lattice), 8))
    assert len(runs) > 17  # beyond 16 not every run is learned anew from, but the first ones
    sampler = TriadSampler(phase, seed=0)
    study = optuna.create_study(sampler=sampler)
    for part in (runs[8:], runs[4:8], runs[:4]):
        study.add_trials(part)
        assert sampler.recommend(study) == TriadSampler(phase, seed=0).recommend(study)
        history = sampler._read(study)
        assert [run.loss for run in history.runs] == [run.value for run in runs[-len(history.runs) :]]
