"""Record how the loss of real trainings falls: the curves on which `pruners.py --curves` judges pruners.

    python benchmarks/curves.py --space cpu --most 20 --density 2 --seeds 0 1 2    # 40 minutes on one core; resumes
    python benchmarks/curves.py --space lab --compute 1.25e12 2e12 --most 14 --seeds 0 1    # 70 minutes

At each of the smallest budgets of a space, or at `--compute`: up to `--most` architectures of the phase-1 lattice, and
of the phase-2 lattice of the space's reference triad, well spread over the reduced coordinates; each trained to its end
with the space's recipe, once a seed. A seed sets the initial weights and the order of the text is common, as for the
trials of a search, so that the curves of one seed are those that one search would see. Reports are denser than the
recipe's by `--density`, so that coarser grids can be read off.

A row: {"study", "compute", "phase", "seed", "unit": reduced coordinates in [0, 1], "parameters": Na, "seconds",
"losses": at equal shares of the token budget; the last is the final loss}. Rows of the same training (version and
recipe) are kept; a file with those of another is not touched. Writes benchmarks/results/curves-<space>.json after every
training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, record

import moe_optuna.training
from moe_optuna.errors import InputError
from moe_optuna.space import Phase, SearchSpace
from moe_optuna.training import Recipe, train


def phases(space: SearchSpace, compute: float) -> Iterator[Phase]:
    """Phase 1, and, where the reference triad has architectures, phase 2 at it."""
    yield space.phase_one(compute)
    flops_per_token = space.allocation(compute).flops_per_token
    triad = space.triad(flops_per_token, space.reference.compute_density, space.reference.expansion_ratio)
    with suppress(InputError):
        yield space.phase_two(triad, compute=compute)


def spread(unit: np.ndarray, most: int) -> list[int]:
    """Indices of at most `most` rows of `unit` (n, p), each the farthest from those before it."""
    chosen = [int(np.argmin(((unit - unit.mean(0)) ** 2).sum(1)))]
    distance = np.full(len(unit), np.inf)
    while len(chosen) < min(most, len(unit)):
        distance = np.minimum(distance, ((unit - unit[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(np.argmax(distance)))
    return chosen


def fingerprint(recipe: Recipe) -> str:
    """What the curves depend on: the training room's code, and the recipe."""
    room = Path(moe_optuna.training.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted((*room.glob("*.py"), *room.glob("*.c"))))
    return hashlib.sha256(text + json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def noise(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: by budget, the relative standard deviation of final losses over seeds, of all architectures together, and
    what is left of it apart from what a seed does to all of them, which a search, of one seed, does not see."""
    final: dict[float, dict[tuple[Any, ...], dict[int, float]]] = {}
    for row in rows:
        one = final.setdefault(row["compute"], {}).setdefault((row["study"], *row["unit"]), {})
        one[row["seed"]] = float(np.log(row["losses"][-1]))
    for compute, architectures in final.items():
        seeds = max((sorted(losses) for losses in architectures.values()), key=len)
        log = np.array([[own[s] for s in seeds] for own in architectures.values() if sorted(own) == seeds])
        if min(log.shape) < 2:
            continue
        apart = log - log.mean(1, keepdims=True)
        n, k = log.shape
        whole = (apart**2).sum() / (n * (k - 1))
        own = ((apart - apart.mean(0)) ** 2).sum() / ((n - 1) * (k - 1))
        told = f"{100 * own**0.5:.2f} % apart from what a seed does to all, {n} architectures, {k} seeds"
        yield f"{compute:g} FLOPs: noise {100 * whole**0.5:.2f} % ({told})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--budgets", type=int, default=3, help="how many, from the smallest")
    parser.add_argument("--compute", type=float, nargs="+", help="budgets [training FLOPs] in place of the space's")
    parser.add_argument("--most", type=int, default=40, help="architectures a phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--density", type=int, default=1, help="reports for each one of the recipe's")
    parser.add_argument("--minutes", type=float, default=7.0, help="stop after this long; the same command goes on")
    parser.add_argument("--name", help="of the result; curves-<space> unless given")
    arguments = parser.parse_args()
    space = SearchSpace.load(arguments.space)
    recipe = Recipe.from_table(space.training)
    recipe = replace(recipe, reports=recipe.reports * arguments.density)
    version, name = fingerprint(recipe), arguments.name or f"curves-{space.name}"
    path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = []
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))["data"]
        if kept["training"] != version:
            parser.error(f"{path} holds curves of another training or density, expected another --name")
        rows = kept["runs"]
    there = {(row["study"], tuple(row["unit"]), row["seed"]) for row in rows}
    end = time.monotonic() + 60 * arguments.minutes
    for seed in arguments.seeds:
        for compute in arguments.compute or space.budgets[: arguments.budgets]:
            for phase in phases(space, compute):
                for index in spread(phase.unit, arguments.most):
                    unit = [round(float(value), 4) for value in phase.unit[index]]
                    study = phase.study_name(space.name)
                    if (study, tuple(unit), seed) in there:
                        continue
                    if time.monotonic() > end:
                        print("time is up; the same command goes on")
                        return
                    architecture = phase.lattice[index]
                    result = train(
                        architecture,
                        compute=compute,
                        tokens=phase.tokens(architecture),
                        recipe=recipe,
                        seed=seed,
                        threads=1,
                    )
                    rows.append(
                        {
                            "study": study,
                            "compute": compute,
                            "phase": phase.number,
                            "seed": seed,
                            "unit": unit,
                            "active_params": architecture.non_embedding.active_params,
                            "seconds": round(result.seconds, 2),
                            "losses": [round(loss, 5) for _, loss in result.curve],
                        }
                    )
                    record(name, {"training": version, "decay": recipe.decay, "reports": recipe.reports, "runs": rows})
                    print(f"{study:<20} seed {seed}  {rows[-1]['seconds']:5.1f} s  {result.loss:.4f}", flush=True)
    print(f"{len(rows)} runs", *noise(rows), sep="\n")


if __name__ == "__main__":
    main()
