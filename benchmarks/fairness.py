"""Is the learning rate, or the batch, of the rule the best one at every corner of a space? A sweep around it.

    python benchmarks/fairness.py [--space cpu] [--budgets 1 3] [--seeds 3] [--limit SECONDS] [--out NAME]

Corners are architectures of the space's own lattices at a budget: the widest, the deepest, the most and the least
sparse of phase 1, and of phase 2 around the most median of them those with the widest and with the narrowest experts.
Each is trained with the rule's learning rate times 1/2, 1/sqrt(2), 1, sqrt(2) and 2, with common seeds and in common
data order. `excess` is the rule's mean loss over the least mean loss of the five, in percent, which chance alone makes
larger than it is; `error` the standard error of that difference over seeds; `smooth` the same excess on a parabola
through the five means, which is least at the factor `best`.

    python benchmarks/fairness.py --space lab --compute 1e12 --widths 32 64 128 256 512 --seeds 2 --out fairness-widths

sweeps the same at widths in place of corners: of phase 1's architectures of the width nearest to each, the middlemost.

    python benchmarks/fairness.py --compute 1.6e11 --allocations 0.35 1 3 --sweep batch --seeds 4 --out fairness-batch

sweeps the batch, in whole sequences, the rate with its root, where models of phase 0 have less or more tokens than the
allocation law says.

Results are written after each training and resumed, as long as the rule has not changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from record import RESULTS, record

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.space import SearchSpace
from moe_optuna.training import Recipe, train
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.parameters import initialise, parameter_groups
from moe_optuna.training.rules import Hyperparameters, hyperparameters

FACTORS = (0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)
SHOWN = ("d_model", "n_dense_layers", "n_moe_layers", "d_expert", "n_experts", "top_k")


def corners(space: SearchSpace, compute: float) -> dict[str, MoEArchitecture]:
    """Six different architectures at the edges of what the space's phases 1 and 2 offer at a budget."""
    phase = space.phase_one(compute)
    one = phase.lattice.arrays
    depth, expansion = one["n_dense_layers"] + one["n_moe_layers"], one["total_params"] / one["active_params"]
    middle = int(np.argsort(one["total_params"])[len(depth) // 2])
    second = space.phase_two(phase.triad_of(middle), compute=compute)
    two = second.lattice.arrays
    ranked = {
        "wide": (phase, -one["d_model"]),
        "deep": (phase, -depth),
        "sparse": (phase, -expansion),
        "dense": (phase, expansion),
        "wide experts": (second, -two["d_expert"]),
        "narrow experts": (second, two["d_expert"] - two["n_experts"] / 1000),
    }
    found: dict[str, MoEArchitecture] = {}
    for name, (at, order) in ranked.items():
        of = at.lattice
        found[name] = next(of[int(i)] for i in np.argsort(order, kind="stable") if of[int(i)] not in found.values())
    return found


def of_widths(space: SearchSpace, compute: float, widths: list[int]) -> dict[str, MoEArchitecture]:
    """For each width, of phase 1's architectures of the width nearest to it that in the middle of the coordinates."""
    phase = space.phase_one(compute)
    d_model, aside = phase.lattice.arrays["d_model"], ((phase.unit - 0.5) ** 2).sum(1)
    nearest = {int(d_model[np.abs(np.log(d_model / width)).argmin()]) for width in widths}
    return {
        f"width {width}": phase.lattice[int(np.where(d_model == width, aside, np.inf).argmin())]
        for width in sorted(nearest)
    }


def of_allocations(space: SearchSpace, compute: float, allocations: list[float]) -> dict[str, MoEArchitecture]:
    """Of phase 0's architectures those nearest to so many times the M of the allocation law."""
    phase = space.phase_zero(compute)
    (column,) = (i for i, axis in enumerate(phase.axes) if axis.name == "allocation")
    return {
        f"allocation {x:g}": phase.lattice[int(np.abs(np.log(phase.coordinates[:, column] / x)).argmin())]
        for x in allocations
    }


def identity(a: MoEArchitecture, compute: float, recipe: Recipe) -> str:
    """A hash of what the rule sets for an architecture: schedule, rates and initial values."""
    hyper = hyperparameters(a, compute=compute, tokens=tokens(a, compute), recipe=recipe)
    model = MoELanguageModel(a, recipe)
    initialise(model, 0)
    groups = [(g["lr"], g["weight_decay"], len(g["params"])) for g in parameter_groups(model, hyper)]
    norms = [round(float(p.detach().double().norm()), 6) for p in model.parameters()]
    text = json.dumps([a.to_dict(), recipe.to_dict(), asdict(hyper), groups, norms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tokens(a: MoEArchitecture, compute: float) -> int:
    return round(compute / a.non_embedding.flops_per_token)


def recipes(a: MoEArchitecture, hyper: Hyperparameters, base: Recipe, sweep: str) -> dict[str, tuple[float, Recipe]]:
    """By factor: what the rule's value is multiplied by, in whole sequences, and the recipe of that."""
    found = {}
    for factor in FACTORS:
        if sweep == "batch":
            sequences = max(1, round(hyper.sequences * factor))
            recipe = replace(base, batch_tokens=sequences * a.context_length)
            found[f"{factor:.3g}"] = sequences / hyper.sequences, recipe
        else:
            found[f"{factor:.3g}"] = factor, replace(base, learning_rate=hyper.learning_rate * factor)
    return found


def summary(losses: dict[str, list[float]], times: list[float]) -> dict[str, Any]:
    """What a corner's losses (by factor, one a seed) say about the rule."""
    L = np.array([losses[f"{factor:.3g}"] for factor in FACTORS])  # (factors, seeds)
    mean = L.mean(1)
    best = int(mean.argmin())
    apart = L[2] - L[best]
    a, b, c = np.polyfit(np.log2(times), mean, 2)
    place = float(np.clip(-b / (2 * a), -1, 1)) if a > 0 else float(np.sign(-b))
    return {
        "excess": 100 * float(mean[2] / mean[best] - 1),
        "error": 100 * float(apart.std(ddof=1) / len(apart) ** 0.5 / mean[best]) if len(apart) > 1 else float("nan"),
        "smooth": 100 * float(c / (a * place**2 + b * place + c) - 1),
        "best": 2**place,
        "mean": [float(x) for x in mean],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 3], help="positions in the ladder, from 1")
    parser.add_argument("--compute", type=float, nargs="+", help="FLOPs, in place of the ladder's budgets")
    parser.add_argument("--widths", type=int, nargs="+", help="widths, in place of corners")
    parser.add_argument("--allocations", type=float, nargs="+", help="multiples of the law's M, in place of corners")
    parser.add_argument("--sweep", choices=["rate", "batch"], default="rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after so many seconds; run again")
    parser.add_argument("--out", default="fairness")
    arguments = parser.parse_args()
    space = SearchSpace.load(arguments.space)
    base = replace(Recipe.from_table(space.training), reports=1)
    path, begin = RESULTS / f"{arguments.out}.json", time.monotonic()
    known: dict[str, Any] = json.loads(path.read_text())["data"] if path.is_file() else {}
    wanted: dict[str, Any] = {}
    for compute in arguments.compute or [space.budgets[position - 1] for position in arguments.budgets]:
        if arguments.widths:
            chosen = of_widths(space, compute, arguments.widths)
        elif arguments.allocations:
            chosen = of_allocations(space, compute, arguments.allocations)
        else:
            chosen = corners(space, compute)
        for name, a in chosen.items():
            key, rule = f"{compute:.3g} {name}", identity(a, compute, base)
            entry = known.get(key)
            hyper = hyperparameters(a, compute=compute, tokens=tokens(a, compute), recipe=base)
            swept = recipes(a, hyper, base, arguments.sweep)
            if entry is None or entry["rule"] != rule:
                shape = {dimension: getattr(a, dimension) for dimension in SHOWN}
                entry = {"rule": rule, "architecture": shape, "learning_rate": hyper.learning_rate}
                entry |= {"steps": hyper.steps, "sequences": hyper.sequences, "loss": {}}
            wanted[key] = entry
            for seed in range(arguments.seeds):
                for factor, (_, recipe) in swept.items():
                    losses = entry["loss"].setdefault(factor, [])
                    if len(losses) > seed or time.monotonic() - begin > arguments.limit:
                        continue
                    result = train(
                        a, compute=compute, tokens=tokens(a, compute), recipe=recipe, seed=seed, device="cpu", threads=1
                    )
                    losses.append(result.loss)
                    record(arguments.out, known | wanted)
            if all(len(losses) >= arguments.seeds for losses in entry["loss"].values()):
                entry |= summary(entry["loss"], [times for times, _ in swept.values()])
                shape = " ".join(f"{k} {v}" for k, v in entry["architecture"].items())
                losses = " ".join(f"{x:.4f}" for x in entry["mean"])
                excess = f"excess {entry['excess']:.2f} +- {entry['error']:.2f} %, smooth {entry['smooth']:.2f} %"
                print(f"{key:22s} {losses}  {excess}  best x{entry['best']:.2f}  ({shape})", flush=True)
    record(arguments.out, wanted)


if __name__ == "__main__":
    main()
