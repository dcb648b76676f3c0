"""The compiled model against the same in torch's operations, in float64; and which of them runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training import MoELanguageModel, Recipe, native
from moe_optuna.training.direct import DirectStep
from moe_optuna.training.optimizer import FlatAdamW
from moe_optuna.training.parameters import initialise, parameter_groups
from moe_optuna.training.rules import hyperparameters
from moe_optuna.training.sublayers import AttentionSublayer

Build = Callable[..., MoEArchitecture]

needs_library = pytest.mark.skipif(native.library() is None, reason="no compiler, or no sgemm in torch's library")


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


def in_double(model: MoELanguageModel) -> MoELanguageModel:
    model.double()
    model.rotary = model.rotary.to(torch.complex128)
    return model


def in_single(model: MoELanguageModel) -> MoELanguageModel:
    model.float()
    model.rotary = model.rotary.to(torch.complex64)
    return model


def loads_of(model: MoELanguageModel) -> list[Tensor]:
    return [router.load for _, router in model.routers()]


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
def test_native_is_plain(architecture: Build, case: dict[str, Any], scores: str, threads: int) -> None:
    """Losses, every gradient and the experts' loads in float32, against torch's operations in float64: 1e-5 of each
    gradient's norm."""
    torch.set_num_threads(threads)
    a = architecture(**case)
    model = model_of(a, scores=scores, balance_loss=0.5, z_loss=0.1)
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (3, a.context_length + 1))
    assert model.path() == "native"
    got = losses_and_gradients(model, tokens)
    loads = [load.clone() for load in loads_of(model)]
    in_double(model)
    assert model.path() == "sublayers"
    expected = losses_and_gradients(model, tokens)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7
    assert all(torch.equal(2 * one, both) for one, both in zip(loads, loads_of(model), strict=True))
    model.eval()
    with torch.no_grad():
        assert in_single(model).path() == "native"
        assert model.loss(tokens[:, :-1], tokens[:, 1:])[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert all(torch.equal(2 * one, both) for one, both in zip(loads, loads_of(model), strict=True))


def test_the_path_that_runs(architecture: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 on a CPU goes to the compiled model where there is one; what that leaves out to torch's operations."""
    calls = []
    monkeypatch.setattr(native, "losses", lambda *a, original=native.losses: calls.append("native") or original(*a))
    forward = AttentionSublayer.forward
    monkeypatch.setattr(AttentionSublayer, "forward", lambda *a: calls.append("sublayers") or forward(*a))

    def ran(model: MoELanguageModel) -> str:
        calls.clear()
        tokens = torch.zeros(1, 16, dtype=torch.long)
        model.loss(tokens, tokens)
        (name,) = set(calls) or {"modules"}
        assert model.path() == name
        return str(name)

    fast = "native" if native.library() else "sublayers"
    assert ran(model_of(architecture())) == fast
    assert ran(in_double(model_of(architecture()))) == "sublayers"
    assert ran(MoELanguageModel(architecture(), end=0)) == "modules"  # masks by document
    with torch.autocast("cpu", torch.bfloat16):
        assert ran(model_of(architecture())) == "modules"


def test_without_a_library_torch_runs(no_library: None, architecture: Build) -> None:
    assert native.library() is None
    tokens = torch.zeros(1, 16, dtype=torch.long)
    model = model_of(architecture())
    assert model.path() == "sublayers"
    loss, router_loss = model.loss(tokens, tokens)
    (loss + router_loss).backward()
    assert loss.isfinite()


@needs_library
def test_weights_that_are_replaced_are_found(architecture: Build) -> None:
    """By assignment, by a state dict and by a tied one: what is trained is what the modules hold."""
    model, other = model_of(architecture()), MoELanguageModel(architecture())
    initialise(other, 7)
    tokens = torch.arange(2 * 17).view(2, 17)
    before = model.loss(tokens[:, :-1], tokens[:, 1:])[0]
    model.load_state_dict(other.state_dict(), assign=True)
    after, expected = (m.loss(tokens[:, :-1], tokens[:, 1:])[0] for m in (model, other))
    assert after == expected != before
    model.layers[0].attention.qkv.weight = torch.nn.Parameter(torch.zeros_like(model.layers[0].attention.qkv.weight))
    assert model.loss(tokens[:, :-1], tokens[:, 1:])[0] != expected


@needs_library
def test_a_tied_head_has_the_gradients_of_both(architecture: Build) -> None:
    model = model_of(architecture(tied_embeddings=True))
    tokens = torch.arange(2 * 17).view(2, 17)
    got = losses_and_gradients(model, tokens)
    expected = losses_and_gradients(in_double(model), tokens)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7


@needs_library
@pytest.mark.parametrize("tied", [False, True])
def test_a_step_without_autograd_is_the_same_step(architecture: Build, tied: bool) -> None:
    """Parameters and loads after each of three, to the last bit."""
    models = [model_of(architecture(tied_embeddings=tied)) for _ in range(2)]
    optimizers = []
    for model in models:
        hyper = hyperparameters(model.architecture, compute=1e10, tokens=10**5, recipe=Recipe())
        optimizers.append(FlatAdamW(parameter_groups(model, hyper)))
    direct = DirectStep(models[0], optimizers[0])
    for step in range(3):
        windows = torch.arange(step, step + 2 * 17).view(2, 17)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] *= 0.5
        direct(windows)
        sum(models[1].loss(windows[:, :-1], windows[:, 1:])).backward()  # type: ignore[attr-defined]
        optimizers[1].step()
        optimizers[1].zero_grad()
        assert all(parameter.grad is None for parameter in models[0].parameters())
        for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7 if tied else 0)  # two gradients, added elsewhere
        assert optimizers[0].norm > 0


@needs_library
def test_what_does_not_fit_is_refused(architecture: Build) -> None:
    """Compiled code would read beyond its arrays."""
    model = MoELanguageModel(architecture())
    good = torch.zeros(1, 16, dtype=torch.long)
    for bad in (good + 256, good - 1):
        with pytest.raises(IndexError, match="256 of the vocabulary"):
            model.loss(bad, good)
        with pytest.raises(IndexError, match="256 of the vocabulary"):
            model.loss(good, bad)
    with pytest.raises(IndexError, match="expected as many"):
        model.loss(good, good[:, :8])
    long = torch.zeros(1, 4096, dtype=torch.long)
    with pytest.raises(IndexError, match="a sequence"):
        model.loss(long, long)


@needs_library
def test_tokens_lie_in_memory_as_they_like(architecture: Build) -> None:
    """One token a sequence, every other column, or integers of half the size."""
    model = model_of(architecture())
    tokens = torch.randint(256, (4, 33), generator=torch.Generator().manual_seed(0))
    for apart in (tokens[:, ::3], tokens[:1, ::2], tokens[:, :2], tokens[:, :17].int()):
        together = apart.long().contiguous()
        ids, targets = together[:, :-1].contiguous(), together[:, 1:].contiguous()
        assert torch.equal(model.loss(apart[:, :-1], apart[:, 1:])[0], model.loss(ids, targets)[0])


@needs_library
def test_memory_that_was_given_back_is_not_read(architecture: Build) -> None:
    """Two forward passes before a backward pass have each their own; a second backward pass is refused."""
    model, tokens = model_of(architecture()), torch.arange(2 * 17).view(2, 17)
    weights = list(model.parameters())
    alone = torch.autograd.grad(model.loss(tokens[:1, :-1], tokens[:1, 1:])[0], weights)
    first, second = (model.loss(tokens[i : i + 1, :-1], tokens[i : i + 1, 1:])[0] for i in (0, 1))
    torch.autograd.grad(second, weights)
    with_another = torch.autograd.grad(first, weights, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(alone, with_another, strict=True))
    with pytest.raises(RuntimeError, match="second backward pass"):
        torch.autograd.grad(first, weights)


@needs_library
def test_without_gradients_nothing_is_kept(architecture: Build) -> None:
    """An evaluation works in less memory than a training step, and both in the same again and again."""
    model, tokens = model_of(architecture()), torch.arange(3 * 17).view(3, 17)

    def loss() -> Tensor:
        return model.loss(tokens[:, :-1], tokens[:, 1:])[0]

    with torch.no_grad():
        alone = loss()
    (evaluation,) = model.spare
    loss().backward()
    (training,) = model.spare
    assert len(evaluation) < len(training)
    with torch.no_grad():
        assert torch.equal(loss(), alone)
    loss().backward()
    assert model.spare == [training]


@pytest.mark.parametrize(
    ("compiler", "reason"), [("false", "false"), ("no-such-compiler -O9", "no C compiler 'no-such-compiler'")]
)
def test_a_compiler_that_fails_is_no_library(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    """A warning says why, once."""
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path))
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"no compiled step.*: .*{reason}") as told:
            assert native.library() is native.library() is None
        assert len(told) == 1
    finally:
        native.library.cache_clear()


def test_what_is_no_command_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", 'cc "')
    native.library.cache_clear()
    try:
        with pytest.raises(InputError, match=r"^CC: No closing quotation, expected a command$"):
            native.library()
    finally:
        native.library.cache_clear()


@needs_library
def test_a_compiler_may_have_arguments(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -pthread")
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is not None
    finally:
        native.library.cache_clear()


@needs_library
def test_a_library_that_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, as a power cut leaves it: to load it would end the process, with no word."""
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is not None
        (file,) = (tmp_path / "native").iterdir()
        whole = file.read_bytes()
        file.unlink()  # this process goes on with the one that it has loaded
        file.write_bytes(whole[: len(whole) // 2])
        native.library.cache_clear()
        assert native.library() is not None
        assert [found.read_bytes() for found in (tmp_path / "native").iterdir()] == [whole]
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
