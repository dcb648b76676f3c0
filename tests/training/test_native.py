"""The compiled functions against the same in torch's operations, in float64; and which of them runs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import MoELanguageModel, Recipe, native, sublayers
from moe_optuna.training.parameters import initialise

Build = Callable[..., MoEArchitecture]

needs_library = pytest.mark.skipif(native.library() is None, reason="no compiler, or no sgemm in torch's library")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler."""
    native.library.cache_clear()
    monkeypatch.setenv("MOE_OPTUNA_NATIVE", "0")
    yield
    native.library.cache_clear()


def model_of(a: MoEArchitecture, **recipe: Any) -> MoELanguageModel:
    """Weights away from the special values that they start with, and routing that rounding does not turn over."""
    model = MoELanguageModel(a, Recipe(**recipe))
    initialise(model, 0)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        elif "router" in name or name == "head.weight":
            parameter.data.mul_(10)
    return model


def losses_and_gradients(model: MoELanguageModel, tokens: Tensor) -> list[Tensor]:
    losses = model.loss(tokens[:, :-1], tokens[:, 1:])
    return [*losses, *torch.autograd.grad(losses[0] + 3 * losses[1], list(model.parameters()))]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one choice, no norm, no shared": {"top_k": 1, "n_shared_experts": 0, "qk_norm": False},
    "every expert, odd widths": {"n_experts": 3, "top_k": 3, "d_expert": 5, "d_model": 17, "d_dense": 9},
    "one expert": {"n_experts": 1, "top_k": 1},
    "more experts than tokens": {"n_experts": 70, "top_k": 2},
    "several heads a group, blocks of queries": {"n_heads": 6, "n_kv_heads": 2, "context_length": 150},
    "a head a group": {"n_heads": 3, "n_kv_heads": 3, "d_head": 6},
    "dense": {
        "n_dense_layers": 2, "n_moe_layers": 0, "d_expert": 0, "n_experts": 0, "top_k": 0, "n_shared_experts": 0,
    },
}  # fmt: skip


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_native_is_plain(
    architecture: Build, case: dict[str, Any], scores: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and every gradient in float32, against `plain` in float64: 1e-5 of each gradient's norm."""
    torch.set_num_threads(threads)
    a = architecture(**case)
    model = model_of(a, scores=scores, balance_loss=0.5, z_loss=0.1)
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (3, a.context_length + 1))
    got = losses_and_gradients(model, tokens)
    model.double()
    model.rotary = model.rotary.to(torch.complex128)
    expected = losses_and_gradients(model, tokens)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7


def test_the_path_that_runs(architecture: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 on a CPU goes to the compiled functions where there are any, everything else to torch's."""
    called = []
    for functions in (native, sublayers.plain):
        original, name = functions.rms_norm_forward, functions.__name__.rsplit(".")[-1]
        spy = lambda *arguments, original=original, name=name: called.append(name) or original(*arguments)  # noqa: E731
        monkeypatch.setattr(functions, "rms_norm_forward", spy)
    model, tokens = model_of(architecture()), torch.zeros(1, 16, dtype=torch.long)
    model.loss(tokens, tokens)
    expected = "native" if native.library() else "plain"
    assert set(called) == {expected} == {sublayers.path(torch.zeros(1))}
    called.clear()
    model.double()
    model.rotary = model.rotary.to(torch.complex128)
    model.loss(tokens, tokens)
    assert set(called) == {"plain"} == {sublayers.path(torch.zeros(1, dtype=torch.float64))}


def test_without_a_library_torch_runs(no_library: None, architecture: Build) -> None:
    assert native.library() is None
    assert sublayers.path(torch.zeros(1)) == "plain"
    tokens = torch.zeros(1, 16, dtype=torch.long)
    loss, router_loss = model_of(architecture()).loss(tokens, tokens)
    (loss + router_loss).backward()
    assert loss.isfinite()


def test_a_compiler_that_fails_is_no_library(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


@needs_library
def test_what_is_not_finite_stays_so(architecture: Build) -> None:
    """A training that diverges must be seen to."""
    for name in ("layers.0.attention.qkv.weight", "layers.1.block.router.weight", "layers.1.block.experts.down_EDF"):
        model = model_of(architecture())
        dict(model.named_parameters())[name].data.view(-1)[0] = float("nan")
        tokens = torch.randint(0, 256, (2, 17))
        loss, router_loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        assert not (loss + router_loss).isfinite()
        (loss + router_loss).backward()


@needs_library
def test_same_bits_every_time(architecture: Build) -> None:
    """Also with two threads: sums over threads are in their order."""
    torch.set_num_threads(2)
    model, tokens = model_of(architecture()), torch.arange(3 * 17).view(3, 17)
    first, second = (losses_and_gradients(model, tokens) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
