"""Scaling laws: published ones, fits to runs, the cross-budget surrogate, the near-optimal band, the laws of a ladder.

Names load when first used, so that what needs no SciPy does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_optuna.laws.axis import AxisFit, AxisForm, fit_axes, fit_axis
    from moe_optuna.laws.band import BAND, Band, Growth, Optimum, band_of_draws, growth
    from moe_optuna.laws.ladder import LadderLaws, PowerLaw, fit_ladder
    from moe_optuna.laws.surrogate import Observations, Surrogate

_HOME = {
    "BAND": "band",
    "AxisFit": "axis",
    "AxisForm": "axis",
    "Band": "band",
    "Growth": "band",
    "LadderLaws": "ladder",
    "Observations": "surrogate",
    "Optimum": "band",
    "PowerLaw": "ladder",
    "Surrogate": "surrogate",
    "band_of_draws": "band",
    "fit_axes": "axis",
    "fit_axis": "axis",
    "fit_ladder": "ladder",
    "growth": "band",
}

__all__ = [
    "BAND",
    "AxisFit",
    "AxisForm",
    "Band",
    "Growth",
    "LadderLaws",
    "Observations",
    "Optimum",
    "PowerLaw",
    "Surrogate",
    "band_of_draws",
    "fit_axes",
    "fit_axis",
    "fit_ladder",
    "growth",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
