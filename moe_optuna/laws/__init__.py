"""Scaling laws: published ones, fits to runs, the cross-budget surrogate, the near-optimal band, the laws of a ladder.

Names load when first used, so that what needs no SciPy does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_optuna.laws._estimate import fit
    from moe_optuna.laws._fit import Fit, HeldOut
    from moe_optuna.laws._ladder_laws import with_ratios
    from moe_optuna.laws._leverage import FamilyLeverage, Leverage, leverage, leverage_from_runs
    from moe_optuna.laws._runs import read_runs
    from moe_optuna.laws.axis import AxisFit, AxisForm, fit_axes, fit_axis
    from moe_optuna.laws.band import BAND, Band, Growth, Optimum, band_of_draws, growth
    from moe_optuna.laws.forms import FORMS, Form, Parameter
    from moe_optuna.laws.ladder import FittedAxis, LadderLaws, PowerLaw, fit_ladder
    from moe_optuna.laws.published import PUBLISHED, OutsideRangeWarning, PublishedLaw
    from moe_optuna.laws.surrogate import NamedAxis, Observations, Surrogate

_HOME = {
    "BAND": "band",
    "FORMS": "forms",
    "PUBLISHED": "published",
    "AxisFit": "axis",
    "AxisForm": "axis",
    "Band": "band",
    "FamilyLeverage": "_leverage",
    "Fit": "_fit",
    "FittedAxis": "ladder",
    "Form": "forms",
    "Growth": "band",
    "HeldOut": "_fit",
    "LadderLaws": "ladder",
    "Leverage": "_leverage",
    "NamedAxis": "surrogate",
    "Observations": "surrogate",
    "Optimum": "band",
    "OutsideRangeWarning": "published",
    "Parameter": "forms",
    "PowerLaw": "ladder",
    "PublishedLaw": "published",
    "Surrogate": "surrogate",
    "band_of_draws": "band",
    "fit": "_estimate",
    "fit_axes": "axis",
    "fit_axis": "axis",
    "fit_ladder": "ladder",
    "growth": "band",
    "leverage": "_leverage",
    "leverage_from_runs": "_leverage",
    "read_runs": "_runs",
    "with_ratios": "_ladder_laws",
}

__all__ = [
    "BAND",
    "FORMS",
    "PUBLISHED",
    "AxisFit",
    "AxisForm",
    "Band",
    "FamilyLeverage",
    "Fit",
    "FittedAxis",
    "Form",
    "Growth",
    "HeldOut",
    "LadderLaws",
    "Leverage",
    "NamedAxis",
    "Observations",
    "Optimum",
    "OutsideRangeWarning",
    "Parameter",
    "PowerLaw",
    "PublishedLaw",
    "Surrogate",
    "band_of_draws",
    "fit",
    "fit_axes",
    "fit_axis",
    "fit_ladder",
    "growth",
    "leverage",
    "leverage_from_runs",
    "read_runs",
    "with_ratios",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
