"""Workers as processes of this host: one a slot, started once, restarted when they die."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from moe_optuna.errors import InputError
from moe_optuna.search._channel import Channel, Message
from moe_optuna.search._slots import Slot

__all__ = ["Executor", "LocalExecutor", "WorkerProcess"]

STARTS = 5
"""Starts of a worker, each ending before it was ready, after which it is given up."""


class Executor(Protocol):
    """Where workers run. Workers are numbered; messages are those of `_channel`, and one more, which the executor
    itself gives: ``{"died": reason}``, after which a new one is started."""

    def available(self) -> Sequence[int]:
        """The workers that can be sent to."""
        ...

    def send(self, worker: int, message: Message) -> None:
        """Send a message; where the worker is gone, `wait` says so."""
        ...

    def wait(self, timeout: float) -> list[tuple[int, Message]]:
        """Messages of the workers, in order for each; an empty list after `timeout` seconds without any."""
        ...

    def close(self, grace: float) -> None:
        """End all workers; kill those that have not ended after `grace` seconds."""
        ...


class WorkerProcess:
    """A worker process and the channel to it.

    Args:
        slot: Its share of the machine.
        module: The module of the trial functions.
        log: The file that takes what it prints.
    """

    def __init__(self, slot: Slot, module: str, log: Path) -> None:
        ours, theirs = socket.socketpair()
        environment = slot.environment()
        # The worker finds what this process finds, installed or not.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        cores = ",".join(map(str, slot.cores)) or "-"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_optuna.search.worker", str(theirs.fileno()), cores, module],
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # the terminal's Ctrl-C must reach the controller alone
            )
        theirs.close()
        self.channel = Channel(ours)
        self.ready = False
        self._log = log

    def death(self) -> str:
        """Why it is gone, in a few words; waits for the end of the process."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed the channel and goes on
            self.process.kill()
            code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = {signal.SIGKILL: " (out of memory?)", signal.SIGBUS: " (a data file was cut, or the disk is full?)"}
            return f"killed by {name}{hint.get(signal.Signals(-code), '')}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit status {code}" + (f": {lines[-1][:300]}" if lines and code else "")

    def end(self, grace: float) -> None:
        """Close the channel, which asks it to end; kill it where it has not after `grace` seconds."""
        self.channel.close()
        try:
            self.process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LocalExecutor:
    """One persistent worker process a slot.

    Args:
        slots: The slots.
        module: The module of the trial functions.
        logs: The folder for what workers print.
    """

    def __init__(self, slots: Sequence[Slot], *, module: str, logs: Path) -> None:
        self._slots = tuple(slots)
        self._module = module
        self._logs = logs
        self._selector = selectors.DefaultSelector()
        logs.mkdir(parents=True, exist_ok=True)
        self._broken: InputError | None = None
        self._failed_starts = [0] * len(self._slots)
        self._workers = [self._start(slot) for slot in self._slots]

    def available(self) -> Sequence[int]:
        """The workers that can be sent to: all."""
        return range(len(self._slots))

    @property
    def processes(self) -> tuple[int, ...]:
        """The workers' process numbers."""
        return tuple(worker.process.pid for worker in self._workers)

    def send(self, worker: int, message: Message) -> None:
        """Send a message; where the worker is gone, `wait` says so."""
        with contextlib.suppress(OSError):
            self._workers[worker].channel.send(message)

    def wait(self, timeout: float) -> list[tuple[int, Message]]:
        """Messages of the workers; a worker that died is started anew.

        Raises:
            InputError: Where a worker cannot even start.
        """
        if self._broken:
            raise self._broken
        arrived: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(timeout):
            index: int = key.data
            worker = self._workers[index]
            messages = worker.channel.receive()
            if messages is None:
                self._selector.unregister(worker.channel)
                reason = worker.death()
                worker.channel.close()
                self._failed_starts[index] = 0 if worker.ready else self._failed_starts[index] + 1
                if self._failed_starts[index] == STARTS:
                    self._broken = InputError(f"a worker cannot start: {reason}", where=self._log(self._slots[index]))
                    raise self._broken
                self._workers[index] = self._start(self._slots[index])
                arrived.append((index, {"died": reason}))
            else:
                worker.ready = worker.ready or any("ready" in message for message in messages)
                arrived += [(index, message) for message in messages if "ready" not in message]
        return arrived

    def close(self, grace: float) -> None:
        """End all workers; those that have not ended by themselves after `grace` seconds are killed."""
        deadline = time.monotonic() + grace
        for worker in self._workers:
            worker.channel.close()
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))
        self._selector.close()

    def _start(self, slot: Slot) -> WorkerProcess:
        worker = WorkerProcess(slot, self._module, self._log(slot))
        self._selector.register(worker.channel, selectors.EVENT_READ, slot.index)
        return worker

    def _log(self, slot: Slot) -> Path:
        return self._logs / f"worker-{slot.index}.log"
