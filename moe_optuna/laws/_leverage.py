"""Efficiency leverage: the compute of a dense model over that of a Mixture-of-Experts model at equal loss
(arXiv:2507.17702), predicted from a law or measured on one's own runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.errors import InputError, whole_number
from moe_optuna.laws._formulas import Array
from moe_optuna.laws._intervals import widening
from moe_optuna.laws._runs import checked
from moe_optuna.laws.forms import form
from moe_optuna.laws.published import PUBLISHED, OutsideRangeWarning

if TYPE_CHECKING:
    from moe_optuna.laws._fit import Fit

__all__ = ["FamilyLeverage", "Leverage", "leverage", "leverage_from_runs"]


@dataclass(frozen=True)
class Leverage:
    """A predicted leverage.

    Attributes:
        value: Compute of the dense model over the MoE's.
        interval: Where the law and its scatter put it with probability 0.95.
        source: Paper or fit.
        notes: What to know: inputs outside the law's range, coefficients that are not identified.
    """

    value: float
    interval: tuple[float, float]
    source: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, what ``moe-optuna leverage --json`` prints."""
        return {
            "leverage": self.value,
            "interval": list(self.interval),
            "source": self.source,
            "notes": list(self.notes),
        }


def leverage(activation_ratio: float, granularity: float, compute: float, *, law: Fit | None = None) -> Leverage:
    """Efficiency leverage of a Mixture-of-Experts model over a dense one.

    Args:
        activation_ratio: A = top_k / n_experts, without shared experts.
        granularity: G = 2 d_model / d_expert.
        compute: C, training FLOPs of the MoE model.
        law: A fit of the law `leverage`; the published joint law unless given.

    Raises:
        InputError: Where a number is out of its domain or the fit is of another law.
    """
    for name, value, most in (
        ("activation_ratio", activation_ratio, 1.0),
        ("granularity", granularity, math.inf),
        ("compute", compute, math.inf),
    ):
        if not (math.isfinite(value) and 0 < value <= most):
            limit = " and at most 1" if most == 1.0 else " and finite"
            raise InputError(f"{value!r}, expected a number above 0{limit}", where=name)
    columns = {"activation_ratio": activation_ratio, "granularity": granularity, "compute": compute}
    if law is not None:
        if law.law != "leverage":
            raise InputError(f"a fit of {law.law!r}, expected one of 'leverage'", where="law")
        low, high = law.interval(columns, noise=True)
        value = float(law.predict(columns))
        return Leverage(value, (float(low), float(high)), f"fit to {law.rows} points", tuple(law.notes))
    published = PUBLISHED["leverage"]
    outside = float(published.decades_outside(**columns))
    value, interval = published.quietly(**columns)
    notes = (f"{outside:.1f} decades outside the range of {published.source}",) if outside > 0 else ()
    for note in notes:
        warnings.warn(note, OutsideRangeWarning, stacklevel=2)
    return Leverage(value, interval, published.source, notes)


@dataclass(frozen=True)
class FamilyLeverage:
    """Leverage measured on one's own runs, a row for each MoE family and budget.

    Attributes:
        columns: `activation_ratio`, `granularity`, `compute`, `leverage`, `low`, `high`, each ``(n,)``; not finite
            where the dense family's curve never reaches the loss.
        dense: Fit of the dense family's loss against compute.
        families: Fits of the MoE families by (activation_ratio, granularity).
    """

    columns: dict[str, Array]
    dense: Fit
    families: dict[tuple[float, float], Fit]

    def fit(self, **options: Any) -> Fit:
        """The joint law through these points; families are the groups of its bootstrap."""
        from moe_optuna.laws._estimate import fit

        finite = np.isfinite(self.columns["leverage"])
        points = {name: values[finite] for name, values in self.columns.items()}
        family = np.unique(np.stack([points["activation_ratio"], points["granularity"]]), axis=1, return_inverse=True)
        return fit("leverage", points, **({"groups": family[1].ravel()} | options))


def leverage_from_runs(
    dense: Mapping[str, ArrayLike],
    moe: Mapping[str, ArrayLike],
    *,
    curve: str = "power",
    bootstraps: int = 200,
    seed: int = 0,
) -> FamilyLeverage:
    """Leverage from runs of a dense family and of MoE families at several budgets.

    Each family's loss is fitted against compute; ``EL(C) = C_dense(L_moe(C)) / C`` inverts the dense curve at the loss
    of the MoE curve. Intervals (0.95) come from independent bootstraps of both curves, wider where runs are few.

    Args:
        dense: Columns `compute` and `loss`; give each budget's best run, or runs of one recipe.
        moe: The same and `activation_ratio`, `granularity`; equal pairs of those make a family.
        curve: `power` (no floor, as the paper) or `floored_power`.
        bootstraps: Of each curve, at least one.
        seed: Of the bootstraps.

    Raises:
        InputError: Where columns are missing, of different lengths or outside their domain, or a family has too few
            runs for its curve; it names `dense`, `moe` or the family.
    """
    from moe_optuna.laws._estimate import fit

    if curve not in ("power", "floored_power"):
        raise InputError(f"{curve!r}, expected 'power' or 'floored_power'", where="curve")
    bootstraps = whole_number(bootstraps, "bootstraps")
    table = checked(replace(form(curve), inputs=("activation_ratio", "granularity", "compute")), moe, where="moe")
    if not len(table["loss"]):
        raise InputError("no runs, expected those of at least one family", where="moe")
    try:
        base = fit(curve, dense, bootstraps=bootstraps, seed=seed, score=False)
    except InputError as error:
        raise InputError(str(error), where="dense") from None
    base_draws = _parameters(base)
    families: dict[tuple[float, float], Fit] = {}
    rows: list[tuple[float, ...]] = []
    pairs = np.unique(np.stack([table["activation_ratio"], table["granularity"]], axis=1), axis=0)
    for number, (ratio, grain) in enumerate(pairs, start=1):
        own = (table["activation_ratio"] == ratio) & (table["granularity"] == grain)
        budgets = np.unique(table["compute"][own])
        try:
            runs = {name: table[name][own] for name in ("compute", "loss")}
            family = fit(curve, runs, bootstraps=bootstraps, seed=seed + number, score=False)
        except InputError as error:
            raise InputError(str(error), where=f"family activation_ratio {ratio:g}, granularity {grain:g}") from None
        families[float(ratio), float(grain)] = family
        value = _inverse(curve, _point(base), family.predict({"compute": budgets})) / budgets
        losses, _ = family.form.log_model(np.log(budgets)[None], family.form.coordinates(family.draws))
        draws = _inverse(curve, base_draws, np.exp(losses)) / budgets
        # The wider of the two curves' corrections for few runs, on the ratio; nothing widens what is infinite.
        wider = max(widening(0.95, each.rows, len(each.coefficients), each.groups) for each in (base, family))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            draws = np.where(np.isfinite(value), value * (draws / value) ** wider, draws)
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        rows += [(ratio, grain, *row) for row in zip(budgets, value, low, high, strict=True)]
    names = ("activation_ratio", "granularity", "compute", "leverage", "low", "high")
    columns = dict(zip(names, np.array(rows, dtype=float).T, strict=True))
    return FamilyLeverage(columns, base, families)


def _parameters(fitted: Fit) -> tuple[Array, ...]:
    """Bootstrap coefficients, ``(b, 1)`` each."""
    return tuple(np.array(fitted.draws[name])[:, None] for name in fitted.form.names)


def _point(fitted: Fit) -> tuple[Array, ...]:
    return tuple(np.array(fitted.coefficients[name]) for name in fitted.form.names)


def _inverse(curve: str, values: tuple[Array, ...], loss: Array) -> Array:
    """Compute at which a curve has a loss; infinite below its floor."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if curve == "power":
            a, b = values
            return np.asarray((loss / a) ** (1.0 / b))
        floor, a, alpha = values
        excess = loss - floor
        return np.asarray(np.where(excess > 0, (a / np.maximum(excess, 1e-300)) ** (1.0 / alpha), np.inf))
