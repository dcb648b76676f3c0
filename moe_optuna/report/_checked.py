"""laws.json and blueprint.json, with the numbers that the report draws and writes checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_optuna.errors import InputError
from moe_optuna.laws import LadderLaws
from moe_optuna.search.blueprint import Blueprint

__all__ = ["MOST", "checked_blueprint", "checked_laws"]

FIT = {
    "compute": (), "optimum": (), "loss": (), "points": (), "interval": (2,), "loss_interval": (2,), "band": (2,),
    "band_noise": (2,),
}  # fmt: skip
"""Shapes of what is drawn of a fit; all positive numbers."""


MOST = 1e60
"""No quantity is as large; figures could not show it."""


def checked_laws(path: Path) -> LadderLaws:
    """laws.json; its numbers are those of a figure's axes, which must be positive."""
    laws = LadderLaws.load(path)
    for place, fit in enumerate(laws.axes):
        where = f"{path}: axes[{place}]"
        if not (isinstance(fit.axis, str) and isinstance(fit.phase, int) and isinstance(fit.coefficients, Mapping)):
            raise InputError("expected axis, a name, phase, a number, and coefficients, an object", where=where)
        for name, shape in FIT.items():
            _numbers(getattr(fit, name), shape, f"{where}: {name}")
        curve = [fit.coefficients.get(name) for name in "abc"] + [fit.coefficients.get("pole", 0.0)]
        _numbers(curve, (4,), f"{where}: coefficients", above=-math.inf)
        try:
            fit.curve  # noqa: B018 - it checks its form and its pole
        except (InputError, TypeError) as error:
            raise InputError(str(error), where=where) from None
    for phase, law in laws.phases.items():
        _numbers(law.covariance, 2 * law.theta.shape, f"{path}: phases: {phase}: covariance", above=-math.inf)
    for name, power in laws.power_laws.items():
        if not isinstance(name, str):
            raise InputError(f"{name!r}, expected a name", where=f"{path}: power_laws: quantity")
        _numbers(power.points, (len(power.points), 4), f"{path}: power_laws: {name}: points")
        _numbers(power.b_interval, (2,), f"{path}: power_laws: {name}: b_interval", above=-math.inf)
    return laws


def checked_blueprint(path: Path) -> Blueprint:
    """blueprint.json, likewise."""
    plan = Blueprint.load(path)
    for name in ("compute", "tokens", "predicted_loss"):
        if (value := getattr(plan, name)) is not None:
            _numbers(value, (), f"{path}: {name}")
    for key, spans, shape in (
        ("band", plan.band, (2,)), ("intervals", plan.intervals, (2,)), ("band_intervals", plan.band_intervals, (2, 2))
    ):  # fmt: skip
        for name, ends in spans.items():
            _numbers(ends, shape, f"{path}: {key}: {name}")
    for place, each in enumerate(plan.alternatives):
        _numbers((each.excess, *each.interval), (3,), f"{path}: alternatives[{place}]", above=-math.inf)
    return plan


def _numbers(value: Any, shape: tuple[int, ...], where: str, above: float = 0.0) -> None:
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or array.shape != shape or not ((array > above) & (array < MOST)).all():
        kind = "positive" if above == 0 else "finite"
        expected = f"{' x '.join(map(str, shape))} {kind} numbers" if shape else f"a {kind} number"
        raise InputError(f"{str(value)[:60]}, expected {expected}", where=where)
