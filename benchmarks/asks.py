"""What an ask costs, and whether what it proposes is feasible and new.

    python benchmarks/asks.py latency                # time of an ask at 100, 300, 1000 trials, against TPE and GP
    python benchmarks/asks.py proposals              # infeasible and duplicate proposals in 100,000

`proposals` adds to what earlier calls of the same version found, in benchmarks/results/asks-proposals.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from record import RESULTS, record
from samplers import PEERS, SPACES, ours

from moe_optuna import problems
from moe_optuna.errors import InputError
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import SearchSpace


def latency(space: str) -> list[dict[str, Any]]:
    """Median and 90 % of the time of an ask with n finished trials, on a phase-1 lattice with fine cells."""
    rows: list[dict[str, Any]] = []
    loaded = SearchSpace.load(space)
    problem = problems.make("holistic", loaded)
    fine = loaded.model_copy(update={"axes": loaded.axes.model_copy(update={"resolution": 0.008})})
    phase = fine.phase_one(loaded.budgets[-1])
    for size in (100, 300, 1000):
        for name in ("triad", "TPE", "GP"):
            if name == "GP" and size > 300:
                continue
            study = optuna.create_study(sampler=RandomSampler(seed=0))
            random = np.random.default_rng(0)
            for index in random.permutation(len(phase.lattice))[:size]:
                loss = problem.loss(phase.lattice[int(index)], phase.compute)
                params = phase.params(int(index))
                study.add_trial(
                    optuna.create_trial(params=params, distributions=phase.distributions, value=loss)  # type: ignore[arg-type]
                )
            study.sampler = TriadSampler(phase, seed=0) if name == "triad" else PEERS[name](0)
            times = []
            for _ in range(5 if name == "GP" else 20):
                begin = time.perf_counter()
                trial = study.ask(phase.distributions)
                times.append(time.perf_counter() - begin)
                index = phase.index(trial.params)
                study.tell(trial, problem.loss(phase.lattice[index if index is not None else 0], phase.compute, 1))
            first, *rest = times
            middle, late = np.quantile(rest, [0.5, 0.9])
            times_ms = {"first": 1e3 * first, "median": 1e3 * float(middle), "q90": 1e3 * float(late)}
            rows.append({"sampler": name, "trials": size, "lattice": len(phase.lattice), "ms": times_ms})
            print(
                f"{name}, {size} trials, {len(phase.lattice)} architectures:",
                {k: round(v) for k, v in times_ms.items()},
            )
    return rows


def propose(job: tuple[str, float, int, int]) -> tuple[int, int, int]:
    """One study of a phase, up to four trials at once, one in ten failing: proposals, infeasible ones, duplicates."""
    name, compute, number, seed = job
    space = SearchSpace.load(name)
    one = space.phase_one(compute)
    try:
        phase = (
            space.phase_zero(compute),
            one,
            space.phase_two(one.triad_of((7 * seed) % len(one.lattice)), compute=compute),
        )[number]
    except InputError:  # a phase 2 can be empty
        return 0, 0, 0
    study = optuna.create_study(sampler=TriadSampler(phase, seed=seed))
    random = np.random.default_rng(seed)
    infeasible = duplicate = 0
    seen: set[int] = set()
    running: list[optuna.Trial] = []
    for _ in range(len(phase.lattice)):
        trial = study.ask()
        try:
            architecture = phase.suggest(trial)
        except optuna.TrialPruned:
            infeasible += 1
            continue
        index = phase.lattice.index(architecture)
        infeasible += not phase.triad_of(index).admits(architecture)
        duplicate += index in seen
        seen.add(index)
        running.append(trial)
        if len(running) > 3:
            ended = running.pop(int(random.integers(len(running))))
            if random.random() < 0.1:
                study.tell(ended, state=TrialState.FAIL)
            else:
                study.tell(ended, 3 + float(random.random()))
    return len(phase.lattice), infeasible, duplicate


def proposals(count: int, workers: int, minutes: float) -> dict[str, Any]:
    """Proposals until the lattices are exhausted, over all phases and budgets of all shipped spaces."""
    path = RESULTS / "asks-proposals.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else {}
    if found.get("version") != ours():
        found = {"version": ours(), "studies": 0, "proposals": 0, "infeasible": 0, "duplicate": 0}
    jobs = (
        (name, compute, number, seed)
        for seed in itertools.count()
        for name in SPACES
        for compute in SearchSpace.load(name).budgets
        for number in (0, 1, 2)
    )
    jobs, end = itertools.islice(jobs, found["studies"], None), time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(workers) as pool:
        while found["proposals"] < count and time.monotonic() < end:
            for number, infeasible, duplicate in pool.map(propose, itertools.islice(jobs, 4 * workers)):
                found["studies"] += 1
                found["proposals"] += number
                found["infeasible"] += infeasible
                found["duplicate"] += duplicate
            record("asks-proposals", found)
    print("{proposals} proposals, {studies} studies: {infeasible} infeasible, {duplicate} duplicate".format(**found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["latency", "proposals"])
    parser.add_argument("--space", default="lab")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    arguments = parser.parse_args()
    if arguments.part == "latency":
        record(f"asks-latency-{arguments.space}", latency(arguments.space))
    else:
        proposals(arguments.count, arguments.workers, arguments.minutes)


if __name__ == "__main__":
    main()
