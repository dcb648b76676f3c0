"""The Ray executor on a real cluster of two nodes on this machine, one of which is lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from optuna.trial import TrialState
from small_search import HERE, open_study
from test_controller import expected

from moe_optuna import InputError

pytest.importorskip("ray", reason="the extra ray is not installed")
LIMIT = 150
"""Seconds after which the search has hung."""


def processes_of(temporary):
    """The processes of the cluster whose files lie there."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and temporary.encode() in (entry / "cmdline").read_bytes():
                yield int(entry.name)


@pytest.fixture
def temporary():
    """A folder for a cluster, of a short name (sockets lie in it), and the end of what still runs there."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_node_is_lost_and_no_trial_with_it(tmp_path, temporary):
    command = [sys.executable, str(HERE / "ray_search.py"), str(tmp_path), temporary]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    trials = open_study(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert [trial.value for trial in trials] == pytest.approx([expected(trial) for trial in trials])
    assert told["nodes"] == 1  # the head's; the other was lost on the way
    assert re.fullmatch(r"--workers: 9, expected 1 to \d: the cluster has 0 GPUs and \d CPUs", told["refusal"])
    steps = [tuple(json.loads(line)) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(set(steps)) == 96


@pytest.mark.parametrize(("address", "where"), [(None, "--executor ray"), ("auto", "--ray-address auto")])
def test_a_cluster_that_does_not_come_up_is_one_line(tmp_path, monkeypatch, address, where):
    import ray

    from moe_optuna.search._ray import RayExecutor

    def init(**settings):
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=f"^{where}: The current node timed out during startup.$"):
        RayExecutor(1, address=address, module="instant_trials", logs=tmp_path)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    from moe_optuna.search._ray import RayExecutor

    with pytest.raises(InputError, match=r"--ray-address 127\.0\.0\.1:1: nothing answers there"):
        RayExecutor(1, address="127.0.0.1:1", module="instant_trials", logs=tmp_path)


def test_more_devices_for_a_trial_than_the_cluster_has(tmp_path, monkeypatch):
    import ray

    from moe_optuna.search._ray import RayExecutor

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4.0, "CPU": 64.0})
    with pytest.raises(InputError, match=r"^--devices-per-trial: 8, expected at most 4, the GPUs of the cluster$"):
        RayExecutor(None, devices_per_trial=8, module="instant_trials", logs=tmp_path)
    with pytest.raises(InputError, match=r"^--workers: 3, expected 1 to 2: the cluster has 4 GPUs and 64 CPUs$"):
        RayExecutor(3, devices_per_trial=2, module="instant_trials", logs=tmp_path)
