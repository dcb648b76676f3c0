import errno
import inspect
import itertools
import json
import os
import re
import string
import subprocess
import sys

import optuna
import pytest
import sqlalchemy

from moe_optuna import InputError
from moe_optuna.search._storage import Journal, hold, open_storage, redact, repair


def filled(folder, trials=3):
    study = optuna.create_study(storage=open_storage(None, folder, workers=1), study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return study


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_a_journal_cut_anywhere_in_its_last_line_is_repaired(tmp_path):
    filled(tmp_path)
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last + 1, len(whole), 7):
        path.write_bytes(whole[:cut])
        study = filled(tmp_path, trials=1)
        assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_noughts_at_the_end_after_a_power_cut_are_removed(tmp_path):
    filled(tmp_path)
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(64) + b"\n")
    assert repair(path) == 65
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"study,trial\n1,2\n", b"\x00\x01\x02", b"[]\n", b'{"format": 1}\n', b"hello"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected an Optuna journal"):
        open_storage(None, tmp_path, workers=1)
    assert path.read_bytes() == content


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    filled(tmp_path)
    path = tmp_path / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"{}\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match="line 5 is not a record"):
        open_storage(None, tmp_path, workers=1)


@pytest.mark.parametrize("written", [0, 20])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch, written):
    study = filled(tmp_path)
    path = tmp_path / "journal.log"
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            study.set_user_attr("x", "y" * written)
    assert path.read_bytes() == before
    study.set_user_attr("x", 1)
    assert filled(tmp_path, trials=1).user_attrs == {"x": 1}


def test_a_lock_that_a_dead_process_left_costs_a_second_not_half_a_minute(tmp_path):
    filled(tmp_path)
    os.symlink(tmp_path / "journal.log", tmp_path / "journal.log.lock")
    assert len(filled(tmp_path, trials=1).trials) == 4


def test_the_journal_is_optunas_own_format(tmp_path):
    filled(tmp_path)
    theirs = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    assert len(optuna.load_study(study_name="s", storage=theirs).trials) == 3
    assert issubclass(Journal, optuna.storages.journal.JournalFileBackend)


def test_sqlite_is_refused_for_several_workers_with_the_reason(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(InputError, match=r"2 workers: SQLite locks the whole file.*expected the journal"):
        open_storage(url, tmp_path, workers=2)
    assert not list(tmp_path.iterdir())
    assert open_storage(url, tmp_path, workers=1)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://eve:s3cret@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1#s3cret@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1?s3cret@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1/s3cret@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1@s3cret@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1@s3cret/@127.0.0.1:1/x",
        "postgresql+psycopg://eve:1@x:s3cret@127.0.0.1:1/x",
        "postgresql:/eve:s3cret@127.0.0.1/x",
        "eve:s3cret@127.0.0.1/x",
        "postgresql+psycopg://eve@127.0.0.1:1/x?password=s3cret&connect_timeout=1",
        "postgresql+psycopg://eve@127.0.0.1:1/x?password=1#s3cret&connect_timeout=1",
        "nonsense://eve:s3cret@host/x",
        "mysql+pymysql://eve:s3cret@127.0.0.1:1/x",
        "s3cret",
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(tmp_path, url):
    with pytest.raises(InputError) as caught:
        open_storage(url, tmp_path, workers=1)
    message = str(caught.value)
    assert "\n" not in message
    assert "s3cret" not in message or url == "s3cret"
    assert "--storage" in message


def test_a_short_password_leaves_the_drivers_words_alone(tmp_path):
    with pytest.raises(InputError, match=r"mysql://u:\*\*\*@h/d: Failed to import DB access module for the specified"):
        open_storage("mysql://u:p@h/d", tmp_path, workers=1)


def test_redact_hides_what_sqlalchemy_takes_for_the_password():
    for sign in set(string.printable) - {"@"}:
        url = f"postgresql://eve:s3{sign}cret@host:5432/d"
        assert sqlalchemy.make_url(url).password == f"s3{sign}cret"
        assert redact(url) == "postgresql://eve:***@host:5432/d"


def test_redact():
    assert redact("postgresql+psycopg://a:b:c@h:5432/d") == "postgresql+psycopg://a:***@h:5432/d"
    assert redact("postgresql://h/d?user=a&PASSWORD=b#f") == "postgresql://h/d?user=a&PASSWORD=***"
    assert redact("postgresql://a@h:5432/d?password=b&x=c") == "postgresql://a@h:5432/d?password=***&x=c"
    assert redact("sqlite:///a.db") == "sqlite:///a.db"


def test_one_search_a_folder_and_the_kernel_frees_it(tmp_path):
    code = (
        "import sys, pathlib; from moe_optuna.search._storage import hold\n"
        "with hold(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"another search runs in it \(process {other.pid}\)"), hold(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with hold(tmp_path):
        pass


def test_every_call_to_a_database_waits_for_its_server(tmp_path):
    """Optuna puts a cache in front of a database; whatever that calls must wait, or a restart ends the search."""
    from optuna.storages import _cached_storage

    from moe_optuna.search._database import Database

    called = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_cached_storage)))
    assert len(called) > 15
    unused = {name for name in called if "heartbeat" in name or "stale" in name}  # of trials without a lease
    assert {name for name in called - unused if not hasattr(getattr(Database, name), "__wrapped__")} == set()


def test_a_server_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError

    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/x.db", tmp_path, workers=1))
    times, connect = itertools.count(), RDBStorage.__init__.__globals__["_create_scoped_session"]

    def away(*arguments, **settings):
        if next(times) % 3 < 2:
            raise OperationalError("select 1", {}, Exception("connection refused"))
        return connect(*arguments, **settings)

    monkeypatch.setitem(RDBStorage.__init__.__globals__, "_create_scoped_session", away)
    monkeypatch.setattr("moe_optuna.search._database.time.sleep", lambda seconds: None)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 1.0)
    assert [trial.value for trial in study.trials] == [1.0]
    assert next(times) > 10
