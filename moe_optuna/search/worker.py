"""The worker process: trains one architecture after another, as told through its channel.

It knows nothing of Optuna, studies or storage. It stays alive between trials, so that none pays for imports, and it
ends when the controller does: at the end of the stream it saves what it trains and exits.

A trial's folder holds, beside the training's own checkpoint, `progress.jsonl`: which task it is, the reports and at
last the result. A trial that was trained to the end but never recorded, because the controller died in between, is
answered from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from moe_optuna.errors import InputError
from moe_optuna.search._channel import Channel, Message

__all__ = ["Link", "TrialFunctions", "main"]

GRACE = 25.0
"""Seconds that a worker without a controller has to save its trial, before it ends as it is."""
IDENTITY = ("architecture", "compute", "tokens", "recipe", "text", "seed")
"""What a task must have in common with the one whose progress it takes up."""


class TrialFunctions(Protocol):
    """What the module that a worker imports holds."""

    @staticmethod
    def run(task: dict[str, Any], link: Link) -> dict[str, Any]:
        """Train the task; a dictionary of plain data with at least ``loss`` (nats per token)."""
        ...

    @staticmethod
    def prepare(recipe: dict[str, Any]) -> dict[str, Any]:
        """What is done once before any trial (tokenising); what the text is, as plain data with its hash as
        ``content``, and whatever else of it `_checks.check_text` can look at."""
        ...


class Link:
    """What a trial has of its controller.

    Attributes:
        stopping: Whether the trial is to be saved and given back, now rather than at the next report.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._interrupted = threading.Event()
        self._reports: dict[int, float] = {}
        self._record: Path | None = None
        threading.Thread(target=self._listen, name="channel", daemon=True).start()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for the trial to be saved and given back."""
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        """Ask for it."""
        self._interrupted.set()
        self._inbox.put({"go": False})

    def report(self, index: int, loss: float) -> bool:
        """Report the loss at a point of the token grid; whether to go on."""
        if self.stopping:
            return False
        if index not in self._reports:
            self._reports[index] = loss
            self._note({"report": [index, loss]})
        self._channel.send({"report": [index, loss]})
        while True:
            message = self._inbox.get()
            if "go" in message:
                return bool(message["go"]) and not self.stopping

    def send(self, message: Message) -> None:
        """Send a message."""
        self._channel.send(message)

    def next(self) -> Message:
        """The next order of the controller."""
        while True:
            message = self._inbox.get()
            if "go" not in message:
                return message

    def resume(self, task: dict[str, Any], folder: Path | None) -> dict[str, Any] | None:
        """Take up what an earlier attempt left in the trial's folder: its reports, sent again (also where there are
        none: so the controller knows that the trial has been taken up), and its result where there is one. What
        another task left, as that of another search whose folder was here, is begun anew."""
        self._reports, self._record = {}, folder / "progress.jsonl" if folder else None
        result = None
        if self._record:
            identity, notes = _identity(task), _notes(self._record)
            if notes[:1] != [identity]:
                self._record.unlink(missing_ok=True)
                self._note(identity)
                notes = []
            for note in notes:
                if "report" in note:
                    self._reports[note["report"][0]] = note["report"][1]
                result = note.get("result", result)
        self.send({"reports": list(self._reports.items())})
        return result

    def finish(self, result: dict[str, Any]) -> None:
        """Keep the result, then send it."""
        self._note({"result": result})
        self.send({"result": result})

    def _note(self, note: Message) -> None:
        if self._record:
            with self._record.open("a", encoding="utf-8") as file:
                # The new line leads: after a line that was cut, the next one is whole.
                file.write("\n" + json.dumps(note))

    def _listen(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for message in messages:
                if "stop" in message:
                    self.interrupt()
                else:
                    if "run" in message:
                        self._interrupted.clear()
                    self._inbox.put(message)
        self.interrupt()
        self._inbox.put({"exit": True})
        time.sleep(GRACE)
        os._exit(1)


def _identity(task: dict[str, Any]) -> Message:
    """The first note of a task's progress."""
    shared = json.dumps([task[name] for name in IDENTITY], sort_keys=True)
    return {"task": hashlib.sha256(shared.encode()).hexdigest()}


def _notes(record: Path) -> list[Message]:
    """What is written there; none where there is no such file."""
    notes = []
    with contextlib.suppress(FileNotFoundError):
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # the line that was cut when the machine went down, and the empty one
                notes.append(json.loads(line))
    return notes


def serve(link: Link, functions: TrialFunctions) -> None:
    """Do as the controller says until it is gone."""
    while True:
        message = link.next()
        if "exit" in message:
            return
        try:
            if "prepare" in message:
                link.send({"prepared": functions.prepare(message["prepare"])})
            elif "run" in message:
                _run(link, functions, message["run"])
        except InputError as error:
            link.send(_failure("input", str(error)))
        except Exception as error:
            kind = "system" if isinstance(error, OSError) else "trial"
            failure = _failure(kind, f"{type(error).__name__}: {error}")
            # After an error of CUDA only a new process has a GPU again; where it is shared by MPS, the error may be
            # a neighbour's. So the worker dies of it, and the trial is tried again.
            lost = "CUDA error" in str(error)
            if not lost or kind == "system":
                link.send(failure)
            with contextlib.suppress(OSError):  # a full disk has no room for the log either
                traceback.print_exc()
                if lost:  # torch's own last line is advice, and the log's last line is the reason of a death
                    print(failure["failed"]["reason"], file=sys.stderr, flush=True)
            if lost:
                os._exit(1)


def _failure(kind: str, reason: str) -> Message:
    return {"failed": {"kind": kind, "reason": " ".join(reason.split())[:500]}}


def _run(link: Link, functions: TrialFunctions, task: dict[str, Any]) -> None:
    folder = Path(task["checkpoint"]) if task.get("checkpoint") else None
    with _alone(folder):
        result = link.resume(task, folder)
        if result is None:
            result = functions.run(task, link)
            if result.get("stopped"):
                link.send({"result": result} | ({"interrupted": True} if link.stopping else {}))
                return
        link.finish(result)


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Hold the trial's folder: the worker of a controller that died may still be saving into it."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _await_terminate(link: Link) -> None:
    while signal.sigwait({signal.SIGTERM}):
        link.interrupt()


def main(arguments: list[str]) -> None:
    """Entry point: the descriptor of the socket, the cores to stay on (or ``-``), the module of the trial functions."""
    descriptor, cores, module = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the controller's to handle
    # Blocked here and awaited in a thread: Lightning would otherwise take the signal, and leave without saving.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    link = Link(Channel(socket.socket(fileno=int(descriptor))))
    threading.Thread(target=_await_terminate, args=(link,), name="signals", daemon=True).start()
    functions: Any = importlib.import_module(module)  # a module of `TrialFunctions`
    link.send({"ready": os.getpid()})
    try:
        serve(link, functions)
    except ConnectionError:
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # nothing is left to clean up, and an interpreter with torch in it takes seconds to


if __name__ == "__main__":
    main(sys.argv[1:])
