"""optuna-dashboard on a search: served on loopback, with figures, notes and sortable counts; and guarded."""

import http.client
import json
import threading

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note

from moe_optuna import InputError
from moe_optuna.cli import main
from moe_optuna.report import annotate, dashboard, server
from moe_optuna.report._run import Run

COUNTS = ("flops_per_token", "active_params", "total_params")


@pytest.fixture
def studies(planted):
    """The studies of the planted search, in its journal."""
    run = Run.read(planted.folder)
    storage = JournalStorage(JournalFileBackend(str(planted.folder / "journal.log")))
    made = []
    for name in list(dict.fromkeys(trial.study for trial in run.trials))[1:3]:
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trials(
            [
                create_trial(
                    state=TrialState.COMPLETE,
                    value=trial.loss,
                    params={"compute_density": trial["compute_density"]},
                    distributions={"compute_density": FloatDistribution(6.1, 40)},
                    user_attrs={name: int(trial[name]) for name in COUNTS},
                )
                for trial in run.trials
                if trial.study == name and trial.state == "complete"
            ]
        )
        made.append(study)
    return made


@pytest.fixture
def address(planted, studies):
    """Host and port of a dashboard that serves the search."""
    with server(planted.folder, port=0) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield listening.server_address
        listening.shutdown()
        thread.join()


def get(address, path, headers=None, method="GET"):
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_shows_the_studies_with_sortable_counts(address, studies):
    status, body = get(address, "/api/studies")
    assert status == 200
    listed = {each["study_name"]: each["study_id"] for each in json.loads(body)["study_summaries"]}
    assert set(listed) == {study.study_name for study in studies}
    status, body = get(address, f"/api/studies/{listed[studies[0].study_name]}")
    detail = json.loads(body)
    assert status == 200
    assert len(detail["trials"]) == len(studies[0].trials)
    sortable = {each["key"] for each in detail["union_user_attrs"] if each["sortable"]}
    assert set(COUNTS) <= sortable
    assert get(address, "/dashboard")[0] == 200


def test_figures_and_a_note_stand_at_each_study(planted, address, studies):
    annotate(studies, planted.folder)
    listed = json.loads(get(address, "/api/studies")[1])["study_summaries"]
    number = next(each["study_id"] for each in listed if each["study_name"] == studies[0].study_name)
    detail = json.loads(get(address, f"/api/studies/{number}")[1])
    drawn = {each["id"]: json.loads(each["graph_object"]) for each in detail["plotly_graph_objects"]}
    assert set(drawn) == {"loss-compute_density", "loss-expansion_ratio"}
    assert "near-optimal band, 0.1 %" in [trace["name"] for trace in drawn["loss-compute_density"]["data"]]
    note = detail["note"]["body"]
    fit = Run.read(planted.folder).fit(1, "compute_density", planted.space.budgets[0])
    assert note.startswith("**Phase 1**")
    assert f"| compute_density: {fit.optimum:#.4g} | " in note
    assert f"{fit.band[0]:#.4g} – {fit.band[1]:#.4g}" in note


def test_what_is_written_again_replaces_what_was(planted, studies):
    annotate(studies, planted.folder)
    before = get_note(studies[0])
    (planted.folder / "laws.json").unlink()  # as if the search had gone on and its figures become smaller
    (planted.folder / "blueprint.json").unlink()
    annotate(studies, planted.folder)
    assert 0 < len(get_note(studies[0])) < len(before)
    keys = studies[0]._storage.get_study_system_attrs(studies[0]._study_id)
    ids = {key.split(":")[2] for key in keys if key.startswith("dashboard:plot_data")}
    assert ids == {"loss-compute_density", "loss-expansion_ratio"}


def test_a_study_of_another_search_is_left_alone(planted):
    foreign = optuna.create_study(study_name="foreign")
    annotate([foreign], planted.folder)
    assert get_note(foreign) == ""


def test_requests_from_other_sites_are_refused(address):
    host, port = address
    own = f"{host}:{port}"
    assert get(address, "/api/studies", {"Host": f"localhost:{port}"})[0] == 200
    assert get(address, "/api/studies", {"Host": "evil.example"})[0] == 403
    assert get(address, "/api/studies/0", {"Host": own, "Origin": "http://evil.example"}, "DELETE")[0] == 403
    assert len(json.loads(get(address, "/api/studies")[1])["study_summaries"]) == 2


def test_no_journal_and_a_wrong_one(tmp_path):
    with pytest.raises(InputError, match=r"journal\.log: no such file, expected the journal of a search"):
        server(tmp_path)
    assert not (tmp_path / "journal.log").exists()
    for text in ("nonsense\nnonsense\n", '{"a": 1}\n{"a": 1}\n', "\xff\n"):
        (tmp_path / "journal.log").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"journal\.log: not an Optuna journal"):
            server(tmp_path)


def test_a_storage_of_another_search_is_refused(planted, studies, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wsgiref.simple_server.WSGIServer.serve_forever", lambda self: None)
    missing, other, own = (tmp_path / f"{name}.db" for name in ("missing", "other", "own"))
    optuna.create_study(study_name="other", storage=f"sqlite:///{other}")
    optuna.copy_study(
        from_study_name=studies[0].study_name, from_storage=studies[0]._storage, to_storage=f"sqlite:///{own}"
    )
    for path, says in ((missing, f"--storage sqlite:///{missing}: no such file"), (other, "no study of the search in")):
        with pytest.raises(SystemExit) as stop:
            main(["dashboard", str(planted.folder), "--port", "0", "--storage", f"sqlite:///{path}"])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("--storage") == 1
        assert err.count("\n") == 1
    assert not missing.exists()
    with pytest.raises(SystemExit) as stop:
        main(["dashboard", str(planted.folder), "--port", "0", "--storage", f"sqlite:///{own}"])
    assert stop.value.code == 0
    assert get_note(optuna.load_study(study_name=studies[0].study_name, storage=f"sqlite:///{own}"))


def test_a_storage_before_the_first_training_has_ended(planted, monkeypatch):
    monkeypatch.setattr("wsgiref.simple_server.WSGIServer.serve_forever", lambda self: None)
    for name in ("runs.csv", "laws.json", "blueprint.json"):
        (planted.folder / name).unlink()
    (planted.folder / "journal.log").touch()
    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(InputError, match="no study of the search in"):
        dashboard(planted.folder, port=0, storage=storage)
    optuna.create_study(storage=storage)
    dashboard(planted.folder, port=0, storage=storage)


def test_an_address_that_is_taken_or_wrong(planted, address):
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{address[1]}: cannot be listened on"):
        server(planted.folder, port=address[1])
    with pytest.raises(InputError, match=r"127\.0\.0\.1:99999: cannot be listened on"):
        server(planted.folder, port=99999)


def test_a_folder_that_cannot_be_written_is_shown_as_it_is(planted, studies, monkeypatch, capsys):
    journal = planted.folder / "journal.log"
    before = journal.read_bytes()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    seen = {}

    def serve(listening):
        thread = threading.Thread(target=listening.handle_request)
        thread.start()
        seen["status"], seen["body"] = get(listening.server_address, "/api/studies")
        thread.join()

    monkeypatch.setattr("wsgiref.simple_server.WSGIServer.serve_forever", serve)
    dashboard(planted.folder, port=0)
    assert [each["study_name"] for each in json.loads(seen["body"])["study_summaries"]] == [
        study.study_name for study in studies
    ]
    assert f"note: {planted.folder} cannot be written" in capsys.readouterr().err
    assert journal.read_bytes() == before


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_warns_where_others_can_reach_it(planted, studies, monkeypatch, capsys, host, warned):
    monkeypatch.setattr("wsgiref.simple_server.WSGIServer.serve_forever", lambda self: None)
    dashboard(planted.folder, host=host, port=0)
    assert ("no authentication" in capsys.readouterr().err) == warned
    assert all(get_note(study) for study in studies)
