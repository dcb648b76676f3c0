"""How many trainings until the recommendation is right: TriadSampler and Optuna's samplers where optima are known.

    python benchmarks/samplers.py cold --space lab --seeds 20        # each sampler alone at the largest budget
    python benchmarks/samplers.py warm --space lab --seeds 20        # the ladder below it as parents
    python benchmarks/samplers.py box --space lab --seeds 20         # constrained samplers on the raw dimensions
    python benchmarks/samplers.py latency                            # time of an ask at 100, 300, 1000 trials
    python benchmarks/samplers.py proposals --count 100000           # infeasible and duplicate proposals

A run is right once the architecture that it recommends is, and stays, within 0.1 % of the least noise-free loss on the
lattice. A peer recommends its best trial; `with our surrogate` it gets ours, fitted to its trials.
Results are printed and written to benchmarks/results/samplers-<part>-<space>.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from record import record

from moe_optuna import problems
from moe_optuna.errors import InputError
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore")

BAND = 0.001
OURS = ("triad", "ladder")
PEERS: dict[str, Callable[[int], BaseSampler]] = {
    "TPE": lambda seed: TPESampler(seed=seed),
    "GP": lambda seed: GPSampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed),
    "QMC": lambda seed: QMCSampler(seed=seed, scramble=True),
    "random": lambda seed: RandomSampler(seed=seed),
}


@dataclass
class Trace:
    """One search: regret of the recommendation after each training, and what was wasted.

    Attributes:
        by_best, by_surrogate: Relative regret without noise, by number of trainings.
        asked, infeasible, duplicate, failed: Trials.
    """

    sampler: str
    family: str
    seed: int
    by_best: dict[int, float] = field(default_factory=dict)
    by_surrogate: dict[int, float] = field(default_factory=dict)
    asked: int = 0
    infeasible: int = 0
    duplicate: int = 0
    failed: int = 0

    def right_from(self, regrets: dict[int, float]) -> float:
        """The number of trainings from which on the recommendation is in the band; infinite where it ends outside."""
        inside = [n for n, regret in regrets.items() if regret <= BAND]
        outside = [n for n, regret in regrets.items() if regret > BAND]
        later = [n for n in inside if not outside or n > max(outside)]
        return min(later) if later else math.inf


def search(
    problem: problems.Problem, phase: Phase, study: optuna.Study, seed: int, runs: int, trace: Trace, judge: bool = True
) -> Trace:
    """Ask, train on paper, tell, until `runs` trainings are done; infeasible proposals cost none."""
    losses, optimum, fails = problem.true_losses(phase), problem.optimum(phase).loss, problem.failing(phase)
    judging = study.sampler if isinstance(study.sampler, TriadSampler) else TriadSampler(phase, seed=seed)

    def regret(index: int) -> float:
        return 1.0 if fails[index] else float(losses[index] / optimum - 1)

    seen: dict[int, int] = {}
    trained, best = 0, (math.inf, -1)
    while trained < runs and trace.asked < 4 * runs:
        trial = study.ask()
        trace.asked += 1
        try:
            architecture = phase.suggest(trial)
        except optuna.TrialPruned:
            trace.infeasible += 1
            study.tell(trial, state=TrialState.PRUNED)
            continue
        index = phase.index(trial.params)
        assert index is not None
        trace.duplicate += index in seen
        seen[index] = seen.get(index, -1) + 1
        trained += 1
        try:
            loss = problem.loss(architecture, phase.compute, 1000 * seed + seen[index])
        except MemoryError:
            loss = math.nan
        if math.isnan(loss):
            trace.failed += 1
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss)
            best = min(best, (loss, index))
        if best[1] >= 0 and judge and (trained <= 12 or trained % (2 if trained <= 24 else 4) == 0 or trained == runs):
            trace.by_best[trained] = regret(best[1])
            trace.by_surrogate[trained] = regret(phase.lattice.index(judging.recommend(study).architecture))
    return trace


def cold(space: str, family: str, name: str, seed: int, runs: int) -> Trace:
    """One sampler at the largest budget of the ladder."""
    problem, phase = setting(space, family, seed)
    sampler = TriadSampler(phase, seed=seed) if name == "triad" else PEERS[name](seed)
    return search(problem, phase, optuna.create_study(sampler=sampler), seed, runs, Trace(name, family, seed))


def warm(space: str, family: str, name: str, seed: int, runs: int) -> Trace:
    """TriadSampler at the largest budget with `runs` trainings at each smaller one as parents."""
    problem, phase = setting(space, family, seed)
    parents: list[optuna.Study] = []
    for compute in (*problem.space.budgets[:-1], phase.compute):
        at = problem.space.phase_one(compute)
        study = optuna.create_study(sampler=TriadSampler(at, parents=tuple(parents), seed=seed))
        study.set_user_attr("compute", compute)
        trace = search(problem, at, study, seed, runs, Trace(name, family, seed), judge=compute == phase.compute)
        parents.append(study)
    return trace


def setting(space: str, family: str, seed: int) -> tuple[problems.Problem, Phase]:
    problem = problems.make(family, space, variant=seed)
    return problem, problem.space.phase_one(problem.space.budgets[-1])


def call(job: tuple[Callable[..., Trace], tuple[object, ...]]) -> Trace:
    return job[0](*job[1])


def traces(jobs: list[tuple[Callable[..., Trace], tuple[object, ...]]], workers: int) -> list[Trace]:
    if workers == 1:
        return [call(job) for job in jobs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(call, jobs))


def quartiles(values: Iterable[float], beyond: float) -> str:
    """Median and quartiles; what never came counts as beyond the end."""
    low, middle, high = np.quantile([min(value, beyond) for value in values], [0.25, 0.5, 0.75])
    return f"{middle:g} [{low:g}, {high:g}]"


def summary(found: list[Trace], runs: int) -> list[dict[str, Any]]:
    """A row for each family and sampler; ratios are to the best peer of the family, judged by its better judge."""
    rows: list[dict[str, Any]] = []
    beyond = runs + 1.0
    for family in dict.fromkeys(trace.family for trace in found):
        here: list[dict[str, Any]] = []
        for name in dict.fromkeys(trace.sampler for trace in found if trace.family == family):
            mine = [trace for trace in found if (trace.family, trace.sampler) == (family, name)]
            asked = sum(trace.asked for trace in mine)
            best, surrogate = ([t.right_from(regrets) for t, regrets in ((t, getattr(t, judge)) for t in mine)]
                               for judge in ("by_best", "by_surrogate"))  # fmt: skip
            here.append(
                {
                    "family": family,
                    "sampler": name,
                    "by_best": quartiles(best, beyond),
                    "by_surrogate": quartiles(surrogate, beyond),
                    "medians": [float(np.median(np.minimum(values, beyond))) for values in (best, surrogate)],
                    "regret": {
                        n: float(np.median([trace.by_surrogate[n] for trace in mine if n in trace.by_surrogate]))
                        for n in (5, 10, 20, runs)
                        if any(n in trace.by_surrogate for trace in mine)
                    },
                    "wasted": {
                        what: sum(getattr(trace, what) for trace in mine) / asked
                        for what in ("infeasible", "duplicate", "failed")
                    },
                }
            )
        for row in here:
            rivals = [other["medians"] for other in here if other["sampler"] not in OURS]
            row["ratios"] = (
                [row["medians"][1] / min(rival[judge] for rival in rivals) for judge in (0, 1)] if rivals else []
            )
        rows += here
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("trainings until right, median [quartiles]; ratios of ours to the best peer, as it is and with our surrogate")
    print(f"{'family':<10}{'sampler':<8}{'with surrogate':>18}{'by best trial':>18}{'ratios':>12}{'wasted':>8}  regret")
    for row in rows:
        ratios = " ".join(f"{ratio:.2f}" for ratio in row["ratios"]) if row["sampler"] in OURS else ""
        regret = " ".join(f"{n}:{value:.0e}" for n, value in row["regret"].items())
        print(f"{row['family']:<10}{row['sampler']:<8}{row['by_surrogate']:>18}{row['by_best']:>18}{ratios:>12}"
              f"{sum(row['wasted'].values()):8.1%}  {regret}")  # fmt: skip


def box(space: str, family: str, name: str, seed: int, trials: int) -> dict[str, Any]:
    """A constrained sampler on the raw dimensions under one triad, all three tolerances as constraints."""
    problem, phase = setting(space, family, seed)
    at = problem.optimum(phase).index
    triad, like = phase.triad_of(at), phase.lattice[at]
    target = problem.true_loss(like, phase.compute)
    study = optuna.create_study(sampler=PEERS[name](seed))
    widths, experts = phase.lattice.arrays["d_model"], phase.lattice.arrays["d_expert"]
    layers = int((phase.lattice.arrays["n_dense_layers"] + phase.lattice.arrays["n_moe_layers"]).max())
    feasible, first, right = 0, math.inf, math.inf
    for number in range(1, trials + 1):
        trial = study.ask()
        d_model = trial.suggest_int("d_model", int(widths.min()), int(widths.max()), step=8)
        architecture = replace(
            like,
            d_model=d_model,
            d_dense=3 * d_model,
            n_dense_layers=trial.suggest_int("n_dense_layers", 0, layers),
            n_moe_layers=trial.suggest_int("n_moe_layers", 1, layers),
            d_expert=trial.suggest_int("d_expert", int(experts.min()), int(experts.max()), step=8),
        )
        excess = triad.violations(architecture)
        for key, value in excess.items():
            trial.set_constraint(key, value)
        study.tell(trial, problem.loss(architecture, phase.compute, seed))
        if triad.admits(architecture):
            feasible += 1
            first = min(first, number)
            if problem.true_loss(architecture, phase.compute) <= target * (1 + BAND):
                right = min(right, number)
    return {"family": family, "sampler": name, "seed": seed, "trials": trials, "feasible": feasible,
            "first_feasible": first, "first_in_band": right}  # fmt: skip


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


def proposals(count: int, workers: int) -> dict[str, Any]:
    """Proposals until the lattices are exhausted, over all phases and budgets of all shipped spaces."""
    jobs = (
        (name, compute, number, seed)
        for seed in itertools.count()
        for name in ("cpu", "lab", "holistic")
        for compute in SearchSpace.load(name).budgets
        for number in (0, 1, 2)
    )
    total = np.zeros(3, dtype=int)
    studies = 0
    with ProcessPoolExecutor(workers) as pool:
        while total[0] < count:
            for found in pool.map(propose, itertools.islice(jobs, 40)):
                total += found
                studies += 1
            print(f"{total[0]} proposals, {studies} studies: {total[1]} infeasible, {total[2]} duplicate", flush=True)
    return {"proposals": total[0], "studies": studies, "infeasible": total[1], "duplicate": total[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cold", "warm", "box", "latency", "proposals"])
    parser.add_argument("--space", default="lab")
    parser.add_argument("--families", nargs="+", default=list(problems.FAMILIES), choices=list(problems.FAMILIES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--ladder-trials", type=int, default=12, help="trainings at each smaller budget (warm)")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    space, seeds = arguments.space, range(arguments.seeds)
    peers = list(arguments.peers)
    try:
        import cmaes  # noqa: F401
    except ImportError:
        peers = [name for name in peers if name != "CMA-ES"]
    data: object
    if arguments.part == "latency":
        data = latency(space)
    elif arguments.part == "proposals":
        data = proposals(arguments.count, arguments.workers)
    elif arguments.part == "box":
        jobs = [(f, n, s) for f in arguments.families[:1] for n in ("TPE", "GP") if n in peers for s in seeds]
        data = [box(space, family, name, seed, arguments.trials) for family, name, seed in jobs]
        for name in dict.fromkeys(row["sampler"] for row in data):
            rows = [row for row in data if row["sampler"] == name]
            counts = [quartiles([float(row[key]) for row in rows], arguments.trials + 1)  # type: ignore[arg-type]
                      for key in ("feasible", "first_feasible", "first_in_band")]  # fmt: skip
            print(f"{name}: of {arguments.trials} feasible {counts[0]}, first {counts[1]}, first in band {counts[2]}")
    else:
        names = ["triad", *peers]
        work = [(cold, (space, f, n, s, arguments.trials)) for f in arguments.families for n in names for s in seeds]
        if arguments.part == "warm":
            work += [
                (warm, (space, f, "ladder", s, arguments.ladder_trials)) for f in arguments.families for s in seeds
            ]
        found = traces(work, arguments.workers)  # type: ignore[arg-type]
        data = {"rows": summary(found, arguments.trials), "traces": [vars(trace) for trace in found]}
        show(data["rows"])
    everywhere = arguments.part == "proposals"
    record(f"samplers-{arguments.part}" + ("" if everywhere else f"-{space}"), data)


if __name__ == "__main__":
    main()
