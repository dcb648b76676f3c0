"""The language model: its counts, its two paths, causality."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.parts import GroupedQueryAttention, Interleaved, LatentAttention, Router
from moe_optuna.training import MoELanguageModel, Recipe, native
from moe_optuna.training.model import Layer
from moe_optuna.training.parameters import initialise

Build = Callable[..., MoEArchitecture]


@st.composite
def architectures(draw: st.DrawFn) -> MoEArchitecture:
    """All structural dimensions and all kinds that the engine trains."""
    n = st.integers
    dense = draw(n(0, 3))
    moe = draw(n(0 if dense else 1, 3))
    experts = draw(n(1, 9)) if moe else 0
    shared = draw(n(0, 2)) if moe else 0
    kv_heads = draw(n(1, 3))
    attention = draw(
        st.builds(
            GroupedQueryAttention,
            window=st.none() | n(1, 40),
            qkv_bias=st.booleans(),
            output_bias=st.booleans(),
            norm_over=st.sampled_from(["head", "width"]),
        )
    )
    if dense + moe > 1 and draw(st.booleans()):
        attention = Interleaved(parts=((attention, 1), (GroupedQueryAttention(), dense + moe - 1)))
    return MoEArchitecture(
        d_model=draw(n(1, 40)),
        n_dense_layers=dense,
        n_moe_layers=moe,
        n_heads=kv_heads * draw(n(1, 3)),
        n_kv_heads=kv_heads,
        d_head=2 * draw(n(1, 8)),
        d_dense=draw(n(1, 50)) if dense else 0,
        d_expert=draw(n(1, 20)) if moe else 0,
        n_experts=experts,
        top_k=draw(n(1, experts)) if moe else 0,
        n_shared_experts=shared,
        d_shared=draw(st.none() | n(1, 30)) if shared else None,
        context_length=draw(n(2, 24)),
        vocab_size=draw(n(2, 300)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        attention=attention,
        router=Router(bias=draw(st.booleans())),
    )


@settings(max_examples=60, deadline=None)
@given(architectures())
def test_parameters_are_those_that_are_counted(architecture: MoEArchitecture) -> None:
    with torch.device("meta"):
        model = MoELanguageModel(architecture)
    assert sum(p.numel() for p in model.parameters()) == architecture.full.total_params
    idle = sum(
        (architecture.n_experts - architecture.top_k) * p[0].numel()
        for name, p in model.named_parameters()
        if name.endswith(("gate_up_EGD", "down_EDF"))
    )
    assert sum(p.numel() for p in model.parameters()) - idle == architecture.full.active_params


def grouped_mm_flops(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """2 x rows x in x out, of (R, I) x (E, I, O) and of (O, R) x (R, I), whatever the groups."""
    return 2 * a[0] * a[1] * b[-1]


def attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Two products over the pairs of a causal context: S (S + 1) / 2 for each of the B H heads."""
    batch, heads, context, features = q
    return 4 * batch * heads * features * context * (context + 1) // 2


def attention_backward_flops(grad: Any, q: Any, *rest: Any, **__: Any) -> int:
    """The four products of the backward pass; recomputing the scores, which the kernel does too, is not counted."""
    return 2 * attention_flops(q, None, None)


def addmm_flops(_: Any, a: Any, b: Any, *__: Any, **___: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


aten = torch.ops.aten
MISSED = {
    # Operators that torch's counter counts as 0: grouped products, attention on a CPU, products added in place.
    aten.addmm_: addmm_flops,
    aten._grouped_mm: grouped_mm_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 2, "n_moe_layers": 2, "top_k": 1, "n_shared_experts": 0, "tied_embeddings": True},
        {"d_expert": 7, "qk_norm": False, "n_experts": 3, "top_k": 3},
    ],
)
def test_flops_are_those_that_are_counted(
    architecture: Build, changes: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(Layer, "can_fuse", lambda self, x: False)
    monkeypatch.setattr(native, "takes", lambda x: False)  # what torch does not run it does not count
    a = architecture(**changes)
    model = MoELanguageModel(a)
    initialise(model, 0)
    tokens = torch.randint(0, a.vocab_size, (2, a.context_length + 1))
    with FlopCounterMode(display=False, custom_mapping=MISSED) as counter:
        loss, router_loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        (loss + router_loss).backward()
    assert counter.get_total_flops() == a.full.flops_per_token * 2 * a.context_length


def double(a: MoEArchitecture, recipe: Recipe, seed: int = 0) -> MoELanguageModel:
    model = MoELanguageModel(a, recipe)
    initialise(model, seed)
    model.double()
    model.rotary = model.rotary.to(torch.complex128)
    for name, parameter in model.named_parameters():  # away from the special values that they start with
        torch.manual_seed(len(name))
        size = 0.3 if parameter.ndim == 1 else 0.5 * float(parameter.detach().std())
        parameter.data.add_(size * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_shared_experts": 0, "top_k": 1, "qk_norm": False},
        {"n_experts": 3, "top_k": 3, "d_expert": 5, "n_heads": 3, "n_kv_heads": 3, "n_moe_layers": 2},
        {"n_dense_layers": 2, "n_moe_layers": 0, "d_expert": 0, "n_experts": 0, "top_k": 0, "n_shared_experts": 0},
    ],
)
def test_fused_sublayers_are_the_modules(
    architecture: Build, scores: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and every gradient in float64; the plain modules are differentiated by autograd."""
    a = architecture(**changes)
    model = double(a, Recipe(scores=scores, balance_loss=0.5, z_loss=0.1))
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (3, a.context_length + 1))
    results: list[list[Tensor]] = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(Layer, "can_fuse", lambda self, x: False)
        else:
            assert all(layer.can_fuse(torch.zeros(1)) for layer in model.layers)
        losses = model.loss(tokens[:, :-1], tokens[:, 1:])
        gradients = torch.autograd.grad(losses[0] + 3 * losses[1], list(model.parameters()))
        results.append([*losses, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fused", [True, False])
def test_the_future_does_not_change_the_past(architecture: Build, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tokens from position 9 on leave the logits before it, bit for bit in float64 up to summation order."""
    if not fused:
        monkeypatch.setattr(Layer, "can_fuse", lambda self, x: False)
    a = architecture(n_moe_layers=2)
    model = double(a, Recipe())
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 7) % 256
    one, other = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(one[:, :9], other[:, :9], rtol=0, atol=1e-12)
    assert (one[:, 9:] - other[:, 9:]).abs().max() > 1e-3


def test_a_window_sees_no_further(architecture: Build) -> None:
    a = architecture(n_dense_layers=1, n_moe_layers=0, attention=GroupedQueryAttention(window=4), d_expert=0,
                     n_experts=0, top_k=0, n_shared_experts=0)  # fmt: skip
    model = double(a, Recipe())
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[:, 3] += 1 if changed[0, 3] < 255 else -1
    difference = (model(tokens)[0] - model(changed)[0]).abs().amax(dim=-1)[0]
    assert (difference[3:7] > 1e-9).all()
    assert (difference[7:] == 0).all()
    assert (difference[:3] == 0).all()


def test_attention_is_its_definition(architecture: Build) -> None:
    """One dense layer against softmax(q k / sqrt(C)) v written out head by head, with shared key and value heads."""
    a = architecture(n_heads=4, n_kv_heads=2, qk_norm=False)
    layer = double(a, Recipe()).layers[0].attention
    x = torch.randn(16, 16, dtype=torch.float64)
    table = torch.ones(16, 6 * 4, dtype=torch.complex128)  # no rotation
    q, k, v = (x @ layer.qkv.weight.T).split((32, 16, 16), dim=-1)
    heads = []
    for head in range(4):
        qh, kh, vh = q[:, 8 * head :][:, :8], k[:, 8 * (head // 2) :][:, :8], v[:, 8 * (head // 2) :][:, :8]
        scores = (qh @ kh.T / 8**0.5).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
        heads.append(F.softmax(scores, -1) @ vh)
    torch.testing.assert_close(layer(x, 1, table), torch.cat(heads, -1) @ layer.output.weight.T)


def test_untrained_kinds_are_refused_by_name(architecture: Build) -> None:
    latent = LatentAttention(kv_rank=8, q_rank=None, d_nope=8, d_rope=4, d_value=8)
    for changes, name in (
        ({"attention": latent}, "attention"),
        ({"attention": GroupedQueryAttention(sinks=True)}, "attention"),
        ({"attention": GroupedQueryAttention(chunk=8)}, "attention"),
        ({"router": Router(shared_gate=True)}, "router"),
        ({"d_head": 7}, "d_head"),
    ):
        with pytest.raises(InputError, match=f"^{name}: "):
            MoELanguageModel(replace(architecture(), **changes))


@pytest.mark.parametrize("changes", [{}, {"d_expert": 5, "n_experts": 3, "top_k": 2}], ids=["aligned", "odd"])
def test_bfloat16_is_near(architecture: Build, changes: dict[str, Any]) -> None:
    """As on a GPU: the modules under autocast, grouped products and, for odd widths, the loop, against float64 with the
    same routing. Losses to 1 %, every matrix' gradient to a tenth of its norm: of 24 models the worst was 6 % off."""
    a = architecture(**({"n_experts": 2, "top_k": 2} | changes))
    model = double(a, Recipe())
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (4, a.context_length + 1))
    for _, router in model.routers():  # far apart, so that rounding sends no token elsewhere
        router.selection_bias += torch.arange(a.n_experts)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    results, rotary = [], model.rotary
    for dtype in (torch.float64, torch.float32):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.rotary = rotary.to(torch.complex128 if dtype is torch.float64 else torch.complex64)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
        results.append((loss.double(), [g.double() for g in torch.autograd.grad(loss, matrices)]))
    (exact, expected), (loss, got) = results
    assert abs(loss / exact - 1) < 0.01
    assert loss != exact
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() < 0.1 * other.norm() + 1e-6


@pytest.mark.parametrize("window", [None, 5], ids=["full", "windowed"])
def test_packed_documents_do_not_see_each_other(architecture: Build, window: int | None) -> None:
    """With the mask, a document in the middle of a packed window has the logits that it has alone."""
    a = architecture(attention=GroupedQueryAttention(window=window))
    model = MoELanguageModel(a, Recipe(), end=0).double()
    initialise(model, 0)
    documents = [torch.randint(1, a.vocab_size, (length,)) for length in (4, 6, a.context_length - 12)]
    for document in documents[:2]:
        document[-1] = 0  # its end belongs to it
    packed, _ = model(torch.cat(documents)[None])
    places = torch.tensor([0, *(len(document) for document in documents)]).cumsum(0)
    for document, first, last in zip(documents, places, places[1:], strict=False):
        alone, _ = model(document[None])
        torch.testing.assert_close(packed[:, first:last], alone, rtol=0, atol=1e-6)  # positions are float32
    unmasked = MoELanguageModel(a, Recipe()).double()
    unmasked.load_state_dict(model.state_dict())
    seen, _ = unmasked(torch.cat(documents)[None])
    assert not torch.allclose(seen[:, 10:], packed[:, 10:], atol=1e-3)
