"""What the README and the docs print runs as printed."""

import json
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import moe_optuna
import moe_optuna.training
from moe_optuna import problems
from moe_optuna.interchange import count_payload, read
from moe_optuna.space import Phase, SearchSpace

README = Path(__file__).resolve().parents[1] / "README.md"
DOCS = README.with_name("docs")


def block(page: str, language: str) -> str:
    """The first block of code of a page."""
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_the_python_snippet_runs_as_printed(capsys, monkeypatch):
    """With a tenth of each training."""
    objective = moe_optuna.LightningObjective
    monkeypatch.setattr(
        moe_optuna, "LightningObjective", lambda phase: objective(replace(phase, compute=phase.compute / 10))
    )
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    study = names["study"]
    assert isinstance(study, optuna.Study)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])) == 4
    assert "architecture" in capsys.readouterr().out


def test_the_sampler_s_example_runs_as_printed() -> None:
    """With a problem's loss in place of trainings, some of which fail."""
    example = textwrap.dedent((moe_optuna.TriadSampler.__doc__ or "").split("Example::\n\n")[1].split("\n\n")[0])

    def objective(phase: Phase) -> object:
        loss = problems.make("holistic", phase.space).objective(phase, seed=0)

        def diverging(trial: optuna.Trial) -> float:
            if trial.number == 3:
                phase.suggest(trial)
                raise moe_optuna.training.TrainingFailure("diverged")
            return loss(trial)

        return diverging

    names = {
        "optuna": optuna,
        "SearchSpace": SearchSpace,
        "TriadSampler": moe_optuna.TriadSampler,
        "LightningObjective": objective,
        "TrainingFailure": moe_optuna.training.TrainingFailure,
    }
    exec(compile(example, "TriadSampler", "exec"), names)
    study = names["study"]
    assert isinstance(study, optuna.Study)
    states = [trial.state.name for trial in study.trials]
    assert (states[3], states.count("COMPLETE"), len(states)) == ("FAIL", 19, 20)


def test_every_command_of_the_readme_exists(capsys):
    from moe_optuna.cli import app

    named = set(re.findall(r"`moe-optuna (\w+)", README.read_text(encoding="utf-8")))
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named == known


def test_the_samplers_snippet_warm_starts_from_its_smaller_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a problem's loss in place of trainings."""
    problem = problems.make("holistic", SearchSpace.load("lab"))
    asked: list[Phase] = []

    def objective(phase: Phase) -> object:
        asked.append(phase)
        return problem.objective(phase, seed=0)

    monkeypatch.setattr(moe_optuna, "LightningObjective", objective)
    names: dict[str, object] = {}
    exec(compile(block("samplers.md", "python"), "samplers.md", "exec"), names)
    assert [phase.compute for phase in asked] == [1e14, 1e15]
    assert problem.true_loss(names["found"].architecture, 1e15) <= 1.002 * problem.optimum(asked[-1]).loss
    assert names["smaller"][0].user_attrs["compute"] == 1e14


def test_the_file_in_counting_is_read_and_saved_again(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(block("counting.md", "json"))
    architecture = read(path)
    assert count_payload(architecture)["full"]["total_params"] == architecture.full.total_params
    architecture.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())
