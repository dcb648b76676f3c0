"""The sampler over a real PostgreSQL server: what several processes propose at once."""

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase, SearchSpace


@pytest.fixture(scope="module")
def phase() -> Phase:
    space = SearchSpace.load("lab")
    return space.phase_one(space.budgets[0])


def loss(phase: Phase, trial: optuna.Trial) -> float:
    phase.suggest(trial)
    index = phase.index(trial.params)
    assert index is not None
    return 3 + 0.3 * float(((phase.unit[index] - 0.6) ** 2).sum())


def test_two_connections_never_propose_the_same(postgres, phase: Phase) -> None:
    url = postgres.create("samplers")

    def work(seed: int) -> None:
        # A storage of its own: nothing is shared but the server.
        sampler = TriadSampler(phase, seed=seed)
        study = optuna.create_study(storage=url, study_name="s", load_if_exists=True, sampler=sampler)
        study.optimize(lambda trial: loss(phase, trial), n_trials=8)

    work(3)  # makes the tables
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [3, 3]))  # the same seed: only the storage keeps them apart
    study = optuna.load_study(storage=url, study_name="s", sampler=TriadSampler(phase, seed=3))
    proposed = [phase.index(trial.params) for trial in study.trials]
    assert len(set(proposed) - {None}) == len(proposed) == 24
    reloaded = TriadSampler(phase, seed=3).recommend(study)
    assert reloaded == study.sampler.recommend(study)  # type: ignore[attr-defined]
    chosen = phase.unit[phase.lattice.index(reloaded.architecture)]
    assert ((chosen - 0.6) ** 2).sum() < 0.03
