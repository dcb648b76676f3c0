"""The controller killed and stopped, in a process of its own; docs/reliability.md has the table."""

import json
import signal
import time

import pytest
from optuna.trial import TrialState
from small_search import open_study, run, start
from test_controller import expected, states

RECIPE = {"reports": 20, "seconds": 0.01}


def lines_until(process, *, ends, timeout=30.0):
    """Read what the search says until so many trials have ended."""
    deadline, seen = time.monotonic() + timeout, []
    while sum(line.startswith("end") for line in seen) < ends:
        assert time.monotonic() < deadline, seen
        line = process.stdout.readline()
        assert line, seen
        seen.append(line)
    return seen


def steps(log):
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


@pytest.fixture
def undisturbed(tmp_path):
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    return [(trial.params, trial.value) for trial in run(folder, trials=8, workers=1, recipe={"reports": 20}).trials]


@pytest.mark.parametrize("half", [b"", b'{"op_code":6,"worker_id":"1f', b"\0\0\0\0"])
def test_a_killed_controller_is_resumed_by_the_same_command(tmp_path, half):
    log = tmp_path / "log"
    recipe = RECIPE | {"log": str(log)}
    first = start(tmp_path, trials=8, recipe=recipe)
    lines_until(first, ends=3)
    first.kill()
    first.communicate()
    with (tmp_path / "journal.log").open("ab") as journal:
        journal.write(half)  # as if the machine had gone down in the middle of a line
    study = run(tmp_path, trials=8, recipe=recipe)
    assert states(study) == ["COMPLETE"] * 8
    assert [trial.value for trial in study.trials] == pytest.approx([expected(trial) for trial in study.trials])
    assert len(steps(log)) == len(set(steps(log))) == 160  # nothing trained was lost, nothing was trained twice


def test_many_kills_and_a_single_worker_end_in_the_undisturbed_search(tmp_path, undisturbed):
    settings = {"trials": 8, "workers": 1, "recipe": RECIPE}
    for ends in (1, 2):
        process = start(tmp_path, **settings)
        lines_until(process, ends=ends)
        process.kill()
        process.communicate()
    study = run(tmp_path, **settings)
    assert [(trial.params, trial.value) for trial in study.trials] == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_same_command_resumes(tmp_path, number):
    log = tmp_path / "log"
    recipe = RECIPE | {"log": str(log)}
    process = start(tmp_path, trials=6, recipe=recipe)
    lines_until(process, ends=2)
    while not process.stdout.readline().startswith("report"):  # one is being trained
        assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "returned" in output
    before = open_study(tmp_path).trials
    assert TrialState.RUNNING not in {trial.state for trial in before}
    assert states(run(tmp_path, trials=6, recipe=recipe)) == ["COMPLETE"] * 6
    assert len(steps(log)) == len(set(steps(log))) == 120


def test_the_second_signal_ends_at_once(tmp_path):
    process = start(tmp_path, trials=6, recipe={"reports": 2, "seconds": 30.0})
    assert process.stdout.readline().startswith("start")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert time.monotonic() - begin < 8
    assert process.returncode != 0


def test_a_second_search_in_the_same_folder_is_refused(tmp_path):
    process = start(tmp_path, trials=30, recipe=RECIPE)
    lines_until(process, ends=1)
    second = start(tmp_path, trials=30, recipe=RECIPE)
    output, _ = second.communicate(timeout=20)
    process.kill()
    process.communicate()
    assert f"another search runs in it (process {process.pid})" in output


def test_a_journal_without_room_loses_nothing_that_was_finished(tmp_path, undisturbed):
    """The kernel refuses to let the journal grow, in the middle of a line."""
    settings = {"trials": 8, "workers": 1, "recipe": RECIPE}
    process = start(tmp_path, **settings, largest_file=16_001)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "File too large" in output
    assert (tmp_path / "journal.log").stat().st_size <= 16_001
    finished = [trial.value for trial in open_study(tmp_path).trials if trial.state.is_finished()]
    assert 0 < len(finished) < 8
    study = run(tmp_path, **settings)
    assert [(trial.params, trial.value) for trial in study.trials] == undisturbed
