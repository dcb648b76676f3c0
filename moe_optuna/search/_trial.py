"""What a worker runs: one real training.

A trial on several devices has one process a device, as a launcher would start them: the worker is rank 0 and starts the
others for the time of the trial (``python -m moe_optuna.search._trial RANK``, the task on standard input). They train
the same task and report nothing; the end of their standard input ends them, so that none outlives the worker.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_optuna import training
from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training import Recipe, TrainingResult, train  # here, so that the worker has torch before its trial

if TYPE_CHECKING:
    from moe_optuna.search.worker import Link
    from moe_optuna.training import Report

__all__ = ["prepare", "run"]


def run(task: dict[str, Any], link: Link) -> dict[str, Any]:
    """Train the task's architecture; reports go over the link, which says whether to go on.

    Raises:
        InputError: Where the text is no longer that of the search.
        OSError: Where the GPU that was to be shared by MPS is out of reach.
    """
    _reach_gpu()
    if (found := prepare(task["recipe"])["content"]) != task["text"]:
        raise InputError(
            f"the text has changed: sha256 {found[:12]}, expected {task['text'][:12]}, with which this search began",
            where=task["recipe"]["data"],
        )
    devices = task.get("devices") or max(1, len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    with _ranks(task, devices):
        return _train(
            task,
            devices,
            report=lambda report: link.report(report.index, report.loss),
            interrupted=lambda: link.stopping,
        ).to_dict()


def prepare(recipe: dict[str, Any]) -> dict[str, Any]:
    """Tokenise and cache the recipe's text; what it was made of."""
    corpus = training.prepare(Recipe.from_dict(recipe))
    tokens = {"training": len(corpus.train), "held-out": len(corpus.held_out)}
    return {**corpus.origin, "vocab_size": corpus.vocab_size, "tokens": tokens, "end": corpus.end}


def _reach_gpu() -> None:
    """An MPS server that recovers from a fault takes no clients: torch then sees no GPU, and would train on the CPU."""
    import torch

    shared = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") and os.environ.get("CUDA_VISIBLE_DEVICES")
    if shared and torch.version.cuda and not torch.cuda.is_available():
        raise OSError("CUDA error: no GPU within reach, the MPS server takes no clients")


def _train(
    task: dict[str, Any],
    devices: int,
    *,
    report: Callable[[Report], bool] | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> TrainingResult:
    return train(
        MoEArchitecture.from_dict(task["architecture"]),
        compute=task["compute"],
        tokens=task["tokens"],
        recipe=Recipe.from_dict(task["recipe"]),
        seed=task["seed"],
        report=report,
        interrupted=interrupted,
        checkpoint=Path(task["checkpoint"]),
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
        device=task.get("device", "auto"),
        devices=devices,
    )


@contextmanager
def _ranks(task: dict[str, Any], devices: int) -> Iterator[None]:
    """The other ranks of a trial on several devices, and this process as rank 0."""
    if devices == 1:
        yield
        return
    import torch.distributed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    environment = os.environ | group
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "moe_optuna.search._trial", str(rank)],
            env=environment | {"LOCAL_RANK": str(rank), "RANK": str(rank)},
            stdin=subprocess.PIPE,
            text=True,
        )
        for rank in range(1, devices)
    ]
    for other in others:
        assert other.stdin is not None
        other.stdin.write(json.dumps(task | {"devices": devices}) + "\n")
        other.stdin.flush()
    os.environ.update(group, LOCAL_RANK="0", RANK="0")
    try:
        yield
    finally:
        for name in (*group, "LOCAL_RANK", "RANK"):
            os.environ.pop(name, None)  # Lightning removes some itself
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for other in others:
            assert other.stdin is not None
            other.stdin.close()
            other.wait()


def _follow() -> None:
    """One of the other ranks, until it is done or rank 0 is gone."""
    task = json.loads(sys.stdin.readline())

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _train(task, task["devices"])
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _follow()
