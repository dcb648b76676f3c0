import os
import socket
import subprocess
import sys

import pytest

from moe_optuna import InputError
from moe_optuna.search import _slots
from moe_optuna.search._channel import Channel
from moe_optuna.search._slots import Slot, find_gpus, local_slots


@pytest.fixture
def machine(monkeypatch):
    def make(cores, gpus=""):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        monkeypatch.setattr(_slots, "GPU_FILES", (os.devnull,))  # one that is there
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return make


def test_one_worker_a_core_with_one_thread(machine):
    machine(cores=4)
    assert [(slot.cores, slot.threads, slot.devices) for slot in local_slots(None)] == [
        ((core,), 1, ()) for core in range(4)
    ]


def test_fewer_workers_share_the_cores_out(machine):
    machine(cores=5)
    assert [slot.cores for slot in local_slots(2)] == [(0, 1), (2, 3)]
    assert local_slots(2)[0].threads == 2


def test_threads_are_at_most_what_the_user_set(machine, monkeypatch):
    machine(cores=8)
    for asked, threads in (("1", 1), ("3", 3), ("64", 4), ("2,1", 2), ("many", 4), ("0", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert [slot.threads for slot in local_slots(2)] == [threads, threads]


def test_more_workers_than_cores_are_not_pinned(machine):
    machine(cores=2)
    assert [(slot.cores, slot.threads) for slot in local_slots(3)] == [((), 1)] * 3


def test_gpus_in_sets_and_shared(machine):
    machine(cores=16, gpus="0,1,2,3,4")
    assert [slot.devices for slot in local_slots(None, 2)] == [("0", "1"), ("2", "3")]
    assert [slot.devices for slot in local_slots(3, 4)] == [("0", "1", "2", "3")] * 3
    assert len(local_slots(None)) == 5


@pytest.mark.parametrize(
    ("visible", "there", "devices"),
    [
        ("NoDevFiles", True, [(), ()]),
        ("none,-1,", True, [(), ()]),
        ("0", False, [(), ()]),
        ("GPU-12ab,MIG-3c", False, [(), ()]),
        ("0", True, [("0",)]),
        ("GPU-12ab,MIG-3c", True, [("GPU-12ab",), ("MIG-3c",)]),
    ],
)
def test_names_of_no_gpu_leave_the_cores(machine, monkeypatch, visible, there, devices):
    """As batch systems and their containers set them; without nvidia-smi, which a container with GPUs may lack."""

    def absent(*arguments, **settings):
        raise FileNotFoundError

    machine(cores=2, gpus=visible)
    monkeypatch.setattr(_slots.subprocess, "run", absent)
    if not there:
        monkeypatch.setattr(_slots, "GPU_FILES", ("/dev/no-such-gpu*",))
    assert [slot.devices for slot in local_slots(None)] == devices


@pytest.mark.parametrize(
    ("workers", "devices", "gpus"), [(0, 1, ""), (-1, 1, ""), (1, 0, ""), (1, 2, ""), (1, 3, "0,1")]
)
def test_what_cannot_be_is_refused(machine, workers, devices, gpus):
    machine(cores=2, gpus=gpus)
    with pytest.raises(InputError, match="expected"):
        local_slots(workers, devices)


def test_a_worker_inherits_nothing_of_a_launcher(monkeypatch):
    launcher = {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "8", "MASTER_PORT": "1", "MASTER_ADDR": "h"}
    launcher |= {"NODE_RANK": "2", "SLURM_NTASKS": "8", "TORCHELASTIC_RUN_ID": "x", "HOME_RANKING": "kept"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    environment = Slot(0, ("3",), (1, 2), 2).environment()
    assert set(launcher) & set(environment) == {"HOME_RANKING"}
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["OMP_NUM_THREADS"] == "2"


def test_gpus_are_found_without_cuda(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(_slots.subprocess, "run", lambda *_, **__: type("R", (), {"returncode": 0, "stdout": "0\n1\n"}))
    assert find_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-12ab, 3")
    assert find_gpus() == ("GPU-12ab", "3")


def test_a_worker_starts_where_cores_cannot_be_chosen():
    """As on macOS."""
    code = "import os, sys; del os.sched_setaffinity; from moe_optuna.search import worker; worker.main(sys.argv[1:])"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        descriptor = theirs.fileno()
        command = [sys.executable, "-c", code, str(descriptor), "0", "instant_trials"]
        path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = subprocess.Popen(command, pass_fds=(descriptor,), env={**os.environ, "PYTHONPATH": path})
        theirs.close()
        channel = Channel(ours)
        assert channel.receive() == [{"ready": process.pid}]
        channel.close()
        assert process.wait(timeout=60) == 0
