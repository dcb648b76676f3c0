"""Slots: the share of a machine that one trial has to itself."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from moe_optuna.errors import InputError, whole_number

__all__ = ["Slot", "check_counts", "find_gpus", "gpu_uuids", "local_slots"]

_LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|NODE_|ROLE_)?RANK|(LOCAL_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(TORCHELASTIC|SLURM|PMI|OMPI)_.*"
)
"""What a launcher or a batch system leaves in the environment; a worker that inherits it waits for ranks that never
come."""
_GPU = re.compile(r"\d+|(GPU|MIG)-.+")
GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/nvgpu*", "/dev/nvhost*", "/dev/dxg", "/dev/kfd")
"""Files of a machine with GPUs: NVIDIA's, its embedded ones', those of Windows' subsystem, AMD's."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one trial runs.

    Attributes:
        index: Its number, from 0.
        devices: GPUs by index or UUID; empty on CPUs.
        cores: The cores that the worker stays on; empty where it is not pinned.
        threads: Threads of one trial.
        variables: What else the worker's environment is to hold, by name.
    """

    index: int
    devices: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    threads: int = 1
    variables: tuple[tuple[str, str], ...] = ()

    def environment(self) -> dict[str, str]:
        """The environment of a worker on this slot: this process's, less what a launcher set, with its share of
        devices and threads."""
        environment = {name: value for name, value in os.environ.items() if not _LAUNCHER.fullmatch(name)}
        environment |= dict.fromkeys(_THREADS, str(self.threads))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        return environment | dict(self.variables)


def find_gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that this process may use, without initialising CUDA (a process that has cannot give its devices
    to others cleanly). What ``CUDA_VISIBLE_DEVICES`` names where there is no GPU is none."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return _listed()
    named = tuple(name for name in map(str.strip, visible.split(",")) if _GPU.fullmatch(name))
    # A container with GPUs may lack nvidia-smi; it has their files.
    there = bool(named) and (any(map(glob.glob, GPU_FILES)) or bool(_listed()))
    return named if there else ()


def gpu_uuids(names: Sequence[str]) -> list[str]:
    """The UUID of each GPU that is named by index or UUID.

    Raises:
        OSError: Where it cannot be told which GPU an index means.
    """
    if all(name.startswith("GPU-") for name in names):
        return list(names)
    rows = [row.split(", ") for row in _listed("index,uuid,name") if row.count(", ") == 2]
    if len({model for _, _, model in rows}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # CUDA puts the fastest first, nvidia-smi goes by the bus.
        raise OSError("GPUs of several models: expected UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID, in the environment")
    uuids = {index: uuid for index, uuid, _ in rows}
    if missing := [name for name in names if not name.startswith("GPU-") and name not in uuids]:
        raise OSError(f"nvidia-smi lists no GPU {missing[0]}")
    return [uuids.get(name, name) for name in names]


def _listed(columns: str = "index") -> tuple[str, ...]:
    """The GPUs that nvidia-smi lists, a row each."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(str.strip, answer.stdout.splitlines())) if answer.returncode == 0 else ()


def check_counts(workers: int | None, devices_per_trial: int) -> None:
    """Refuse a number of workers, where one is given, or of devices that is not a positive integer.

    Raises:
        InputError: Naming the option.
    """
    if workers is not None:
        whole_number(workers, "--workers")
    whole_number(devices_per_trial, "--devices-per-trial")


def local_slots(workers: int | None, devices_per_trial: int = 1) -> tuple[Slot, ...]:
    """Divide this machine: a set of GPUs a slot where there are any, otherwise cores.

    More workers than sets of GPUs share them in turn; more workers than cores share those, unpinned.

    Args:
        workers: Slots; one a set of GPUs, or one a core, unless given.
        devices_per_trial: GPUs of one trial.

    Raises:
        InputError: Where a number is not positive, or a trial asks for more GPUs than there are.
    """
    check_counts(workers, devices_per_trial)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = find_gpus()
    if not gpus:
        if devices_per_trial > 1:
            raise InputError(f"{devices_per_trial}, expected 1: no GPU was found", where="--devices-per-trial")
        count = workers or len(cores)
        return tuple(Slot(index, (), share, _threads(share)) for index, share in enumerate(_shares(cores, count)))
    if devices_per_trial > len(gpus):
        raise InputError(
            f"{devices_per_trial}, expected at most {len(gpus)}, the GPUs found", where="--devices-per-trial"
        )
    sets = [
        gpus[start : start + devices_per_trial]
        for start in range(0, len(gpus) - devices_per_trial + 1, devices_per_trial)
    ]
    count = workers or len(sets)
    return tuple(
        Slot(index, sets[index % len(sets)], share, _threads(share))
        for index, share in enumerate(_shares(cores, count))
    )


def _threads(share: tuple[int, ...]) -> int:
    """One a core, at most what the user set for all programs (``OMP_NUM_THREADS``)."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    most = int(asked) if asked.isdigit() and int(asked) else len(share)
    return max(1, min(len(share), most))


def _shares(cores: list[int], count: int) -> list[tuple[int, ...]]:
    """`count` disjoint shares of the cores, or empty ones where there are fewer cores than shares."""
    if count > len(cores):
        return [()] * count
    each = len(cores) // count
    return [tuple(cores[index * each : (index + 1) * each]) for index in range(count)]
