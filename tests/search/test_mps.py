"""Several slots on one GPU: the daemon of the Multi-Process Service, by a stand-in; and what becomes of a lost GPU."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from here import Here
from optuna.trial import TrialState
from small_search import open_study, run
from tiny_space import tiny_space

from moe_optuna import InputError
from moe_optuna.search import _mps, _trial, ladder
from moe_optuna.search._controller import RETRIES
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._mps import side_by_side
from moe_optuna.search._slots import Slot, gpu_uuids

# As NVIDIA's: with -d a daemon, which keeps what it inherits, is left behind; without, orders are read and passed on to
# the daemon, which must be there. Each call is noted with what it was given.
CONTROL = """#!/bin/sh
pipes=${CUDA_MPS_PIPE_DIRECTORY:-ROOT/usual}
note() { echo "$* on $CUDA_VISIBLE_DEVICES in $pipes, logs in $CUDA_MPS_LOG_DIRECTORY" >> ROOT/calls; }
if [ "$1" = -d ]; then
    note start
    [ -e ROOT/hang ] && exec cat ROOT/hang
    [ -e ROOT/refuse ] && echo "first line" && echo "not supported" && exit 3
    mkfifo "$pipes/control" "$pipes/answer"
    (read order < "$pipes/control"; note "$order"; echo ended > "$pipes/answer") &
    exit 0
fi
[ -e "$pipes/control" ] || exit 1
read order
[ "$order" = get_server_list ] && exit 0
[ -e ROOT/busy ] && read nothing < ROOT/busy
echo "$order" > "$pipes/control"
read answer < "$pipes/answer"
"""
SMI = """#!/bin/sh
case "$1" in
    *index,uuid,name) cat ROOT/gpus ;;
esac
"""
PROBE = """
import os, sys
with open("ROOT/calls", "a") as file:
    names = [os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY")]
    file.write("probe {} on {} in {}\\n".format(sys.argv[1], *names))
if os.path.exists("ROOT/unreachable"):
    sys.exit("CUDA error 805")
"""
PAIR = (Slot(0, ("2",), (0,), 1), Slot(1, ("3",), (1,), 1), Slot(2, ("2",), (2,), 1))


class Machine:
    """One with four GPUs of one model, and a record of what was asked of its daemon."""

    def __init__(self, root):
        self.root = root
        self.notes = []
        self.temporary = root / "t"
        self.temporary.mkdir()
        (root / "bin").mkdir()
        for name, text in (("nvidia-cuda-mps-control", CONTROL), ("nvidia-smi", SMI)):
            script = root / "bin" / name
            script.write_text(text.replace("ROOT", str(root)))
            script.chmod(0o755)
        (root / "gpus").write_text("".join(f"{index}, GPU-{index}{index}, H\n" for index in range(4)))

    @property
    def calls(self):
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def orders(self):
        return [call.split()[0] for call in self.calls]

    def serve(self, *slots):
        return side_by_side(slots, self.notes.append)

    def watch(self):
        """Have `removed` wait for the guard, whose last act is to remove the folder."""
        os.mkfifo(self.root / "removed")
        script = self.root / "bin" / "rm"
        script.write_text(f'#!/bin/sh\n{shutil.which("rm")} "$@"\necho > {self.root}/removed\n')
        script.chmod(0o755)

    def removed(self):
        (self.root / "removed").read_text()
        return list(self.temporary.iterdir()) == []


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(made.temporary))
    monkeypatch.setattr(_mps, "PROBE", PROBE.replace("ROOT", str(tmp_path)))
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "MOE_OPTUNA_MPS", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    return made


def test_slots_that_share_a_gpu_have_a_daemon_until_the_end(machine):
    with machine.serve(*PAIR) as slots:
        (folder,) = machine.temporary.iterdir()
        there = f"in {folder}, logs in {folder}"
        assert machine.calls == [f"start on GPU-22,GPU-33 {there}", f"probe 2 on GPU-22,GPU-33 in {folder}"]
        assert folder.stat().st_mode & 0o077 == 0
        assert [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-22", "GPU-33", "GPU-22"]
        assert {slot.environment()["CUDA_MPS_PIPE_DIRECTORY"] for slot in slots} == {str(folder)}
        assert [(slot.index, slot.cores, slot.threads) for slot in slots] == [
            (slot.index, slot.cores, slot.threads) for slot in PAIR
        ]
    assert machine.calls[2:] == [f"quit on GPU-22,GPU-33 {there}"]
    assert list(machine.temporary.iterdir()) == []
    assert machine.notes == []


def test_workers_are_its_clients(machine):
    with machine.serve(*(Slot(index, ("2",)) for index in range(2))) as slots:
        executor = LocalExecutor(slots, module="instant_trials", logs=machine.root / "logs")
        (folder,) = machine.temporary.iterdir()
        for process in executor.processes:
            environment = Path(f"/proc/{process}/environ").read_text().split("\0")
            assert {f"CUDA_MPS_PIPE_DIRECTORY={folder}", "CUDA_VISIBLE_DEVICES=GPU-22"} <= set(environment)
        executor.close(5.0)


def test_it_ends_after_an_error(machine):
    with pytest.raises(KeyError), machine.serve(*PAIR):
        raise KeyError
    assert machine.orders == ["start", "probe", "quit"]
    assert list(machine.temporary.iterdir()) == []


def test_it_ends_with_a_search_that_is_killed(machine):
    code = (
        "import os, signal; from moe_optuna.search import _mps; from moe_optuna.search._slots import Slot\n"
        "_mps.PROBE = ''\n"
        "with _mps.side_by_side([Slot(0, ('0',)), Slot(1, ('0',))], print):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    machine.watch()
    environment = {**os.environ, "TMPDIR": str(machine.temporary)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    assert machine.removed()
    assert machine.orders == ["start", "quit"]


def test_a_daemon_that_does_not_end_is_told_and_left_to_its_guard(machine, monkeypatch):
    monkeypatch.setattr(_mps, "END", 0.1)
    machine.watch()
    os.mkfifo(machine.root / "busy")
    with machine.serve(*PAIR):
        pass
    (note,) = machine.notes
    assert note.startswith("the MPS daemon of this search has not ended after 0.1 s")
    (machine.root / "busy").write_text("no longer\n")
    assert machine.removed()
    assert machine.orders == ["start", "probe", "quit"]


@pytest.mark.parametrize(
    "devices",
    [
        [("2",)],
        [("2",), ("3",)],
        [(), ()],
        [("2", "3"), ("2", "3")],
        [("MIG-1",), ("MIG-1",)],
    ],
    ids=["one", "apart", "cores", "several a trial", "slices"],
)
def test_no_daemon_where_no_gpu_is_shared_by_small_trials(machine, devices):
    slots = tuple(Slot(index, own) for index, own in enumerate(devices))
    with machine.serve(*slots) as served:
        assert served == slots
    assert machine.calls == machine.notes == []


@pytest.mark.parametrize(("name", "value"), [("MOE_OPTUNA_MPS", "0"), ("CUDA_MPS_PIPE_DIRECTORY", "/the/users")])
def test_no_daemon_where_the_user_has_decided(machine, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with machine.serve(*PAIR) as slots:
        assert slots == PAIR
        assert slots[0].environment()[name] == value
    assert machine.calls == machine.notes == []


def test_no_daemon_where_the_machine_has_one(machine):
    (machine.root / "usual").mkdir()
    (machine.root / "usual" / "control").touch()
    with machine.serve(*PAIR) as slots:
        assert slots == PAIR
    assert machine.calls == machine.notes == []


def test_no_daemon_without_the_program(machine):
    (machine.root / "bin" / "nvidia-cuda-mps-control").unlink()
    with machine.serve(*PAIR) as slots:
        assert slots == PAIR
    assert machine.notes == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refuse", "nvidia-cuda-mps-control: not supported"),
        ("hang", "nvidia-cuda-mps-control: no answer in 0.3 s"),
        ("unreachable", "nvidia-cuda-mps-control: CUDA error 805"),
    ],
)
def test_a_daemon_that_fails_is_told_and_done_without(machine, monkeypatch, fault, reason):
    if fault == "hang":
        monkeypatch.setattr(_mps, "START", 0.3)
        os.mkfifo(machine.root / "hang")
    else:
        (machine.root / fault).touch()
    with machine.serve(*PAIR) as slots:
        assert slots == PAIR
        assert list(machine.temporary.iterdir()) == []
    assert machine.notes == [f"no MPS, trials that share a GPU take turns: {reason}"]
    assert ("quit" in machine.orders) == (fault == "unreachable")


def test_gpus_by_uuid(machine, monkeypatch):
    assert gpu_uuids(["3", "GPU-1", "3"]) == ["GPU-33", "GPU-1", "GPU-33"]
    with pytest.raises(OSError, match="nvidia-smi lists no GPU 7"):
        gpu_uuids(["0", "7"])
    (machine.root / "gpus").write_text("0, GPU-00, T\n1, GPU-11, H\n")
    with pytest.raises(OSError, match="GPUs of several models: expected UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        gpu_uuids(["1"])
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert gpu_uuids(["1"]) == ["GPU-11"]


class Client(Here):
    """Notes what its slots have, and how many calls there were before it began and when it ended."""

    def __init__(self, slots, *, logs, **settings):
        super().__init__()
        self.machine = Client.machine
        Client.told = [len(self.machine.calls), *(slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots)]

    def close(self, grace):
        Client.told.append(len(self.machine.calls))


class Broken(Client):
    def __init__(self, slots, **settings):
        super().__init__(slots, **settings)
        raise InputError("no worker")


def search(machine, monkeypatch, executor, **settings):
    """A search of one study on slots that share."""
    monkeypatch.setattr(Client, "machine", machine, raising=False)
    monkeypatch.setattr(ladder, "LocalExecutor", executor)
    monkeypatch.setattr(ladder, "local_slots", lambda *_: PAIR)
    space = tiny_space(search={"zero": 0, "one": 3, "two": 0, "repeats": 0}, budgets=[1e9])
    return ladder.search(space, out=machine.root / "out", trial="instant_trials", **settings)


def test_a_search_has_it_while_its_workers_live(machine, monkeypatch):
    search(machine, monkeypatch, Client)
    assert Client.told == [2, "GPU-22", "GPU-33", "GPU-22", 2]
    assert machine.orders == ["start", "probe", "quit"]


def test_a_search_whose_workers_do_not_start_leaves_none(machine, monkeypatch):
    with pytest.raises(InputError, match="no worker"):
        search(machine, monkeypatch, Broken)
    assert Client.told == [2, "GPU-22", "GPU-33", "GPU-22"]
    assert machine.orders == ["start", "probe", "quit"]


def test_a_search_goes_on_without_and_says_so(machine, monkeypatch):
    (machine.root / "refuse").touch()
    events = []
    search(machine, monkeypatch, Client, observer=events.append)
    assert Client.told == [1, "2", "3", "2", 1]
    notes = [event.message for event in events if event.kind == "note"]
    assert notes[0] == "no MPS, trials that share a GPU take turns: nvidia-cuda-mps-control: not supported"


def test_an_error_of_cuda_is_tried_again_as_it_may_be_a_neighbours(tmp_path):
    recipe = {"without_gpu": 16, "losses": RETRIES, "unreachable": False}
    study = run(tmp_path, trials=4, widths=4, workers=1, recipe=recipe)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4


def test_an_error_of_cuda_that_always_comes_is_the_trials_own(tmp_path):
    recipe = {"without_gpu": 16, "losses": 99, "unreachable": False}
    study = run(tmp_path, trials=4, widths=4, workers=1, recipe=recipe)
    (failed,) = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed.params == {"index": 1}
    reason = "RuntimeError: CUDA error: unspecified launch failure Compile with advice."
    assert failed.user_attrs["reason"] == f"the worker died, exit status 1: {reason}; tried {RETRIES + 1} times"


def test_a_server_that_takes_no_clients_stops_the_search_and_loses_nothing(tmp_path):
    recipe = {"without_gpu": 16, "losses": 99, "unreachable": True}
    with pytest.raises(InputError, match=f"OSError: CUDA error.*; tried {RETRIES + 1} times; the same command resumes"):
        run(tmp_path, trials=4, widths=4, workers=1, recipe=recipe)
    assert {trial.state for trial in open_study(tmp_path).trials} <= {TrialState.COMPLETE, TrialState.WAITING}


def test_a_client_without_gpu_does_not_train_on_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/there")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-22")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OSError, match="no GPU within reach"):
        _trial.run({}, None)
