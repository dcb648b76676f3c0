"""Reading a search's folder: what is there, what is not yet, what is wrong."""

import json
import math
from pathlib import Path

import pytest

from moe_optuna import InputError
from moe_optuna.report._run import Run


def test_reads_everything_that_a_finished_search_wrote(planted):
    run = Run.read(planted.folder)
    rows = (planted.folder / "runs.csv").read_text().count("\n") - 1
    assert len(run.trials) == rows == sum(run.counts.values())
    assert run.counts["failed"] == 1
    assert run.counts["pruned"] == 6
    assert run.budgets == planted.space.budgets
    assert run.target == planted.space.target
    assert {"loss", "compute_density", "expansion_ratio"} <= {each.quantity for each in run.held_out}
    assert run.recorded


def test_runs_that_a_spreadsheet_wrote_again_are_the_same(planted):
    before, path = Run.read(planted.folder).trials, planted.folder / "runs.csv"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert repr(Run.read(planted.folder).trials) == repr(before)


def test_a_trial_knows_its_architecture_by_its_dimensions(planted):
    trial = Run.read(planted.folder).trials[0]
    found = trial.architecture()
    assert found.non_embedding.total_params == trial["total_params"]
    assert found.d_model == trial["d_model"]
    assert math.isnan(trial["no such column"])


@pytest.mark.parametrize("missing", ["laws.json", "blueprint.json", "runs.csv"])
def test_a_search_that_still_runs_has_less(planted, missing):
    (planted.folder / missing).unlink()
    run = Run.read(planted.folder)
    assert {"laws.json": run.laws, "blueprint.json": run.blueprint, "runs.csv": run.trials or None}[missing] is None


def test_without_laws_the_axes_are_those_that_the_trials_differ_on(planted):
    (planted.folder / "laws.json").unlink()
    axes = Run.read(planted.folder).axes
    assert axes == ((0, "flops_per_token"), (1, "compute_density"), (1, "expansion_ratio"), (2, "d_model"))


def test_a_foreign_folder(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere: no such folder, expected one that"):
        Run.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not the folder of a search, expected runs\.csv"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("runs.csv", "a,b\n1,2\n", r"runs\.csv: no column study, trial"),
        ("runs.csv", "", r"runs\.csv: no column"),
        ("runs.csv", b"\xff\xfe\x00", r"runs\.csv: not UTF-8 text"),
        ("laws.json", "{", r"laws\.json: not JSON"),
        ("laws.json", "[]", r"laws\.json: not a JSON object, expected the laws of a ladder"),
        ("laws.json", '{"format": 99}', r"laws\.json: format 99, expected 1"),
        ("blueprint.json", "nonsense", r"blueprint\.json: not JSON"),
        ("blueprint.json", '{"format": 1}', r"blueprint\.json: not a blueprint"),
        ("blueprint.json", '{"format": 2}', r"blueprint\.json: format 2, expected 1"),
    ],
)
def test_a_wrong_file_is_named_with_what_was_expected(planted, name, text, message):
    path = planted.folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        Run.read(planted.folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("loss", "cheap", r"line 2: loss: 'cheap', expected a finite number"),
        ("compute", "", r"line 2: compute: '', expected a positive number"),
        ("compute", "-1e10", r"line 2: compute: '-1e10', expected a positive number"),
        ("loss", "-2", r"line 2: loss: '-2', expected a positive number"),
        ("state", "done", r"line 2: state 'done', expected complete, pruned or failed"),
        ("d_model", "1,2", r"line 2: another number of fields"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(planted, column, text, message):
    path = planted.folder / "runs.csv"
    lines = path.read_text().splitlines()
    fields = lines[1].split(",")
    fields[lines[0].split(",").index(column)] = text
    path.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=message):
        Run.read(planted.folder)


def test_a_wrong_comparison(planted):
    path = planted.folder / "blueprint.json"
    data = json.loads(path.read_text())
    data["held_out"]["axes"]["d_model"]["predicted"] = "low"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"blueprint\.json: held_out: not a prediction"):
        Run.read(planted.folder)


def test_numbers_that_no_architecture_has(planted):
    """A row of another attention kind, or edited: its dimensions do not tell its counts."""
    path = planted.folder / "runs.csv"
    lines = path.read_text().splitlines()
    place = lines[0].split(",").index("d_model")
    fields = lines[1].split(",")
    for text in ("0", "8"):
        fields[place] = text
        path.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")
        assert Run.read(planted.folder).trials[0].architecture() is None


@pytest.mark.parametrize("phase", ["3", "7", "-1", "0.5", "", "nan"])
def test_a_phase_that_there_is_none(planted, phase):
    path = planted.folder / "runs.csv"
    header, first, *rest = path.read_text().splitlines()
    fields = first.split(",")
    fields[header.split(",").index("phase")] = phase
    path.write_text("\n".join([header, ",".join(fields), *rest]) + "\n")
    with pytest.raises(InputError, match=r"runs\.csv: line 2: phase: '.*', expected 0, 1 or 2"):
        Run.read(planted.folder)
