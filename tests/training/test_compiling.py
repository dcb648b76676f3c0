"""What a GPU runs, on a CPU: torch's own operations in place of those written out here, and compiled layers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.nn.parallel import DistributedDataParallel

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import Recipe, compiling, engine, kernels, train
from moe_optuna.training.attention import rotary_table
from moe_optuna.training.compiling import compiled, is_worth_it, uncompiled
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.parameters import initialise
from moe_optuna.training.rules import hyperparameters

Build = Callable[..., MoEArchitecture]


@pytest.mark.parametrize("name", ["rms_norm", "norm_rotate", "rotate", "swiglu"])
def test_torchs_operations_are_those_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, in float64."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    table = rotary_table(4, 3, 4).to(torch.complex128)
    calls: dict[str, Callable[[], Tensor]] = {
        "rms_norm": lambda: kernels.rms_norm(x.view(24, 4), gain[0]),
        "norm_rotate": lambda: kernels.norm_rotate(x, gain, table),
        "rotate": lambda: kernels.rotate(x, table),
        "swiglu": lambda: kernels.swiglu(x.view(8, 12)),
    }
    found = []
    for is_written_out in (True, False):
        monkeypatch.setattr(kernels, "written_out", lambda x, answer=is_written_out: answer)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=is_written_out: not answer)
        value = calls[name]()
        weight = torch.arange(value.numel(), dtype=torch.float64).view(value.shape)
        found.append((value, *torch.autograd.grad((value * weight).sum(), (x, gain), allow_unused=True)))
    torch.testing.assert_close(*found)


def losses(a: MoEArchitecture, **compile: Any) -> list[Tensor]:
    """Loss, routers' loss and gradients of one batch in bfloat16, whose layers are not what a CPU has compiled."""
    model = MoELanguageModel(a)
    initialise(model, 0)
    token = torch.randint(0, a.vocab_size, (3, a.context_length + 1), generator=torch.Generator().manual_seed(1))
    if compile:
        model.compile_parts(dynamic=False, **compile)
    with torch.autocast("cpu", torch.bfloat16):
        both = model.loss(token[:, :-1], token[:, 1:])
    sum(both).backward()
    return [*both, torch.cat([p.grad.flatten() for p in model.parameters()])]  # type: ignore[union-attr]


def test_what_is_compiled_is_one_graph_each_and_the_same(architecture: Build) -> None:
    """Layers, dense and with experts, and the head: nothing in them stops the compiler. Rounding apart, in bfloat16 a
    part in 256."""
    plain = losses(architecture())
    whole = losses(architecture(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(plain[:2], whole[:2], rtol=1e-3, atol=1e-4)
    assert (plain[2] - whole[2]).norm() < 2e-2 * plain[2].norm()


def test_a_compiled_router_goes_back_in_float32(architecture: Build) -> None:
    seen: list[list[torch.dtype]] = []

    def backward(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        products = [node for node in graph.graph.nodes if node.target is torch.ops.aten.mm.default]
        seen.append([node.meta["val"].dtype for node in products])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=backward)
    model = MoELanguageModel(architecture())
    initialise(model, 0)
    token = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(1))
    with compiled(model, must=True, backend=backend):
        with torch.autocast("cpu", torch.bfloat16):
            loss, router_loss = model.loss(token[:, :-1], token[:, 1:])
        (loss + router_loss).backward()
    assert sorted(kinds.count(torch.float32) for kinds in seen) == [0, 0, 2]


def test_a_compiled_head_keeps_its_logits_once_and_in_bfloat16(architecture: Build) -> None:
    """With the compiler's own choice of what to keep for the backward pass."""
    kept: list[Any] = []

    def forward(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        kept.append([node.meta["val"] for node in output.args[0] if isinstance(node, torch.fx.Node)])
        return make_boxed_func(graph.forward)

    model = MoELanguageModel(architecture())
    model.compile_parts(
        dynamic=False,
        backend=aot_autograd(
            fw_compiler=forward,
            bw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table,
        ),
    )
    token = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(token[:, :-1], token[:, 1:])
    of_head = kept[-1]
    assert [value.dtype for value in of_head if value.shape == (48, 256)] == [torch.bfloat16]


def test_what_devices_exchange_cuts_no_layer(architecture: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where that is a byte at a time."""
    graphs: list[Any] = []
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1)
    devices = SimpleNamespace(bucket_bytes_cap=1)
    monkeypatch.setattr(DistributedDataParallel, "_get_active_ddp_module", classmethod(lambda cls: devices))

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    model = MoELanguageModel(architecture())
    with compiled(model, must=True, backend=backend), torch.autocast("cpu", torch.bfloat16):
        model.loss(*torch.zeros(2, 1, 16, dtype=torch.int64))
    assert len(graphs) == 3  # a dense layer, one with experts, the head


class OutOfOrderError(RuntimeError):
    pass


def fails(graph: Any, inputs: Any) -> Any:
    raise OutOfOrderError("no compiler here")


def test_what_cannot_be_compiled_runs_as_it_is(architecture: Build) -> None:
    model = MoELanguageModel(architecture())
    initialise(model, 0)
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    expected, _ = model.layers[0](x, 1, model.rotary)
    with compiled(model, must=False, backend=fails):
        torch.testing.assert_close(model.layers[0](x, 1, model.rotary)[0], expected)
    with compiled(model, must=True, backend=fails):
        with pytest.raises(Exception, match="no compiler here"):
            model.layers[0](x, 1, model.rotary)
        with uncompiled(model):
            torch.testing.assert_close(model.layers[0](x, 1, model.rotary)[0], expected)


def test_a_training_is_compiled_where_it_is_long_on_a_gpu(architecture: Build) -> None:
    a = architecture()
    answers = {}
    for choice in ("auto", "always", "never"):
        for compute in (1e16, 1e18):
            tokens = round(compute / a.non_embedding.flops_per_token)
            recipe = Recipe(compile=choice)
            hyper = hyperparameters(a, compute=compute, tokens=tokens, recipe=recipe)
            answers[choice, compute] = is_worth_it(recipe, a, hyper, "cuda")
            assert not is_worth_it(recipe, a, hyper, "cpu")
    assert [key for key, answer in answers.items() if answer] == [("auto", 1e18), ("always", 1e16), ("always", 1e18)]


def test_a_whole_training_with_compiled_layers(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's 64 tokens are what the layers are compiled for, not the 1024 of an evaluation's batch."""
    seen: set[int] = set()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        rows = (len(given) for given in inputs if isinstance(given, Tensor) and given.shape[1:] == (16,))
        seen.update(number for number in rows if number in (64, 1024))
        return graph.forward

    original = compiling.compiled
    monkeypatch.setattr(engine, "compiled", lambda model, must: original(model, must=True, backend=backend))
    recipe = Recipe(
        data=str(folder), batch_tokens=64, reports=2, final_windows=64, precision="bfloat16", learning_rate=1e-3
    )
    known: dict[str, Any] = {"compute": 1e8, "tokens": 640, "recipe": recipe, "device": "cpu", "threads": 1}
    plain = train(architecture(), **known)
    monkeypatch.setattr(engine, "is_worth_it", lambda *arguments: True)
    result = train(architecture(), **known)
    assert seen == {64}
    assert result.loss == pytest.approx(plain.loss, rel=2e-2)
