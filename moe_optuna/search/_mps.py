"""Trials side by side on one GPU, by NVIDIA's Multi-Process Service (MPS): without it processes take turns.

A search whose slots share GPUs has a daemon of its own, in a private folder. A guard, a shell that waits for the end of
its input, ends the daemon and removes the folder: however the search ends, killed as well, that input ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from moe_optuna.search._slots import Slot, gpu_uuids

__all__ = ["side_by_side"]

PROGRAM = "nvidia-cuda-mps-control"
START, END = 10.0, 10.0
"""Seconds that the daemon has to start, and to end."""
CLIENT = 60.0
"""Seconds that the first client has: for it a server is started, which prepares each GPU."""
PROBE = """
import ctypes, sys
cuda, count, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
def call(name, *arguments):
    if code := getattr(cuda, name)(*arguments):
        sys.exit(f"{name}: CUDA error {code}")
call("cuInit", 0)
call("cuDeviceGetCount", ctypes.byref(count))
if count.value != int(sys.argv[1]):
    sys.exit(f"{count.value} GPUs, expected {sys.argv[1]}")
for device in range(count.value):
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
"""
"""That first client, here and not a worker: most of what can fail does so with it."""
GUARD = 'cat; echo quit | "$0"; rm -rf -- "$1"'


@contextlib.contextmanager
def side_by_side(slots: Sequence[Slot], tell: Callable[[str], None]) -> Iterator[tuple[Slot, ...]]:
    """The slots, served by a daemon where they share GPUs; as they are where that is not to be, or fails.

    A daemon that is there already, the user's (``CUDA_MPS_PIPE_DIRECTORY``) or the machine's, is left to the workers.
    ``MOE_OPTUNA_MPS=0`` does without.

    Args:
        slots: Those of one search.
        tell: Told in a line what went wrong.
    """
    program = shutil.which(PROGRAM)
    wanted = os.environ.get("MOE_OPTUNA_MPS") != "0" and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    served = tuple(slots)
    with contextlib.ExitStack() as stack:
        if program and wanted and _share(slots) and not _answers(program):
            try:
                served = _serve(program, slots, stack, tell)
            except OSError as error:
                stack.close()
                tell(f"no MPS, trials that share a GPU take turns: {error}")
        yield served


def _share(slots: Sequence[Slot]) -> bool:
    """Whether some share a GPU, each having one. A trial on several is not small; and a server has one slice of a GPU
    (MIG) at most."""
    devices = [slot.devices for slot in slots]
    return len(set(devices)) < len(devices) and all(len(own) == 1 and not own[0].startswith("MIG") for own in devices)


def _answers(program: str) -> bool:
    """Whether the machine has a daemon: at its usual place, where every process looks."""
    try:
        _call([program], os.environ, START, "get_server_list\n")
    except OSError:
        return False
    return True


def _serve(
    program: str, slots: Sequence[Slot], stack: contextlib.ExitStack, tell: Callable[[str], None]
) -> tuple[Slot, ...]:
    """Start a daemon, which ends with the stack; the slots as its clients. `OSError` where it takes none."""
    # A daemon numbers anew what its CUDA_VISIBLE_DEVICES names: of 2,3 its clients see 0,1. A UUID is the same GPU to
    # the daemon, to its clients, and to a worker that finds no daemon.
    uuids = gpu_uuids([slot.devices[0] for slot in slots])
    folder = tempfile.mkdtemp(prefix="mps-")  # short: the path of a socket has 107 characters at most
    ours = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    gpus = list(dict.fromkeys(uuids))
    environment = os.environ | ours | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, program, folder],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C must not reach it: workers still save then
    )
    stack.callback(_end, guard, tell)
    _call([program, "-d"], environment, START)
    _call([sys.executable, "-I", "-S", "-c", PROBE, str(len(gpus))], environment, CLIENT)
    return tuple(
        replace(slot, devices=(uuid,), variables=tuple(ours.items())) for slot, uuid in zip(slots, uuids, strict=True)
    )


def _end(guard: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
    try:
        guard.communicate(timeout=END)
    except subprocess.TimeoutExpired:
        # It waits on: a server may hang whose client was killed in the middle of its work.
        tell(f"the MPS daemon of this search has not ended after {END:g} s; see {PROGRAM} among the processes")


def _call(command: list[str], environment: Mapping[str, str], limit: float, order: str = "") -> None:
    """Run a command. `OSError` with its last line where it fails, or takes too long."""
    with tempfile.TemporaryFile() as output:  # not a pipe, which would not end: the daemon keeps what it inherits
        try:
            done = subprocess.run(
                command,
                env=environment,
                input=order.encode(),
                stdout=output,
                stderr=output,
                timeout=limit,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{PROGRAM}: no answer in {limit:g} s") from None
        output.seek(0)
        told = output.read().decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise OSError(f"{PROGRAM}: {told[-1] if told else f'exit status {done.returncode}'}")
