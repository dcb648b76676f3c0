"""The OptunaHub package loads by the hub's own local loader and gives our sampler."""

from pathlib import Path

import optuna

import optunahub
from moe_optuna.samplers import TriadSampler
from moe_optuna.space import Phase

REGISTRY = Path(__file__).resolve().parents[2] / "optunahub" / "package"


def test_layout() -> None:
    folder = REGISTRY / "samplers" / "triad"
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["LICENSE", "README.md", "__init__.py"]
    front = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    keys = [line.split(":")[0] for line in front.strip().splitlines()]
    assert keys == ["author", "title", "description", "tags", "optuna_versions", "license"]


def test_local_loader(phase: Phase) -> None:
    module = optunahub.load_local_module("samplers/triad", registry_root=str(REGISTRY))
    assert module.TriadSampler is TriadSampler
    study = optuna.create_study(sampler=module.TriadSampler(phase, seed=0))
    assert phase.index(study.ask(phase.distributions).params) is not None
