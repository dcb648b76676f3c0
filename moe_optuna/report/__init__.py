"""What a person sees: figures, the HTML report, optuna-dashboard, and what the commands print.

Names load when first used, so that a table on the terminal does not wait for plotly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_optuna.report._dashboard import annotate, dashboard, server
    from moe_optuna.report._figures import figures
    from moe_optuna.report._page import write_report

_HOME = {
    "annotate": "_dashboard",
    "dashboard": "_dashboard",
    "figures": "_figures",
    "server": "_dashboard",
    "write_report": "_page",
}

__all__ = ["annotate", "dashboard", "figures", "server", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
