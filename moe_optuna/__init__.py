"""From a compute budget to a Mixture-of-Experts architecture, with Optuna.

The names below load when first used, so that ``import moe_optuna`` costs no more than ``import optuna``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_optuna.architecture import MoEArchitecture
    from moe_optuna.errors import InputError
    from moe_optuna.pruners import BandPruner
    from moe_optuna.samplers import TriadSampler
    from moe_optuna.search import LightningObjective, plan, search
    from moe_optuna.space import SearchSpace
    from moe_optuna.training import train
    from moe_optuna.triad import Budget, Tolerances, Triad

__version__ = "0.1.0"

_HOME = {
    "BandPruner": "pruners",
    "Budget": "triad",
    "InputError": "errors",
    "LightningObjective": "search",
    "MoEArchitecture": "architecture",
    "SearchSpace": "space",
    "Tolerances": "triad",
    "Triad": "triad",
    "TriadSampler": "samplers",
    "plan": "search",
    "search": "search",
    "train": "training",
}

__all__ = [
    "BandPruner",
    "Budget",
    "InputError",
    "LightningObjective",
    "MoEArchitecture",
    "SearchSpace",
    "Tolerances",
    "Triad",
    "TriadSampler",
    "plan",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
