"""The OptunaHub package loads by the hub's own local loader and gives our sampler."""

import importlib.util
from pathlib import Path

import pytest

from moe_optuna.samplers import TriadSampler

ROOT = Path(__file__).resolve().parents[2] / "optunahub" / "package"


def test_layout() -> None:
    folder = ROOT / "samplers" / "triad"
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["LICENSE", "README.md", "__init__.py"]
    front = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    keys = [line.split(":")[0] for line in front.strip().splitlines()]
    assert keys == ["author", "title", "description", "tags", "optuna_versions", "license"]


def test_local_loader() -> None:
    spec = importlib.util.find_spec("optunahub")
    if spec is None or spec.origin is None:  # not installed; from the root of the checkout our own folder is found
        pytest.skip("optunahub is not installed")
    import optunahub

    module = optunahub.load_local_module("samplers/triad", registry_root=str(ROOT))
    assert module.TriadSampler is TriadSampler
