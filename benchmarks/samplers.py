"""How many trainings until the recommendation is right: TriadSampler and other samplers where optima are known.

    python benchmarks/samplers.py cold --space lab       # each sampler alone at the largest budget, 20 seeds
    python benchmarks/samplers.py warm --space lab       # TriadSampler with the ladder below it as parents
    python benchmarks/samplers.py show                   # the tables of all spaces from the results; of `--samplers`
    python benchmarks/samplers.py box --space lab        # constrained samplers on the raw dimensions
    python benchmarks/samplers.py pruned --space lab     # what BandPruner saves TriadSampler, and what it costs

A search is right from the training on after which what it recommends is, and stays, within 0.1 % of the least
noise-free loss on the lattice; one that is not right by its last training counts as right one training later.
A peer recommends its best trial; Ax, SMAC3 and NePS run where they are named and installed. `TPE+` are TPE's trials
with our surrogate's recommendation.

`cold` and `warm` keep every search in benchmarks/results/samplers-<space>.json and run only what is not there: a search
belongs to a problem (the hash of its true losses) and to versions (Optuna's for a peer, the hash of our sources for
ours). So a change to the sampler runs the sampler again and no peer, and a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import json
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from outside import AxSampler, NepsSampler, SmacSampler
from record import RESULTS, record

import moe_optuna
from moe_optuna import problems
from moe_optuna.pruners import BandPruner
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore")

BAND = 0.001
SPACES = ("cpu", "lab", "holistic")
PEERS: dict[str, Callable[[int], BaseSampler]] = {
    "TPE": lambda seed: TPESampler(seed=seed),
    "GP": lambda seed: GPSampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed),
    "QMC": lambda seed: QMCSampler(seed=seed, scramble=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
OUTSIDE: dict[str, tuple[str, Callable[[Phase, int], BaseSampler]]] = {
    "Ax": ("ax-platform", lambda phase, seed: AxSampler(phase.distributions, seed)),
    "SMAC3": ("smac", lambda phase, seed: SmacSampler(phase.distributions, seed, TRIALS)),
    "NePS": ("neural-pipeline-search", lambda phase, seed: NepsSampler(phase.distributions, seed)),
}
"""Peers that are no part of Optuna, by name: the package, and how one is made."""
TRIALS = 40
POINTS = 16  # reports of a training, where there is a pruner
SHORTER = {
    "GP": 25,
    "Ax": 25,
    "SMAC3": 25,
    "NePS": 25,
}  # trainings of a slow sampler; to stay right only so long is easier
FIRST, SECOND, FEWEST = 24, 6, 2  # trainings of a ladder at its smallest budgets; then half as many, but this many
ENOUGH = 10  # seeds from which a peer's median is compared with
OURS = ("triad", "ladder", "TPE+")
Steps = list[tuple[int, float]]


@dataclass
class Search:
    """One search.

    Attributes:
        key: What was run: problem, versions, number of trainings.
        regrets: Noise-free relative regret of the recommendation, as steps (training from which on, regret).
        asked, infeasible, duplicate, failed: Trials.
        below: FLOPs spent at smaller budgets, in trainings at the largest.
    """

    sampler: str
    family: str
    seed: int
    key: str
    trainings: int
    regrets: Steps = field(default_factory=list)
    asked: int = 0
    infeasible: int = 0
    duplicate: int = 0
    failed: int = 0
    below: float = 0.0

    def note(self, regret: float, training: int) -> None:
        if not self.regrets or self.regrets[-1][1] != regret:
            self.regrets.append((training, regret))

    @property
    def right(self) -> float:
        """The training from which on the recommendation is in the band; one beyond the last where there is none."""
        if not self.regrets or self.regrets[-1][1] > BAND:
            return self.trainings + 1
        wrong = [place for place, (_, regret) in enumerate(self.regrets) if regret > BAND]
        return self.regrets[wrong[-1] + 1 if wrong else 0][0]

    def regret_at(self, training: int) -> float:
        return ([1.0] + [regret for begin, regret in self.regrets if begin <= training])[-1]


def search(
    problem: problems.Problem, phase: Phase, study: optuna.Study, found: Search, runs: int, judge: TriadSampler | None
) -> Search:
    """Ask, train on paper, tell, until `runs` trainings are done; proposals to which no architecture is near cost none.

    Args:
        judge: Whose recommendation counts; ``None`` for the study's best trial.
    """
    losses, optimum, fails = problem.true_losses(phase), problem.optimum(phase).loss, problem.failing(phase)
    seen: dict[int, int] = {}
    trained, best, worst = 0, (math.inf, -1), -math.inf
    while trained < runs and found.asked < 4 * runs:
        trial = study.ask()
        found.asked += 1
        try:
            architecture = phase.suggest(trial)
        except optuna.TrialPruned:
            found.infeasible += 1
            # Its best chance: it hears of the worst loss so far; of a pruned trial GPSampler would learn nothing.
            told = (TrialState.PRUNED, None) if math.isinf(worst) else (TrialState.COMPLETE, worst)
            study.tell(trial, told[1], state=told[0])
            continue
        index = phase.index(trial.params)
        assert index is not None
        found.duplicate += index in seen
        seen[index] = seen.get(index, -1) + 1
        trained += 1
        try:
            loss = problem.loss(architecture, phase.compute, 1000 * found.seed + seen[index])
        except MemoryError:
            loss = math.nan
        if math.isnan(loss):
            found.failed += 1
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss)
            best, worst = min(best, (loss, index)), max(worst, loss)
        if best[1] < 0:
            continue
        chosen = best[1] if judge is None else phase.lattice.index(judge.recommend(study).architecture)
        found.note(1.0 if fails[chosen] else float(f"{losses[chosen] / optimum - 1:.3g}"), trained)
    return found


def cold(space: str, found: Search) -> Search:
    """One sampler at the largest budget of the ladder."""
    problem, phase = setting(space, found.family, found.seed)
    ours = TriadSampler(phase, seed=found.seed) if found.sampler in OURS else None
    sampler = ours if ours and found.sampler == "triad" else peer(found.sampler.removesuffix("+"), phase, found.seed)
    return search(problem, phase, optuna.create_study(sampler=sampler), found, found.trainings, ours)


def peer(name: str, phase: Phase, seed: int) -> BaseSampler:
    return OUTSIDE[name][1](phase, seed) if name in OUTSIDE else PEERS[name](seed)


def warm(space: str, found: Search) -> Search:
    """TriadSampler at the largest budget with studies at each smaller one as parents."""
    problem, phase = setting(space, found.family, found.seed)
    parents: list[optuna.Study] = []
    for step, at in enumerate(phases(space)):
        last = at is phase
        runs = found.trainings if last else min(rungs(space)[step], len(at.lattice))
        sampler = TriadSampler(at, parents=tuple(parents), seed=found.seed)
        study = optuna.create_study(sampler=sampler)
        study.set_user_attr("compute", at.compute)
        if last:
            return search(problem, at, study, found, runs, sampler)
        below = search(problem, at, study, replace(found, regrets=[]), runs, None)
        found.below += (below.asked - below.infeasible) * at.compute / phase.compute
        parents.append(study)
    raise AssertionError


def rungs(space: str) -> list[int]:
    """Trainings at a ladder's budgets below the largest: most at the smallest, where a law is cheap to learn, and at
    none more than one training at the largest costs."""
    *below, largest = (phase.compute for phase in phases(space))
    wanted = [FIRST, *(max(FEWEST, SECOND >> step) for step in range(len(below) - 1))]
    return [min(n, round(largest / compute)) for n, compute in zip(wanted, below, strict=True)]


@lru_cache
def phases(space: str) -> tuple[Phase, ...]:
    """Phase 1 at each budget."""
    loaded = SearchSpace.load(space)
    return tuple(loaded.phase_one(compute) for compute in loaded.budgets)


def setting(space: str, family: str, seed: int) -> tuple[problems.Problem, Phase]:
    at = phases(space)[-1]
    return problems.make(family, at.space, variant=seed), at


def call(job: tuple[str, Search]) -> Search:
    return warm(*job) if job[1].sampler == "ladder" else cold(*job)


# ---- keeping what was run


def keys(space: str, family: str, seed: int, sampler: str) -> str:
    """What a search depends on: the problem at all budgets, with a draw of its noise, and the code that chose."""
    problem, largest = setting(space, family, seed)
    used = phases(space) if sampler == "ladder" else (largest,)
    parts = [
        [
            *problem.true_losses(phase) * (1 + problem.failing(phase)),
            problem.noise,
            problem.loss(problem.optimum(phase).architecture, phase.compute),
        ]
        for phase in used
    ]
    # Rounded, so that the last bit of another machine's logarithm does not make a new problem of it.
    text = ";".join(",".join(f"{value:.9g}" for value in part) for part in parts)
    if sampler == "ladder":
        text += f";{rungs(space)}"
    package = OUTSIDE[sampler][0] if sampler in OUTSIDE else "optuna"
    return f"{zlib.crc32(text.encode()):08x} " + (ours() if sampler in OURS else f"{package} {version(package)}")


def ours() -> str:
    """The version of the sampler and its surrogate: a hash of their sources."""
    root = Path(moe_optuna.__file__).parent
    laws = ("surrogate", "_component", "_field", "_observations", "_gp", "_means", "band")
    files = [*sorted((root / "samplers").glob("*.py")), *(root / "laws" / f"{name}.py" for name in laws)]
    return f"moe_optuna {zlib.crc32(b''.join(file.read_bytes() for file in files)):08x}"


def kept(space: str) -> dict[tuple[str, str, int], Search]:
    path = RESULTS / f"samplers-{space}.json"
    content = json.loads(path.read_text(encoding="utf-8"))["data"]["searches"] if path.exists() else []
    found = [Search(**row) for row in content]
    return {(one.sampler, one.family, one.seed): one for one in found}


def keep(space: str, searches: dict[tuple[str, str, int], Search]) -> None:
    ordered = sorted(
        searches.values(), key=lambda one: (list(problems.FAMILIES).index(one.family), one.sampler, one.seed)
    )
    record(f"samplers-{space}", {"rows": summary(ordered), "searches": [vars(one) for one in ordered]})


def run(
    space: str, names: list[str], families: list[str], seeds: int, trials: int, workers: int, minutes: float
) -> None:
    """Run what is not kept, and keep it; stops after `minutes`."""
    searches = kept(space)
    jobs = []
    for seed, family, name in itertools.product(range(seeds), families, names):
        key, old = keys(space, family, seed, name), searches.get((name, family, seed))
        runs = min(trials, SHORTER.get(name, trials))
        if old is None or old.key != key or old.trainings != runs:
            jobs.append((space, Search(name, family, seed, key, runs)))
    print(f"{space}: {len(jobs)} searches to run", flush=True)
    begin = saved = time.monotonic()
    for found in done(jobs, workers, begin + 60 * minutes):
        searches[found.sampler, found.family, found.seed] = found
        if time.monotonic() > saved + 20:
            keep(space, searches)
            saved = time.monotonic()
    keep(space, searches)
    print(f"{space}: {time.monotonic() - begin:.0f} s", flush=True)


def done(jobs: list[tuple[str, Search]], workers: int, until: float) -> Iterator[Search]:
    if workers == 1:
        for job in jobs:
            if time.monotonic() < until:
                yield call(job)
        return
    with ProcessPoolExecutor(workers) as pool:
        for begin in range(0, len(jobs), 4 * workers):
            if time.monotonic() < until:
                yield from pool.map(call, jobs[begin : begin + 4 * workers])


# ---- tables


def quartiles(values: Iterable[float]) -> str:
    low, middle, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return f"{middle:g} [{low:g}, {high:g}]"


def summary(searches: list[Search]) -> list[dict[str, Any]]:
    """A row for each family and sampler; ratios of medians to the best peer's of the family.

    Of the peers those with `ENOUGH` seeds count; a family with none has no ratios.
    """
    rows: list[dict[str, Any]] = []
    for family in dict.fromkeys(one.family for one in searches):
        here = []
        for name in sorted({one.sampler for one in searches if one.family == family}, key=_rank):
            mine = [one for one in searches if (one.family, one.sampler) == (family, name)]
            asked = sum(one.asked for one in mine)
            here.append(
                {
                    "family": family,
                    "sampler": name,
                    "seeds": len(mine),
                    "right": quartiles(one.right for one in mine),
                    "median": float(np.median([one.right for one in mine])),
                    "flops": float(np.median([one.right + one.below for one in mine])),
                    "never": sum(one.right > one.trainings for one in mine),
                    "regret": {n: float(np.median([one.regret_at(n) for one in mine])) for n in (1, 5, 10, 20, 40)},
                    "wasted": {what: sum(getattr(one, what) for one in mine) / asked
                               for what in ("infeasible", "duplicate", "failed")},
                }
            )  # fmt: skip
        peers = [row for row in here if row["sampler"] not in OURS and row["seeds"] >= ENOUGH]
        best = min((row["median"] for row in peers), default=math.nan)
        for row in here:
            row["ratio"], row["flops_ratio"] = row["median"] / best, row["flops"] / best
        rows += here
    return rows


def _rank(name: str) -> int:
    order = ["triad", "ladder", *PEERS, *OUTSIDE, "TPE+"]
    return order.index(name) if name in order else len(order)


def show(space: str, peers: Iterable[str]) -> list[dict[str, Any]]:
    """Print the table of a space, with these peers; its rows."""
    rows = summary([one for one in kept(space).values() if one.sampler in (*OURS, *peers)])
    print(f"\n{space}: trainings until right, median [quartiles]; never: not right at the end; ratio to the best")
    print(
        "peer's median, in trainings, and in FLOPs with the smaller budgets; shares of asks; median regret in 1e-4 at n"
    )
    names = ("inf.", "dup.", "fail", "n=1", "5", "10", "20", "40")
    print(
        f"{'family':<10}{'sampler':<9}{'seeds':>5}{'right':>18}{'never':>6}{'ratio':>7}{'FLOPs':>7}",
        *(f"{n:>6}" for n in names),
    )
    for row in rows:
        shares = [f"{share:6.1%}" for share in row["wasted"].values()]
        regret = [f"{1e4 * value:6.1f}" for value in row["regret"].values()]
        print(f"{row['family']:<10}{row['sampler']:<9}{row['seeds']:>5}{row['right']:>18}{row['never']:>6}{row['ratio']:7.2f}"
              f"{row['flops_ratio']:7.2f}", *shares, *regret)  # fmt: skip
    show_ratios(rows)
    medians = {row["family"]: row["median"] for row in rows if row["sampler"] == "triad"}
    for row in rows:
        if row["sampler"] == "ladder" and row["median"] > medians.get(row["family"], math.inf):
            print(f"warm later than cold: {row['family']}, {row['median']:g} against {medians[row['family']]:g}")
    return rows


def show_ratios(rows: list[dict[str, Any]]) -> None:
    for name in ("triad", "ladder"):
        if ours := [row for row in rows if row["sampler"] == name]:
            trainings, flops = (np.array([row[kind] for row in ours]) for kind in ("ratio", "flops_ratio"))
            print(f"{name}: ratio to the best peer, median over {len(ours)} problems {np.median(trainings):.2f} "
                  f"(FLOPs {np.median(flops):.2f}), worst {trainings.max():.2f}")  # fmt: skip


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


def pruned(space: str, family: str, seed: int, trials: int) -> dict[str, Any]:
    """A search of TriadSampler without a pruner and one under BandPruner: regret of what is recommended, FLOPs."""
    problem, phase = setting(space, family, seed)
    losses, optimum = problem.true_losses(phase), problem.optimum(phase).loss
    row: dict[str, Any] = {"family": family, "seed": seed, "trials": trials}
    for name, pruner in (("whole", NopPruner()), ("pruned", BandPruner())):
        sampler = TriadSampler(phase, seed=seed)
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        study.optimize(problem.objective(phase, seed=seed, points=POINTS), n_trials=trials, catch=MemoryError)
        found = phase.lattice.index(sampler.recommend(study).architecture)
        row[f"{name}_regret"] = float(losses[found] / optimum - 1)
        row[f"{name}_flops"] = sum(len(trial.intermediate_values) for trial in study.trials) / POINTS
    return row


def show_pruned(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'family':<10}{'regret, whole':>26}{'regret, pruned':>26}{'right, whole':>14}{'pruned':>8}{'FLOPs saved':>13}"
    )
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        regrets = [np.array([row[f"{name}_regret"] for row in mine]) for name in ("whole", "pruned")]
        saved = 1 - sum(row["pruned_flops"] for row in mine) / sum(row["whole_flops"] for row in mine)
        print(f"{family:<10}", *(f"{quartiles(np.round(100 * regret, 3)) + ' %':>25}" for regret in regrets),
              f"{np.mean(regrets[0] <= BAND):>13.0%}{np.mean(regrets[1] <= BAND):>8.0%}{saved:>13.0%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cold", "warm", "show", "box", "pruned"])
    parser.add_argument("--space", default="lab")
    parser.add_argument("--families", nargs="+", default=list(problems.FAMILIES), choices=list(problems.FAMILIES))
    known = ["triad", *PEERS, *OUTSIDE, "TPE+"]
    parser.add_argument("--samplers", nargs="+", choices=known)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    arguments = parser.parse_args()
    space, seeds = arguments.space, range(arguments.seeds)
    names = arguments.samplers or ["triad", *PEERS, "TPE+"]
    try:
        import cmaes  # noqa: F401
    except ImportError:
        names = [name for name in names if name != "CMA-ES"]
    if arguments.part in ("cold", "warm"):
        chosen = names if arguments.part == "cold" else ["ladder"]
        run(space, chosen, arguments.families, arguments.seeds, arguments.trials, arguments.workers, arguments.minutes)
        show(space, (*PEERS, *OUTSIDE))
    elif arguments.part == "pruned":
        trainings = [pruned(space, family, seed, arguments.trials) for family in arguments.families for seed in seeds]
        show_pruned(trainings)
        record(f"samplers-pruned-{space}", trainings)
    elif arguments.part == "show":
        rows = [row for name in SPACES for row in show(name, arguments.samplers or (*PEERS, *OUTSIDE))]
        print("\nall spaces")
        show_ratios(rows)
    else:
        jobs = [(f, n, s) for f in arguments.families[:1] for n in ("TPE", "GP") if n in names for s in seeds]
        rows = [box(space, family, name, seed, arguments.trials) for family, name, seed in jobs]
        for name in dict.fromkeys(row["sampler"] for row in rows):
            mine = [row for row in rows if row["sampler"] == name]
            counts = [quartiles([min(float(row[key]), arguments.trials + 1) for row in mine])
                      for key in ("feasible", "first_feasible", "first_in_band")]  # fmt: skip
            print(f"{name}: of {arguments.trials} feasible {counts[0]}, first {counts[1]}, first in band {counts[2]}")
        record(f"samplers-box-{space}", rows)


if __name__ == "__main__":
    main()
