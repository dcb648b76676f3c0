"""Empty sets explained: each relaxation works and a smaller one does not; the nearest triad is the nearest."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_optuna.space import Relaxation, SearchSpace
from moe_optuna.triad import Tolerances, Triad

SMALL = SearchSpace.load(Path(__file__).with_name("small.toml"))
M = SMALL.allocation(5e10).flops_per_token

EMPTY = [
    pytest.param(SMALL, SMALL.triad(M, 40.0, 3.0), id="too much attention"),
    pytest.param(SMALL, SMALL.triad(M, 9.0, 40.0), id="too many experts"),
    pytest.param(SMALL, SMALL.triad(M, 9.0, 1.02), id="hardly any expert"),
    pytest.param(SMALL, Triad.at(M, 9.0, 3.3, Tolerances(0.002, 0.002, 0.002)), id="tight tolerances"),
]


def limited(**rules: Any) -> SearchSpace:
    return SearchSpace.from_dict(SMALL.to_dict() | {"infrastructure": rules})


EMPTY += [
    pytest.param(limited(memory_per_device=2e6), SMALL.triad(M, 9.0, 3.0), id="little memory"),
    pytest.param(limited(pipeline_stages=16), SMALL.triad(M, 9.0, 3.0), id="many stages"),
    pytest.param(limited(width_multiple=128), SMALL.triad(M, 9.0, 3.0), id="wide multiples"),
]


def changed(space: SearchSpace, relaxation: Relaxation, value: float) -> SearchSpace:
    """The space with another value for a rule, by way of its plain data."""
    data = space.to_dict()
    table, *path = relaxation.rule.split(".")
    if table == "dimensions" and len(path) == 1:
        data[table][path[0]] = int(value)
    elif table == "dimensions":
        data[table][path[0]] = {**data[table][path[0]], path[1]: int(value)}
    else:
        data[table][path[0]] = value if path[0] in ("memory_per_device", "all_to_all_bytes") else int(value)
    # Ranges of the axes belong to the expert counts, and are no rule of the lattice.
    data["axes"]["expansion_ratio"] = [1.001, 1.01]
    data["reference"]["expansion_ratio"] = 1.005
    return SearchSpace.from_dict(data)


def meets(space: SearchSpace, triad: Triad, relaxation: Relaxation, value: float) -> bool:
    if relaxation.rule.startswith("tolerances."):
        held = {name: getattr(triad.tolerances, name) for name in triad.targets} | {relaxation.rule[11:]: value}
        return bool(space.lattice(Triad(*triad.targets.values(), Tolerances(**held))))
    return bool(changed(space, relaxation, value).lattice(triad))


@pytest.mark.parametrize(("space", "triad"), EMPTY)
def test_each_relaxation_is_enough_and_less_is_not(space: SearchSpace, triad: Triad) -> None:
    diagnosis = space.explain(triad)
    assert diagnosis.count == len(space.lattice(triad)) == 0
    assert diagnosis.relaxations
    assert diagnosis.binding == str(diagnosis.relaxations[0])
    sizes = [relaxation.size for relaxation in diagnosis.relaxations]
    assert sizes == sorted(sizes)
    for relaxation in diagnosis.relaxations:
        assert meets(space, triad, relaxation, relaxation.needed)
        step = relaxation.needed - relaxation.value
        if relaxation.rule.startswith("tolerances."):
            assert not meets(space, triad, relaxation, relaxation.needed - 2e-4)
        elif relaxation.rule.endswith((".low", ".high")):
            assert not meets(space, triad, relaxation, relaxation.needed - np.sign(step))
        elif relaxation.rule.endswith("memory_per_device"):
            assert not meets(space, triad, relaxation, relaxation.needed - 2e-3 * relaxation.value)


@pytest.mark.parametrize(("space", "triad"), EMPTY[:4])
def test_nearest_triad_is_the_nearest(space: SearchSpace, triad: Triad) -> None:
    """No architecture lies nearer, in the largest of |log(count / target)| / tolerance."""
    diagnosis = space.explain(triad)
    assert diagnosis.nearest is not None
    assert diagnosis.architecture is not None
    assert space.lattice(diagnosis.nearest)
    assert space.violations(diagnosis.architecture, diagnosis.nearest) == {}

    targets = np.array(list(triad.targets.values()))
    held = np.array([getattr(triad.tolerances, name) for name in triad.targets])

    def distance(counts: list[float]) -> float:
        return float((np.abs(np.log(np.array(counts) / targets)) / held).max())

    found = distance(list(diagnosis.nearest.targets.values()))
    if found * held.max() > 0.9:
        return  # beyond what a tolerance can say
    wide = Tolerances(*(float(1 - np.exp(-found * width)) for width in held))
    others = space.lattice(Triad(*triad.targets.values(), wide)).arrays
    counts = np.stack([others[name] for name in triad.targets], axis=1)
    nearer = (np.abs(np.log(counts / targets)) / held).max(axis=1) < found - 1e-3
    assert not nearer.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("space", "flops"), [(SMALL, 1e12), (SearchSpace.load("holistic"), 9e14)], ids=["small", "holistic"]
)
def test_far_beyond_the_space_its_largest_is_the_nearest(space: SearchSpace, flops: float) -> None:
    nearest, d = space.explain(space.triad(flops, 9.0, 3.0)).architecture, space.dimensions
    assert nearest is not None
    assert (nearest.d_model, nearest.d_expert) == (d.d_model.high, d.d_expert.high)
    assert nearest.n_moe_layers == nearest.n_layers == d.n_layers.high
    assert nearest.top_k == max(d.top_k)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flops", [1e15, 1e25, 1e150])
def test_beyond_a_factor_of_ten_thousand_none_is_near_and_the_reason_stands_once(flops: float) -> None:
    diagnosis = SMALL.explain(SMALL.triad(flops, 9.0, 3.0))
    assert (diagnosis.nearest, diagnosis.relaxations) == (None, ())
    assert diagnosis.reason is not None
    assert str(diagnosis).count(diagnosis.reason) == 1


@pytest.mark.parametrize("name", ["lab", "holistic"])
def test_a_limit_that_no_architecture_keeps_is_found_at_once(name: str) -> None:
    """80 for 80e9 bytes: what is needed is what the smallest takes, and nothing is near."""
    plain = SearchSpace.load(name)
    space = SearchSpace.from_dict(plain.to_dict() | {"infrastructure": {"memory_per_device": 80.0}})
    triad = plain.triad(plain.allocation(plain.budgets[0]).flops_per_token, 9.0, 5.0)
    diagnosis = space.explain(triad)
    assert diagnosis.nearest is None
    (relaxation,) = diagnosis.relaxations
    arrays = plain.lattice(triad).arrays
    least = space.infrastructure.memory(arrays, plain.dimensions).total.min()
    assert least <= relaxation.needed <= least * (1 + 1e-5)
    assert meets(space, triad, relaxation, relaxation.needed)


@pytest.mark.filterwarnings("error")
def test_one_tolerance_may_be_far_below_the_others() -> None:
    diagnosis = SMALL.explain(Triad.at(M, 9.0, 3.3, Tolerances(0.05, 1e-8, 0.1)))
    assert diagnosis.count == 0
    assert diagnosis.nearest is not None


@pytest.mark.parametrize(("density", "expansion"), [(9.0, 2.4), (9.0, 3.2), (15.0, 4.0)])
def test_a_value_for_a_list_is_the_nearest_that_fits(density: float, expansion: float) -> None:
    """No value nearer to one of the list, in the ratio, gives an architecture by itself."""
    data = SMALL.to_dict()
    data["dimensions"] |= {"n_experts": [8, 32], "top_k": 2}
    data["axes"]["expansion_ratio"], data["reference"]["expansion_ratio"] = [1.4, 2.9], 2.0
    space = SearchSpace.from_dict(data)
    triad = Triad.at(2.5 * M, density, expansion, Tolerances(0.01, 0.01, 0.01))
    (relaxation,) = [r for r in space.explain(triad).relaxations if r.rule == "dimensions.n_experts"]

    def away(experts: float) -> float:
        return float(min(abs(np.log(experts / have)) for have in (8, 32)))

    assert relaxation.size == pytest.approx(away(relaxation.needed))
    nearer = [experts for experts in range(3, 132) if away(experts) < relaxation.size - 1e-12]
    assert not any(meets(space, triad, relaxation, experts) for experts in nearer)


@pytest.mark.parametrize("experts", [[2**31 - 1], [16, 1000, 30_000, 2 * 10**9]])
def test_large_values_of_a_list_are_explained_in_bounded_work(experts: list[int]) -> None:
    data = SMALL.to_dict()
    space = SearchSpace.from_dict(data | {"dimensions": data["dimensions"] | {"n_experts": experts}})
    tracemalloc.start()
    diagnosis = space.explain(Triad.at(M, 9.0, 3.3, Tolerances(0.002, 0.002, 0.002)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert diagnosis.count == 0
    assert peak < 5e8


def test_a_large_multiple_is_brought_down_to_the_largest_divisor_that_fits() -> None:
    space = limited(width_multiple=2**20 * 1021)
    (needed,) = [r.needed for r in space.explain(SMALL.triad(M, 9.0, 3.0)).relaxations if "width_multiple" in r.rule]
    fits = [2**k for k in range(21) if limited(width_multiple=2**k).lattice(SMALL.triad(M, 9.0, 3.0))]
    assert needed == max(fits)


def test_what_is_met_binds_nothing() -> None:
    diagnosis = SMALL.explain(SMALL.triad(M, 9.0, 3.0))
    assert diagnosis.count > 0
    assert diagnosis.binding is None
    assert diagnosis.relaxations == ()
    assert diagnosis.to_dict()["nearest"] is None
    assert str(diagnosis) == f"{diagnosis.count} architectures meet the triad"
    assert str(replace(diagnosis, count=1)) == "1 architecture meets the triad"


def test_reasons_say_what_the_closed_form_says() -> None:
    assert "these experts reach at most" in str(SMALL.explain(SMALL.triad(M, 9.0, 40.0)))
    shallow = SearchSpace.from_dict(
        SMALL.to_dict() | {"dimensions": SMALL.to_dict()["dimensions"] | {"n_heads": 64}, "scale": []}
    )
    assert "pays for the attention of" in str(shallow.explain(shallow.triad(M, 7.0, 3.0)))
    assert "\n" not in str(shallow.explain(shallow.triad(M, 7.0, 3.0)))


def test_at_a_scale_the_rule_is_named_where_the_file_has_it() -> None:
    """What `[[scale]]` replaces is changed there: in `[dimensions]` the change would do nothing."""
    space = SearchSpace.from_dict(SMALL.to_dict() | {"scale": [{"compute": 1e9, "n_heads": 16}]})
    triad = SMALL.triad(M, 9.0, 3.0)
    (relaxation,) = [r for r in space.explain(triad).relaxations if r.rule.endswith("n_heads")]
    assert relaxation.rule == "scale.0.n_heads"
    data = space.to_dict()
    data["scale"][0]["n_heads"] = int(relaxation.needed)
    assert SearchSpace.from_dict(data).lattice(triad)


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_the_nearest_keeps_the_rules_of_its_own_scale(factor: float) -> None:
    """Where the number of heads changes just beside the triad, what is near at either side is feasible there."""
    start = SMALL.allocation_law.compute(M)
    wide = SearchSpace.from_dict(SMALL.to_dict() | {"scale": [{"compute": 1e-9, "n_heads": 16}]})
    space = SearchSpace.from_dict(SMALL.to_dict() | {"scale": [{"compute": start, "n_heads": 16}]})
    triad = Triad.at(factor * M, 9.0, 3.3, Tolerances(0.002, 0.002, 0.002))
    diagnosis = space.explain(triad)
    assert diagnosis.count == 0
    assert diagnosis.nearest is not None
    assert diagnosis.architecture is not None
    assert space.lattice(diagnosis.nearest)
    assert space.violations(diagnosis.architecture, diagnosis.nearest) == {}

    targets = np.array(list(triad.targets.values()))
    near = replace(triad, tolerances=Tolerances(0.2, 0.2, 0.2))
    of_both = []
    for one, at_its_scale in ((SMALL, np.less), (wide, np.greater_equal)):
        arrays = one.lattice(near).arrays
        counts = np.stack([arrays[name] for name in triad.targets], axis=1)[at_its_scale(arrays["flops_per_token"], M)]
        of_both.append(np.abs(np.log(counts / targets)).max(axis=1).min(initial=np.inf))
    found = np.abs(np.log(np.array(list(diagnosis.nearest.targets.values())) / targets)).max()
    assert found == pytest.approx(min(of_both))
