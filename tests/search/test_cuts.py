"""A search killed between any two lines of its journal goes on as if nothing had happened.

The journal of a finished search, cut after a line, is what a kill at that moment leaves (with the checkpoints gone,
which is the worst case). With one worker the resumed search must then do, trial by trial, what the whole one did.
"""

import json

import optuna
import pytest
from here import Here
from optuna.trial import TrialState
from test_ladder import rows_of
from tiny_space import tiny_space

from moe_optuna import BandPruner, TriadSampler
from moe_optuna.search import ladder, search
from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._storage import open_storage
from moe_optuna.search._work import Work

TRIALS = 9
PHASE = tiny_space().phase_one(3e9)
CREATE_STUDY, CREATE_TRIAL = 0, 4


def brought(folder):
    """A study of a pruner and the sampler of searches, brought to its trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(None, folder, workers=1),
        study_name="cut",
        sampler=TriadSampler(PHASE, seed=1),
        pruner=BandPruner(probability=0.6, n_startup_trials=3),
        load_if_exists=True,
    )
    recipe = {"reports": 4}
    controller = Controller(Here(), Leases(exclusive=True))
    controller.run(Work(study, PHASE, TRIALS, recipe, "text", 0, folder / "checkpoints"))
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in study.trials]


def lines_of(folder):
    return (folder / "journal.log").read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return brought(folder), lines_of(folder)


def starts(lines):
    """The numbers of the lines that create a trial."""
    return [number for number, line in enumerate(lines) if json.loads(line)["op_code"] == CREATE_TRIAL]


def test_the_search_that_is_cut_prunes_and_completes(whole):
    states = {state for state, *_ in whole[0]}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}


def test_cut_after_any_line_of_a_trial_it_goes_on_the_same(whole, tmp_path):
    """From the line that creates the trial, before its lease is taken, to the one that ends it; and a few others."""
    expected, lines = whole
    first, after = starts(lines)[6:8]
    for cut in [*range(1, first, 43), *range(first, after + 2)]:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal.log").write_bytes(b"".join(lines[:cut]))
        assert brought(folder) == expected, f"cut after line {cut}: {lines[cut - 1]!r}"


def test_an_orphan_without_a_lease_comes_before_anything_new(whole, tmp_path):
    """Killed between ask and lease: the trial is the next one, under its number, and no other is created before it."""
    expected, lines = whole
    orphan = starts(lines)[4]
    (tmp_path / "journal.log").write_bytes(b"".join(lines[: orphan + 1]))
    assert brought(tmp_path) == expected
    created = [number for number in starts(lines_of(tmp_path)) if number > orphan]
    ended = [
        number
        for number, line in enumerate(map(json.loads, lines_of(tmp_path)))
        if line.get("trial_id") == 4 and line.get("state") in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    assert ended
    assert created[0] > ended[0]


def test_a_ladder_cut_anywhere_ends_with_the_same_runs_and_blueprint(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    space = tiny_space(search={"zero": 0, "one": 4, "two": 3, "repeats": 2})

    def climbed(folder):
        search(space, out=folder, workers=1, trial="instant_trials")
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(folder)]
        return rows, (folder / "blueprint.json").read_bytes()

    expected = climbed(tmp_path / "whole")
    lines = lines_of(tmp_path / "whole")
    records = [json.loads(line) for line in lines]
    queued = [number for number, record in enumerate(records) if record.get("state") == TrialState.WAITING]
    created = [number for number, record in enumerate(records) if record["op_code"] == CREATE_STUDY]
    assert len(queued) >= 4  # two repeats at each budget
    for cut in (queued[0] + 1, queued[1] + 1, created[2] + 1, created[3] + 4):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal.log").write_bytes(b"".join(lines[:cut]))
        assert climbed(folder) == expected, f"cut after line {cut}: {lines[cut - 1]!r}"
