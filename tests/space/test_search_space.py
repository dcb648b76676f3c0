"""Search spaces as files and as values."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moe_optuna.architecture import DIMENSIONS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.space import SearchSpace, lattice_payload

READY = ("cpu", "lab", "holistic")
SMALL = Path(__file__).with_name("small.toml")


@pytest.mark.parametrize("name", READY)
def test_round_trips_through_toml_and_json(name: str, tmp_path: Path) -> None:
    space = SearchSpace.load(name)
    space.save(tmp_path / "again.toml")
    assert SearchSpace.load(tmp_path / "again.toml") == space
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert hash(SearchSpace.load(name)) == hash(space)
    assert space.target >= 10 * space.budgets[-1]


def test_keys_and_texts_of_any_characters_are_read_back(small: SearchSpace) -> None:
    odd = {"a b": 1, "": {'é"\x7f\n😀': "\x7f\t\\u😀"}, "c.d": [{"#": True}], "plain-1_": 0.5}
    space = SearchSpace.from_dict(small.to_dict() | {"training": odd})
    assert SearchSpace.from_toml(space.to_toml()).training == odd
    assert "\nplain-1_ = 0.5\n" in space.to_toml()


@pytest.mark.parametrize("name", READY)
def test_repr_tells_the_problem(name: str) -> None:
    space = SearchSpace.load(name)
    text = repr(space)
    for word in (*space.dimensions.free, f"{space.target:g}", "compute_density", "expansion_ratio", "d_model"):
        assert word in text


@pytest.mark.parametrize(
    ("found", "written", "message"),
    [
        ("format = 1", "format = 2", "format = 2, expected format = 1"),
        ("budgets =", "budget =", "unknown key 'budget'; did you mean 'budgets'?"),
        ("multiple = 8", "multipl = 8", "unknown key 'multipl' in [dimensions.d_model]; did you mean 'multiple'?"),
        ("active_params =", "activ_params =", "unknown key 'activ_params' in [tolerances]; did you mean 'active"),
        ("compute = 2e12", "comput = 2e12", "unknown key 'comput' in [scale.0]; did you mean 'compute'?"),
        ("high = 512", "high = -3", "dimensions.d_model.high = -3"),
        ("d_head = 16", "d_head = 16.5", "dimensions.d_head: 16.5, expected an integer or a list of integers"),
        ("n_heads = 2", "n_heads = [2, 2]", "dimensions.n_heads: [2, 2], expected one or more distinct integers"),
        ('name = "', f'name = "{"a" * 60}', "string should have at most 60 characters"),
        ("one = ", "one = 3.5 #", "search.one: 3.5, expected an integer or a list of integers"),
        ("one = ", "one = true #", "search.one: True, expected an integer or a list of integers"),
        ("budgets = ", "budgets = 1e11 #", "budgets = 100000000000.0: expected a list"),
        ("d_model = ", "d_model = 64 #", "dimensions.d_model = 64: expected a table"),
        ("n_heads = 2", "n_heads = [2, 4]", "n_heads changes with scale and is free"),
        ("top_k = [2,", "top_k = [17, 2,", "top_k: 17, expected at most n_experts = 16"),
        ("n_experts = [16,", "n_experts = [1, 16,", "top_k: 2, expected at most n_experts = 1"),
        ("queries_per_kv_head = 2", "queries_per_kv_head = [4, 2]", "head: 4, expected a divisor of n_heads = 2"),
        ("n_heads = 8", "n_heads = 7", "queries_per_kv_head: 2, expected a divisor of n_heads = 7"),
        ("[search]", "[training]\nrate = inf\n[search]", "training.rate: inf, expected a string, a finite number"),
        ("[search]", "[training]\na.b = [1, nan]\n[search]", "training.a.b: nan, expected a string, a finite number"),
        ("[search]", "[training]\nday = 2020-01-01\n[search]", "training.day: datetime.date(2020, 1, 1), expected"),
        ("target = 1e13", "target = 1e11", "target: 1e+11, expected at least 10 times the largest budget"),
        ("budgets = [", "budgets = [2.001e10, 2.002e10, ", "expected to differ in their first three digits"),
        ("one = ", "one = [9, 8, 8, 7] # ", "search.one: expected one number, or one for each of 3 budgets"),
        ("exponent =", "exponent = nan #", "allocation_law.exponent = nan"),
        ("compute_density = [6", "compute_density = [5", "expected 6 < low < high"),
        ("ratio = 3,", "ratio = 3, low = 5,", "expected either a ratio, or low and high"),
        ("ratio = 3,", "ratio = 1e13,", "d_dense.ratio = 10000000000000.0: input should be less than or equal to"),
        ("format = 1", "format = 1\n= 3", "not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_that_names_the_key(found: str, written: str, message: str) -> None:
    text = SMALL.read_text()
    assert found in text
    with pytest.raises(InputError) as error:
        SearchSpace.from_toml(text.replace(found, written, 1), where="mine.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("mine.toml: ")
    assert "\n" not in str(error.value)


def test_expansion_ratio_beyond_the_experts_is_refused() -> None:
    text = SMALL.read_text()
    line = next(line for line in text.splitlines() if line.startswith("expansion_ratio = ["))
    with pytest.raises(InputError, match=r"expected at most \(n_experts \+ shared\) / \(top_k \+ shared\)"):
        SearchSpace.from_toml(text.replace(line, "expansion_ratio = [1.5, 1000.0]"))


@pytest.mark.parametrize(("name", "message"), [("cpuu", "did you mean 'cpu'"), ("no/such.toml", "No such file")])
def test_unknown_space(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace.load(name)


def test_importing_and_building_phases_leaves_optuna_alone() -> None:
    code = (
        "import sys; from moe_optuna.space import SearchSpace; s = SearchSpace.load('cpu'); "
        "s.phase_one(s.budgets[0]); print(sorted({'optuna', 'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_violations_name_each_broken_rule(small: SearchSpace) -> None:
    space = small
    triad = space.triad(space.allocation(space.budgets[0]).flops_per_token, 8.0, 3.0)
    good = next(iter(space.lattice(triad)))
    assert space.violations(good, triad) == {}
    values = {name: getattr(good, name) for name in DIMENSIONS}
    bad = MoEArchitecture(
        **(values | {"d_model": good.d_model + 3, "n_experts": 9, "d_dense": 11, "n_dense_layers": 40})
    )
    broken = space.violations(bad, triad)
    assert {
        "dimensions.d_model.multiple", "dimensions.n_experts", "dimensions.d_dense", "dimensions.n_layers",
        "tolerances.active_params", "tolerances.flops_per_token",
    } <= broken.keys()  # fmt: skip


@pytest.mark.parametrize("compute", [1.5e18, 1.73e18, 2e18])
def test_a_phase_s_architectures_keep_the_rules_near_a_step_of_scale(compute: float) -> None:
    """Their own M may lie on the other side of it; heads of neither side break a rule all the same."""
    space = SearchSpace.load("holistic")
    sides = set()
    for phase in (space.phase_zero(compute), space.phase_one(compute)):
        for architecture in phase.lattice:
            assert space.violations(architecture) == {}
            assert "dimensions.n_heads" in space.violations(replace(architecture, n_heads=6, n_kv_heads=3))
            sides.add(architecture.n_heads)
    assert sides == {4, 8}


def test_away_from_a_step_of_scale_the_heads_are_those_of_the_scale() -> None:
    space = SearchSpace.load("holistic")
    architecture = space.phase_one(1e17).lattice[0]
    assert space.violations(architecture) == {}
    swapped = replace(architecture, n_heads=8, n_kv_heads=4)
    assert space.violations(swapped) == {"dimensions.n_heads": "8, expected 4"}


def test_payload_of_the_lattice_command(small: SearchSpace) -> None:
    space = small
    payload = lattice_payload(space, compute=5e10, compute_density=8.0, expansion_ratio=3.0, list_all=True)
    assert payload["binding"] is None
    assert payload["count"] == len(payload["architectures"]) > 0
    row = payload["architectures"][0]
    counted = MoEArchitecture(**{name: row[name] for name in DIMENSIONS})
    assert counted.non_embedding.total_params == row["total_params"]
    assert counted.compute_density == row["compute_density"]
    json.dumps(payload)
    same = lattice_payload(
        space, **{name: payload["triad"][name] for name in ("flops_per_token", "active_params", "total_params")}
    )
    assert same["count"] == payload["count"]
    with pytest.raises(InputError, match="missing total_params"):
        lattice_payload(space, flops_per_token=1e6, active_params=1e5)
    with pytest.raises(InputError, match="compute"):
        lattice_payload(space)
    triad = {"flops_per_token": 1e6, "active_params": 1e5, "total_params": 2e5}
    for beside in (["compute"], ["compute", "compute_density"], ["expansion_ratio"]):
        with pytest.raises(InputError, match=f"^{', '.join(beside)}: given beside the three numbers"):
            lattice_payload(space, **triad, **dict.fromkeys(beside, 20.0))
