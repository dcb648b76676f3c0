"""The integer solve against brute force over the whole box."""

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_optuna.architecture import DIMENSIONS, MoEArchitecture
from moe_optuna.space import SearchSpace
from moe_optuna.triad import Tolerances, Triad

ORDER = [name for name in DIMENSIONS if name not in ("context_length", "vocab_size")]


def brute_force(space: SearchSpace, triad: Triad) -> set[tuple[int, ...]]:
    """Every point of the box whose counts, by the formulas of arXiv:2603.21862, lie inside the tolerances."""
    d, rules = space.dimensions, space.infrastructure
    steps = {
        name: [
            w for w in range(1, spec.high + 1) if w >= spec.low and w % np.lcm(spec.multiple, rules.width_multiple) == 0
        ]
        for name, spec in (("d_model", d.d_model), ("d_expert", d.d_expert))
    }
    dense_step = int(np.lcm(d.d_dense.multiple, rules.width_multiple))
    axes: list[Any] = [
        steps["d_model"],
        range(d.n_dense_layers.low, d.n_dense_layers.high + 1),
        range(d.n_moe_layers.low, d.n_moe_layers.high + 1),
        d.n_heads,
        d.queries_per_kv_head,
        d.d_head,
        [0]
        if d.d_dense.low is None
        else [0, *(w for w in range(d.d_dense.low, (d.d_dense.high or 0) + 1) if w % dense_step == 0)],
        steps["d_expert"],
        d.n_experts,
        d.top_k,
        d.n_shared_experts,
    ]
    grid = (
        [np.asarray(g).ravel() for g in np.meshgrid(*axes, indexing="ij", sparse=False)] if all(map(len, axes)) else []
    )
    if not grid:
        return set()
    width, dense, moe, heads, group, head, d_dense, expert, experts, active, shared = grid
    if d.d_dense.ratio is not None:
        d_dense = (
            np.maximum(np.floor(np.round(d.d_dense.ratio * width / dense_step + 0.5, 9)), 1).astype(int) * dense_step
        )
        free_width_is_right = np.ones(len(width), dtype=bool)
    else:
        free_width_is_right = (d_dense == 0) == (dense == 0)
    kv = heads // group
    layers = dense + moe
    na = layers * 2 * width * head * (heads + kv) + 3 * width * (d_dense * dense + expert * (active + shared) * moe)
    n = na + 3 * width * expert * (experts - active) * moe
    m = 6 * na + 6 * d.context_length * heads * head * layers
    meets = np.ones(len(width), dtype=bool)
    for count, target, tolerance in zip(
        (m, na, n),
        triad.targets.values(),
        (triad.tolerances.flops_per_token, triad.tolerances.active_params, triad.tolerances.total_params),
        strict=True,
    ):
        meets &= np.abs(count / target - 1) <= tolerance + 1e-12
    meets &= (heads % group == 0) & (active <= experts) & free_width_is_right & (moe >= 1)
    meets &= (layers >= d.n_layers.low) & (layers <= d.n_layers.high)
    meets &= (layers % rules.pipeline_stages == 0) & (experts % rules.expert_parallel == 0)
    meets &= (heads % rules.tensor_parallel == 0) & (kv % rules.tensor_parallel == 0)
    columns = (width, dense, moe, heads, kv, head, d_dense, expert, experts, active, shared)
    return set(zip(*(column[meets].tolist() for column in columns), strict=True))


def some(values: list[int], most: int = 2) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def widths(draw: st.DrawFn, *multiples: int) -> dict[str, int]:
    low, high = draw(st.integers(1, 12)), draw(st.integers(24, 48))
    return {"low": low, "high": high, "multiple": draw(one_of(*multiples))}


@st.composite
def problems(draw: st.DrawFn) -> tuple[SearchSpace, Triad]:
    """A small space, and a triad of an architecture that may lie in it or a little off."""
    dense: dict[str, Any]
    if draw(st.booleans()):
        dense = {"ratio": draw(one_of(0.5, 1.0, 8 / 3, 3.0, 4.0)), "multiple": draw(one_of(1, 8, 16))}
    else:
        dense = {"low": draw(one_of(1, 8)), "high": draw(one_of(16, 40)), "multiple": draw(one_of(4, 8))}
    experts = [6, *draw(st.lists(one_of(2, 4, 8), max_size=1))]
    dimensions = {
        "d_model": widths(draw, 1, 4, 8),
        "d_expert": widths(draw, 1, 2, 8),
        "d_dense": dense,
        "n_layers": {"low": 1, "high": draw(st.integers(3, 7))},
        "n_dense_layers": {"low": draw(st.integers(0, 1)), "high": draw(st.integers(1, 3))},
        "n_moe_layers": {"low": draw(st.integers(1, 2)), "high": draw(st.integers(2, 4))},
        "n_heads": draw(some([1, 2, 4])),
        "queries_per_kv_head": 1 if draw(st.booleans()) else [1, 2],
        "d_head": draw(some([4, 8])),
        "n_experts": experts,
        "top_k": draw(some([1, 2], 2)),
        "n_shared_experts": draw(some([0, 1, 2])),
        "context_length": draw(one_of(16, 128)),
        "vocab_size": 64,
    }
    shared, active = dimensions["n_shared_experts"][0], dimensions["top_k"][0]
    space = SearchSpace.from_dict(
        {
            "format": 1,
            "name": "random",
            "budgets": [1e9],
            "target": 1e10,
            "allocation_law": {"coefficient": 1.0, "exponent": 0.5},
            "reference": {"compute_density": 9.0, "expansion_ratio": 1.5},
            "axes": {"compute_density": [7, 12], "expansion_ratio": [1.01, (experts[0] + shared) / (active + shared)]},
            "dimensions": dimensions,
            "infrastructure": {
                "width_multiple": draw(one_of(1, 1, 4)),
                "expert_parallel": draw(one_of(1, 1, 2)),
                "tensor_parallel": draw(one_of(1, 1, 2)),
                "pipeline_stages": draw(one_of(1, 1, 2)),
            },
        }
    )  # fmt: skip
    d = space.dimensions
    heads = draw(st.sampled_from(d.n_heads))
    point = MoEArchitecture(
        d_model=draw(st.integers(8, 40)), n_dense_layers=draw(st.integers(0, 3)), n_moe_layers=draw(st.integers(1, 3)),
        n_heads=heads, n_kv_heads=heads, d_head=draw(st.sampled_from(d.d_head)), d_dense=draw(st.integers(8, 60)),
        d_expert=draw(st.integers(8, 40)), n_experts=draw(st.sampled_from(d.n_experts)),
        top_k=draw(st.sampled_from(d.top_k)),
        n_shared_experts=draw(st.sampled_from(d.n_shared_experts)), context_length=d.context_length, vocab_size=64,
    )  # fmt: skip
    counts = point.non_embedding
    tolerances = Tolerances(*(draw(one_of(0.003, 0.05, 0.15)) for _ in range(3)))
    return space, Triad(counts.flops_per_token, counts.active_params, counts.total_params, tolerances)


@given(problems())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_finds_what_brute_force_finds_and_nothing_twice(problem: tuple[SearchSpace, Triad]) -> None:
    space, triad = problem
    lattice = space.lattice(triad)
    found = list(zip(*(lattice.arrays[name].tolist() for name in ORDER), strict=True))
    assert len(found) == len(set(found)) == len(lattice)
    assert set(found) == brute_force(space, triad)
