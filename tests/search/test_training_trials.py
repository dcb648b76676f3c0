"""The trial functions of real searches: a real training on a worker, interrupted, and as a study's objective."""

import math
import os
import resource
import signal
import time

import optuna
import pytest
from tiny_space import tiny_space

import moe_optuna.training
from moe_optuna import LightningObjective, TriadSampler
from moe_optuna.errors import InputError
from moe_optuna.search._local import LocalExecutor
from moe_optuna.search._slots import Slot
from moe_optuna.training import Corpus, Recipe, train

SPACE = tiny_space(training={"batch_tokens": 512, "reports": 4, "report_windows": 4, "final_windows": 16})


def task(phase, folder, index=3):
    architecture = phase.lattice[index]
    return {
        "architecture": architecture.to_dict(),
        "compute": phase.compute,
        "tokens": phase.tokens(architecture),
        "recipe": Recipe.from_table(SPACE.training).to_dict(),
        "text": Corpus.prepare(Recipe.from_table(SPACE.training)).origin["content"],
        "seed": 3,
        "checkpoint": str(folder),
    }


def talk(executor, *, go=lambda message: None, timeout=120):
    """Answer reports until the worker says something else; all reports, and that."""
    reports, deadline = [], time.monotonic() + timeout
    while time.monotonic() < deadline:
        for _, message in executor.wait(1.0):
            if "report" in message:
                reports.append(tuple(message["report"]))
                go(message)
                executor.send(0, {"go": True})
            elif "reports" not in message:
                return reports, message
    raise TimeoutError


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    slot, logs = Slot(0, (), (), 1), tmp_path_factory.mktemp("logs")
    running = LocalExecutor([slot], module="moe_optuna.search._trial", logs=logs)
    yield running
    running.close(5.0)


@pytest.fixture(scope="module")
def phase():
    return SPACE.phase_one(1e9)


def test_a_training_on_a_worker_is_the_training_here_also_when_interrupted(executor, phase, tmp_path):
    whole = task(phase, tmp_path / "whole")
    executor.send(0, {"run": whole})
    reports, end = talk(executor)
    here = train(
        phase.lattice[3],
        compute=phase.compute,
        tokens=phase.tokens(phase.lattice[3]),
        recipe=Recipe.from_table(SPACE.training),
        seed=3,
        threads=1,
    )
    assert [index for index, _ in reports] == [1, 2, 3, 4]
    assert [loss for _, loss in reports] == pytest.approx([loss for _, loss in here.curve], rel=1e-6)
    assert end["result"]["loss"] == pytest.approx(here.loss, rel=1e-6)

    parts = task(phase, tmp_path / "parts")
    executor.send(0, {"run": parts})
    before, end = talk(executor, go=lambda message: os.kill(executor.processes[0], signal.SIGTERM))
    assert end["interrupted"] is True
    assert len(before) < 4
    executor.send(0, {"run": parts})
    after, end = talk(executor)
    assert sorted({*before, *after}) == reports  # the same losses, to the last bit
    assert end["result"]["loss"] == reports[-1][1]
    assert end["result"]["stopped"] is False


def test_a_full_disk_is_not_the_architectures_fault(executor, phase, tmp_path):
    """No file may grow, the worker's log included: the failure is told as the system's, and the worker lives on."""
    mine, worker = task(phase, tmp_path / "full"), executor.processes[0]
    executor.send(0, {"run": mine | {"text": ""}})
    assert talk(executor)[1]["failed"]["kind"] == "input"  # it is up, and has the text
    limits = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    log = executor._log(executor._slots[0])
    with log.open("ab") as file:
        file.write(b"\n" * 20_000)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (20_000, limits[1]))
    executor.send(0, {"run": mine})
    reports, end = talk(executor)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
    assert end["failed"]["kind"] == "system"
    assert "File too large" in end["failed"]["reason"]
    executor.send(0, {"run": mine})
    assert talk(executor)[0][: len(reports)] == reports
    assert executor.processes[0] == worker


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_trial_on_two_devices_stops_on_both_at_the_same_report(executor, phase, tmp_path, strategy):
    """Two processes on CPUs: rank 0 asks, both stop, nothing hangs; the worker goes on, also with the same trial."""
    both = task(phase, tmp_path / "both") | {"devices": 2, "device": "cpu"}
    single = task(phase, tmp_path / "alone")
    both["recipe"]["strategy"] = strategy
    for each in (both, single):  # the rule's, at so large a batch, lets rounding change a token's expert at once
        each["recipe"]["learning_rate"] = 3e-3
    executor.send(0, {"run": both})
    answers = iter([True, False])
    reports, end = [], None
    while end is None:
        for _, message in executor.wait(1.0):
            if "report" in message:
                reports.append(tuple(message["report"]))
                executor.send(0, {"go": next(answers)})
            elif "reports" not in message:
                end = message
    assert end["result"]["stopped"] is True
    assert [loss for _, loss in reports] == [loss for _, loss in end["result"]["curve"]]
    executor.send(0, {"run": single})
    alone, end = talk(executor)
    assert end["result"]["stopped"] is False
    executor.send(0, {"run": both})
    rest, end = talk(executor)
    assert end["result"]["stopped"] is False
    # The same sequences a step, summed in another order: the single process' losses.
    one, other = ([loss for _, loss in found] for found in (alone, reports + rest))
    assert one == pytest.approx(other, rel=2e-5)


def test_a_text_that_has_changed_is_refused(executor, phase, tmp_path):
    executor.send(0, {"run": task(phase, tmp_path) | {"text": "0" * 64}})
    _, end = talk(executor)
    assert end["failed"]["kind"] == "input"
    assert "docs: the text has changed" in end["failed"]["reason"]


def test_the_objective_in_a_study_of_ones_own(phase):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0), pruner=optuna.pruners.NopPruner())
    study.optimize(LightningObjective(phase, seed=4), n_trials=2)
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert 2 < trial.value < 6
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.user_attrs["seed"] == 4
        assert trial.user_attrs["tokens"] == pytest.approx(
            phase.tokens(phase.lattice[phase.index(trial.params)]), rel=0.1
        )
        assert trial.user_attrs["bits_per_byte"] == pytest.approx(trial.value / math.log(2), rel=0.01)


@pytest.mark.parametrize(
    ("error", "marked"), [(KeyboardInterrupt(), True), (OSError(28, "No space left"), True), (MemoryError(), False)]
)
def test_the_objective_tells_what_is_not_the_architectures_doing(phase, monkeypatch, error, marked):
    def fail(*args, **how):
        raise error

    monkeypatch.setattr(moe_optuna.training, "train", fail)
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0))
    with pytest.raises(type(error)):
        study.optimize(LightningObjective(phase), n_trials=1)
    assert study.trials[0].state == optuna.trial.TrialState.FAIL
    assert study.trials[0].user_attrs.get("interrupted", False) == marked


def test_the_objective_prunes(phase):
    study = optuna.create_study(sampler=TriadSampler(phase, seed=0), pruner=optuna.pruners.ThresholdPruner(upper=0.1))
    study.optimize(LightningObjective(phase), n_trials=1)
    assert study.trials[0].state == optuna.trial.TrialState.PRUNED
    assert list(study.trials[0].intermediate_values) == [1]


@pytest.mark.parametrize(
    ("training", "says"),
    [({"reports": 3.5}, "reports: 3.5"), ({"datta": "python"}, "did you mean"), ({"data": "nowhere"}, "nowhere")],
)
def test_a_wrong_recipe_is_told_before_any_trial(phase, training, says):
    space = tiny_space(training=training)
    with pytest.raises(InputError, match=says):
        LightningObjective(space.phase_one(phase.compute))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"phase": "cpu"}, "phase: a str, expected a phase of a space"),
        ({"recipe": {}}, "recipe: a dict, expected a Recipe"),
        ({"seed": "0"}, "seed: '0', expected an integer of at least 0"),
    ],
)
def test_wrong_arguments_of_the_objective_are_named(phase, arguments, says):
    with pytest.raises(InputError, match=says):
        LightningObjective(**{"phase": phase, **arguments})
