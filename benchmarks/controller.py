"""How fast the search itself is, how it scales, and what it loses when workers are killed.

    python benchmarks/controller.py [--trials 300] [--workers 1 2 4 8] [--soak 1000]

Throughput: trials a second with an instant objective of eight reports, through the controller and its worker
processes, against `study.optimize` in one process with the same storage, sampler and attributes, and with Optuna's own
journal. Overhead: what a trial takes beyond its training, with one worker and trials of two seconds, as a share of a
30 s trial. Scaling: trials that keep a core busy, by workers. Soak: very short trials on eight workers, one of them
killed (SIGKILL) at a random moment every two seconds; every trial must end once, with the right loss.

With a storage URL, better in the environment variable MOE_STORAGE where it has a password (the command is recorded),
the throughput is measured on that server as well. Writes benchmarks/results/controller.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from record import record

from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._slots import local_slots
from moe_optuna.search._storage import hold, open_storage
from moe_optuna.search._work import Work
from moe_optuna.space import Phase, SearchSpace

REPORTS = 8
NEVER = optuna.pruners.MedianPruner(n_startup_trials=10**9)
"""Reads what a pruner reads, and stops nothing."""


def loss_of(architecture: dict[str, Any]) -> float:
    return 2 + 1 / architecture["d_model"]


def prepare(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a worker does before the first trial: nothing."""
    return {"content": ""}


def run(task: dict[str, Any], link: Any) -> dict[str, Any]:
    """What a worker does for a trial: report, and be done."""
    for index in range(1, REPORTS + 1):
        time.sleep(task["recipe"]["seconds"])
        busy = time.process_time() + task["recipe"]["busy"]
        while time.process_time() < busy:
            pass
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
        pruner=NEVER,
    )


def controlled(
    phase: Phase,
    folder: Path,
    trials: int,
    workers: int,
    storage: str | None,
    *,
    seconds: float = 0.0,
    busy: float = 0.0,
    every: float = 0.0,
) -> dict[str, Any]:
    """A study through the controller, timed from when the workers are up.

    Args:
        seconds, busy: What each of a trial's reports takes, asleep and on a core.
        every: Mean seconds between kills; 0: none.
    """
    study = new_study(phase, folder, storage, workers)
    over = threading.Event()
    killed = 0
    recipe = {"seconds": seconds, "busy": busy, "reports": REPORTS}
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


def optimized(phase: Phase, trials: int, study: optuna.Study) -> float:
    """Trials a second of `study.optimize` in one process."""

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


def throughput(phase: Phase, folder: Callable[[], Path], arguments: argparse.Namespace, url: str | None) -> dict:
    """Trials a second on a storage."""
    found: dict[str, Any] = {"optimize": optimized(phase, arguments.trials, new_study(phase, folder(), url, 1))}
    print(f"study.optimize: {found['optimize']:.1f} trials/s")
    if url is None:
        backend = JournalFileBackend(str(folder() / "journal.log"))
        theirs = optuna.create_study(storage=JournalStorage(backend), sampler=InTurn(phase), pruner=NEVER)
        found["optimize_optuna_journal"] = optimized(phase, arguments.trials, theirs)
        print(f"study.optimize, Optuna's own journal: {found['optimize_optuna_journal']:.1f} trials/s")
    found["controller"] = []
    for workers in arguments.workers:
        row = controlled(phase, folder(), arguments.trials, workers, url)
        found["controller"].append(row)
        print(f"{workers} workers: {row['trials_per_second']:.1f} trials/s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--soak", type=int, default=1000)
    parser.add_argument("--storage", default=os.environ.get("MOE_STORAGE"), help="URL of a database; MOE_STORAGE else")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = SearchSpace.load("cpu")
    phase = space.phase_one(space.budgets[-1])
    with contextlib.ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        result: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "reports": REPORTS}
        result["journal"] = throughput(phase, folder, arguments, None)
        if arguments.storage:
            result[arguments.storage.split(":")[0].split("+")[0]] = throughput(
                phase, folder, arguments, arguments.storage
            )

        length = 2.0
        row = controlled(phase, folder(), 10, 1, None, seconds=length / REPORTS)
        result["overhead_seconds"] = row["seconds"] / row["trials"] - length
        share = result["overhead_of_30_s"] = result["overhead_seconds"] / 30
        print(f"overhead: {result['overhead_seconds']:.4f} s a trial, {share:.3%} of a 30 s trial")

        result["scaling"] = [
            controlled(phase, folder(), 8 * workers, workers, None, busy=0.5 / REPORTS) for workers in arguments.workers
        ]
        one = result["scaling"][0]["trials_per_second"]
        for row in result["scaling"]:
            row["times_one_worker"] = row["trials_per_second"] / one
            print(f"{row['workers']} workers on {os.cpu_count()} cores: {row['times_one_worker']:.2f} times one")

        if arguments.soak:
            soak = result["soak"] = controlled(phase, folder(), arguments.soak, 8, None, seconds=0.01, every=2.0)
            print(
                f"soak: {soak['right']} of {soak['trials']} right after {soak['kills']} kills, {soak['seconds']:.0f} s"
            )
    record("controller", result)


if __name__ == "__main__":
    main()
