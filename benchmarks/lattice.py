"""How fast the integer lattice is solved, against brute force over the box and rejection by Optuna's samplers.

    python benchmarks/lattice.py                 # all parts; some five minutes
    python benchmarks/lattice.py --trials 300    # fewer trials of the samplers

For each case: a triad, the architectures that meet it, the time to solve them all, the time to the first, and the peak
memory of a process that does nothing else. The rivals get the tightest box around the solutions, which nobody knows
beforehand. Brute force counts its points in numpy: all of them where there are at most `--points`, else a sample whose
rate is scaled up. RandomSampler and TPESampler, this one with the triad as constraints, ask for trials in it.
Written to benchmarks/results/lattice.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from moe_optuna.space import SearchSpace
from moe_optuna.triad import Triad

COUNTS = ("flops_per_token", "active_params", "total_params")
BOX = ("d_model", "d_expert", "n_dense_layers", "n_moe_layers")
CHOICES = ("n_heads", "n_kv_heads", "d_head", "n_experts", "top_k", "n_shared_experts")

FREE: dict[str, Any] = {
    "format": 1,
    "name": "free",
    "budgets": [1e20],
    "target": 1e21,
    "allocation_law": {"coefficient": 0.04368, "exponent": 0.5437},
    "reference": {"compute_density": 8.0, "expansion_ratio": 8.0},
    "axes": {"compute_density": [6.5, 20.0], "expansion_ratio": [1.5, 13.0]},
    "dimensions": {
        "d_model": {"low": 512, "high": 8192, "multiple": 128},
        "d_expert": {"low": 128, "high": 16384, "multiple": 128},
        "d_dense": {"low": 1024, "high": 32768, "multiple": 1024},
        "n_layers": {"low": 4, "high": 64},
        "n_heads": [16, 32, 64],
        "queries_per_kv_head": [4, 8],
        "d_head": 128,
        "n_experts": [64, 128, 256],
        "top_k": [4, 8],
        "n_shared_experts": [1, 0],
        "context_length": 8192,
        "vocab_size": 131072,
    },
}
"""Every structural dimension free, in the steps that clusters use."""

VAST: dict[str, Any] = FREE | {
    "name": "vast",
    "dimensions": FREE["dimensions"]
    | {
        "d_dense": {"low": 512, "high": 32768, "multiple": 256},
        "queries_per_kv_head": [4, 1, 8],
        "n_experts": [64, 128, 192, 256, 384],
        "top_k": [4, 1, 2, 6, 8, 12],
        "n_shared_experts": [1, 0, 2],
    },
}
"""The same with more values and finer steps: more architectures than memory holds, walked through in parts."""

CASES: dict[str, tuple[Any, float, float, float]] = {
    "cpu": ("cpu", 4.5e11, 8.0, 3.0),
    "lab": ("lab", 1e15, 8.0, 5.0),
    "holistic 1e18": ("holistic", 1e18, 10.95, 21.8),
    "holistic 3e20": ("holistic", 3e20, 8.22, 21.8),
    "free 1e21": (FREE, 1e21, 8.0, 8.0),
    "vast 1e21": (VAST, 1e21, 8.0, 8.0),
}


def case(name: str) -> tuple[SearchSpace, Triad]:
    space, compute, density, ratio = CASES[name]
    space = SearchSpace.load(space) if isinstance(space, str) else SearchSpace.from_dict(space)
    return space, space.triad(space.allocation(compute).flops_per_token, density, ratio)


def peak_mb() -> float:
    """Most resident memory of this process so far, of Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def solve(name: str) -> dict[str, Any]:
    """In this process: the time to the first architecture and to all of them, and what that took."""
    space, triad = case(name)
    baseline = peak_mb()
    start = time.perf_counter()
    next(iter(space.lattice(triad)))
    first = time.perf_counter() - start
    count, low, high, spent = 0, {}, {}, time.process_time()
    start = time.perf_counter()
    for chunk in space.lattice(triad).chunks():
        count += len(chunk["d_model"])
        for key in BOX:
            low[key] = min(low.get(key, math.inf), int(chunk[key].min()))
            high[key] = max(high.get(key, 0), int(chunk[key].max()))
    seconds, cpu = time.perf_counter() - start, time.process_time() - spent
    box = {key: (low[key], high[key]) for key in BOX}
    return {
        "architectures": count,
        "seconds_to_first": first,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "architectures_per_second": count / cpu,
        "peak_mb": peak_mb(),
        "baseline_mb": baseline,
        "box": box,
    }


def grid(space: SearchSpace, triad: Triad, box: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """The values of each dimension in the box, and the combinations of the discrete ones."""
    d = space.rules(triad.flops_per_token).solved
    steps = {"d_model": d.d_model.multiple, "d_expert": d.d_expert.multiple}
    values = {key: np.arange(box[key][0], box[key][1] + 1, steps.get(key, 1)) for key in BOX}
    values["combination"] = np.arange(len(d.combinations()["n_heads"]))
    return values


def brute_force(name: str, box: dict[str, tuple[int, int]], most: int) -> dict[str, Any]:
    """Points of the box counted in numpy and held to the bands: all, or a sample of `most`."""
    space, triad = case(name)
    values = grid(space, triad, box)
    size = math.prod(len(column) for column in values.values())
    generator = np.random.default_rng(0)
    done = found = 0
    start = time.process_time()
    while done < min(size, most):
        block = np.arange(done, min(done + 2**20, size)) if size <= most else generator.integers(0, size, 2**20)
        found += int(np.count_nonzero(admitted(space, triad, values, block)))
        done += len(block)
    seconds = time.process_time() - start
    return {
        "points": size,
        "counted": done,
        "found": found,
        "cpu_seconds": seconds,
        "points_per_second": done / seconds,
        "cpu_seconds_for_all": size / (done / seconds),
    }


def admitted(space: SearchSpace, triad: Triad, values: dict[str, np.ndarray], block: np.ndarray) -> np.ndarray:
    d = space.rules(triad.flops_per_token).solved
    places = np.unravel_index(block, [len(column) for column in values.values()])
    c = {key: column[place] for (key, column), place in zip(values.items(), places, strict=True)}
    for key, column in d.combinations().items():
        c[key] = column[c["combination"]]
    layers = c["n_dense_layers"] + c["n_moe_layers"]
    attention = 2 * c["d_model"] * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers
    expert = 3 * c["d_model"] * c["d_expert"] * c["n_moe_layers"]
    dense = 3 * c["d_model"] * d.d_dense.of(c["d_model"]) * c["n_dense_layers"]
    active = attention + dense + expert * (c["top_k"] + c["n_shared_experts"])
    total = active + expert * (c["n_experts"] - c["top_k"])
    flops = 6 * active + 6 * d.context_length * c["n_heads"] * c["d_head"] * layers
    meets = (layers >= d.n_layers.low) & (layers <= d.n_layers.high)
    for key, count in zip(COUNTS, (flops, active, total), strict=True):
        meets &= np.abs(count / getattr(triad, key) - 1) <= getattr(triad.tolerances, key) + 1e-12
    return meets


def rejection(name: str, box: dict[str, tuple[int, int]], sampler: str, trials: int, seed: int) -> dict[str, Any]:
    """Trials that Optuna's sampler asks for in the box, and how many of them meet the triad."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, triad = case(name)
    d = space.rules(triad.flops_per_token).solved
    steps = {"d_model": d.d_model.multiple, "d_expert": d.d_expert.multiple}
    samplers = {"random": optuna.samplers.RandomSampler, "TPE": optuna.samplers.TPESampler}
    study = optuna.create_study(sampler=samplers[sampler](seed=seed))
    combinations = d.combinations()
    feasible: set[tuple[int, ...]] = set()
    hits, first = 0, None
    start = time.process_time()
    for number in range(trials):
        trial = study.ask()
        c: dict[str, Any] = {key: trial.suggest_int(key, *box[key], step=steps.get(key, 1)) for key in BOX}
        for key in d.free:
            c[key] = trial.suggest_categorical(key, sorted(getattr(d, key)))
        rows = np.logical_and.reduce([combinations[key] == c[key] for key in d.free] or [[True]])
        c |= {key: int(combinations[key][np.flatnonzero(rows)[0]]) for key in CHOICES} if rows.any() else {}
        excess = excesses(d, triad, c) if rows.any() else dict.fromkeys(COUNTS, 1.0)
        if sampler == "TPE":
            for key, value in excess.items():
                trial.set_constraint(key, value)
        if max(excess.values()) <= 0:
            hits += 1
            first = number + 1 if first is None else first
            feasible.add(tuple(c.values()))
        study.tell(trial, sum(max(value, 0.0) for value in excess.values()))
    seconds = time.process_time() - start
    return {"trials": trials, "feasible": hits, "distinct": len(feasible), "first": first, "cpu_seconds": seconds}


def excesses(d: Any, triad: Triad, c: dict[str, Any]) -> dict[str, float]:
    """How far each count lies outside its tolerance; at most 0 where it is met."""
    layers = c["n_dense_layers"] + c["n_moe_layers"]
    dense = int(d.d_dense.of(np.array([c["d_model"]]))[0]) * c["n_dense_layers"]
    expert = 3 * c["d_model"] * c["d_expert"] * c["n_moe_layers"]
    active = 2 * c["d_model"] * c["d_head"] * (c["n_heads"] + c["n_kv_heads"]) * layers + 3 * c["d_model"] * dense
    active += expert * (c["top_k"] + c["n_shared_experts"])
    counts = (
        6 * active + 6 * d.context_length * c["n_heads"] * c["d_head"] * layers,
        active,
        active + expert * (c["n_experts"] - c["top_k"]),
    )
    return {
        key: abs(count / getattr(triad, key) - 1) - getattr(triad.tolerances, key)
        for key, count in zip(COUNTS, counts, strict=True)
    }


def phases(name: str) -> dict[str, float]:
    """CPU seconds to build each phase, the second time."""
    space, triad = case(name)
    compute = space.allocation_law.compute(triad.flops_per_token)
    builds = {
        "phase 0": lambda: space.phase_zero(compute),
        "phase 1": lambda: space.phase_one(compute),
        "phase 2": lambda: space.phase_two(triad),
    }
    seconds = {}
    for key, build in builds.items():
        build()
        start = time.process_time()
        phase = build()
        seconds[key] = time.process_time() - start
        seconds[f"{key}, architectures"] = len(phase.lattice)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--points", type=int, default=50_000_000)
    parser.add_argument("--solve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.solve:
        print(json.dumps(solve(options.solve)))
        return
    results: dict[str, Any] = {}
    print(f"{'case':<14} {'architectures':>14} {'first':>8} {'all':>9} {'per s':>11} {'peak MB':>8}   rivals")
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, "--solve", name], capture_output=True, text=True, check=True)
        row = results[name] = {"lattice": json.loads(done.stdout)}
        ours, box = row["lattice"], row["lattice"]["box"]
        line = (
            f"{name:<14} {ours['architectures']:>14,} {ours['seconds_to_first']:>7.3f}s {ours['cpu_seconds']:>8.3f}s "
            f"{ours['architectures_per_second']:>11,.0f} {ours['peak_mb']:>8.0f}"
        )
        if isinstance(CASES[name][0], str):
            row["phases"] = phases(name)
            brute = row["brute force"] = brute_force(name, box, options.points)
            brute["times_longer"] = brute["cpu_seconds_for_all"] / ours["cpu_seconds"]
            brute["acceptance"] = ours["architectures"] / brute["points"]
            if brute["counted"] == brute["points"] and brute["found"] != ours["architectures"]:
                raise SystemExit(f"{name}: brute force finds {brute['found']}, the lattice {ours['architectures']}")
            line += f"   {brute['acceptance']:.3%} of a box of {brute['points']:.2g}"
            line += f"; brute force x{brute['times_longer']:,.0f}"
            for sampler in ("random", "TPE"):
                tried = row[sampler] = rejection(name, box, sampler, options.trials, seed=0)
                rate = tried["distinct"] / tried["cpu_seconds"]
                tried["times_longer"] = ours["architectures_per_second"] / rate if rate else None
                ratio = f"x{tried['times_longer']:,.0f}" if rate else "none"
                line += f"; {sampler} {tried['feasible']} ({tried['distinct']} distinct) of {tried['trials']}, {ratio}"
        print(line, flush=True)
    print(f"written to {record('lattice', results)}")


if __name__ == "__main__":
    main()
