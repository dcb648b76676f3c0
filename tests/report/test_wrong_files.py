"""Files that were edited or damaged: a report, or one line that names the file; never a traceback."""

import csv
import json
import shutil
import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moe_optuna import InputError
from moe_optuna.report import figures
from moe_optuna.report._answer import answer
from moe_optuna.report._page import sections
from moe_optuna.report._run import Run

ODD = st.sampled_from([None, "x", -1, 0, 1e308, float("nan"), float("inf"), [], {}, [1], True, "<b>", -1e300])


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """A copy of the finished search that the tests below damage and repair."""
    return shutil.copytree(finished.folder, tmp_path_factory.mktemp("damaged") / "run")


def places(data, path=()):
    """Every place in nested plain data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))
        yield (*path, key)


def report(folder):
    """All that a report draws and writes, without plotly's own megabytes."""
    run = Run.read(folder)
    drawn = {name: json.loads(figure.to_json()) for name, figure in figures(run).items()}
    for section in (answer, sections.alternatives, sections.method, sections.reproduce, sections.lead):
        section(run)
    sections.sure(run, drawn)


def check(folder, finished, name):
    message = name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of laws that are absurd but well-formed
            report(folder)
    except InputError as error:
        message = str(error)
    finally:
        shutil.copy(finished.folder / name, folder / name)
    assert name in message
    assert "\n" not in message


SETTINGS = settings(
    max_examples=8,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("name", ["laws.json", "blueprint.json"])
@SETTINGS
@given(choose=st.randoms(use_true_random=False), odd=ODD)
def test_a_damaged_document(folder, finished, name, choose, odd):
    data = json.loads((folder / name).read_text())
    *path, last = choose.choice(list(places(data)))
    inner = data
    for key in path:
        inner = inner[key]
    inner[last] = odd
    (folder / name).write_text(json.dumps(data))
    check(folder, finished, name)


@SETTINGS
@given(
    choose=st.randoms(use_true_random=False), odd=st.sampled_from(["", "x", "-1", "0", "1e308", "nan", "-inf", "1.5"])
)
def test_a_damaged_row(folder, finished, choose, odd):
    with (folder / "runs.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    row = choose.choice(rows)
    row[choose.randrange(len(row))] = odd
    with (folder / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    check(folder, finished, "runs.csv")


@SETTINGS
@given(choose=st.randoms(use_true_random=False), name=st.sampled_from(["runs.csv", "laws.json", "blueprint.json"]))
def test_a_truncated_file(folder, finished, choose, name):
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text[: choose.randrange(len(text))])
    check(folder, finished, name)
