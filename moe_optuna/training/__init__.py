"""Training engine: a Mixture-of-Experts language model on real text, the same for every architecture of a search.

`train` takes an architecture and a budget and returns the held-out loss; `train_budgets` takes several token budgets,
whose trainings share a stable part. `Recipe` is everything that a search holds fixed. Torch and Lightning load when one
of them is first called.
"""

from typing import TYPE_CHECKING, Any

from moe_optuna.training._corpus import Corpus, cache_folder, find_text
from moe_optuna.training._recipe import Recipe
from moe_optuna.training._result import Report, TrainingFailure, TrainingResult

if TYPE_CHECKING:
    from moe_optuna.training.budgets import train_budgets
    from moe_optuna.training.engine import train
    from moe_optuna.training.model import MoELanguageModel

__all__ = [
    "Corpus",
    "MoELanguageModel",
    "Recipe",
    "Report",
    "TrainingFailure",
    "TrainingResult",
    "cache_folder",
    "find_text",
    "prepare",
    "train",
    "train_budgets",
]

_LAZY = {"train": "engine", "train_budgets": "budgets", "MoELanguageModel": "model"}


def prepare(recipe: Recipe) -> Corpus:
    """Tokenise and cache the recipe's text, once; later calls, also of other processes, map what is there."""
    return Corpus.prepare(recipe)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"moe_optuna.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
