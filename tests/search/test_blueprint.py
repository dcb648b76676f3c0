"""`plan` against the published figures, and for a search of one's own."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.laws import LadderLaws, fit_ladder, with_ratios
from moe_optuna.search import Blueprint, _plan, plan
from moe_optuna.space import SearchSpace, _lattice

KEYS = {
    "compute", "flops_per_token", "tokens", "triad", "architecture", "band", "alternatives", "predicted_loss", "source",
    "intervals", "held_out", "format",
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> Blueprint:
    return plan(3e20)


def least(compute: float) -> float:
    return 1.0 + (compute / 1e11) ** -0.12


def ladder(seed: int) -> LadderLaws:
    """Laws of a ladder in the `cpu` space, with a known optimum, whose curves are not those that the laws assume."""
    space = SearchSpace.load("cpu")
    rng = np.random.default_rng(seed)
    rows = []
    for compute in space.budgets:
        for number, phase in enumerate((space.phase_zero(compute), space.phase_one(compute))):
            for index in rng.choice(len(phase.lattice), min(16, len(phase.lattice)), replace=False):
                a = phase.lattice[int(index)]
                loss = least(compute)
                loss *= 1 + 0.01 * math.log(a.non_embedding.flops_per_token / (0.8 * compute**0.5)) ** 2
                if number:
                    loss *= 1 + 0.01 * math.log((a.compute_density - 6) / 3) ** 2 + 0.01 * (a.expansion_ratio - 3) ** 2
                counts = a.non_embedding
                rows.append(
                    {
                        "phase": number, "compute": compute, "loss": loss * math.exp(0.002 * rng.standard_normal()),
                        "compute_density": a.compute_density, "expansion_ratio": a.expansion_ratio,
                        "flops_per_token": counts.flops_per_token, **a.to_dict(),
                    }
                )  # fmt: skip
    return fit_ladder({name: np.array([row[name] for row in rows]) for name in rows[0]}, space="cpu")


@pytest.fixture(scope="module")
def own() -> LadderLaws:
    return ladder(0)


def test_the_predicted_loss_is_that_of_the_architecture(own: LadderLaws) -> None:
    """Also where the lattice has none near the optimum of the laws, which is said, and alternatives are near it."""
    for compute in (3e11, 4e12, 4e13):
        made = plan(compute, laws=own)
        columns = {name: np.array([value]) for name, value in made.architecture.to_dict().items() if name != "format"}
        columns |= {
            name: np.array([getattr(made.architecture, name)]) for name in ("compute_density", "expansion_ratio")
        }
        columns["flops_per_token"] = np.array([made.architecture.non_embedding.flops_per_token])
        excess = float(own.excess(compute, columns)[0, 0])
        assert made.predicted_loss == pytest.approx(own.predict("loss", compute)[0] * (1 + excess))
        low, high = made.intervals["predicted_loss"]
        assert low < made.predicted_loss < high
        assert any("above the least" in note for note in made.notes) == (excess > 0.001)
        assert all(each.excess <= 0.001 for each in made.alternatives)


def test_the_published_blueprint_at_3e20_is_that_of_the_paper(published: Blueprint) -> None:
    assert published.flops_per_token == pytest.approx(5.94e9, rel=1e-3)
    assert published.tokens == pytest.approx(50.5e9, rel=2e-3)
    counts = published.architecture.non_embedding
    assert counts.flops_per_token == pytest.approx(5.94e9, rel=0.05)
    assert counts.active_params == pytest.approx(7.26e8, rel=0.1)
    assert 20 <= published.architecture.expansion_ratio <= 23
    assert 1248 <= published.architecture.d_model <= 2200
    assert (published.architecture.n_experts, published.architecture.top_k) == (288, 8)
    assert published.triad.admits(published.architecture)
    assert published.architecture in SearchSpace.load("holistic").lattice(published.triad)


def test_every_axis_has_a_band_around_the_architecture(published: Blueprint) -> None:
    assert set(published.band) == {"compute_density", "expansion_ratio", "d_model"}
    for axis, (low, high) in published.band.items():
        assert low < getattr(published.architecture, axis) < high
        (a, b), (c, d) = published.band_intervals[axis]
        assert a <= low <= b
        assert c <= high <= d


def test_alternatives_lie_in_the_band_and_say_what_they_are_better_at(published: Blueprint) -> None:
    assert len(published.alternatives) >= 3
    assert len({each.architecture for each in published.alternatives}) == len(published.alternatives)
    for each in published.alternatives:
        assert each.architecture != published.architecture
        assert published.triad.admits(each.architecture)
        assert each.interval[0] <= each.excess <= each.interval[1]
        assert each.excess <= 0.0012
    reasons = {each.why: each.architecture for each in published.alternatives}
    for why, architecture in reasons.items():
        if "d_model is a multiple of 256" in why:
            assert architecture.d_model % 256 == 0
        if "8 pipeline stages" in why:
            assert architecture.n_layers % 8 == 0
        if "all-to-all" in why:
            ours, theirs = (
                a.top_k * a.d_model * a.n_moe_layers for a in (published.architecture, architecture)
            )  # fmt: skip
            assert theirs < ours


def test_what_is_not_published_is_null_with_its_reason(published: Blueprint) -> None:
    assert published.predicted_loss is None
    assert "loss" in published.no_loss
    assert "arXiv:2603.21862" in published.source


def test_json_has_the_keys_of_the_design_and_comes_back(published: Blueprint, tmp_path: Path) -> None:
    published.save(tmp_path / "blueprint.json")
    data = json.loads((tmp_path / "blueprint.json").read_text())
    assert set(data) >= KEYS
    assert "NaN" not in (tmp_path / "blueprint.json").read_text()
    again = Blueprint.load(tmp_path / "blueprint.json")
    assert again == published
    assert again.to_dict() == data


@pytest.mark.parametrize("compute", [1e17, 1e18, 1e19, 2e19, 1e20, 5e21])
def test_any_budget_has_an_architecture_that_meets_its_triad(compute: float) -> None:
    blueprint = plan(compute)
    assert blueprint.triad.admits(blueprint.architecture)
    assert blueprint.flops_per_token * blueprint.tokens == pytest.approx(compute)
    outside = not 1e18 <= compute <= 3e20
    assert any("extrapolation" in note for note in blueprint.notes) == outside


def test_laws_that_name_no_space_want_one(own: LadderLaws) -> None:
    """Rather than architectures of a space that the runs were not of."""
    with pytest.raises(InputError, match="space: none, and the laws name none"):
        plan(4e12, laws=replace(own, space=None))


def test_one_s_own_laws_plan_the_target_of_their_space(own: LadderLaws, tmp_path: Path) -> None:
    space = SearchSpace.load("cpu")
    blueprint = plan(space.target, laws=own, space=space)
    assert blueprint.triad.admits(blueprint.architecture)
    assert blueprint.predicted_loss == pytest.approx(least(space.target), rel=0.03)
    assert blueprint.architecture.compute_density == pytest.approx(9, rel=0.1)
    assert blueprint.architecture.expansion_ratio == pytest.approx(3, rel=0.15)
    assert blueprint.held_out["compute"] == space.budgets[-1]
    own.save(tmp_path / "laws.json")
    again = plan(space.target, laws=LadderLaws.load(tmp_path / "laws.json"))
    assert again.architecture == blueprint.architecture
    assert again.space == "cpu"


def test_the_interval_of_the_loss_holds_far_beyond_the_ladder() -> None:
    space = SearchSpace.load("cpu")
    truth, held = least(space.target), 0
    for seed in range(8):
        blueprint = plan(space.target, laws=ladder(seed), space=space)
        low, high = blueprint.intervals["predicted_loss"]
        assert high - low < 0.1 * truth
        held += low < truth < high
    # Twenty times the largest budget, and curves of another shape than the law's: most, not 95 %.
    assert held >= 5


@pytest.mark.parametrize("compute", [-1.0, 0, math.nan, math.inf, "3e20", True])
def test_a_bad_budget_is_named(compute: object) -> None:
    with pytest.raises(InputError, match=r"compute: .*positive finite"):
        plan(compute)


@pytest.mark.parametrize(("name", "value"), [("laws", "runs/cpu/laws.json"), ("space", "lab")])
def test_a_path_in_place_of_what_it_holds_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: a str, expected .*\\.load` reads"):
        plan(3e18, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("compute", [np.int64(3 * 10**18), np.float32(3e18)])
def test_a_budget_may_be_numpy_s(compute: np.number) -> None:
    blueprint = plan(compute)
    assert type(blueprint.compute) is float
    assert blueprint == plan(float(compute))


@pytest.mark.parametrize(
    ("compute", "says"), [(1e-300, "expansion_ratio: 1.0, expected"), (1e300, "compute_density: 6.0, expected")]
)
def test_a_budget_where_the_laws_give_no_triad_is_named(compute: float, says: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(compute)
    assert str(caught.value).startswith(f"compute {compute:.3g}: the laws give no triad there ({says}")


def test_a_budget_without_an_architecture_says_why() -> None:
    with pytest.raises(InputError, match=r"holistic at 1e\+12 FLOPs: no architecture meets M = 1.46") as caught:
        plan(1e12)
    laws = LadderLaws.published()
    for axis in ("compute_density", "expansion_ratio"):  # those of the laws, not others
        assert f"{axis} {laws.predict(axis, 1e12)[0]:.4g}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[]", "not a JSON object, expected a blueprint"), ("{", "not JSON"), ('{"format": 1}', "not a blueprint")],
)
def test_a_wrong_blueprint_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "blueprint.json"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        Blueprint.load(path)


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("triad", {"active_params": -1}, "triad: active_params: -1, expected a positive finite number"),
        ("architecture", {"top_k": 0}, "architecture: top_k: 0, expected at least 1"),
    ],
)
def test_a_wrong_part_of_a_blueprint_is_named_with_its_file(
    tmp_path: Path, published: Blueprint, key: str, change: dict[str, int], says: str
) -> None:
    data = published.to_dict()
    path = tmp_path / "blueprint.json"
    path.write_text(json.dumps(data | {key: data[key] | change}))
    with pytest.raises(InputError) as caught:
        Blueprint.load(path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize("high", [16384, 1200])
def test_what_lies_outside_of_its_band_is_said(high: int) -> None:
    text = SearchSpace.load("holistic").to_toml()
    before, after = text.split("high = 16384", 1)
    made = plan(3e20, space=SearchSpace.from_toml(f"{before}high = {high}{after}"))
    low, top = made.band["d_model"]
    inside = low <= made.architecture.d_model <= top
    assert inside == (high == 16384)
    assert inside == (not any("d_model" in note and "outside its near-optimal band" in note for note in made.notes))


def test_far_below_the_ladder_the_notes_say_so_first_and_blame_no_lattice() -> None:
    made = plan(4e12, space=SearchSpace.load("cpu"))
    reach, held, *outside, above = made.notes
    assert "below the ladder" in reach
    assert "above the least that the laws allow" in above
    # The note's numbers are what the architecture is held to, and its own lie within the tolerances of them.
    for axis in ("compute_density", "expansion_ratio"):
        assert f"{getattr(made.triad, axis):.4g}" in held
    assert "held to" in held
    assert made.triad.admits(made.architecture)
    assert len(outside) == 3
    assert all("the triad of the laws" in note and "lattice" not in note for note in outside)


def test_of_a_part_of_the_lattice_nothing_is_claimed_that_the_whole_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few layers put the best at the triad's edge, which a part of the lattice around its middle misses."""
    space = SearchSpace.from_toml(SearchSpace.load("holistic").to_toml().replace("high = 128", "high = 13"))
    whole = plan(9e19, space=space)
    least = LadderLaws.published().excess(9e19, with_ratios(space.lattice(whole.triad).arrays)).min()
    assert least < 0.001
    assert not any("above the least" in note for note in whole.notes)
    monkeypatch.setattr(_plan, "MOST", 200)
    above, limit = plan(9e19, space=space).notes
    assert limit == "n_layers 13 is the most that the space allows"
    assert "none of the 207 nearest to the triad is within 0.1%" in above


def test_however_large_the_lattice_a_part_of_it_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plan, "MOST", 60)
    monkeypatch.setattr(_lattice, "MOST_HELD", 90)
    made = plan(3e20)
    assert made.triad.admits(made.architecture)


@pytest.mark.parametrize("compute", [2e22, 1e23, 2e23, 5e23])
def test_a_thousand_times_beyond_the_ladder_is_an_architecture_as_one_trains_them(compute: float) -> None:
    made = plan(compute)
    (reach,) = made.notes
    assert "an extrapolation" in reach
    assert 20 <= made.architecture.n_layers <= 100
    assert made.architecture.d_expert < made.architecture.d_model


def test_far_beyond_what_its_context_allows_the_note_names_the_axis() -> None:
    """M - 6 Na buys attention alone: its depth times heads, and so at the law's M/Na and N/Na the most of d_model."""
    made = plan(1e25)
    (above,) = [note for note in made.notes if "above the least" in note]
    assert f"most of it by d_model, {made.architecture.d_model:.4g} where the laws have 1.758e+04" in above
