"""Tokens per second of a training step against the field: same shapes, same tokens, same optimizer, one run.

    python benchmarks/training_speed.py [--sizes cpu-1 lab-64 ...] [--seconds 8] [--threads 1]
    python benchmarks/training_speed.py --memory         # peak memory, a process each
    python benchmarks/training_speed.py --trials         # Lightning's loop, evaluation and start of whole trials
    python benchmarks/training_speed.py --compile        # torch.compile and bfloat16, compiling included
    python benchmarks/training_speed.py --packed 8 --sizes lab-64  # whole trials side by side, and one after another
    python benchmarks/training_speed.py --device cuda    # and with --trials and --packed, on a GPU

Variants
    moe_optuna         this project's model and optimizer, its operations compiled (`native`); on a GPU in bfloat16, a
                       step recorded once and replayed (`moe_optuna.training.capture`)
    eager, compiled    on a GPU the same launched operation by operation, and with layers and head by ``torch.compile``
    mkl, openblas      the same, its matrix products by one library or the other, whichever the machine's choice is
    autograd           the same, gradients by autograd, of which the compiled step is one node
    plain              the same in torch's operations, one node a sublayer: what runs without a compiler
    modules            moe_optuna, the model operation by operation through autograd; its optimizer stays compiled
    loop               modules, with a loop over experts in place of the grouped product
    capacity           modules, with experts padded to a common number of rows and one batched product
    dense              this project's dense model of the same active FLOPs, with the same fast block
    mixtral, qwen3_moe, olmoe / eager, batched_mm, grouped_mm
                       Hugging Face transformers, each experts implementation that it offers on a CPU, with torch's
                       fused AdamW and clipping; on a GPU under autocast to bfloat16, with grouped_mm all weights too:
                       autocast does not reach it, and in float32 torch has no kernel for it

Each variant takes turns with `moe_optuna`, some 30 ms of steps after one that does not count, so that a busy machine
slows both alike; times are medians, `times` is the median over rounds of a variant's time over moe_optuna's,
`times_a_flop` the same at as many non-embedding FLOPs a token (OLMoE's heads are smaller). `share` is these FLOPs
over the rate of a matrix product of 512 (on a GPU 8192), measured in the same rounds, `mfu` on a GPU all FLOPs of the
model, head and all, over what its maker says it can do. A variant that is more than thirty times slower
in its first steps is measured in those alone. Results are kept row by row in ``results/training_speed.json``: a size
that is run again replaces its rows, what is there already is left out with ``--resume``.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, record
from torch import Tensor

import moe_optuna.training.experts as experts_module
from moe_optuna.architecture import MoEArchitecture
from moe_optuna.search._mps import side_by_side
from moe_optuna.search._slots import local_slots
from moe_optuna.training import MoELanguageModel, Recipe, native, train
from moe_optuna.training._blas import sgemm
from moe_optuna.training.capture import CapturedStep, CudaGraphs, Pace
from moe_optuna.training.direct import DirectStep
from moe_optuna.training.model import Layer
from moe_optuna.training.optimizer import FlatAdamW
from moe_optuna.training.parameters import initialise, parameter_groups
from moe_optuna.training.router import balance, take_loads
from moe_optuna.training.rules import hyperparameters

Step = Callable[[], Any]


def architecture(d: int, dense: int, moe: int, heads: int, kv: int, d_head: int, expert: int, experts: int, top_k: int,
                 context: int = 256, vocab: int = 1024) -> MoEArchitecture:  # fmt: skip
    """Dimensions as in the ready search spaces: dense width 3 d, one shared expert, QK norm."""
    return MoEArchitecture(
        d_model=d, n_dense_layers=dense, n_moe_layers=moe, n_heads=heads, n_kv_heads=kv, d_head=d_head, d_dense=3 * d,
        d_expert=expert, n_experts=experts, top_k=top_k, n_shared_experts=1, context_length=context, vocab_size=vocab,
    )  # fmt: skip


CPU = {
    "cpu-1": architecture(16, 1, 2, 2, 1, 16, 48, 16, 2, context=128),
    "cpu-2": architecture(24, 1, 3, 2, 1, 16, 32, 16, 2, context=128),
    "cpu-3": architecture(32, 1, 4, 2, 1, 16, 32, 16, 2, context=128),
}
# Name: architecture, sequences a step. Of the middle of a space's lattices: `cpu` at 2e10, 1e11 and 2.4e11 FLOPs; `lab`
# at 1e13, 1e14 and 1e15, those by their width from today's, whose heads fill it, those by number from when its models
# were twice as large, with at most 4096 tokens; `holistic` at 1e18, with a shorter context and a small vocabulary, and
# at 1e19 as it is, with a third of its batch. The rule of `moe_optuna.training.rules` asks for fewer sequences at the
# sizes of `cpu`, in "trial".
SIZES: dict[str, tuple[MoEArchitecture, int]] = {
    **{name: (a, sequences) for (name, a), sequences in zip(CPU.items(), (4, 8, 11), strict=True)},
    **{f"{name} trial": (a, sequences) for (name, a), sequences in zip(CPU.items(), (2, 3, 4), strict=True)},
    "lab-1": (architecture(96, 1, 3, 4, 2, 32, 64, 64, 4, context=512), 8),
    "lab-2": (architecture(144, 2, 5, 8, 4, 32, 48, 64, 4, context=512), 8),
    "lab-3": (architecture(208, 2, 9, 8, 4, 64, 48, 64, 4, context=512), 4),
    "lab-64": (architecture(64, 3, 2, 2, 1, 32, 40, 64, 4, context=512), 3),
    "lab-128": (architecture(128, 3, 2, 4, 2, 32, 72, 64, 4, context=512), 6),
    "lab-256": (architecture(256, 3, 3, 8, 4, 32, 48, 64, 4, context=512), 8),
    "holistic-1": (architecture(720, 3, 6, 4, 2, 64, 48, 288, 8, context=1024, vocab=8192), 1),
    "holistic-2": (architecture(1704, 2, 7, 8, 4, 64, 120, 288, 8, context=8192, vocab=151936), 8),
}
FORWARD = 8192
"""Most tokens of a forward pass, of all variants alike: a step of more takes several."""
ON_GPU_ALONE = ("holistic-2",)
PEAK = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
"""FLOPs per second in bfloat16, dense, by their makers' data sheets (SXM where there are several)."""


def trainable(
    a: MoEArchitecture,
    tokens: Tensor,
    *,
    compute: float = 1e12,
    bfloat16: bool = False,
    captured: bool = False,
    compiled: bool = False,
    direct: bool = True,
) -> tuple[Step, MoELanguageModel]:
    model = MoELanguageModel(a)
    initialise(model, 0)
    model.to(tokens.device)
    hyper = hyperparameters(a, compute=compute, tokens=10**6, recipe=Recipe())
    optimizer = FlatAdamW(parameter_groups(model, hyper))
    routers = [router for _, router in model.routers()]
    low = bfloat16 or tokens.device.type == "cuda"
    without_autograd = DirectStep(model, optimizer) if direct and not low and model.path() == "native" else None
    if compiled:  # as `moe_optuna.training.compiling`; another size would be one too many for a function at some time
        torch._dynamo.reset()
        torch._functorch.config.backward_pass_autocast = "off"
        model.compile_parts(dynamic=False)

    def forget() -> None:
        optimizer.zero_grad()
        torch.clear_autocast_cache()

    def work(windows: Any, pace: Pace) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * pace.rate
        if without_autograd is not None:
            without_autograd(*windows)
        else:
            for part in windows:
                with torch.autocast(tokens.device.type, torch.bfloat16, enabled=low):
                    loss, router_loss = model.loss(part[:, :-1], part[:, 1:])
                ((loss + router_loss) / len(windows)).backward()
            optimizer.step()
            forget()
        if routers:
            balance(routers, take_loads(routers), pace.bias)

    pace, windows = Pace(1.0, 0.01, 0.0), parts(tokens)
    if not captured or not model.is_grouped():  # as in a training
        return lambda: work(windows, pace), model
    replayed = CapturedStep(work, [pace], tokens.device, CudaGraphs(), forget)

    def step() -> None:
        replayed(windows, 0)
        if replayed.failure:
            raise RuntimeError(replayed.failure)

    for _ in range(5):
        step()
    return step, model


def parts(tokens: Tensor) -> list[Tensor]:
    """The sequences of each forward pass of a step, as many in each."""
    count = max(1, (tokens.shape[0] * (tokens.shape[1] - 1)) // FORWARD)
    return list(tokens.chunk(count))


def patched(step: Step, owner: Any, name: str, value: Any) -> Step:
    """`step` with an attribute of a module or class replaced while it runs."""

    def run() -> None:
        original = getattr(owner, name)
        setattr(owner, name, value)
        try:
            step()
        finally:
            setattr(owner, name, original)

    return run


def capacity_linear(x_RI: Tensor, weight_EIO: Tensor, end_E: Tensor) -> Tensor:
    """Grouped product by one batched product over rows padded to the fullest expert."""
    ends = end_E.tolist()
    starts = [0, *ends[:-1]]
    most = max(end - start for start, end in zip(starts, ends, strict=True))
    index = torch.tensor(starts).unsqueeze(1) + torch.arange(most)
    valid = index < end_E.unsqueeze(1)
    padded = x_RI[index.clamp(max=len(x_RI) - 1)] * valid.unsqueeze(-1)
    return torch.bmm(padded, weight_EIO)[valid]


def dense_of(a: MoEArchitecture) -> MoEArchitecture:
    """The dense model of the same width, depth and active FLOPs."""
    active = a.n_dense_layers * a.d_dense + a.n_moe_layers * a.d_expert * (a.top_k + a.n_shared_experts)
    return dataclasses.replace(
        a, n_dense_layers=a.n_layers, n_moe_layers=0, d_dense=8 * round(active / a.n_layers / 8), d_expert=0,
        n_experts=0, top_k=0, n_shared_experts=0,
    )  # fmt: skip


def hugging_face(family: str, implementation: str, a: MoEArchitecture, tokens: Tensor) -> Step:
    """A model of the family with the same shapes. OLMoE and Mixtral have neither dense layers nor shared experts, and
    Qwen3 no shared expert: there all layers are MoE layers and the shared expert is one more active expert. OLMoE's
    heads share d_model among them."""
    import transformers

    transformers.logging.set_verbosity_error()
    common = {
        "vocab_size": a.vocab_size, "hidden_size": a.d_model, "num_hidden_layers": a.n_layers,
        "num_attention_heads": a.n_heads, "num_key_value_heads": a.n_kv_heads, "head_dim": a.d_head,
        "num_experts_per_tok": a.top_k + a.n_shared_experts, "max_position_embeddings": a.context_length,
        "use_cache": False, "tie_word_embeddings": False, "router_aux_loss_coef": 0.001, "output_router_logits": True,
    }  # fmt: skip
    if family == "mixtral":
        config = transformers.MixtralConfig(
            **common, num_local_experts=a.n_experts, intermediate_size=a.d_expert, sliding_window=None
        )
    elif family == "olmoe":
        config = transformers.OlmoeConfig(
            **common | {"head_dim": a.d_model // a.n_heads}, num_experts=a.n_experts, intermediate_size=a.d_expert
        )
    else:
        config = transformers.Qwen3MoeConfig(
            **common, num_experts=a.n_experts, moe_intermediate_size=a.d_expert, intermediate_size=a.d_dense,
            norm_topk_prob=True, mlp_only_layers=list(range(a.n_dense_layers)),
        )  # fmt: skip
    config._experts_implementation = implementation
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    on_gpu = tokens.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu and implementation == "grouped_mm" else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config).to(tokens.device, dtype)
    assert model.config._experts_implementation == implementation
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    windows = parts(tokens)

    def step() -> None:
        for part in windows:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=on_gpu):
                loss = model(input_ids=part[:, :-1], labels=part[:, :-1]).loss
            (loss / len(windows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def shapes_of(name: str, a: MoEArchitecture) -> MoEArchitecture:
    """What a variant computes: as `hugging_face` says, not always what `a` is."""
    family = name.split("/")[0]
    if family == "dense":
        return dense_of(a)
    if family in ("mixtral", "olmoe"):
        a = dataclasses.replace(a, n_dense_layers=0, n_moe_layers=a.n_layers)
    return dataclasses.replace(a, d_head=a.d_model // a.n_heads) if family == "olmoe" else a


FIELD = [
    f"{family}/{how}" for family in ("mixtral", "qwen3_moe", "olmoe") for how in ("eager", "batched_mm", "grouped_mm")
]
PRODUCTS = {"mkl": "torch", "openblas": "openblas"}
OURS = [*PRODUCTS, "autograd", "plain", "modules", "loop", "capacity", "dense"]
ON_GPU = ["eager", "compiled", "dense"]


def by_products(step: Step, choice: str) -> Step:
    """`step` with the products of one library while it runs."""
    library: Any = native.library()
    before = os.environ.get("MOE_OPTUNA_BLAS")
    own = ctypes.cast(sgemm(), ctypes.c_void_p)
    os.environ["MOE_OPTUNA_BLAS"] = choice
    try:
        other = ctypes.cast(sgemm.__wrapped__(), ctypes.c_void_p)
    finally:
        del os.environ["MOE_OPTUNA_BLAS"]
        if before is not None:
            os.environ["MOE_OPTUNA_BLAS"] = before

    def run() -> None:
        library.use_gemm(other)
        try:
            step()
        finally:
            library.use_gemm(own)

    return run


def variant(name: str, a: MoEArchitecture, tokens: Tensor) -> Step:
    if "/" in name:
        return hugging_face(*name.split("/"), a, tokens)
    on_gpu = tokens.device.type == "cuda"
    if name == "dense":
        return trainable(dense_of(a), tokens, captured=on_gpu)[0]
    if name == "compiled":
        return trainable(a, tokens, captured=on_gpu, compiled=True)[0]
    own = name in ("moe_optuna", *PRODUCTS)
    step = trainable(a, tokens, captured=on_gpu and name == "moe_optuna", direct=own)[0]
    if name in ("moe_optuna", "eager", "autograd"):
        return step
    if name in PRODUCTS:
        return by_products(step, PRODUCTS[name])
    if name == "plain":
        return patched(step, native, "takes", lambda x: False)
    modules = patched(step, Layer, "can_fuse", lambda self, x: False)
    if name == "modules":
        return modules
    if name == "loop":
        return patched(modules, experts_module, "product_path", lambda x, w: "loop")
    return patched(modules, experts_module, "grouped_linear", capacity_linear)


def matrix_rate(device: torch.device) -> float:
    """FLOPs per second of a large product in the type that training uses; the best of a few, on a CPU of torch's and of
    those that the compiled step calls."""
    n, dtype = (512, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    x = torch.randn(n, n, device=device, dtype=dtype)
    products: list[Step] = [lambda: x @ x]
    if device.type == "cpu" and native.library() is not None:
        y, order, one = torch.empty_like(x), ctypes.byref(ctypes.c_int(n)), ctypes.byref(ctypes.c_float(1))
        a, b = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr())
        zero = ctypes.byref(ctypes.c_float(0))
        products.append(lambda: sgemm()(b"N", b"N", order, order, order, one, a, order, a, order, zero, b, order))
    return max(2 * n**3 / timed(product, device) for product in products for _ in range(3))


def wait(device: torch.device) -> None:
    """Until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Step, device: torch.device, count: int = 1) -> float:
    """Seconds of a step, the mean of `count` without a wait between."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - begin) / count


def warm(step: Step, device: torch.device, count: int) -> float:
    """Mean seconds of `count` steps after one more, as in a training: what ran before leaves its own in the caches, by
    which a small step would take a fifth longer after a large product than after its like."""
    step()
    return timed(step, device, count)


def measure(size: str, name: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """One variant and `moe_optuna` in turns, for about `seconds`, at least three rounds."""
    a, sequences = SIZES[size]
    gathered = 12 * min(sequences * a.context_length, FORWARD) * (a.top_k + a.n_shared_experts) * a.d_model * a.d_expert
    if "batched_mm" in name and gathered > 3e9:
        return {"size": size, "variant": name, "left_out": f"gathers {gathered / 1e9:.1f} GB of weights a layer"}
    torch.manual_seed(0)
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1), device=device)
    (ours, our_peak), (theirs, peak) = with_peak("moe_optuna", a, tokens), with_peak(name, a, tokens)
    for _ in range(2):
        mine, other = timed(ours, device), timed(theirs, device)
    rounds = [(mine, other, matrix_rate(device))]
    if other < 30 * mine:
        rounds, steps = [], max(1, round(0.03 / mine))
        end = time.perf_counter() + seconds
        while len(rounds) < 3 or (time.perf_counter() < end and len(rounds) < 200):
            turns = [(0, ours), (1, theirs)][:: 1 if len(rounds) % 2 else -1]  # the first may be the slower for it
            mine, other = (taken for _, taken in sorted((i, warm(step, device, steps)) for i, step in turns))
            rounds.append((mine, other, matrix_rate(device)))
    per_token = shapes_of(name, a).non_embedding.flops_per_token
    own_flops = a.non_embedding.flops_per_token
    count, time_of = sequences * a.context_length, statistics.median(other for _, other, _ in rounds)
    own = statistics.median(mine for mine, _, _ in rounds)
    rate = statistics.median(rate for _, _, rate in rounds)
    row = {
        "size": size, "variant": name, "tokens_per_second": round(count / time_of),
        "moe_optuna_tokens_per_second": round(count / own),
        "times": round(statistics.median(other / mine for mine, other, _ in rounds), 3),
        # At as many FLOPs: what of `times` is left where a variant has fewer of them to do, or more.
        "times_a_flop": round(statistics.median(other / mine for mine, other, _ in rounds) * own_flops / per_token, 3),
        "share": round(count * per_token / time_of / rate, 4),
        "moe_optuna_share": round(count * own_flops / own / rate, 4),
        "matrix_gflops": round(rate / 1e9, 1), "rounds": len(rounds), "flops_per_token": per_token,
        "tokens_per_step": count,
    }  # fmt: skip
    if device.type == "cuda":
        row |= {"peak_mib": peak, "moe_optuna_peak_mib": our_peak, "gpu": torch.cuda.get_device_name()}
        if peaks := [peak for card, peak in PEAK.items() if card in row["gpu"]]:
            row["mfu"] = round(shapes_of(name, a).full.flops_per_token * count / time_of / peaks[0], 4)
            row["moe_optuna_mfu"] = round(a.full.flops_per_token * count / own / peaks[0], 4)
    print(f"{size:11s} {name:22s} {count / time_of:9.0f} tok/s, moe_optuna {count / own:9.0f}, x{row['times']:<7.3f}"
          f" (a FLOP x{row['times_a_flop']:.3f})"
          f" share {row['share']:.3f} ({row['moe_optuna_share']:.3f}), {len(rounds)} rounds", flush=True)  # fmt: skip
    return row


def with_peak(name: str, a: MoEArchitecture, tokens: Tensor) -> tuple[Step, int]:
    """A variant, and the MiB that it and its first two steps add at most to what a GPU holds: a replayed step asks for
    none. 0 on a CPU."""
    if tokens.device.type == "cpu":
        return variant(name, a, tokens), 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = variant(name, a, tokens)
    step(), step()
    return step, (torch.cuda.max_memory_allocated() - before) >> 20


def peak_of(name: str, a: MoEArchitecture, sequences: int) -> float:
    """MiB that building a variant and three steps add to this process' greatest resident size."""
    torch.set_num_threads(1)
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1))
    small = architecture(8, 1, 1, 1, 1, 8, 8, 2, 1)
    variant(name, small, tokens[:, :33] % small.vocab_size)()  # imports and kernels are no part of a training's memory
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step = variant(name, a, tokens)
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / 2**10


def resident(what: str) -> int:
    """KiB of this process, now (``VmRSS``) or at most (``VmHWM``); Linux."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))  # type: ignore[union-attr]


def peak_memory(size: str, name: str) -> dict[str, Any]:
    """`peak_of` a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row = {"size": size, "variant": name, "peak_mib": round(pool.apply(peak_of, (name, *SIZES[size])), 1)}
    print(row, flush=True)
    return row


def trial(size: str, seconds: float, device: str) -> dict[str, Any]:
    """A whole trial of `moe_optuna.training.train`, a bare step of an identical model after each of its own: what
    Lightning's loop adds to a step; then another without those: what evaluation and reports take, and how long the
    first step waits."""
    a, sequences = SIZES[size]
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1), device=device)
    bare, _ = trainable(a, tokens, captured=device == "cuda")
    for _ in range(3):
        bare()
    step_seconds = min(timed(bare, tokens.device) for _ in range(5))
    steps = max(50, min(600, round(seconds / 2 / step_seconds)))
    per_step = sequences * a.context_length
    recipe = Recipe(batch_tokens=per_step)
    budget = steps * per_step
    known = {"compute": a.non_embedding.flops_per_token * float(budget), "tokens": budget, "recipe": recipe,
             "threads": torch.get_num_threads(), "device": device}  # fmt: skip
    pairs: list[tuple[float, float]] = []
    last: list[float] = []

    def in_turn() -> bool:
        wait(tokens.device)
        now = time.perf_counter()
        taken = timed(bare, tokens.device)
        if last:
            pairs.append((now - last[0], taken))
        last[:] = [time.perf_counter()]
        return False

    evaluation = train(a, **known, interrupted=in_turn).diagnostics["evaluation_seconds"]
    arrivals: list[float] = []

    def arrive() -> bool:
        if not arrivals:
            wait(tokens.device)
            arrivals.append(time.perf_counter())
        return False

    begin = time.perf_counter()
    result = train(a, **known, interrupted=arrive)
    row = {
        "size": size, "steps": steps, "step_milliseconds": round(1e3 * statistics.median(bare for _, bare in pairs), 3),
        # Of sums, since what the trainer does around a batch falls on one step of many; reports are counted below.
        "lightning_over_bare": round((sum(own for own, _ in pairs) - evaluation) / sum(bare for _, bare in pairs), 4),
        "evaluation_share": round(result.diagnostics["evaluation_seconds"] / result.seconds, 4),
        "evaluation_seconds": round(result.diagnostics["evaluation_seconds"], 3), "seconds": round(result.seconds, 3),
        "start_seconds": round(arrivals[0] - begin - step_seconds, 4),
    }  # fmt: skip
    print(row, flush=True)
    return row


def packed_worker(size: str, index: int, slots: Any, budget: int, repeats: int, device: str, barrier: Any) -> float:
    """`repeats` trainings of `budget` tokens on a slot, after one that does not count: seconds of all."""
    os.environ.update(slots[index].environment())
    if slots[index].cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slots[index].cores)
    a, sequences = SIZES[size]
    per_step = sequences * a.context_length
    compute = a.non_embedding.flops_per_token * float(budget)
    recipe = Recipe(batch_tokens=per_step, vocabulary="bytes", reports=1)
    known: dict[str, Any] = {"compute": compute, "recipe": recipe, "device": device, "threads": slots[index].threads}
    train(a, tokens=10 * per_step, **known)
    barrier.wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        train(a, tokens=budget, **known)
    barrier.wait()
    return time.perf_counter() - begin


def packed(size: str, count: int, seconds: float, device: str) -> dict[str, Any]:
    """`count` trials side by side, on one GPU or the cores, against one after the other in one of their slots."""
    a, sequences = SIZES[size]
    context = multiprocessing.get_context("spawn")
    budget = 100 * sequences * a.context_length

    def taken(workers: int, repeats: int) -> float:
        with side_by_side(local_slots(count), print) as slots, context.Manager() as manager:
            barrier = manager.Barrier(workers)
            with context.Pool(workers) as pool:
                each = [(size, index, slots, budget, repeats, device, barrier) for index in range(workers)]
                return max(pool.starmap(packed_worker, each, chunksize=1))

    budget = max(budget, round(budget * seconds / taken(1, 1)))
    after, beside = taken(1, count), taken(count, 1)
    row = {"size": size, "variant": f"{count} on {device}", "tokens": budget, "times": round(after / beside, 3),
           "one_after_another_seconds": round(after, 2), "side_by_side_seconds": round(beside, 2)}  # fmt: skip
    if device == "cuda":
        row["gpu"] = torch.cuda.get_device_name()
    print(row, flush=True)
    return row


def compiled(size: str, seconds: float) -> list[dict[str, Any]]:
    """The modules under ``torch.compile``, and in bfloat16 by autocast: seconds until the second step, and per step."""
    a, sequences = SIZES[size]
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1))
    rows = []
    for name in ("moe_optuna", "modules", "modules, compiled", "modules, bfloat16"):
        begin = time.perf_counter()
        step, model = trainable(a, tokens, bfloat16="bfloat16" in name, direct=name == "moe_optuna")
        if name != "moe_optuna":
            step = patched(step, Layer, "can_fuse", lambda self, x: False)
        if "compiled" in name:
            model.compile(dynamic=False)
            for layer in model.layers:
                layer.compile(dynamic=False)
        try:
            step(), step()
        except Exception as error:
            rows.append({"size": size, "variant": name, "failed": str(error).splitlines()[0][:120]})
            print(rows[-1], flush=True)
            continue
        first, times = time.perf_counter() - begin, []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            times.append(timed(step, tokens.device))
        rows.append({"size": size, "variant": name, "first_seconds": round(first, 2),
                     "milliseconds": round(1e3 * statistics.median(times), 2)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--variants", nargs="+", choices=dict.fromkeys(OURS + ON_GPU + FIELD))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--packed", type=int, metavar="N", help="trials side by side")
    parser.add_argument("--resume", action="store_true")
    for kind in ("memory", "trials", "compile"):
        parser.add_argument(f"--{kind}", action="store_true")
    options = parser.parse_args()
    if options.device != "cpu" and (options.memory or options.compile):
        parser.error("--memory and --compile measure on a CPU alone")
    torch.set_num_threads(options.threads)
    gc.disable()  # for all variants alike
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    sizes = options.sizes or [size for size in SIZES if on_gpu or size not in ON_GPU_ALONE]
    variants = options.variants or [*(ON_GPU if on_gpu else OURS), *FIELD]
    out = "training_speed_cuda" if on_gpu else "training_speed"
    file = RESULTS / f"{out}.json"
    kept: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())["data"] if file.is_file() else {}

    def keep(table: str, rows: list[dict[str, Any]]) -> None:
        new = {(row["size"], row.get("variant")) for row in rows}
        old = [row for row in kept.get(table, []) if (row["size"], row.get("variant")) not in new]
        order = list(SIZES)
        kept[table] = sorted([*old, *rows], key=lambda row: order.index(row["size"]))
        record(out, kept)

    def known(table: str, size: str, name: str | None) -> bool:
        found = any((row["size"], row.get("variant")) == (size, name) for row in kept.get(table, []))
        return options.resume and found

    for size in sizes:
        if options.packed:
            keep("packed", [packed(size, options.packed, options.seconds, options.device)])
        elif options.trials:
            if not known("trials", size, None):
                keep("trials", [trial(size, options.seconds, options.device)])
        elif options.compile:
            if not known("compile", size, "moe_optuna"):
                keep("compile", compiled(size, options.seconds))
        elif options.memory:
            for name in ("moe_optuna", *variants):
                if not known("memory", size, name):
                    keep("memory", [peak_memory(size, name)])
        else:
            for name in variants:
                if known("speed", size, name):
                    continue
                try:
                    keep("speed", [measure(size, name, options.seconds, device)])
                except Exception as error:
                    print(f"{size:11s} {name:22s} failed: {str(error).splitlines()[0][:100]}", flush=True)
                gc.collect()


if __name__ == "__main__":
    main()
