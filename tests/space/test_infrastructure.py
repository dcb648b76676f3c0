"""Rules of a cluster prune exactly what breaks them."""

import re
from typing import Any

import numpy as np
import pytest

from moe_optuna.errors import InputError
from moe_optuna.space import SearchSpace
from moe_optuna.triad import Triad


def lab(**rules: Any) -> SearchSpace:
    """The lab's space with several head counts, and these rules."""
    data = SearchSpace.load("lab").to_dict() | {"scale": [], "infrastructure": rules}
    return SearchSpace.from_dict(
        data | {"dimensions": data["dimensions"] | {"n_heads": [8, 4], "queries_per_kv_head": [2, 1]}}
    )


def triad(space: SearchSpace) -> Triad:
    return space.triad(space.allocation(1e14).flops_per_token, 9.0, 5.0)


PLAIN = lab()
EVERY = PLAIN.lattice(triad(PLAIN))[::9]


@pytest.mark.parametrize(
    "rules",
    [
        {"width_multiple": 32},
        {"expert_parallel": 32},
        {"tensor_parallel": 4},
        {"pipeline_stages": 4},
        {"memory_per_device": 1.55e8, "tokens_per_device": 2048},
        {"memory_per_device": 1.85e7, "data_parallel": 8, "zero": 3, "recompute": True},
        {"expert_parallel": 8, "all_to_all_bytes": 6000},
        {"tensor_parallel": 2, "pipeline_stages": 2, "width_multiple": 64, "memory_per_device": 3e7},
    ],
)
def test_a_pruned_lattice_is_the_full_one_less_what_breaks_a_rule(rules: dict[str, Any]) -> None:
    space = lab(**rules)
    kept = [architecture for architecture in EVERY if not space.violations(architecture, triad(space))]
    found = set(space.lattice(triad(space)))
    assert found.intersection(EVERY) == set(kept)
    assert 0 < len(found) < len(PLAIN.lattice(triad(PLAIN)))
    assert all(not space.violations(architecture, triad(space)) for architecture in list(found)[::9])
    for phase in (space.phase_one(1e14), space.phase_two(triad(space))):
        assert all(not space.violations(architecture) for architecture in phase.lattice)


def test_widths_are_multiples_of_128() -> None:
    space = SearchSpace.from_dict(SearchSpace.load("lab").to_dict() | {"infrastructure": {"width_multiple": 128}})
    arrays = space.lattice(space.triad(space.allocation(1e17).flops_per_token, 8.0, 5.0)).arrays
    assert len(arrays["d_model"])
    for name in ("d_model", "d_expert", "d_dense"):
        assert (np.asarray(arrays[name]) % 128 == 0).all()


def test_a_cluster_that_no_choice_of_experts_suits_is_explained() -> None:
    space = lab(expert_parallel=7)
    diagnosis = space.explain(triad(space))
    assert diagnosis.count == 0
    assert "no combination" in str(diagnosis)
    assert "infrastructure.expert_parallel" in {relaxation.rule for relaxation in diagnosis.relaxations}
    with pytest.raises(InputError, match=r"phase 1: no architecture keeps infrastructure.expert_parallel = 7; without"):
        space.phase_one(1e14)


@pytest.mark.parametrize("name", ["cpu", "lab"])
def test_a_phase_that_a_rule_empties_names_it_and_what_its_architectures_take(name: str) -> None:
    """Also where the triad that stands for the phase is met by nothing without the rule (`cpu`, phase 1)."""
    plain = SearchSpace.load(name)
    space = SearchSpace.from_dict(plain.to_dict() | {"infrastructure": {"memory_per_device": 80}})
    compute = plain.budgets[0]
    one = plain.phase_one(compute)
    locked = one.triad_of(0)
    said = re.compile(r"no architecture keeps infrastructure.memory_per_device = 80; .* take (\S+) to (\S+) bytes")
    for phase in (one, plain.phase_zero(compute), plain.phase_two(locked)):
        with pytest.raises(InputError, match=said) as caught:
            (space.phase_zero, space.phase_one, lambda _: space.phase_two(locked))[phase.number](compute)
        least, most = map(float, said.findall(str(caught.value))[0])
        used = [space.infrastructure.of(a, space.dimensions)["memory_per_device"] for a in phase.lattice]
        assert least <= min(used) * 1.001
        assert max(used) <= most * 1.001


@pytest.mark.parametrize("rules", [{"expert_parallel": 5}, {"tensor_parallel": 2}])
def test_a_phase_without_allowed_combinations_names_the_rule(rules: dict[str, Any]) -> None:
    """And how many architectures of the phase there are without it, before they are placed on its axes."""
    plain = SearchSpace.load("cpu")
    space = SearchSpace.from_dict(plain.to_dict() | {"infrastructure": rules})
    locked = plain.phase_one(plain.budgets[0]).triad_of(0)
    (name, value), lattice = *rules.items(), plain.lattice(locked).arrays
    every = len(np.unique(np.stack([lattice[n] for n in ("d_model", "n_experts", "top_k")]), axis=1).T)
    with pytest.raises(
        InputError, match=f"phase 2: no architecture keeps infrastructure.{name} = {value}; .* {every}$"
    ):
        space.phase_two(locked)


def test_rules_that_leave_nothing_together_are_named_together() -> None:
    space = lab(expert_parallel=8, all_to_all_bytes=5, memory_per_device=80)
    with pytest.raises(InputError, match=r"= 80 and infrastructure.all_to_all_bytes = 5 and .* = 8; without them"):
        space.phase_one(1e14)


def test_contradictory_cluster_is_refused() -> None:
    with pytest.raises(InputError, match="expected a multiple of expert_parallel = 4"):
        lab(data_parallel=6, expert_parallel=4)
