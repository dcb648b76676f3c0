"""Workers placed by Ray: on each node the same processes as on one host, behind an actor that passes messages on.

Each worker has a placement group of its own, so that its devices lie on one node and stay reserved while the worker
is replaced; when a node is lost, Ray moves the group to another as soon as one has room, and the trial goes back.
Messages are the JSON ones of `_channel`; Ray only carries them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_optuna.errors import InputError
from moe_optuna.search._channel import Message
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._slots import Slot

__all__ = ["RayExecutor", "reach"]

POLL = 3600.0
"""Longest time [s] that a call waits on a node; it returns with the first message."""


class _Host:
    """The actor: one worker process on its node.

    Args:
        worker: The worker's number.
        threads: CPU threads.
        module, logs: As for `LocalExecutor`.
    """

    def __init__(self, worker: int, threads: int, module: str, logs: str) -> None:
        import ray

        devices = tuple(str(device) for device in ray.get_gpu_ids())
        slot = Slot(0, devices, (), threads)
        name = f"{socket.gethostname()}-{os.getpid()}-{worker}"
        self._local = LocalExecutor([slot], module=module, logs=Path(logs) / name)

    def send(self, message: Message) -> None:
        """Pass a message on to the worker."""
        self._local.send(0, message)

    def wait(self, timeout: float) -> list[Message]:
        """Messages of the worker."""
        return [message for _, message in self._local.wait(timeout)]


class RayExecutor:
    """One worker a placement group.

    Args:
        workers: How many; as many as the cluster has room for unless given.
        devices_per_trial: GPUs of one trial; ignored on a cluster without.
        address: Of the cluster; the one in the environment or one of its own unless given.
        module: The module of the trial functions.
        logs: The folder for what workers print, on their node.

    Raises:
        InputError: Where Ray is not installed or does not answer, or the cluster has no room for the workers.
    """

    def __init__(
        self,
        workers: int | None,
        *,
        devices_per_trial: int = 1,
        address: str | None = None,
        module: str,
        logs: Path,
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError("needs Ray: pip install 'moe-optuna[ray]'", where="--executor ray") from None
        self._ray = ray
        self._own = not ray.is_initialized()
        # Nodes that share the file system find what this process finds, installed or not.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        if self._own:
            if address is not None:
                reach(address)
            try:
                ray.init(
                    address=address,
                    runtime_env={"env_vars": {"PYTHONPATH": path}},
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                    logging_level=logging.WARNING,
                )
            except Exception as error:  # which Ray itself raises where a node does not come up
                where = f"--ray-address {address}" if address else "--executor ray"
                raise InputError(next(iter(str(error).splitlines()), repr(error)), where=where) from None
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0))
        if devices_per_trial > gpus > 0:
            raise InputError(
                f"{devices_per_trial}, expected at most {gpus}, the GPUs of the cluster", where="--devices-per-trial"
            )
        unit = gpus // devices_per_trial if gpus else int(resources.get("CPU", 1))
        count = workers or unit
        if count < 1 or (workers or 0) > unit:
            raise InputError(
                f"{count}, expected 1 to {unit}: the cluster has {gpus} GPUs and {resources.get('CPU', 0):g} CPUs",
                where="--workers",
            )
        threads = max(1, int(resources.get("CPU", 1)) // count) if gpus else 1
        bundle = {"CPU": 1.0, "GPU": float(devices_per_trial)} if gpus else {"CPU": 1.0}
        self._settings = (threads, module, str(logs.absolute()))
        self._groups = [ray.util.placement_group([bundle], strategy="STRICT_PACK") for _ in range(count)]
        self._bundle = bundle
        self._actors: list[Any] = [None] * count
        self._calls: dict[Any, int] = {}
        self._up: set[int] = set()
        for worker in range(count):
            self._start(worker)

    def available(self) -> Sequence[int]:
        """The workers whose actor is up; those that wait for a node are not."""
        return sorted(self._up)

    def send(self, worker: int, message: Message) -> None:
        """Send a message; where the worker is gone, `wait` says so."""
        self._actors[worker].send.remote(message)

    def wait(self, timeout: float) -> list[tuple[int, Message]]:
        """Messages of the workers; one whose node is lost is placed anew.

        Raises:
            InputError: Where a worker cannot even start, or the cluster is gone.
        """
        ray = self._ray
        arrived: list[tuple[int, Message]] = []
        try:
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout)
            # Whatever else is there by now comes along.
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0) if ready else ([], None)
        except (ray.exceptions.RaySystemError, ConnectionError) as error:
            raise InputError(
                f"the cluster is gone ({error}); the same command resumes", where="--executor ray"
            ) from None
        for call in ready:
            worker = self._calls.pop(call)
            try:
                messages = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError as error:
                self._up.discard(worker)
                with contextlib.suppress(Exception):  # where it is only out of reach, it must not go on
                    ray.kill(self._actors[worker])
                self._start(worker)
                arrived.append((worker, {"died": f"its node or actor was lost: {error}"}))
                continue
            self._up.add(worker)
            arrived += [(worker, message) for message in messages]
            self._calls[self._actors[worker].wait.remote(POLL)] = worker
        return arrived

    def close(self, grace: float) -> None:
        """End all workers; a cluster of one's own with them."""
        ray = self._ray
        with contextlib.suppress(Exception):  # a cluster that is gone has no workers
            for actor in self._actors:
                ray.kill(actor)  # its process's socket closes, and with it the worker ends
            for group in self._groups:
                ray.util.remove_placement_group(group)
        if self._own:
            time.sleep(min(grace, 0.1))
            ray.shutdown()

    def _start(self, worker: int) -> None:
        ray = self._ray
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._groups[worker])
        host = ray.remote(_Host).options(
            num_cpus=self._bundle["CPU"],
            num_gpus=self._bundle.get("GPU", 0),
            max_concurrency=2,  # a message can be sent while `wait` waits
            scheduling_strategy=strategy,
        )
        self._actors[worker] = host.remote(worker, *self._settings)
        self._calls[self._actors[worker].wait.remote(0.0)] = worker


def reach(address: str) -> None:
    """Try the address: Ray itself would try for minutes.

    Raises:
        InputError: Where nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):  # "auto" and "local" are words of Ray's
        return
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers there ({error})", where=f"--ray-address {address}") from None
