"""Counts against closed forms, explicit sums and published tables; files; errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_optuna.architecture import DIMENSIONS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.parts import (
    KINDS,
    Attention,
    GatedDeltaAttention,
    GatedFeedForward,
    GroupedQueryAttention,
    IndexedAttention,
    Interleaved,
    LatentAttention,
    LightningAttention,
    MixtureAttention,
    Norm,
    Router,
    ShortConvolution,
)

BASE = MoEArchitecture(
    d_model=64, n_dense_layers=1, n_moe_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
    n_experts=8, top_k=2, n_shared_experts=1, context_length=37, vocab_size=300,
)  # fmt: skip
KINDS_OF_ATTENTION: tuple[Attention, ...] = (
    GroupedQueryAttention(),
    GroupedQueryAttention(window=5, qkv_bias=True, output_bias=True, sinks=True, norm_over="width", output_gate=True),
    LatentAttention(kv_rank=16, q_rank=24, d_nope=16, d_rope=8, d_value=12, bias=True),
    LatentAttention(kv_rank=16, q_rank=None, d_nope=16, d_rope=8, d_value=12),
    IndexedAttention(
        LatentAttention(kv_rank=16, q_rank=24, d_nope=16, d_rope=8, d_value=12), top_k=8, n_heads=2, d_head=8
    ),
    MixtureAttention(),
    ShortConvolution(kernel=3, bias=True),
    GatedDeltaAttention(n_key_heads=2, n_value_heads=4, d_key=8, d_value=16, kernel=4),
    LightningAttention(),
    Interleaved(((GroupedQueryAttention(window=5), 3), (LightningAttention(), 1))),
)


@st.composite
def architectures(draw: st.DrawFn) -> MoEArchitecture:
    """Of the kind that the holistic laws are about."""
    n_kv_heads, n_experts = draw(st.integers(1, 8)), draw(st.integers(1, 300))
    return MoEArchitecture(
        d_model=draw(st.integers(1, 4096)),
        n_dense_layers=draw(st.integers(0, 30)),
        n_moe_layers=draw(st.integers(1, 60)),
        n_heads=n_kv_heads * draw(st.integers(1, 8)),
        n_kv_heads=n_kv_heads,
        d_head=draw(st.integers(1, 256)),
        d_dense=draw(st.integers(1, 10_000)),
        d_expert=draw(st.integers(1, 5_000)),
        n_experts=n_experts,
        top_k=draw(st.integers(1, n_experts)),
        n_shared_experts=draw(st.integers(0, 4)),
        context_length=draw(st.integers(1, 100_000)),
        vocab_size=draw(st.integers(1, 200_000)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


@given(architectures())
def test_non_embedding_counts_are_the_papers(a: MoEArchitecture) -> None:
    """arXiv:2603.21862, eqs. 3, 4, 12: with ``S`` shared experts, causal attention halved."""
    layers = a.n_dense_layers + a.n_moe_layers
    attention = 2 * a.d_model * a.d_head * (a.n_heads + a.n_kv_heads)
    active = (
        attention * layers
        + 3 * a.d_model * a.d_dense * a.n_dense_layers
        + 3 * a.d_model * a.d_expert * (a.top_k + a.n_shared_experts) * a.n_moe_layers
    )
    assert a.non_embedding.active_params == active
    assert (
        a.non_embedding.total_params == active + 3 * a.d_model * a.d_expert * (a.n_experts - a.top_k) * a.n_moe_layers
    )
    assert a.non_embedding.flops_per_token == 6 * active + 6 * a.context_length * a.n_heads * a.d_head * layers


@given(architectures())
def test_ratios_are_the_papers_closed_forms(a: MoEArchitecture) -> None:
    """M/Na from attention's FLOP share, N/Na from the experts' parameter share (one shared expert in the paper)."""
    share = a.shares["attention"]
    density = 6 / (1 - share / (1 + 2 * a.d_model * (1 + a.n_kv_heads / a.n_heads) / a.context_length))
    assert a.compute_density == pytest.approx(density, rel=1e-9)
    experts = 3 * a.d_model * a.d_expert * (a.top_k + a.n_shared_experts) * a.n_moe_layers
    held = (a.n_experts + a.n_shared_experts) / (a.top_k + a.n_shared_experts)
    expansion = 1 + experts / a.non_embedding.active_params * (held - 1)
    assert a.expansion_ratio == pytest.approx(expansion, rel=1e-9)
    assert sum(a.shares.values()) == pytest.approx(1)


@given(architectures())
def test_full_counts_add_what_the_paper_leaves_out(a: MoEArchitecture) -> None:
    layers = a.n_dense_layers + a.n_moe_layers
    matrices = a.vocab_size * a.d_model * (1 if a.tied_embeddings else 2) + a.n_experts * a.d_model * a.n_moe_layers
    gains = a.d_model * (2 * layers + 1) + 2 * a.d_head * a.qk_norm * layers
    assert a.full.total_params == a.non_embedding.total_params + matrices + gains
    assert a.full.active_params == a.non_embedding.active_params + matrices + gains
    products = a.vocab_size * a.d_model + a.n_experts * a.d_model * a.n_moe_layers
    attention = 6 * a.n_heads * a.d_head * layers  # each query also sees its own key
    assert a.full.flops_per_token == a.non_embedding.flops_per_token + 6 * products + attention


@pytest.mark.parametrize("chunk", [None, 1, 7, 36, 99])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 36, 37, 99])
def test_exact_attention_flops_are_a_sum_over_pairs(window: int | None, chunk: int | None) -> None:
    a = replace(BASE, attention=GroupedQueryAttention(window=window, chunk=chunk))
    pairs = sum(
        1
        for query in range(a.context_length)
        for key in range(a.context_length)
        if key <= query
        and (window is None or query - key < window)
        and (chunk is None or query // chunk == key // chunk)
    )
    # Queries times keys and weights times values, two FLOPs a product, twice again backward; a mean over the tokens.
    attention = 6 * 2 * a.n_heads * a.d_head * pairs * a.n_layers / a.context_length
    products = 6 * sum(part.visited * part.cost.matrices for part in a.components)
    assert a.full.flops_per_token == pytest.approx(products + attention, abs=a.n_layers)


def test_an_indexer_scores_all_keys_and_attention_is_over_those_that_it_chooses() -> None:
    indexed = next(kind for kind in KINDS_OF_ATTENTION if isinstance(kind, IndexedAttention))
    a = replace(BASE, n_kv_heads=4, d_head=24, qk_norm=False, attention=indexed)
    queries = range(1, a.context_length + 1)
    pairs = sum((2 * 8 + 2) * keys + 4 * (24 + 12) * min(keys, 8) for keys in queries)
    products = 6 * sum(part.visited * part.cost.matrices for part in a.components)
    expected = products + 6 * pairs * a.n_layers / a.context_length
    assert a.full.flops_per_token == pytest.approx(expected, abs=a.n_layers)


@given(st.integers(1, 500), st.integers(1, 600))
def test_windows_never_cost_more(context_length: int, window: int) -> None:
    full = replace(BASE, context_length=context_length)
    windowed = replace(full, attention=GroupedQueryAttention(window=window))
    for convention in ("full", "non_embedding"):
        assert getattr(windowed, convention).flops_per_token <= getattr(full, convention).flops_per_token
    if window >= context_length:
        assert windowed.full == full.full
        assert windowed.non_embedding == full.non_embedding


def test_a_part_of_each_kind_by_hand() -> None:
    """Parameters of one layer of each kind, written out for d_model 64, 4 heads, 2 key heads of 16 features."""
    costs = [kind.cost(BASE) for kind in KINDS_OF_ATTENTION[:-1]]
    grouped, gated, latent, direct, indexed, mixture, convolution, delta, lightning = costs
    assert grouped.matrices == 64 * 64 + 2 * 64 * 32 + 64 * 64
    assert grouped.vectors == 16 + 16
    assert gated.matrices == grouped.matrices + 64 * 64
    assert gated.vectors == (64 + 32 + 32) + 64 + 4 + (64 + 32)
    assert latent.matrices == 64 * 24 + 24 * 4 * 24 + 64 * (16 + 8) + 16 * 4 * (16 + 12) + 4 * 12 * 64
    assert latent.vectors == 24 + 16 + (24 + 24 + 64)
    assert latent.pair_width == 4 * (24 + 12)
    assert direct.matrices == 64 * 4 * 24 + 64 * (16 + 8) + 16 * 4 * (16 + 12) + 4 * 12 * 64
    assert indexed.matrices == latent.matrices + 24 * 2 * 8 + 64 * 8 + 64 * 2
    assert indexed.vectors == 24 + 16 + 2 * 8
    assert (indexed.pair_width, indexed.index_width, indexed.window) == (latent.pair_width, 2 * 8 + 2, 8)
    assert mixture.matrices == 2 * 64 * 32 + 2 * (2 * 64 * 32)
    assert mixture.idle == 6 * (2 * 64 * 32)
    assert convolution.matrices == 64 * 3 * 64 + 64 * 3 + 64 * 64
    assert convolution.vectors == 3 * 64 + 64 + 64
    assert delta.matrices == 64 * (16 + 16 + 64 + 64 + 4 + 4) + (16 + 16 + 64) * 4 + 64 * 64
    assert delta.state == 3 * 4 * 8 * 16
    assert lightning.matrices == 5 * 64 * 64
    assert lightning.state == 2 * 4 * 16 * 16
    assert [cost.pair_width for cost in (convolution, delta, lightning)] == [0, 0, 0]


def test_idle_experts_of_attention_are_held_and_not_visited() -> None:
    a = replace(BASE, attention=MixtureAttention(), qk_norm=False)
    idle = 6 * 2 * 64 * 32 * a.n_layers
    routed = 3 * 64 * 32 * 6 * a.n_moe_layers
    assert a.full.total_params - a.full.active_params == idle + routed
    assert a.non_embedding.total_params - a.non_embedding.active_params == idle + routed


def test_shared_experts_may_have_a_kind_and_a_width_of_their_own() -> None:
    wide = replace(BASE, d_shared=40)
    assert wide.full.total_params - BASE.full.total_params == 3 * 64 * (40 - 32) * BASE.n_moe_layers
    biased = replace(BASE, shared=GatedFeedForward(bias=True))
    assert biased.full.total_params - BASE.full.total_params == (2 * 32 + 64) * BASE.n_moe_layers
    assert biased.non_embedding == BASE.non_embedding


@pytest.mark.parametrize("attention", KINDS_OF_ATTENTION, ids=lambda kind: kind.kind)
def test_roles_add_up(attention: Attention) -> None:
    a = replace(BASE, attention=attention, tied_embeddings=True)
    assert list(a.roles) == ["embedding", "attention", "dense_ffn", "moe", "router", "norm", "head"]
    for name in ("flops_per_token", "active_params", "total_params"):
        assert sum(getattr(counts, name) for counts in a.roles.values()) == getattr(a.full, name)
    assert a.roles["head"].total_params == 0 < a.roles["head"].flops_per_token


def test_biases_are_held_and_cost_no_product() -> None:
    bare = replace(BASE, norm=Norm(), router=Router())
    biased = replace(
        bare, norm=Norm(bias=True), router=Router(bias=True, output_bias=True), head_bias=True,
        feed_forward=GatedFeedForward(bias=True), experts=GatedFeedForward(bias=True),
    )  # fmt: skip
    layers, moe = BASE.n_layers, BASE.n_moe_layers
    expert, norms = 2 * 32 + 64, 64 * (2 * layers + 1)
    added = norms + (8 + 64) * moe + 300 + (2 * 192 + 64) + expert * 9 * moe
    assert biased.full.total_params - bare.full.total_params == added
    assert biased.full.flops_per_token == bare.full.flops_per_token
    assert biased.non_embedding == bare.non_embedding


@pytest.mark.parametrize("attention", KINDS_OF_ATTENTION, ids=lambda kind: kind.kind)
def test_files_round_trip(tmp_path: Path, attention: Attention) -> None:
    a = replace(
        BASE, attention=attention, tied_embeddings=True, qk_norm=False, head_bias=True, d_shared=50,
        shared=GatedFeedForward(bias=True), experts=GatedFeedForward(bias=True), norm=Norm(per_layer=4, bias=True),
        router=Router(bias=True, shared_gate=True, output_bias=True, mixtures=2),
    )  # fmt: skip
    a.save(tmp_path / "a.json")
    assert MoEArchitecture.load(tmp_path / "a.json") == a
    assert MoEArchitecture.from_dict(json.loads(json.dumps(a.to_dict()))) == a
    assert len({a, MoEArchitecture.load(tmp_path / "a.json")}) == 1


def test_all_kinds_are_tried_above() -> None:
    assert {type(kind) for kind in KINDS_OF_ATTENTION} == set(KINDS["attention"].values())


def test_a_file_says_only_what_is_not_the_default() -> None:
    assert list(BASE.to_dict()) == list(DIMENSIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model: 0, expected at least 1"),
        ({"d_model": -8}, "d_model: -8, expected an integer of at least 0"),
        ({"d_model": 64.0}, "d_model: 64.0, expected an integer"),
        ({"d_model": True}, "d_model: True, expected an integer"),
        ({"n_dense_layers": 0, "n_moe_layers": 0}, "both 0, expected at least one layer"),
        ({"top_k": 9}, "top_k: 9, expected at most n_experts = 8"),
        ({"top_k": 0}, "top_k: 0, expected at least 1"),
        ({"n_kv_heads": 3}, "n_kv_heads: 3, expected a divisor of n_heads = 4"),
        ({"d_dense": 0}, "d_dense: 0, expected at least 1"),
        ({"tied_embeddings": "no"}, "tied_embeddings: 'no', expected true or false"),
        ({"d_shared": 0}, "d_shared: 0, expected at least 1"),
        ({"d_shared": 8, "n_shared_experts": 0}, "d_shared: 8, expected null without n_shared_experts"),
        ({"attention": Interleaved(((GroupedQueryAttention(), 3),))}, "interleaved attention: 3 layers, expected 4"),
    ],
)
def test_bad_dimensions_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(BASE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_modell": 64}, "unknown key 'd_modell'; did you mean 'd_model'"),
        ({"qk_norm": 1}, "qk_norm: 1, expected true or false"),
        ({"attention": 3}, "attention: 3, expected an object"),
        ({"attention": {"kind": "spiral"}}, "attention: unknown kind 'spiral', expected one of grouped_query, latent"),
        ({"attention": {"kind": "grouped_query", "width": 3}}, "attention: got an unexpected keyword argument 'width'"),
        ({"attention": {"kind": "latent"}}, "attention: missing 5 required positional arguments"),
        (
            {"attention": {"kind": "grouped_query", "window": 0}},
            "window: 0, expected an integer of at least 1, or null",
        ),
        ({"attention": {"kind": "grouped_query", "sinks": 1}}, "sinks: 1, expected true or false"),
        ({"attention": {"kind": "grouped_query", "norm_over": "x"}}, "norm_over: 'x', expected one of 'head', 'width'"),
        ({"attention": {"kind": "short_convolution", "kernel": -1}}, "kernel: -1, expected an integer of at least 0"),
        (
            {"attention": {"kind": "interleaved", "parts": [[3, 4]]}},
            "parts: .*expected pairs of a kind and its number",
        ),
        ({"attention": {"kind": "interleaved", "parts": 4}}, "parts: 4, expected pairs"),
        (
            {"attention": {"kind": "indexed", "latent": 4, "top_k": 8, "n_heads": 2, "d_head": 8}},
            "latent: 4, expected latent attention with a query rank",
        ),
        (
            {"attention": {"kind": "indexed", "latent": None, "top_k": 0, "n_heads": 2, "d_head": 8}},
            "top_k: 0, expected at least 1",
        ),
        (
            {"attention": {"kind": "interleaved", "parts": [[{"kind": "spiral"}, 4]]}},
            "attention: unknown kind 'spiral'",
        ),
        (
            {"attention": {"kind": "interleaved", "parts": [[{"kind": "interleaved", "parts": [[{}, 4]]}, 4]]}},
            "attention: parts: interleaved in itself, expected kinds",
        ),
        ({"router": {"kind": []}}, r"router: unknown kind \[\], expected one of"),
        ({"router": None}, "router: None, expected an object"),
        ({"router": {"bias": None}}, "router: bias: None, expected true or false"),
    ],
)
def test_bad_files_are_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        MoEArchitecture.from_dict({**BASE.to_dict(), **change}, where="a.json")
    assert str(caught.value).startswith("a.json: ")
    assert str(caught.value).count("a.json") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "not JSON"),
        ("[]", "not a JSON object, expected an architecture"),
        ('{"format": 1, "architecture": {}}', "missing d_model, n_dense_layers"),
        ('{"format": 2, "architecture": {}}', "format 2, expected 1"),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        MoEArchitecture.load(path)
    assert str(caught.value).startswith(str(path))


def test_null_is_what_is_left_out() -> None:
    assert MoEArchitecture.from_dict({**BASE.to_dict(), "shared": None, "d_shared": None}) == BASE


def test_numpy_integers_are_integers() -> None:
    """A row of a lattice's arrays; files and hashes are those of the same architecture in Python's integers."""
    row = {name: np.int64(getattr(BASE, name)) for name in DIMENSIONS}
    architecture = replace(BASE, **row)
    assert (architecture, hash(architecture)) == (BASE, hash(BASE))
    assert json.dumps(architecture.to_dict()) == json.dumps(BASE.to_dict())
    assert type(replace(BASE, d_shared=np.int64(40)).d_shared) is int


def test_ratios_without_experts_are_none() -> None:
    dense = replace(BASE, n_moe_layers=0, d_expert=0, n_experts=0, top_k=0, n_shared_experts=0)
    assert (dense.granularity, dense.activation_ratio, dense.shared_ratio) == (None, None, None)
    assert dense.expansion_ratio == 1
    assert (BASE.granularity, BASE.activation_ratio, BASE.shared_ratio) == (4.0, 0.25, 1 / 3)
