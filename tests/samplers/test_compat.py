"""Each private name of Optuna that `_compat` relies on does what is written there."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import TrialState

from moe_optuna.samplers import _compat

SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


class Recorder(RandomSampler):
    """Notes what `_compat` sees from inside a sampler."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.fixed: list[dict[str, float]] = []
        self.seen: list[int] = []

    def infer_relative_search_space(self, study, trial):  # type: ignore[no-untyped-def]
        return dict(SPACE)

    def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
        self.fixed.append(_compat.fixed_params(study, trial))
        self.seen.append(len(_compat.all_trials(study)))
        _compat.claim(study, trial, {"x": 0.7})
        return dict.fromkeys(search_space, 0.5)


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


def test_fixed_params_of_an_enqueued_trial() -> None:
    sampler = Recorder()
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"y": 0.25})
    study.optimize(objective, n_trials=1)
    assert sampler.fixed == [{"y": 0.25}]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_fixed_params_of_nested_partial_fixed_samplers() -> None:
    sampler = Recorder()
    nested = PartialFixedSampler({"y": 0.75}, PartialFixedSampler({"x": 0.1}, sampler))
    study = optuna.create_study(sampler=nested)
    study.ask({"z": FloatDistribution(0, 1), **SPACE})
    assert {name: sampler.fixed[0][name] for name in ("x", "y")} == {"x": 0.1, "y": 0.75}


@pytest.mark.parametrize("kind", ["memory", "journal", "sqlite"])
def test_a_claim_is_seen_by_whoever_shares_the_storage(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    storage: str | optuna.storages.BaseStorage = {
        "memory": lambda: optuna.storages.InMemoryStorage(),
        "journal": lambda: optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
        ),
        "sqlite": lambda: f"sqlite:///{tmp_path}/study.db",
    }[kind]()
    study = optuna.create_study(storage=storage, sampler=Recorder(), study_name="s")
    study.ask(SPACE)
    other = study if kind == "memory" else optuna.load_study(storage=storage, study_name="s")
    trial = _compat.all_trials(other)[0]
    assert trial.state == TrialState.RUNNING
    assert _compat.claimed(trial) == {"x": 0.7}
    assert _compat.study_key(other)[1] == study._study_id


def test_all_trials_and_attributes_of_a_hyperband_bracket() -> None:
    sampler = Recorder()
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.set_user_attr("compute", 1e18)
    study.optimize(objective, n_trials=6)
    assert sampler.seen == [1, 2, 3, 4, 5, 6]  # the bracket's study itself would show some of them only
    bracket = optuna.pruners._filter_study(study, study.trials[0])
    assert _compat.study_user_attrs(bracket)["compute"] == 1e18
