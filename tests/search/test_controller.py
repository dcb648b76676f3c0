"""The controller on real worker processes; a training is a formula."""

import collections
import contextlib
import itertools
import json
import os
import shutil
import signal

import optuna
import pytest
from instant_trials import loss_of
from optuna.trial import TrialState
from small_phase import ByNumber, SmallPhase, architecture
from small_search import open_study, run

from moe_optuna import BandPruner, InputError
from moe_optuna.search._controller import RETRIES, Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._work import Work


def states(study):
    return [trial.state.name for trial in study.trials]


def expected(trial, compute=1e9):
    """The loss that the trial must have."""
    chosen = architecture(8 * (trial.params["index"] + 1)).to_dict()
    return loss_of({"architecture": chosen, "seed": trial.user_attrs["seed"], "compute": compute})


def test_a_study_is_brought_to_its_trials_with_the_right_losses(tmp_path):
    study = run(tmp_path, trials=25, workers=3)
    assert states(study) == ["COMPLETE"] * 25
    for trial in study.trials:
        assert trial.value == pytest.approx(expected(trial), rel=1e-12)
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.user_attrs["tokens"] == SmallPhase().tokens(architecture(trial.user_attrs["d_model"]))
    assert not list((tmp_path / "checkpoints" / "small").iterdir())
    assert len(run(tmp_path, trials=25).trials) == 25  # there already


def test_one_worker_does_what_study_optimize_does(tmp_path):
    phase = SmallPhase()
    reference = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))

    def objective(trial):
        chosen = phase.suggest(trial)
        return loss_of({"architecture": chosen.to_dict(), "seed": 0, "compute": 1e9})

    reference.optimize(objective, n_trials=30)
    study = run(tmp_path, trials=30, workers=1, settings={"sampler": optuna.samplers.TPESampler(seed=3)})
    assert [trial.params for trial in study.trials] == [trial.params for trial in reference.trials]
    assert [trial.value for trial in study.trials] == pytest.approx([trial.value for trial in reference.trials])


def test_the_pruner_is_obeyed_at_its_step(tmp_path):
    settings = {"pruner": optuna.pruners.ThresholdPruner(upper=3.3, n_warmup_steps=2)}
    study = run(tmp_path, trials=20, settings=settings)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert pruned
    assert complete
    for trial in pruned:
        assert max(trial.intermediate_values) < 4
        assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
    for trial in complete:
        assert all(loss <= 3.3 for step, loss in trial.intermediate_values.items() if step >= 2)


def test_a_repeat_is_never_pruned_also_with_the_searchs_seed(tmp_path):
    """Where no trial has run the recommended architecture to its end, a repeat has the search's own seed."""
    settings = {"pruner": optuna.pruners.ThresholdPruner(upper=0.0)}
    for seed in (0, 1):
        open_study(tmp_path).enqueue_trial({"index": 7}, user_attrs={"seed": seed})
    assert states(run(tmp_path, trials=3, settings=settings)) == ["COMPLETE", "COMPLETE", "PRUNED"]


def test_an_enqueued_trial_keeps_its_seed(tmp_path):
    study = open_study(tmp_path)
    for seed in (5, 6):
        study.enqueue_trial({"index": 7}, user_attrs={"seed": seed})
    study = run(tmp_path, trials=3)
    assert [trial.user_attrs["seed"] for trial in study.trials] == [5, 6, 0]
    assert study.trials[0].value == pytest.approx(expected(study.trials[0]), rel=1e-12)
    assert study.trials[0].value != study.trials[1].value


def test_a_repeat_that_fails_does_not_stop_the_others(tmp_path):
    """Another seed of the architecture may end well, and without it the noise stays unknown."""
    study = open_study(tmp_path)
    for seed in (1, 2, 3):
        study.enqueue_trial({"index": 7}, user_attrs={"seed": seed})
    study = run(tmp_path, trials=2, workers=1, recipe={"unlucky": [1]})
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert [trial.user_attrs["seed"] for trial in study.trials] == [1, 2, 3]


def test_what_two_controllers_enqueued_at_the_same_moment_is_trained_once(tmp_path):
    """The same repeats, with the same seeds: the losses would be equal, and their noise none."""
    study = open_study(tmp_path)
    for seed in (1, 2, 1, 2):
        study.enqueue_trial({"index": 7}, user_attrs={"seed": seed})
    study = run(tmp_path, trials=3)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert [trial.user_attrs["seed"] for trial in complete] == [1, 2, 0]
    assert [trial.state for trial in study.trials[2:4]] == [TrialState.PRUNED] * 2
    assert study.trials[2].user_attrs["infeasible"] == "a repeat with the seed of trial 0"


def test_a_killed_worker_costs_one_attempt_and_the_trial_resumes(tmp_path):
    log = tmp_path / "log"
    study = run(tmp_path, trials=6, recipe={"once": str(tmp_path / "once"), "log": str(log)})
    assert states(study) == ["COMPLETE"] * 6
    trained = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    assert sorted(trained) == sorted(set(trained))  # no step was trained a second time
    assert len(trained) == 24


@pytest.mark.parametrize("owner", ["none", "another", "mine"])
def test_what_another_task_left_in_a_trials_folder_is_not_believed(tmp_path, owner):
    """As where the controller's folder was deleted and a node's was not; only this very task's result is taken up."""
    folder = tmp_path / "checkpoints" / "small" / "00000"
    if owner != "none":
        run(tmp_path, trials=1, workers=1, observer=lambda event: keep(event, folder))
        (tmp_path / "journal.log").unlink()
        folder.parent.mkdir(exist_ok=True)
        (tmp_path / "kept").rename(folder)
        if owner == "another":
            open_study(tmp_path).enqueue_trial({"index": 7}, user_attrs={"seed": 7})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "progress.jsonl").open("a") as file:
        file.write('\n{"report": [1, 9.0]}\n{"result": {"loss": 0.123}}')
    (folder / "state.json").unlink(missing_ok=True)
    (trial,) = run(tmp_path, trials=1, workers=1).trials
    if owner == "mine":
        assert trial.value == 0.123
    else:
        assert trial.value == pytest.approx(expected(trial), rel=1e-12)
        assert max(trial.intermediate_values.values()) < 9


def keep(event, folder):
    """A copy of the trial's folder as it was before the trial was told."""
    if event.kind == "report" and event.fraction == 1.0:
        shutil.copytree(folder, folder.parents[2] / "kept")


def test_a_trial_that_always_kills_its_worker_fails_and_is_not_tried_again(tmp_path):
    study = run(tmp_path, trials=12, widths=4, workers=1, recipe={"killing": [16]})
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(failed) == 1
    assert "SIGKILL" in failed[0].user_attrs["reason"]
    assert f"tried {RETRIES + 1} times" in failed[0].user_attrs["reason"]
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 12
    for trial in study.trials:  # proposed again, it is pruned with the reason, and not trained
        if trial.params["index"] == 1 and trial is not failed[0] and trial.number > failed[0].number:
            assert trial.state == TrialState.PRUNED
            assert trial.user_attrs["infeasible"].startswith("failed before")
            assert not trial.intermediate_values


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"raising": [16]}, "RuntimeError: width 16 does not train"),
        ({"diverging": [16]}, "the loss is nan at report 2"),
        ({"exploding": [16]}, "the loss is inf at report 2"),
        ({"out_of_cuda_memory": [16]}, "OutOfMemoryError: CUDA out of memory"),
        ({"hungry": [16]}, "MemoryError"),
    ],
)
def test_a_failing_architecture_is_recorded_with_its_reason(tmp_path, recipe, reason):
    study = run(tmp_path, trials=8, widths=4, workers=1, recipe=recipe)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["reason"].startswith(reason) for trial in failed] == [True]
    assert failed[0].params == {"index": 1}
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 8


def test_a_loss_spike_is_not_believed_at_once(tmp_path):
    """An architecture near the optimum, its loss tripled at one report: the pruner stops others, not this one."""

    class EightAtLast(ByNumber):
        def sample_independent(self, study, trial, name, distribution):
            return 8 if trial.number == 12 else super().sample_independent(study, trial, name, distribution)

    settings = {"sampler": EightAtLast(), "pruner": BandPruner(probability=0.95)}
    recipe = {"reports": 8, "spiking": [72]}
    *others, spiked = run(tmp_path, trials=13, widths=16, workers=1, recipe=recipe, settings=settings).trials
    assert {trial.state for trial in others} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert spiked.intermediate_values[2] > 2 * spiked.intermediate_values[1]
    assert spiked.state == TrialState.COMPLETE


def test_a_study_in_which_everything_fails_ends(tmp_path):
    with pytest.raises(InputError, match=r"small: \d+ trials failed, the last: RuntimeError: width"):
        run(tmp_path, trials=4, recipe={"raising": list(range(0, 400, 8))})


def test_a_full_disk_stops_the_search_and_loses_nothing(tmp_path):
    with pytest.raises(InputError, match=f"No space left on device; tried {RETRIES + 1} times; the same command"):
        run(tmp_path, trials=20, widths=4, recipe={"full_disk": [16]})
    before = open_study(tmp_path).trials
    assert {trial.state for trial in before} <= {TrialState.COMPLETE, TrialState.WAITING}
    after = run(tmp_path, trials=20, widths=4).trials  # somebody made room
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 20
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]


def test_a_data_file_that_goes_missing_stops_the_search_and_loses_nothing(tmp_path):
    """Whoever has it open trains on; a worker that has to open it anew cannot."""
    data = tmp_path / "corpus.bin"
    data.write_bytes(bytes(1000))
    recipe = {"mapped": str(data), "seconds": 0.01}

    def lose(controller, executor):
        def observe(event):
            if event.kind == "report" and event.finished >= 5 and data.exists():
                data.unlink()
                for process in executor.processes:
                    os.kill(process, signal.SIGKILL)

        controller.observer = observe

    with pytest.raises(InputError, match=f"FileNotFoundError: .*corpus.bin.*; tried {RETRIES + 1} times; the same"):
        run(tmp_path, trials=12, recipe=recipe, text="1000", interrupt=lose)
    assert {trial.state for trial in open_study(tmp_path).trials} == {TrialState.COMPLETE, TrialState.WAITING}
    data.write_bytes(bytes(1000))
    assert states(run(tmp_path, trials=12, recipe=recipe, text="1000")) == ["COMPLETE"] * 12


def test_a_data_file_that_is_cut_while_it_is_read_stops_the_search_and_loses_nothing(tmp_path):
    data = tmp_path / "corpus.bin"
    data.write_bytes(bytes(100_000))

    def observe(event):
        if event.kind == "end" and event.finished == 5:
            os.truncate(data, 10)

    settings = {"recipe": {"mapped": str(data), "seconds": 0.01}, "text": "100000"}
    with pytest.raises(InputError, match="the text has changed"):  # after a bus error, which is not the trial's fault
        run(tmp_path, trials=40, observer=observe, **settings)
    before = open_study(tmp_path).trials
    assert {trial.state for trial in before} == {TrialState.COMPLETE, TrialState.WAITING}
    data.write_bytes(bytes(100_000))  # put right again
    assert states(run(tmp_path, trials=12, **settings)) == ["COMPLETE"] * 12


def test_data_that_is_missing_stops_the_search_before_a_trial(tmp_path):
    def prepare(controller, executor):
        controller.prepare({"missing": "corpus.bin"})

    with pytest.raises(InputError, match=r"corpus.bin"):
        run(tmp_path, interrupt=prepare)
    assert open_study(tmp_path).trials == []


@pytest.mark.parametrize("deaths", [RETRIES, RETRIES + 1])
def test_a_worker_that_dies_over_the_text_is_followed_by_another(tmp_path, deaths):
    recipe, found = {"deadly": str(tmp_path / "deadly"), "deaths": deaths}, []
    outcome = contextlib.nullcontext()
    if deaths > RETRIES:
        outcome = pytest.raises(InputError, match=f"SIGKILL .*; tried {deaths} times; the same command goes on")
    with outcome:
        run(tmp_path, trials=1, interrupt=lambda controller, executor: found.append(controller.prepare(recipe)))
    assert found == [{"content": "text"}] * (deaths <= RETRIES)


def test_a_stop_saves_gives_back_and_resumes_where_it_was(tmp_path):
    log = tmp_path / "log"
    recipe = {"reports": 50, "seconds": 0.005, "log": str(log)}

    def stop_soon(controller, executor):
        def observe(event):
            controller.stopping = event.kind == "report" and event.fraction > 0.3 and event.trial >= 3

        controller.observer = observe

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, trials=6, recipe=recipe, interrupt=stop_soon)
    before = open_study(tmp_path).trials
    assert TrialState.RUNNING not in {trial.state for trial in before}
    study = run(tmp_path, trials=6, recipe=recipe)
    assert states(study) == ["COMPLETE"] * 6
    trained = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    assert len(trained) == len(set(trained)) == 300


def test_a_trial_that_is_pruned_as_the_search_stops_has_its_tokens(tmp_path):
    def stop(controller, executor):
        def observe(event):
            controller.stopping = event.kind == "report"

        controller.observer = observe

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, workers=1, settings={"pruner": optuna.pruners.ThresholdPruner(upper=0.0)}, interrupt=stop)
    (trial,) = open_study(tmp_path).trials
    assert (trial.state, list(trial.intermediate_values)) == (TrialState.PRUNED, [1])
    assert trial.user_attrs["tokens"] == SmallPhase().tokens(architecture(trial.user_attrs["d_model"])) // 4


def test_no_trial_is_lost_while_workers_are_killed(tmp_path):
    """The soak of a thousand trials in small; benchmarks/controller.py runs the whole."""
    killed = collections.Counter()

    def massacre(controller, executor):
        reports = itertools.count(1)

        def observe(event):
            if event.kind != "report" or next(reports) % 9:
                return
            for worker, trained in controller._running.items():
                # One more would fail it, and a worker killed before it is ready would count as one that cannot start.
                if trained.begun and killed[trained.trial.number] < RETRIES:
                    killed[trained.trial.number] += 1
                    os.kill(executor.processes[worker], signal.SIGKILL)
                    return

        controller.observer = observe

    study = run(tmp_path, trials=40, workers=3, interrupt=massacre)
    assert killed.total() >= 15
    assert states(study) == ["COMPLETE"] * 40
    assert all(trial.value == pytest.approx(expected(trial), rel=1e-12) for trial in study.trials)


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        ([{"reports": [[1, 3.0]]}, {"report": [2, 2.9]}, {"interrupted": {}}], [{"stop"}]),
        ([{"reports": []}, {"died": "SIGKILL"}], []),
    ],
)
def test_a_trial_that_another_controller_finished_is_dropped_and_the_search_goes_on(tmp_path, messages, answers):
    """This machine slept and was taken for dead; its worker goes on with what another has told the result of."""
    study = optuna.create_study()

    class Sleeper:
        sent, task = [], None

        def available(self):
            return [] if self.task else [0]

        def send(self, worker, message):
            self.sent.append(message)
            self.task = message.get("run", self.task)

        def wait(self, seconds):
            task, first = self.task, not study.trials[0].state.is_finished()
            self.task = None
            if not first:
                return [(0, {"result": {"loss": loss_of(task)}})]
            study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.WAITING)
            again = study.ask()
            Leases(exclusive=False).take(study, again._trial_id)
            study.tell(again, 2.5)
            return [(0, message) for message in messages]

    executor = Sleeper()
    Controller(executor, Leases(exclusive=False)).run(Work(study, SmallPhase(), 2, {"reports": 4}, "", 0, tmp_path))
    assert [set(message) for message in executor.sent] == [{"run"}, *answers, {"run"}]
    assert states(study) == ["COMPLETE"] * 2
    assert study.trials[0].value == 2.5
    assert study.trials[0].intermediate_values == {}


def test_workers_end_with_their_controller(tmp_path):
    pids = []
    run(tmp_path, trials=4, interrupt=lambda controller, executor: pids.extend(executor.processes))
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    import small_search

    monkeypatch.setattr(small_search, "LocalExecutor", _missing_module(small_search.LocalExecutor))
    with pytest.raises(InputError, match=r"worker-0.log: a worker cannot start: .*No module named 'absent_trials'"):
        run(tmp_path, workers=1)


def _missing_module(executor):
    return lambda slots, **settings: executor(slots, **{**settings, "module": "absent_trials"})
