"""Tokens per second of a training step against the field: same shapes, same tokens, same optimizer, one run.

    python benchmarks/training_speed.py [--sizes cpu-1 lab-2 ...] [--rounds 30] [--threads 1] [--out FILE]

Variants
    moe_optuna         this project's model and optimizer
    modules            the same without the fused sublayers: operation by operation through autograd
    loop               the same, with a loop over experts in place of the grouped product
    capacity           the same, with experts padded to a common number of rows and one batched product
    dense              this project's dense model of the same active FLOPs
    mixtral, qwen3_moe, olmoe / eager, batched_mm, grouped_mm
                       Hugging Face transformers, each experts implementation that it offers, with torch's fused AdamW

Steps of all variants take turns within a round, so that a busy machine slows all alike; a variant's figure is the
median over rounds, and ratios are medians of ratios within a round. Peak memory is measured apart, a process each.
`share` is the non-embedding FLOPs over the rate of a large matrix product, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moe_optuna.training.experts as experts_module
from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import MoELanguageModel, Recipe
from moe_optuna.training.model import Layer
from moe_optuna.training.optimizer import FlatAdamW
from moe_optuna.training.parameters import initialise, parameter_groups
from moe_optuna.training.rules import hyperparameters

Step = Callable[[], Any]


def architecture(d: int, dense: int, moe: int, heads: int, kv: int, d_head: int, expert: int, experts: int, top_k: int,
                 context: int = 256, vocab: int = 256) -> MoEArchitecture:  # fmt: skip
    """Dimensions as in the ready search spaces: dense width 3 d, one shared expert, QK norm."""
    return MoEArchitecture(
        d_model=d, n_dense_layers=dense, n_moe_layers=moe, n_heads=heads, n_kv_heads=kv, d_head=d_head, d_dense=3 * d,
        d_expert=expert, n_experts=experts, top_k=top_k, n_shared_experts=1, context_length=context, vocab_size=vocab,
    )  # fmt: skip


# Name: architecture, sequences a step.
SIZES: dict[str, tuple[MoEArchitecture, int]] = {
    "cpu-1": (architecture(32, 1, 2, 2, 1, 16, 16, 16, 2), 4),
    "cpu-2": (architecture(64, 1, 2, 2, 1, 16, 32, 16, 2), 4),
    "cpu-3": (architecture(96, 1, 3, 2, 1, 32, 48, 16, 2), 8),
    "lab-1": (architecture(128, 1, 3, 4, 2, 32, 64, 32, 4), 8),
    "lab-2": (architecture(192, 1, 4, 4, 2, 48, 64, 64, 6), 8),
    "lab-3": (architecture(256, 1, 5, 4, 2, 64, 96, 64, 6), 8),
    "holistic-1e18": (architecture(512, 3, 6, 4, 2, 64, 176, 288, 8, context=2048), 1),
}


def trainable(a: MoEArchitecture, tokens: Tensor, *, compute: float = 1e12) -> tuple[Step, MoELanguageModel]:
    model = MoELanguageModel(a)
    initialise(model, 0)
    model.to(tokens.device)
    hyper = hyperparameters(a, compute=compute, tokens=10**6, recipe=Recipe())
    optimizer = FlatAdamW(parameter_groups(model, hyper))
    on_gpu = tokens.device.type == "cuda"

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=on_gpu):
            loss, router_loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        (loss + router_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        for _, router in model.routers():
            router.balance(0.01)

    return step, model


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
    Qwen3 no shared expert: there all layers are MoE layers and the shared expert is one more active expert."""
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
        config = transformers.OlmoeConfig(**common, num_experts=a.n_experts, intermediate_size=a.d_expert)
    else:
        config = transformers.Qwen3MoeConfig(
            **common, num_experts=a.n_experts, moe_intermediate_size=a.d_expert, intermediate_size=a.d_dense,
            norm_topk_prob=True, mlp_only_layers=list(range(a.n_dense_layers)),
        )  # fmt: skip
    config._experts_implementation = implementation
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(tokens.device)
    assert model.config._experts_implementation == implementation
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    on_gpu = tokens.device.type == "cuda"

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


FIELD = [
    f"{family}/{how}" for family in ("mixtral", "qwen3_moe", "olmoe") for how in ("eager", "batched_mm", "grouped_mm")
]
OURS = ["moe_optuna", "modules", "loop", "capacity", "dense"]


def variant(name: str, a: MoEArchitecture, tokens: Tensor) -> Step:
    if "/" in name:
        return hugging_face(*name.split("/"), a, tokens)
    if name == "dense":
        return trainable(dense_of(a), tokens)[0]
    step = trainable(a, tokens)[0]
    modules = patched(step, Layer, "can_fuse", lambda self, x: False)
    if name == "moe_optuna":
        return step
    if name == "modules":
        return modules
    if name == "loop":
        return patched(modules, experts_module, "product_path", lambda x, w: "loop")
    return patched(modules, experts_module, "grouped_linear", capacity_linear)


def matrix_rate(device: torch.device) -> float:
    """FLOPs per second of a large product in the type that training uses; the best of a few."""
    n, dtype = (1024, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    x = torch.randn(n, n, device=device, dtype=dtype)
    return max(2 * n**3 / timed(lambda: x @ x, device) for _ in range(3))


def timed(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(size: str, names: list[str], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    a, sequences = SIZES[size]
    torch.manual_seed(0)
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1), device=device)
    steps: dict[str, Step] = {}
    for name in names:
        try:
            steps[name] = variant(name, a, tokens)
            for _ in range(3):
                steps[name]()
        except Exception as error:
            print(f"{size:14s} {name:22s} failed: {str(error).splitlines()[0][:100]}", flush=True)
            steps.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for _ in range(rounds):
        rates.append(matrix_rate(device))
        for name, step in steps.items():
            times[name].append(min(timed(step, device), timed(step, device)))
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds, times["moe_optuna"], strict=True))
        per_token = (dense_of(a) if name == "dense" else a).non_embedding.flops_per_token
        count = sequences * a.context_length
        rows.append({
            "size": size, "variant": name, "tokens_per_second": round(count / statistics.median(seconds)),
            "milliseconds": round(1e3 * statistics.median(seconds), 2), "times_moe_optuna": round(ratio, 3),
            "share": round(count * per_token / statistics.median(seconds) / statistics.median(rates), 4),
            "flops_per_token": per_token, "tokens_per_step": count,
            "peak_mib": peak_memory(size, name) if device.type == "cpu" else gpu_peak(steps[name]),
        })  # fmt: skip
        print("{size:14s} {variant:22s} {tokens_per_second:8d} tok/s {milliseconds:9.2f} ms  x{times_moe_optuna:<7.3f}"
              " share {share:.3f}  {peak_mib} MiB".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def gpu_peak(step: Step) -> int:
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() >> 20


def _peak(size: str, name: str) -> int:
    torch.set_num_threads(1)
    a, sequences = SIZES[size]
    tokens = torch.randint(0, a.vocab_size, (sequences, a.context_length + 1))
    if "/" in name:
        import transformers  # noqa: F401  its import is no part of a training's memory
    trainable(architecture(8, 1, 1, 1, 1, 8, 8, 2, 1), tokens[:, :33])[0]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = variant(name, a, tokens)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


def peak_memory(size: str, name: str) -> int:
    """MiB that building and three steps add to a fresh process' greatest resident size."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (size, name))


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--variants", nargs="+", choices=OURS + FIELD, default=OURS + FIELD)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    names = list(dict.fromkeys(["moe_optuna", *options.variants]))
    rows = [row for size in options.sizes for row in measure(size, names, options.rounds, device)]
    try:
        from importlib.metadata import version

        transformers_version = version("transformers")
    except ImportError:
        transformers_version = None
    result = {
        "format": 1, "date": date.today().isoformat(), "command": " ".join(sys.argv), "threads": options.threads,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers_version},
        "rows": rows,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
