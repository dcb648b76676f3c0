"""The search: a ladder of budgets, studies on each, workers that train, and the blueprint at its end.

``moe_optuna.search(space)`` runs it: the module can be called, since a package attribute and the module of the same
name are one thing to Python.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_optuna.search._events import Event, Observer
    from moe_optuna.search._plan import plan
    from moe_optuna.search._storage import open_storage
    from moe_optuna.search.blueprint import Blueprint
    from moe_optuna.search.ladder import SearchResult, search
    from moe_optuna.search.objective import LightningObjective

_HOME = {
    "Blueprint": "blueprint",
    "Event": "_events",
    "LightningObjective": "objective",
    "Observer": "_events",
    "SearchResult": "ladder",
    "open_storage": "_storage",
    "plan": "_plan",
    "search": "ladder",
}

__all__ = ["Blueprint", "Event", "LightningObjective", "Observer", "SearchResult", "open_storage", "plan", "search"]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return self.search(*args, **kwargs)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = _CallableModule
