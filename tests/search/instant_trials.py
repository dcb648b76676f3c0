"""Trial functions that a worker imports instead of the real training: no arithmetic, the same protocol."""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from moe_optuna import InputError


def loss_of(task: dict[str, Any]) -> float:
    """A smooth loss with its minimum at d_model = 64, falling with compute, and a little noise of the seed."""
    width = math.log2(task["architecture"]["d_model"] / 64)
    noise = math.sin(12.9898 * task["seed"] + width) * 1e-3
    return 2.0 + 0.05 * width**2 + (task["compute"] / 1e9) ** -0.1 + noise


_maps: dict[str, mmap.mmap] = {}


def _mapped(path: str) -> mmap.mmap:
    """A file as it was when this process first looked, as a tokenized corpus is."""
    if path not in _maps:
        with open(path, "rb") as file:
            _maps[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return _maps[path]


def prepare(recipe: dict[str, Any]) -> dict[str, Any]:
    if recipe.get("missing"):
        raise FileNotFoundError(recipe["missing"])
    if deadly := recipe.get("deadly"):  # to the first who prepare it
        with open(deadly, "a") as file:
            file.write("x")
        if os.path.getsize(deadly) <= recipe["deaths"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"content": str(len(_mapped(recipe["mapped"]))) if "mapped" in recipe else "text"}


def run(task: dict[str, Any], link: Any) -> dict[str, Any]:
    recipe, folder = task["recipe"], Path(task["checkpoint"])
    if prepare(recipe)["content"] != task["text"]:
        raise InputError("the text has changed")
    target, reports = loss_of(task), recipe.get("reports", 4)
    state = folder / "state.json"
    first = json.loads(state.read_text()) + 1 if state.exists() else 1
    width = task["architecture"]["d_model"]
    for index in range(first, reports + 1):
        time.sleep(recipe.get("seconds", 0.0))
        if task["seed"] in recipe.get("unlucky", ()):
            raise RuntimeError(f"seed {task['seed']} does not train")
        if width in recipe.get("raising", ()):
            raise RuntimeError(f"width {width} does not train")
        if width in recipe.get("killing", ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if width == recipe.get("without_gpu"):
            with (folder / "losses").open("a") as file:
                file.write("x")
            if (folder / "losses").stat().st_size <= recipe["losses"]:
                kind = OSError if recipe["unreachable"] else RuntimeError
                raise kind("CUDA error: unspecified launch failure\nCompile with advice.")
        if "mapped" in recipe:
            _mapped(recipe["mapped"])[-1]
        if width in recipe.get("full_disk", ()):
            raise OSError(28, "No space left on device")
        if width in recipe.get("hungry", ()):
            resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
            bytearray(2**31)
        if width in recipe.get("out_of_cuda_memory", ()):
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if once := recipe.get("once"):  # dies the first time that any trial comes here
            marker = Path(once)
            if index == 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        loss = target + 0.5 * (1 - index / reports)
        if index == 2:
            loss = math.nan if width in recipe.get("diverging", ()) else loss
            loss = math.inf if width in recipe.get("exploding", ()) else loss
            loss = 3 * loss if width in recipe.get("spiking", ()) else loss
        if log := recipe.get("log"):
            with open(log, "a") as file:
                file.write(json.dumps([folder.name, index]) + "\n")
        (part := folder / "state.part").write_text(str(index))
        part.replace(state)
        if not link.report(index, loss) and index < reports:
            return {"loss": loss, "stopped": True, "tokens": task["tokens"] * index // reports, "seconds": 0.0}
    return {"loss": target, "stopped": False, "tokens": task["tokens"], "seconds": 0.0, "bits_per_byte": target}
