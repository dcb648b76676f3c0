"""A search of one study without a search space, in this process or, to be killed, in one of its own:

python small_search.py FOLDER '{"trials": 20, "workers": 2, "recipe": {...}, "storage": null}'
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
from small_phase import ByNumber, SmallPhase

from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._slots import local_slots
from moe_optuna.search._storage import hold, open_storage
from moe_optuna.search._work import Work

HERE = Path(__file__).parent


def open_study(folder: Path, storage: str | None = None, *, workers: int = 1, **settings: Any) -> optuna.Study:
    """The study, under any storage."""
    return optuna.create_study(
        storage=open_storage(storage, folder, workers=workers), study_name="small", load_if_exists=True, **settings
    )


def run(
    folder: Path,
    *,
    trials: int = 20,
    workers: int = 2,
    recipe: dict[str, Any] | None = None,
    text: str = "text",
    storage: str | None = None,
    widths: int = 40,
    observer: Any = lambda event: None,
    term: float = 1.0,
    settings: dict[str, Any] | None = None,
    interrupt: Any = None,
) -> optuna.Study:
    """Bring the study in a folder to its trials; the study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.ExitStack() as stack:
        if storage is None:
            stack.enter_context(hold(folder))
        chosen = {"sampler": ByNumber(), "pruner": optuna.pruners.NopPruner()}
        study = open_study(folder, storage, workers=workers, **chosen | (settings or {}))
        executor = LocalExecutor(local_slots(workers), module="instant_trials", logs=folder / "logs")
        leases = Leases(exclusive=storage is None, term=term)
        controller = Controller(executor, leases, observer=observer)
        stack.callback(lambda: executor.close(0.0 if controller.hurried else 5.0))
        stack.enter_context(controller.signals())
        if interrupt:
            interrupt(controller, executor)
        controller.run(Work(study, SmallPhase(widths), trials, recipe or {}, text, 0, folder / "checkpoints"))
    return study


def start(folder: Path, **arguments: Any) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "small_search.py"), str(folder), json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


if __name__ == "__main__":

    def tell(event: Any) -> None:
        print(event.kind, event.trial, event.state, flush=True)

    arguments = json.loads(sys.argv[2])
    if largest := arguments.pop("largest_file", None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    try:
        run(Path(sys.argv[1]), observer=tell, **arguments)
    except KeyboardInterrupt:
        sys.exit(130)
