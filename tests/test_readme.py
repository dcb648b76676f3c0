"""What the README prints runs as printed."""

import re
from pathlib import Path

import optuna

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_snippet_runs_as_printed(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    study = names["study"]
    assert isinstance(study, optuna.Study)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])) == 4
    assert "architecture" in capsys.readouterr().out


def test_every_command_of_the_readme_exists(capsys):
    from moe_optuna.cli import app

    named = set(re.findall(r"`moe-optuna (\w+)", README.read_text(encoding="utf-8")))
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named == known
