"""What a pruner saves, and how often it stops a trial that it should not: BandPruner against Optuna's pruners.

    python benchmarks/pruners.py --curves benchmarks/results/curves-cpu.json --density 2 --searches 100 --order sampler
    python benchmarks/pruners.py --searches 50                          # synthetic curves on the ladder of `lab`

A search is a ladder like that of `lab`: at each budget a study of phase 1 with 20 trainings and one of phase 2 with 14.
Recorded curves (`curves.py`) are resampled: the curves of one seed, of each study three quarters at random, at most as
many as a search trains, so that who is best changes as well, in a random order or (`--order sampler`) in that in which
TriadSampler asks for them, told the recorded losses: the nearest recorded architecture that is left. BandPruner is
given the studies before, as in a search, and at each study's end its best with all seeds, which tells the noise;
Optuna's pruners have no such thing.

Saved: share of the ladder's FLOPs that were not trained. Stopped: share of the searches in which a trial was stopped
that ends within 0.1 % of the least loss of its study, and in which that of the least loss was; recorded losses as they
are, synthetic ones without noise. Results are printed and written to benchmarks/results/pruners-<source>.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from curves import phases
from optuna.distributions import FloatDistribution
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.trial import create_trial
from record import record

from moe_optuna import TriadSampler, problems
from moe_optuna.pruners import BandPruner
from moe_optuna.space import Phase, SearchSpace

BAND = 0.001
SIZES = {1: 20, 2: 14}
Parents = Sequence[optuna.Study]
PRUNERS: dict[str, Callable[[int, Parents], BasePruner]] = {
    "Band": lambda points, parents: BandPruner(parents=parents),
    "Band (0.999)": lambda points, parents: BandPruner(probability=0.999, parents=parents),
    "Band (0.95)": lambda points, parents: BandPruner(probability=0.95, parents=parents),
    "Band, longer warm-up": lambda points, parents: BandPruner(warmup=0.25, parents=parents),
    "Band, no warm-up": lambda points, parents: BandPruner(warmup=0.0, parents=parents),
    "Band, no parents": lambda points, parents: BandPruner(),
    "Median": lambda points, parents: MedianPruner(),
    "Percentile (25)": lambda points, parents: PercentilePruner(25.0),
    "SuccessiveHalving": lambda points, parents: SuccessiveHalvingPruner(),
    "Hyperband": lambda points, parents: HyperbandPruner(min_resource=1, max_resource=points),
    "Wilcoxon": lambda points, parents: WilcoxonPruner(p_threshold=0.1),
}


class Run(NamedTuple):
    """A training: its losses on the grid, the loss by which it is judged, final losses with all seeds."""

    losses: tuple[float, ...]
    judged: float
    repeats: tuple[float, ...] = ()


class Recorded(NamedTuple):
    """A training and where its architecture lies."""

    run: Run
    unit: tuple[float, ...]


Ladder = list[tuple[float, list[Run]]]
"""The studies of a search in their order: budget, and trainings in their order."""


def synthetic(space: str, families: list[str], searches: int, points: int) -> Iterator[Ladder]:
    """Ladders over random architectures of a space, with losses of known problems."""
    for number in range(searches):
        random = np.random.default_rng(number)
        problem = problems.make(families[number % len(families)], space, variant=number)
        ladder: Ladder = []
        for budget in problem.space.budgets:
            for phase in phases(problem.space, budget):
                usable = np.flatnonzero(~problem.failing(phase))
                chosen = random.choice(usable, min(SIZES[phase.number], len(usable)), replace=False)
                truth = problem.true_losses(phase)
                runs = []
                for index in map(int, chosen):
                    curve, *others = (
                        problem.curve(phase.lattice[index], budget, 1000 * seed + number, points) for seed in range(4)
                    )
                    repeats = tuple(other[-1][1] for other in others)
                    runs.append(Run(tuple(loss for _, loss in curve), float(truth[index]), repeats))
                ladder.append((budget, runs))
        yield ladder


def recorded(path: Path, searches: int, density: int, order: str, seeds: Sequence[int] = ()) -> Iterator[Ladder]:
    """Ladders over recorded curves, each of one seed; `density`: every how many reports are read."""
    worlds: dict[int, dict[tuple[float, int], list[Recorded]]] = {}
    rows = json.loads(path.read_text(encoding="utf-8"))["data"]["runs"]
    finals: dict[tuple[str, tuple[float, ...]], list[float]] = {}
    for row in rows:
        finals.setdefault((row["study"], tuple(row["unit"])), []).append(row["losses"][-1])
    for row in rows:
        repeats = tuple(finals[row["study"], tuple(row["unit"])])
        run = Run(tuple(row["losses"][density - 1 :: density]), row["losses"][-1], repeats)
        world = worlds.setdefault(row["seed"], {})
        world.setdefault((row["compute"], row["phase"]), []).append(Recorded(run, tuple(row["unit"])))
    most = max(len(world) for world in worlds.values())
    complete = [world for seed, world in worlds.items() if len(world) == most and seed in (seeds or worlds)]
    space = SearchSpace.load(rows[0]["study"].split("/")[0])
    for number in range(searches):
        random = np.random.default_rng(number)
        ladder: Ladder = []
        parents: dict[int, list[optuna.Study]] = {1: [], 2: []}
        for (compute, kind), trained in sorted(complete[number % len(complete)].items()):
            size = min(SIZES[kind], round(0.75 * len(trained)))
            if order == "random":
                runs = [trained[i].run for i in random.permutation(len(trained))[:size]]
            else:
                phase = next(phase for phase in phases(space, compute) if phase.number == kind)
                study, runs = asked(phase, trained, size, parents[kind], number)
                parents[kind].append(study)
            ladder.append((compute, runs))
        yield ladder


def asked(
    phase: Phase, rows: list[Recorded], size: int, parents: list[optuna.Study], seed: int
) -> tuple[optuna.Study, list[Run]]:
    """The recorded trainings in the order in which TriadSampler asks for them."""
    study = optuna.create_study(sampler=TriadSampler(phase, parents=parents, seed=seed))
    study.set_user_attr("compute", phase.compute)
    left, runs = list(rows), []
    while len(runs) < size:
        wanted = study.ask(phase.distributions).params
        index = phase.index(wanted)
        assert index is not None
        found = min(left, key=lambda row: float(((np.array(row.unit) - phase.unit[index]) ** 2).sum()))
        left.remove(found)
        study.tell(len(study.trials) - 1, found.run.judged)
        runs.append(found.run)
    return study, runs


def replay(ladder: Ladder, name: str) -> tuple[float, int, int, float]:
    """Share of the FLOPs saved, band members stopped, best ones stopped, seconds in the pruner a report."""
    parents: list[optuna.Study] = []
    total = trained = seconds = 0.0
    members = winners = reports = 0
    for compute, runs in ladder:
        points = len(runs[0].losses)
        study = optuna.create_study(pruner=PRUNERS[name](points, tuple(parents)))
        study.set_user_attr("compute", compute)
        best = min(run.judged for run in runs)
        for run in runs:
            trial = study.ask()
            for step, loss in enumerate(run.losses, start=1):
                trial.report(loss, step)
                begin = time.perf_counter()
                stop = step < points and trial.should_prune()
                seconds += time.perf_counter() - begin
                reports += 1
                if stop:
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    members += run.judged <= best * (1 + BAND)
                    winners += run.judged == best
                    break
            else:
                study.tell(trial, run.losses[-1])
            trained += compute * step / points
            total += compute
        best_of_study = min(runs, key=lambda run: run.losses[-1])
        for loss in best_of_study.repeats:  # as a search does at a budget's end: they tell its noise
            study.add_trial(create_trial(value=loss, params={"x": 0.0}, distributions={"x": FloatDistribution(0, 1)}))
        parents.append(study)
    return 1 - trained / total, members, winners, seconds / reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, help="recorded curves instead of synthetic ones")
    parser.add_argument("--order", choices=("random", "sampler"), default="random")
    parser.add_argument("--density", type=int, default=1, help="every how many recorded reports are read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="of recorded curves; all unless given")
    parser.add_argument("--space", default="lab")
    parser.add_argument("--families", nargs="+", default=["holistic", "leverage", "noisy", "valley", "rough"])
    parser.add_argument("--points", type=int, default=16, help="reports of a synthetic training")
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS), choices=list(PRUNERS), metavar="PRUNER")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    if arguments.curves:
        seeds = "".join(f"-seed-{seed}" for seed in arguments.seeds)
        source = arguments.curves.stem + ("-sampler" if arguments.order == "sampler" else "") + seeds
        ladders = recorded(arguments.curves, arguments.searches, arguments.density, arguments.order, arguments.seeds)
    else:
        source = f"synthetic-{arguments.space}"
        ladders = synthetic(arguments.space, arguments.families, arguments.searches, arguments.points)
    pool, rows = list(ladders), []
    print(f"{'pruner':<20}{'FLOPs saved':>22}{'member stopped in':>20}{'best stopped in':>18}{'ms a report':>14}")
    for name in arguments.pruners:
        found = list(map(partial(replay, name=name), pool))
        saved = np.quantile([share for share, *_ in found], [0.25, 0.5, 0.75])
        row: dict[str, Any] = {
            "pruner": name,
            "saved_quartiles": saved.tolist(),
            "searches_with_member_stopped": float(np.mean([members > 0 for _, members, *_ in found])),
            "searches_with_best_stopped": float(np.mean([winners > 0 for *_, winners, _ in found])),
            "milliseconds_a_report": 1e3 * float(np.mean([seconds for *_, seconds in found])),
        }
        rows.append(row)
        print(
            f"{name:<20}{f'{saved[1]:.0%} [{saved[0]:.0%}, {saved[2]:.0%}]':>22}"
            f"{row['searches_with_member_stopped']:>20.1%}{row['searches_with_best_stopped']:>18.1%}"
            f"{row['milliseconds_a_report']:>14.2f}",
            flush=True,
        )
    studies = [{"compute": compute, "trainings": len(runs)} for compute, runs in pool[0]]
    record(f"pruners-{source}", {"searches": len(pool), "order": arguments.order, "ladder": studies, "rows": rows})


if __name__ == "__main__":
    main()
