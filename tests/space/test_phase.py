"""Phases: one architecture a coordinate, all inside their triads, the same axes at every budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from moe_optuna.errors import InputError
from moe_optuna.space import Phase, SearchSpace
from moe_optuna.triad import Tolerances

SMALL = str(Path(__file__).with_name("small.toml"))
NAMES = ("cpu", "lab", "holistic", SMALL)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def phases(space: SearchSpace, compute: float) -> list[Phase]:
    triad = space.triad(space.allocation(compute).flops_per_token, *coordinates(space))
    return [space.phase_zero(compute), space.phase_one(compute), space.phase_two(triad, compute=compute)]


def coordinates(space: SearchSpace) -> tuple[float, float]:
    return space.reference.compute_density, space.reference.expansion_ratio


ALL = [
    pytest.param(phase, id=f"{Path(name).stem}-{phase.compute:.3g}-{phase.name}")
    for name in NAMES
    for compute in SearchSpace.load(name).budgets[::2]
    for phase in phases(SearchSpace.load(name), compute)
]


@pytest.mark.parametrize("phase", ALL)
def test_every_architecture_has_its_own_coordinates_and_meets_its_triad(phase: Phase) -> None:
    size = len(phase.lattice)
    assert phase.coordinates.shape == phase.unit.shape == (size, len(phase.axes))
    assert ((phase.unit >= 0) & (phase.unit <= 1)).all()
    assert len(np.unique(phase.coordinates, axis=0)) == size
    assert len(set(phase.lattice)) == size
    for index, architecture in enumerate(phase.lattice):
        params = phase.params(index)
        assert phase.index(params) == index
        assert all(
            phase.distributions[name]._contains(phase.distributions[name].to_internal_repr(value))
            for name, value in params.items()
        )
        assert all(type(value) in (int, float) for value in params.values())
        triad = phase.triad_of(index)
        assert triad.admits(architecture)
        assert phase.space.violations(architecture, triad) == {}
        tokens = phase.tokens(architecture)
        assert tokens * architecture.non_embedding.flops_per_token == pytest.approx(phase.compute, rel=1e-3)


@pytest.mark.parametrize("phase", [p for p in ALL if p.values[0].number == 1])  # type: ignore[attr-defined]
def test_phase_one_coordinates_are_the_architectures_own(phase: Phase) -> None:
    for index, architecture in enumerate(phase.lattice):
        assert phase.coordinates[index].tolist() == [architecture.compute_density, architecture.expansion_ratio]
    assert len(phase.lattice) >= (10 if phase.space.name == "cpu" else 30)


@pytest.mark.parametrize("name", NAMES)
def test_distributions_are_the_same_at_every_budget(name: str) -> None:
    space = SearchSpace.load(name)
    for each in zip(*(phases(space, compute) for compute in space.budgets), strict=True):
        assert all(phase.distributions == each[0].distributions for phase in each)
        assert all(phase.axes == each[0].axes for phase in each)


def test_construction_does_not_change_from_one_time_to_the_next() -> None:
    for one, two in zip(*(phases(SearchSpace.load(SMALL), 5e10) for _ in range(2)), strict=True):
        assert list(one.lattice) == list(two.lattice)
        assert (one.coordinates == two.coordinates).all()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_suggest_under_a_foreign_sampler_meets_the_triad_or_prunes_with_a_reason(number: int) -> None:
    phase = phases(SearchSpace.load(SMALL), 4.5e11)[number]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        architecture = phase.suggest(trial)
        assert phase.triad_of(architecture).admits(architecture)
        return float(architecture.d_model)

    study.optimize(objective, n_trials=60)
    states = {state: [t for t in study.trials if t.state == state] for state in optuna.trial.TrialState}
    assert len(states[optuna.trial.TrialState.COMPLETE]) > 10
    for trial in states[optuna.trial.TrialState.COMPLETE]:
        assert len(trial.user_attrs) <= 13
        assert trial.user_attrs["d_model"] == trial.value
    for trial in states[optuna.trial.TrialState.PRUNED]:
        assert "no architecture at" in trial.user_attrs["infeasible"]
        assert "nearest feasible: " in trial.user_attrs["infeasible"]
    assert not states[optuna.trial.TrialState.FAIL]


def test_an_enqueued_point_means_its_architecture() -> None:
    phase = phases(SearchSpace.load(SMALL), 5e10)[1]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    wanted = [3, 0, len(phase.lattice) - 1]
    for index in wanted:
        study.enqueue_trial(phase.params(index))
    study.optimize(lambda trial: float(phase.lattice.index(phase.suggest(trial))), n_trials=3)
    assert [trial.value for trial in study.trials] == wanted


def test_index_takes_the_nearest_and_none_where_nothing_is_near() -> None:
    phase = phases(SearchSpace.load(SMALL), 4.5e11)[2]
    index = len(phase.lattice) // 2
    params = phase.params(index)
    assert phase.index(params | {"width": params["width"] + 1e-7}) == index
    assert phase.index(params | {"n_experts": 7}) is None
    assert phase.index(params | {"width": 1.5}) is None
    assert phase.index(params | {"width": "wide"}) is None
    assert phase.index(params | {"width": None}) is None
    assert phase.index(params | {"n_experts": "many"}) is None
    assert "expected 0 to 1" in phase.why_not(params | {"width": 1.5})
    combination = params | {"n_experts": 8, "top_k": 4}
    assert phase.index(combination) is None
    assert "expansion_ratio is 3, and these experts reach at most" in phase.why_not(combination)
    assert phase.explain(combination).count == 0


@pytest.mark.parametrize("ask", [Phase.index, Phase.explain, Phase.why_not])
def test_a_missing_coordinate_is_named(ask: Callable[[Phase, dict[str, float]], object]) -> None:
    phase = phases(SearchSpace.load(SMALL), 5e10)[1]
    with pytest.raises(InputError, match="phase-1: missing expansion_ratio, expected a value for each axis"):
        ask(phase, {"compute_density": 1.0})


@pytest.mark.parametrize("name", [SMALL, "holistic"])
def test_phase_one_stands_at_the_median_of_the_feasible_widths(name: str) -> None:
    """The median of the distinct d_model of all architectures that meet the cell's triad; of two in the middle the
    lower."""
    phase = phases(SearchSpace.load(name), SearchSpace.load(name).budgets[1])[1]
    shared = {n: set(phase.lattice.arrays[n].tolist()) for n in ("n_experts", "top_k", "n_shared_experts")}
    held = phase.space.axes.resolution
    assert held is not None
    for index, architecture in enumerate(phase.lattice):
        triad = phase.triad_of(index)
        cell = Tolerances(triad.tolerances.flops_per_token, held, held)
        every = phase.space.lattice(replace(triad, tolerances=cell)).arrays
        alike = np.logical_and.reduce([np.isin(every[n], list(values)) for n, values in shared.items()])
        feasible = np.unique(every["d_model"][alike])
        assert architecture.d_model == feasible[(len(feasible) - 1) // 2]


def test_phase_two_width_runs_from_one_moe_layer_to_no_dense_layer() -> None:
    phase = phases(SearchSpace.load("holistic"), 1e20)[2]
    order = np.argsort(phase.coordinates[:, 0])
    moe_share = (
        phase.lattice.arrays["n_moe_layers"]
        / (phase.lattice.arrays["n_dense_layers"] + phase.lattice.arrays["n_moe_layers"])
    )[order]
    assert (np.diff(phase.lattice.arrays["d_model"][order]) > 0).all()
    assert moe_share[0] < 0.2
    assert moe_share[-1] == 1.0


@pytest.mark.parametrize("size", [1e-4, 1e-9, 1e-17])
def test_more_cells_than_memory_holds_are_refused(size: float) -> None:
    data = SearchSpace.load(SMALL).to_dict()
    data["axes"].pop("resolution")
    names = ("flops_per_token", "active_params", "total_params")
    space = SearchSpace.from_dict(data | {"tolerances": dict.fromkeys(names, size)})
    with pytest.raises(
        InputError, match=r"^tolerances or axes.resolution: so small that there are .* at most 1000000$"
    ):
        space.phase_one(5e10)
    if size < 1e-6:
        with pytest.raises(
            InputError, match=r"^tolerances.flops_per_token: so small that there are .* at most 1000000$"
        ):
            space.phase_zero(5e10)


def test_a_point_whose_choices_contradict_each_other_says_so() -> None:
    data = SearchSpace.load(SMALL).to_dict()
    space = SearchSpace.from_dict(data | {"dimensions": data["dimensions"] | {"n_experts": [16, 3], "top_k": [2, 4]}})
    phase = phases(space, 5e10)[2]
    assert "top_k is above n_experts" in phase.why_not({"width": 0.5, "n_experts": 3, "top_k": 4})


def test_numpy_s_numbers_are_a_budget() -> None:
    space = SearchSpace.load(SMALL)
    for asked, given in zip(phases(space, 5e10), phases(space, np.int64(5 * 10**10)), strict=True):  # type: ignore[arg-type]
        assert list(asked.lattice) == list(given.lattice)
        assert type(given.compute) is int


def test_study_name() -> None:
    assert phases(SearchSpace.load(SMALL), 5e10)[1].study_name("mine") == "mine/5e+10/phase-1"


@pytest.mark.parametrize("value", [float("nan"), 0.5])
@pytest.mark.parametrize("name", ["compute_density", "expansion_ratio"])
def test_coordinates_of_phase_0_that_are_none_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name}: {value!r}, expected a finite number above"):
        SearchSpace.load(SMALL).phase_zero(5e10, **{name: value})
