"""The whole ladder on real processes: with instant trainings, killed and resumed, and once with real ones."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import instant_trials
import optuna
import pytest
from here import Here
from tiny_space import tiny_space

import moe_optuna
from moe_optuna import InputError, MoEArchitecture, Triad
from moe_optuna.architecture import DIMENSIONS
from moe_optuna.cli import main
from moe_optuna.files import write_whole
from moe_optuna.laws import LadderLaws
from moe_optuna.search import ladder, plan, search
from moe_optuna.search._runs import COLUMNS
from moe_optuna.search._storage import open_storage
from moe_optuna.space import SearchSpace
from moe_optuna.training import rules

HERE = Path(__file__).parent
STATES = ("complete", "pruned", "failed")
FILES = ("runs.csv", "laws.json", "blueprint.json")


def instant(folder, **settings):
    return search(tiny_space(), out=folder, trial="instant_trials", **{"workers": 1, **settings})


def with_vocabulary(size):
    return tiny_space(dimensions=tiny_space().to_dict()["dimensions"] | {"vocab_size": size})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    events = []
    return folder, instant(folder, observer=events.append), events


def rows_of(folder):
    with (folder / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def counted(row):
    return MoEArchitecture(**{name: int(row[name]) for name in DIMENSIONS})


def test_every_row_is_inside_its_triad_when_recounted(finished):
    rows = rows_of(finished[0])
    assert list(rows[0]) == list(COLUMNS)
    for row in rows:
        architecture = counted(row)
        triad = Triad(
            *(float(row[f"triad_{name}"]) for name in ("flops_per_token", "active_params", "total_params")),
            tiny_space().tolerances,
        )
        assert triad.admits(architecture), row
        for name in ("flops_per_token", "active_params", "total_params"):
            assert int(row[name]) == getattr(architecture.non_embedding, name)
            assert int(row[f"full_{name}"]) == getattr(architecture.full, name)
        spent = int(row["flops_per_token"]) * float(row["tokens"])
        if row["state"] == "complete":
            assert spent == pytest.approx(float(row["compute"]), rel=0.01)
        else:
            assert row["state"] == "pruned"
            assert spent < 0.9 * float(row["compute"])
            assert 0 < float(row["forecast"]) < float(row["loss"])  # losses fall
            assert 0 < float(row["forecast_sd"]) < 0.1
        assert (row["forecast"] == "") == (row["forecast_sd"] == "") == (row["state"] == "complete")
    assert {row["state"] for row in rows} == {"complete", "pruned"}


def test_the_studies_of_a_ladder(finished):
    folder, result, _ = finished
    storage = open_storage(None, folder, workers=1)
    names = [f"tiny/{compute}/phase-{phase}" for phase in range(3) for compute in ("1e+09", "3e+09")]
    assert list(result.studies) == names
    for name in names:
        study = optuna.load_study(study_name=name, storage=storage)
        attributes = study.user_attrs
        assert attributes["phase"] == int(name[-1])
        assert attributes["compute"] == float(name.split("/")[1])
        assert json.loads(attributes["space"]) == json.loads(json.dumps(tiny_space().to_dict()))
        smaller = name.replace("3e+09", "1e+09")
        assert attributes["parents"] == ([smaller] if smaller != name else [])
        for trial in study.trials:
            scalars = [value for value in trial.user_attrs.values() if isinstance(value, (int, float))]
            assert len(scalars) <= 15
    two = optuna.load_study(study_name="tiny/3e+09/phase-2", storage=storage)
    repeat = two.trials[-1]
    assert repeat.user_attrs["seed"] == 1
    assert any(trial.params == repeat.params for trial in two.trials[:-1])
    triad = json.loads(two.user_attrs["triad"])
    assert {"flops_per_token", "active_params", "total_params", "tolerances"} <= triad.keys()


@pytest.mark.filterwarnings("ignore:Fixed parameter")  # Optuna's, of the second
@pytest.mark.parametrize("width", [0.9, 7.0])
def test_what_somebody_else_enqueues_is_no_repeat(tmp_path, width):
    """Also where it means no architecture."""
    name, enqueued = "tiny/3e+09/phase-2", []

    def observe(event):
        if event.kind == "study" and (event.compute, event.phase) == (3e9, 2) and not enqueued:
            study = optuna.load_study(study_name=name, storage=open_storage(None, tmp_path, workers=1))
            study.enqueue_trial({"width": width, "n_experts": 8})
            enqueued.append(study)

    instant(tmp_path, observer=observe)
    (study,) = enqueued
    repeat = study.trials[-1]
    assert repeat.user_attrs["seed"] == 1
    assert repeat.params == study.user_attrs["repeats"]["params"]
    assert repeat.params["width"] != width
    assert any(trial.params == repeat.params and trial.user_attrs["seed"] == 0 for trial in study.trials)


def test_the_largest_budget_is_predicted_before_its_first_trial(finished):
    folder, result, _ = finished
    lines = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    predicted = next(i for i, line in enumerate(lines) if "prediction" in line.get("user_attr", {}))
    study = lines[predicted]["study_id"]
    first = next(i for i, line in enumerate(lines) if line["op_code"] == 4 and line["study_id"] == study)
    assert predicted < first
    recorded = json.loads(lines[predicted]["user_attr"]["prediction"])
    held_out = result.to_dict()["held_out"]
    assert held_out["recorded"] == recorded
    assert held_out["compute"] == recorded["compute"] == 3e9
    assert math.isclose(held_out["outcome"]["loss"], recorded["predicted_loss"], rel_tol=0.2)


def test_what_a_search_leaves_behind(finished):
    folder, result, events = finished
    payload = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert payload["trials"] == {"failed": 0, **Counter(row["state"] for row in rows_of(folder))}
    blueprint = json.loads((folder / "blueprint.json").read_text())
    assert blueprint["format"] == 1
    assert blueprint["compute"] == 3e10
    keys = ("flops_per_token", "tokens", "triad", "architecture", "band", "alternatives", "predicted_loss", "source")
    assert set(keys) <= blueprint.keys()
    MoEArchitecture.from_dict(blueprint["architecture"])
    laws = json.loads((folder / "laws.json").read_text())
    assert laws["format"] == 1
    assert laws["space"] == "tiny"
    assert events[-1].kind == "done"
    left = [event.remaining for event in events if event.remaining is not None]
    assert left[-1] < max(left)


def test_the_same_command_again_trains_nothing(finished):
    folder, _, _ = finished
    before = {name: (folder / name).read_bytes() for name in FILES}
    events = []
    instant(folder, observer=events.append)
    assert not [event for event in events if event.kind == "start"]
    assert {name: (folder / name).read_bytes() for name in FILES} == before


def test_killed_again_and_again_it_ends_with_the_same_blueprint(finished, tmp_path):
    for ends in (3, 9):
        process = subprocess.Popen(
            [sys.executable, str(HERE / "tiny_search.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(ends):
            while not (line := process.stdout.readline()).startswith("end"):
                assert line
        process.kill()
        process.communicate()
    instant(tmp_path)
    volatile = {"seconds"}
    for ours, theirs in zip(rows_of(tmp_path), rows_of(finished[0]), strict=True):
        assert {k: v for k, v in ours.items() if k not in volatile} == {
            k: v for k, v in theirs.items() if k not in volatile
        }
    assert (tmp_path / "blueprint.json").read_bytes() == (finished[0] / "blueprint.json").read_bytes()


def test_a_disk_that_fills_up_at_the_end_is_one_line_and_resumes(finished, tmp_path, monkeypatch):
    def full(path, text):
        if path.name == "laws.json":
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, text)

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "laws.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "write_whole", full)
        with pytest.raises(InputError, match=r"laws.json: No space left on device; nothing that was finished is lost"):
            instant(folder)
    assert not (folder / "laws.json").exists()
    instant(folder)
    assert (folder / "laws.json").read_bytes() == (finished[0] / "laws.json").read_bytes()


def test_another_space_seed_or_storage_for_the_same_folder_is_refused(finished, tmp_path):
    folder = finished[0]
    with pytest.raises(InputError, match="another space that is also called 'tiny'"):
        search(tiny_space(target=4e10), out=folder, trial="instant_trials", workers=1)
    with pytest.raises(InputError, match=r"--seed: 7, expected 0"):
        instant(folder, seed=7)
    before = (folder / "runs.csv").read_bytes()
    with pytest.raises(InputError, match="holds the search of tiny; expected another folder"):
        search(tiny_space(name="other"), out=folder, trial="instant_trials", workers=1)
    # Another storage knows nothing of the folder's search, nor would what is found there be its own.
    with pytest.raises(InputError, match="not in this storage"):
        search(tiny_space(), out=folder, trial="instant_trials", workers=1, storage=f"sqlite:///{tmp_path}/other.db")
    (tmp_path / "runs.csv").write_bytes(before)
    with pytest.raises(InputError, match="not in this storage"):
        search(tiny_space(), out=tmp_path, trial="instant_trials", workers=1)
    assert (folder / "runs.csv").read_bytes() == (tmp_path / "runs.csv").read_bytes() == before
    assert not (tmp_path / "journal.log").exists()  # which would look like that of a search
    assert SearchSpace.load(folder / "space.toml") == tiny_space()


def test_the_laws_of_a_search_find_its_space(finished, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--compute", "3e10", "--laws", str(finished[0] / "laws.json"), "--json"])
    assert stop.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["architecture"] == finished[1].blueprint.architecture.to_dict()
    laws = LadderLaws.load(finished[0] / "laws.json")
    with pytest.raises(InputError, match="space: none, expected that of the laws, tiny"):
        plan(3e10, laws=laws)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "rya"}, r"--executor: 'rya', expected local or ray; did you mean 'ray'\?"),
        ({"ray_address": "auto"}, "--ray-address: needs --executor ray"),
        ({"workers": 0}, "--workers: 0, expected an integer of at least 1"),
        ({"workers": "2"}, "--workers: '2', expected an integer of at least 1"),
        ({"workers": 0, "executor": "ray"}, "--workers: 0, expected an integer of at least 1"),
        ({"devices_per_trial": 0, "executor": "ray"}, "--devices-per-trial: 0, expected an integer of at least 1"),
        ({"seed": 1.5}, "--seed: 1.5, expected an integer of at least 0"),
        ({"seed": 2**31}, "--seed: 2147483648, expected 0 to 2147483647"),
        ({"workers": -1, "space": tiny_space(target=1e20)}, "--workers: -1"),  # what costs nothing comes first
        ({"workers": 2, "storage": "sqlite:///x.db"}, "SQLite locks the whole file"),
        ({"space": "cpuu"}, "no such search space"),
        ({"space": Path("mine.toml")}, "^mine.toml: No such file"),
        ({"space": {"name": "mine"}}, "^space: a dict, expected a search space, its name or a path"),
        ({"space": tiny_space(budgets=[1.5, 3e9])}, "1.5 FLOPs"),
        ({"space": tiny_space(budgets=[1e9, 1e18], target=1e20)}, r"1e\+18 FLOPs"),
        ({"space": tiny_space(target=1e20)}, r"1e\+20 FLOPs"),
        (
            {"space": tiny_space(training={"data": "/no/such/text"})},
            "'/no/such/text', expected 'docs', 'python' or an existing",
        ),
        ({"space": tiny_space(training={"data": "/no/such.bin"})}, "/no/such.bin: no such file"),
        (
            {"space": tiny_space(training={"vocabulary": "no.json"})},
            "vocabulary: 'no.json', expected 'bytes', 'bpe-<size>' or a",
        ),
        (
            {"space": with_vocabulary(255)},
            r"tiny: \[dimensions\] vocab_size: 255, expected at least the text's 256 token ids",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, settings, message):
    arguments = {"space": tiny_space(), "workers": 1, "out": tmp_path / "out", **settings}
    with pytest.raises(InputError, match=message):
        search(arguments.pop("space"), **arguments)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_trainings_by_another_rule_are_not_mixed(tmp_path, monkeypatch):
    """Another version's rate, or memory of the second moment, moves losses by more than the band is wide."""
    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    found = instant(tmp_path)
    for change in ({"_ANCHOR": 2e11}, {"_beta2": lambda batch: 0.95}):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(rules, name, value)
            with pytest.raises(InputError, match=r"trainings by another rule, which differs in .*learning_rate"):
                instant(tmp_path)
    assert instant(tmp_path).to_dict() == found.to_dict()


def test_a_text_that_does_not_fit_is_told_before_anything_is_recorded(tmp_path, monkeypatch):
    """Found when a worker reads the text: what the message asks for can be changed in the same folder."""
    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    with monkeypatch.context() as patch:
        patch.setattr(instant_trials, "prepare", lambda recipe: {"content": "text", "vocab_size": 300})
        with pytest.raises(InputError, match=r"\[dimensions\] vocab_size: 256, expected at least the text's 300 token"):
            instant(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"lock", "logs"}
    search(with_vocabulary(300), out=tmp_path, trial="instant_trials", workers=1)


def test_a_worker_with_another_working_directory_finds_the_folder(tmp_path, monkeypatch):
    """As those on the nodes of a cluster; what is finished is gone from there."""
    told = []

    class Elsewhere(Here):
        def send(self, worker, message):
            told.extend(filter(None, [message.get("run", {}).get("checkpoint")]))
            super().send(worker, message)

    monkeypatch.setattr(ladder, "LocalExecutor", Elsewhere)
    monkeypatch.chdir(tmp_path)
    space = tiny_space(search={"zero": 0, "one": 3, "two": 0, "repeats": 0}, budgets=[1e9])
    search(space, out="mine", trial="instant_trials", workers=1)
    assert {Path(folder).parent for folder in told} == {tmp_path / "mine" / "checkpoints" / "tiny_1e+09_phase-1"}
    assert not any(Path(folder).exists() for folder in told)


@pytest.mark.parametrize(
    ("deleted", "name"),
    [("tiny/1e+09/phase-1", None), ("tiny/3e+09/phase-1", None), ("tiny/3e+09/phase-1", "other.db")],
    ids=["parent", "running", "sqlite"],
)
def test_a_study_that_is_deleted_meanwhile_is_one_line_and_made_again(tmp_path, monkeypatch, deleted, name):
    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    url = name and f"sqlite:///{tmp_path / name}"
    space = tiny_space(search={"zero": 0, "one": 3, "two": 0, "repeats": 0})
    begun, again = [], []

    def delete(event):
        begun.extend([event] if event.kind == "start" else [])
        if event.kind == "report" and len(begun) == 4:  # the second budget's first
            begun.append(event)
            optuna.delete_study(study_name=deleted, storage=open_storage(url, tmp_path, workers=1))

    with pytest.raises(InputError, match=f"^{re.escape(deleted)}: was deleted while the search ran; the same command"):
        search(space, out=tmp_path, workers=1, trial="instant_trials", storage=url, observer=delete)
    result = search(space, out=tmp_path, workers=1, trial="instant_trials", storage=url, observer=again.append)
    assert sum(result.trials.values()) == 6
    assert sum(event.kind == "start" for event in again if f"{event.compute:.3g}" in deleted) == 3


def test_another_missing_key_is_a_fault_of_the_program(tmp_path, monkeypatch):
    def fail(event):
        if event.kind == "report":
            raise KeyError("Record does not exist.")

    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    with pytest.raises(KeyError):
        instant(tmp_path, observer=fail)


@pytest.mark.parametrize("name", ["lock", "journal.log", "logs"])
def test_a_folder_whose_files_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir() if name != "logs" else (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"cannot be written .Is a directory|not a file, expected|logs: File exists"):
        instant(tmp_path)


def test_an_unknown_key_of_the_training_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"tiny: \[training\]: unknown key 'scheduel'; did you mean 'schedule'"):
        search(tiny_space(training={"scheduel": "wsd"}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_real_ladder(tmp_path):
    """Real trainings of a second each: the pieces fit."""
    space = tiny_space(search={"zero": 0, "one": 3, "two": 0, "repeats": 0}, budgets=[3e8, 1e9])
    result = moe_optuna.search(space, out=tmp_path, workers=2)
    rows = rows_of(tmp_path)
    assert len(rows) == sum(result.trials.values()) == 6
    for row in rows:
        if row["state"] == "complete":
            assert 2 < float(row["loss"]) < 6
            assert float(row["bits_per_byte"]) == pytest.approx(float(row["loss"]) / math.log(2), rel=0.01)
    assert result.to_dict()["blueprint"]["compute"] == 3e10
