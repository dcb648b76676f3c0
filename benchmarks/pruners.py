"""What a pruner saves, and how often it stops a trial that it should not: BandPruner against Optuna's pruners.

    python benchmarks/pruners.py --searches 200                  # synthetic curves on the ladder of `lab`
    python benchmarks/pruners.py --curves results/curves-cpu.json    # recorded curves of real trainings

A search is a random sequence of trainings of one budget. Recorded curves are a file of this folder's format whose data
is a list of {"study": name, "loss": final loss, "curve": [[fraction or tokens, loss], ...]}, all curves of a study on
the same grid; searches resample a study. Saved: share of the FLOPs that were not trained. Stopped: share of searches in
which a trial was stopped that would have ended within 0.1 % of the best of the search, and in which the best itself
was; with synthetic curves both by the loss without noise.
Results are printed and written to benchmarks/results/pruners-<source>.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from record import record

from moe_optuna import problems
from moe_optuna.pruners import BandPruner

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore")

BAND = 0.001
POINTS = 20
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "Band": BandPruner,
    "Band (0.95)": lambda: BandPruner(probability=0.95),
    "Median": MedianPruner,
    "Percentile (25)": lambda: PercentilePruner(25.0),
    "SuccessiveHalving": SuccessiveHalvingPruner,
    "Hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=POINTS),
    "Wilcoxon": lambda: WilcoxonPruner(p_threshold=0.1),
}
Run = tuple[tuple[float, ...], float]
"""The losses of a training on the grid, and the loss by which it is judged."""


def synthetic(space: str, families: list[str], size: int, searches: int) -> Iterator[list[Run]]:
    """Searches over random architectures of the phase-1 lattices of a ladder, budgets in turn."""
    for number in range(searches):
        random = np.random.default_rng(number)
        problem = problems.make(families[number % len(families)], space, variant=number)
        budgets = problem.space.budgets
        phase = problem.space.phase_one(budgets[number // len(families) % len(budgets)])
        usable = np.flatnonzero(~problem.failing(phase))
        chosen = random.choice(usable, min(size, len(usable)), replace=False)
        truth = problem.true_losses(phase)
        yield [
            (
                tuple(loss for _, loss in problem.curve(phase.lattice[int(i)], phase.compute, number, POINTS)),
                float(truth[i]),
            )
            for i in chosen
        ]


def recorded(path: Path, size: int, searches: int) -> Iterator[list[Run]]:
    """Searches over recorded runs, each a random order of a random half, at least, of one study."""
    studies: dict[str, list[Run]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["data"]:
        studies.setdefault(row["study"], []).append((tuple(loss for _, loss in row["curve"]), row["loss"]))
    pools = [runs for runs in studies.values() if len(runs) >= 8]
    for number in range(searches):
        random = np.random.default_rng(number)
        pool = pools[number % len(pools)]
        yield [pool[i] for i in random.permutation(len(pool))[: min(size, max(8, len(pool)))]]


def replay(runs: list[Run], name: str) -> tuple[float, int, bool]:
    """Share of FLOPs saved, band members stopped, whether the best was stopped."""
    study = optuna.create_study(pruner=PRUNERS[name]())
    best = min(judged for _, judged in runs)
    trained, members, winner = 0, 0, False
    for losses, judged in runs:
        trial = study.ask()
        for step, loss in enumerate(losses, start=1):
            trial.report(loss, step)
            if step < len(losses) and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                members += judged <= best * (1 + BAND)
                winner |= judged == best
                break
        else:
            study.tell(trial, losses[-1])
        trained += step
    return 1 - trained / sum(len(losses) for losses, _ in runs), members, winner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, help="recorded curves instead of synthetic ones")
    parser.add_argument("--space", default="lab")
    parser.add_argument("--families", nargs="+", default=["holistic", "leverage", "noisy", "valley", "rough"])
    parser.add_argument("--size", type=int, default=40, help="trainings in a search")
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.curves:
        source, searches = arguments.curves.stem, recorded(arguments.curves, arguments.size, arguments.searches)
    else:
        source = f"synthetic-{arguments.space}"
        searches = synthetic(arguments.space, arguments.families, arguments.size, arguments.searches)
    pool, rows = list(searches), []
    print(f"{'pruner':<20}{'FLOPs saved':>22}{'member stopped in':>20}{'best stopped in':>18}")
    for name in PRUNERS:
        with ProcessPoolExecutor(arguments.workers) as executor:
            found = list(executor.map(partial(replay, name=name), pool, chunksize=4))
        saved = np.quantile([share for share, _, _ in found], [0.25, 0.5, 0.75])
        row: dict[str, Any] = {
            "pruner": name,
            "saved_quartiles": saved.tolist(),
            "searches_with_member_stopped": float(np.mean([members > 0 for _, members, _ in found])),
            "searches_with_best_stopped": float(np.mean([winner for *_, winner in found])),
        }
        rows.append(row)
        print(
            f"{name:<20}{f'{saved[1]:.0%} [{saved[0]:.0%}, {saved[2]:.0%}]':>22}"
            f"{row['searches_with_member_stopped']:>20.1%}{row['searches_with_best_stopped']:>18.1%}",
            flush=True,
        )
    record(f"pruners-{source}", {"searches": len(pool), "rows": rows})


if __name__ == "__main__":
    main()
