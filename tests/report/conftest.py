"""A search whose truth is known: the trials of a ladder on the real lattices of a space, losses from a planted law."""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from moe_optuna.architecture import DIMENSIONS, MoEArchitecture
from moe_optuna.laws import fit_ladder
from moe_optuna.search import plan
from moe_optuna.search._runs import COLUMNS
from moe_optuna.space import SearchSpace

SPACE = """
format = 1
name = "planted"
budgets = [5e10, 1.5e11, 4.5e11]
target = 1e13

[allocation_law]
coefficient = 1.6
exponent = 0.5

[reference]
compute_density = 9.0
expansion_ratio = 3.0

[axes]
allocation = [0.25, 4.0]
compute_density = [6.4, 24.0]
expansion_ratio = [1.4, 5.6]
resolution = 0.05

[tolerances]
flops_per_token = 0.05
active_params = 0.1
total_params = 0.1

[dimensions]
d_model = { low = 16, high = 512, multiple = 8 }
d_expert = { low = 8, high = 512, multiple = 8 }
d_dense = { ratio = 3, multiple = 8 }
n_layers = { low = 1, high = 32 }
n_heads = 2
queries_per_kv_head = 2
d_head = 16
n_experts = [16, 8, 32]
top_k = 2
n_shared_experts = 1
context_length = 256
vocab_size = 256
tied_embeddings = false
qk_norm = true

[search]
zero = 4
one = 10
two = 6
repeats = 2
"""

COUNTS = ("flops_per_token", "active_params", "total_params")
TRIALS = {0: 8, 1: 26, 2: 14}
NOISE = 0.0006
FORMS = {
    "compute_density": (0.04, lambda x: np.log(x - 6)),
    "expansion_ratio": (0.03, lambda x: np.log((x - 1) / (17 / 3 - x))),
}
"""Curvature, and the coordinate in which the form of arXiv:2603.21862 is symmetric (16 experts, 2 active, 1 shared)."""


@dataclass(frozen=True)
class Planted:
    """A finished search and its truth."""

    folder: Path
    space: SearchSpace

    @staticmethod
    def optimum(axis: str, compute: float) -> float:
        """Where the planted loss is least."""
        exponent, at = {
            "flops_per_token": (0.5, 6.2e5),
            "compute_density": (-0.08, 3.2),
            "expansion_ratio": (0.0, 3.0),
            "d_model": (0.25, 60.0),
        }[axis]
        return (6.0 if axis == "compute_density" else 0.0) + at * (compute / 1.5e11) ** exponent

    @classmethod
    def loss(cls, compute: float, columns: dict[str, float]) -> float:
        """Noise-free, of the axes that the columns hold."""
        excess = 0.0
        for axis, curvature in {"flops_per_token": 0.02, "d_model": 0.06}.items():
            if axis in columns:
                excess += curvature * np.log(columns[axis] / cls.optimum(axis, compute)) ** 2
        for axis, (curvature, coordinate) in FORMS.items():
            if axis in columns:
                away = coordinate(columns[axis]) - coordinate(cls.optimum(axis, compute))
                excess += curvature * (np.cosh(away) - 1)
        return (1.2 + 0.9 * (compute / 1e11) ** -0.15) * np.exp(excess)


SEARCHED = {0: ("flops_per_token",), 1: ("compute_density", "expansion_ratio"), 2: ("d_model",)}


def row(
    study: str, number: int, phase: int, compute: float, found: MoEArchitecture, loss: float, **more: object
) -> dict:
    """A row of runs.csv."""
    counts = {name: getattr(found.non_embedding, name) for name in COUNTS}
    return {
        "study": study, "trial": number, "state": "complete", "phase": phase, "compute": compute,
        "tokens": int(compute / found.non_embedding.flops_per_token), "loss": loss, "bits_per_byte": loss / np.log(2),
        "seconds": 1.5, "seed": 0, **{name: getattr(found, name) for name in DIMENSIONS}, **counts,
        **{f"full_{name}": getattr(found.full, name) for name in COUNTS},
        "compute_density": found.compute_density, "expansion_ratio": found.expansion_ratio, "width": "",
        **{f"triad_{name}": count for name, count in counts.items()}, "reason": "", **more,
    }  # fmt: skip


def planted_rows(space: SearchSpace, seed: int = 0) -> list[dict]:
    """Trials of three phases at every budget: most complete, some pruned, one failed, two repeats."""
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    for compute in space.budgets:
        one = space.phase_one(compute, flops_per_token=Planted.optimum("flops_per_token", compute))
        triad = one.triad_of(min(one.lattice, key=lambda a: abs(a.compute_density - 8.8) + abs(a.expansion_ratio - 3)))
        for phase in (space.phase_zero(compute), one, space.phase_two(triad, compute=compute)):
            study = phase.study_name(space.name)
            picks = rng.permutation(len(phase.lattice))[: TRIALS[phase.number]]
            trained = [(pick, 0) for pick in picks] + [(picks[0], 1), (picks[0], 2)] * (phase.number == 2)
            for number, (pick, trial_seed) in enumerate(trained):
                found = phase.lattice[int(pick)]
                values = {name: getattr(found.non_embedding, name) for name in COUNTS}
                values |= {"d_model": found.d_model, **{n: getattr(found, n) for n in SEARCHED[1]}}
                true = Planted.loss(compute, {name: values[name] for name in SEARCHED[phase.number]})
                made = row(study, number, phase.number, compute, found, true * np.exp(NOISE * rng.standard_normal()))
                if number in (5, 7) and phase.number == 1:
                    made |= {"state": "pruned", "loss": made["loss"] * 1.08}
                if number == 3 and phase.number == 1 and compute == space.budgets[0]:
                    made |= {"state": "failed", "loss": "", "reason": "the loss is nan at report 4"}
                rows.append(made | {"seed": trial_seed})
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")  # a search's own
        writer.writeheader()
        writer.writerows(rows)


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """The trained rows as arrays."""
    trained = [row for row in rows if row["state"] != "failed"]
    return {
        name: np.array([row[name] for row in trained])
        for name in trained[0]
        if name not in ("study", "reason", "width")
    }


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of a few dozen rows: more threads of linear algebra would only wait for one another."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A finished search; no test changes its folder."""
    folder, space = tmp_path_factory.mktemp("planted"), SearchSpace.from_toml(SPACE)
    rows = planted_rows(space)
    write_rows(folder / "runs.csv", rows)
    laws = fit_ladder(columns(rows), space=space.name)
    loss = laws.held_out["loss"]
    recorded = {"predicted_loss": loss["predicted"], "intervals": {"predicted_loss": loss["interval"]}}
    laws = replace(laws, held_out={**laws.held_out, "recorded": recorded, "outcome": {}})
    laws.save(folder / "laws.json")
    plan(space.target, laws=laws, space=space).save(folder / "blueprint.json")
    return Planted(folder, space)


@pytest.fixture
def planted(finished: Planted, tmp_path: Path) -> Planted:
    """The finished search in a folder of the test's own."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return replace(finished, folder=tmp_path / "run")
