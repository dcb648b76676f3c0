"""How fast the search itself is, and what it loses when workers are killed.

python benchmarks/controller.py [--trials 200] [--workers 1 2 4 8] [--soak 1000] [--storage URL]

Throughput: trials a second with an instant objective of eight reports, through the controller and its worker
processes, against `study.optimize` in one process with the same storage, sampler and attributes. Overhead: the
controller's seconds a trial with one worker, as a share of a 30 s trial. Soak: very short trials on eight workers,
one of them killed (SIGKILL) at a random moment every few seconds; every trial must end with the right loss.

Writes benchmarks/results/controller.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import optuna

from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._slots import local_slots
from moe_optuna.search._storage import hold, open_storage
from moe_optuna.search._work import Work
from moe_optuna.space import Phase, SearchSpace

REPORTS = 8


def loss_of(architecture: dict[str, Any]) -> float:
    return 2 + 1 / architecture["d_model"]


def prepare(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a worker does before the first trial: nothing."""
    return {"content": ""}


def run(task: dict[str, Any], link: Any) -> dict[str, Any]:
    """What a worker does for a trial: report, and be done."""
    for index in range(1, REPORTS + 1):
        time.sleep(task["recipe"]["seconds"])
        if not link.report(index, loss_of(task["architecture"]) + 1 / index):
            return {"loss": 0.0, "stopped": True}
    return {"loss": loss_of(task["architecture"]), "stopped": False, "tokens": task["tokens"], "seconds": 0.0}


class InTurn(optuna.samplers.RandomSampler):
    """The architectures of a lattice one after another: costs nothing."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(seed=0)
        self._phase = phase

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return dict(self._phase.distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return self._phase.params(trial.number % len(self._phase.lattice))


def new_study(phase: Phase, folder: Path, storage: str | None, workers: int) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(storage, folder, workers=workers),
        sampler=InTurn(phase),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=10**9),
    )


def controlled(
    phase: Phase,
    folder: Path,
    trials: int,
    workers: int,
    storage: str | None,
    *,
    seconds: float = 0.0,
    every: float = 0.0,
) -> dict[str, Any]:
    """Seconds of a study through the controller, after the workers are up; `every`: seconds between kills."""
    study = new_study(phase, folder, storage, workers)
    over = threading.Event()
    killed = 0
    recipe = {"seconds": seconds, "reports": REPORTS}
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(folder))
        executor = LocalExecutor(local_slots(workers), module="controller", logs=folder / "logs")
        stack.callback(executor.close, 5.0)
        controller = Controller(executor, Leases(exclusive=storage is None))
        controller.run(Work(study, phase, workers, recipe, "", 0, folder / "checkpoints"))  # all are up

        def kill() -> None:
            nonlocal killed
            choice = random.Random(0)
            while not over.wait(choice.expovariate(1 / every)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choice.choice(executor.processes), signal.SIGKILL)
                    killed += 1

        if every:
            threading.Thread(target=kill, daemon=True).start()
        begin, used = time.perf_counter(), time.process_time()
        controller.run(Work(study, phase, workers + trials, recipe, "", 0, folder / "checkpoints"))
        wall, cpu = time.perf_counter() - begin, time.process_time() - used
        over.set()
    right = sum(
        trial.state == optuna.trial.TrialState.COMPLETE
        and trial.value == loss_of({"d_model": trial.user_attrs["d_model"]})
        for trial in study.trials
    )
    return {
        "workers": workers,
        "trials": trials,
        "seconds": wall,
        "trials_per_second": trials / wall,
        "controller_cpu_seconds_per_trial": cpu / trials,
        "right": right - workers,
        "kills": killed,
    }


def optimized(phase: Phase, folder: Path, trials: int, storage: str | None) -> float:
    """Trials a second of `study.optimize` in one process."""
    study = new_study(phase, folder, storage, 1)

    def objective(trial: optuna.Trial) -> float:
        architecture = phase.suggest(trial)
        trial.set_user_attr("seed", 0)
        for index in range(1, REPORTS + 1):
            trial.report(loss_of(architecture.to_dict()) + 1 / index, index)
            trial.should_prune()
        trial.set_user_attr("tokens", phase.tokens(architecture))
        trial.set_user_attr("seconds", 0.0)
        return loss_of(architecture.to_dict())

    begin = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return trials / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--soak", type=int, default=1000)
    parser.add_argument("--storage")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = SearchSpace.load("cpu")
    phase = space.phase_one(space.budgets[-1])

    def folder() -> Path:
        return Path(stack.enter_context(tempfile.TemporaryDirectory()))

    with contextlib.ExitStack() as stack:
        baseline = optimized(phase, folder(), arguments.trials, arguments.storage)
        print(f"study.optimize: {baseline:.1f} trials/s")
        rows = []
        for workers in arguments.workers:
            rows.append(controlled(phase, folder(), arguments.trials, workers, arguments.storage))
            row = rows[-1]
            print(
                f"{workers} workers: {row['trials_per_second']:.1f} trials/s,"
                f" {1e3 * row['seconds'] / row['trials']:.1f} ms a trial"
            )
        overhead = rows[0]["seconds"] / rows[0]["trials"]
        print(f"overhead: {overhead:.4f} s, {overhead / 30:.3%} of a 30 s trial")
        soak = None
        if arguments.soak:
            soak = controlled(phase, folder(), arguments.soak, 8, arguments.storage, seconds=0.01, every=3.0)
            print(
                f"soak: {soak['right']} of {soak['trials']} right after {soak['kills']} kills, {soak['seconds']:.0f} s"
            )
    result = {
        "format": 1,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "storage": "journal" if arguments.storage is None else arguments.storage.split(":")[0],
        "optimize_trials_per_second": baseline,
        "controller": rows,
        "overhead_of_30_s": overhead / 30,
        "soak": soak,
    }
    Path(__file__).with_name("results").joinpath("controller.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
