"""An executor without processes: one worker that trains in a thread of this process, so that a search takes a moment.

For tests of what the controller does; those of faults use real processes.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import instant_trials


class Here:
    """The worker of `instant_trials`, here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def available(self) -> list[int]:
        return [0]

    def send(self, worker: int, message: dict[str, Any]) -> None:
        if "prepare" in message:
            self._told.put({"prepared": instant_trials.prepare(message["prepare"])})
        elif "run" in message:
            threading.Thread(target=self._train, args=(message["run"],), daemon=True).start()
        else:
            self._answers.put(bool(message.get("go")))

    def wait(self, timeout: float) -> list[tuple[int, dict[str, Any]]]:
        try:
            return [(0, self._told.get(timeout=timeout))]
        except queue.Empty:
            return []

    def close(self, grace: float) -> None:
        pass

    def report(self, index: int, loss: float) -> bool:
        self._told.put({"report": [index, loss]})
        return self._answers.get()

    def _train(self, task: dict[str, Any]) -> None:
        Path(task["checkpoint"]).mkdir(parents=True, exist_ok=True)
        self._told.put({"result": instant_trials.run(task, self)})
