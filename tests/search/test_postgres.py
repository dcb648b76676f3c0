"""Several controllers on one study over a real PostgreSQL server."""

import threading
import time

import optuna
import pytest
from small_search import open_study, run, start
from test_controller import expected, states
from test_faults import lines_until

from moe_optuna.search._storage import open_storage

RECIPE = {"reports": 6, "seconds": 0.02}


@pytest.fixture
def url(postgres, request):
    return postgres.create(request.node.name.split("[")[0])


def test_two_controllers_share_a_study_and_one_is_killed(tmp_path, url):
    settings = {"trials": 24, "recipe": RECIPE, "storage": url, "workers": 1}
    first, second = start(tmp_path, **settings), start(tmp_path, **settings)
    lines_until(first, ends=2)
    lines_until(second, ends=2)
    first.kill()
    first.communicate()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    study = open_study(tmp_path, url)
    assert set(states(study)) == {"COMPLETE"}
    assert 24 <= len(study.trials) <= 25  # both may have asked for the last one
    assert [trial.value for trial in study.trials] == pytest.approx([expected(trial) for trial in study.trials])
    assert len({trial.number for trial in study.trials}) == len(study.trials)


def test_a_restart_of_the_server_is_waited_for(tmp_path, postgres, url):
    away = threading.Event()

    def restart():
        postgres.stop()
        away.set()
        time.sleep(0.5)
        postgres.start()

    def observe(event):
        if event.kind == "end" and event.finished == 4 and not away.is_set():
            thread = threading.Thread(target=restart)
            thread.start()
            away.wait(20)

    study = run(tmp_path, trials=12, recipe=RECIPE, storage=url, observer=observe)
    assert away.is_set()
    assert set(states(study)) == {"COMPLETE"}
    assert 12 <= len(study.trials) <= 13  # one may have been made when the server could no longer say so
    assert [trial.value for trial in study.trials] == pytest.approx([expected(trial) for trial in study.trials])


def test_long_attributes_and_a_whole_study_survive(tmp_path, url):
    study = optuna.create_study(storage=open_storage(url, tmp_path, workers=8), study_name="s")
    study.set_user_attr("space", "x" * 20_000)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    again = optuna.load_study(storage=open_storage(url, tmp_path, workers=8), study_name="s")
    assert again.user_attrs["space"] == "x" * 20_000
    assert len(again.trials) == 3
