"""What a worker runs: one real training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_optuna import training
from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import Recipe, train  # here, so that the worker has torch before its first trial

if TYPE_CHECKING:
    from moe_optuna.search.worker import Link

__all__ = ["prepare", "run"]


def run(task: dict[str, Any], link: Link) -> dict[str, Any]:
    """Train the task's architecture; reports go over the link, which says whether to go on."""
    result = train(
        MoEArchitecture.from_dict(task["architecture"]),
        compute=task["compute"],
        tokens=task["tokens"],
        recipe=Recipe.from_dict(task["recipe"]),
        seed=task["seed"],
        report=lambda report: link.report(report.index, report.loss),
        interrupted=lambda: link.stopping,
        checkpoint=Path(task["checkpoint"]),
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
    )
    return result.to_dict()


def prepare(recipe: dict[str, Any]) -> None:
    """Tokenise and cache the recipe's text."""
    training.prepare(Recipe.from_dict(recipe))
