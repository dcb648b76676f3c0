"""The published holistic laws (arXiv:2603.21862v1) as the laws of a ladder, so that `plan` needs one way only.

The study prints the law of FLOPs per token and, per budget, the optimum that its phase 2 was locked to and the
minima over the expansion ratio; other coefficients stand in its figures only. What stands here is read off its
tables or derived:

- compute density: the line of log(M/Na - 6) in log C through the six triads of phase 2;
- expansion ratio: the line of logit((x - 1) / (289/9 - 1)) through the six minima;
- width: the line through the middles of the swept ranges of d_model; an optimum anywhere in the range is as likely;
- curvatures, each uncertain by a factor of about two: compute density, 0.25 % over attention shares from 20 % to 50 %
  (arXiv:2507.17702, "flat"); expansion ratio, 1 % at 18 and 25 ("flat, below 1 %": the band is at least so wide);
  width, 3 % at 2.68 times the width (arXiv:2001.08361, figure 5, dense models).

The loss itself is not published as a law.
"""

from __future__ import annotations

import numpy as np

from moe_optuna.laws._phase_law import LawAxis, PhaseLaw
from moe_optuna.laws.axis import Array, AxisForm
from moe_optuna.laws.surrogate import POLE

__all__ = ["BUDGETS", "SOURCE", "phases"]

SOURCE = "published holistic laws, arXiv:2603.21862v1; M, D and the optima after its tables, curvatures derived"
BUDGETS = np.array([1e18, 3e18, 1e19, 3e19, 1e20, 3e20])
COMPUTE_DENSITY = np.array([10.95, 9.90, 9.22, 8.77, 8.35, 8.22])
EXPANSION_RATIO = np.array([19.23, 19.33, 20.69, 20.78, 21.29, 22.07])
WIDTHS = np.array([[288, 744], [456, 1000], [648, 1272], [832, 1736], [1024, 1864], [1248, 2200]])

DENSITY_CURVE, RATIO_CURVE, WIDTH_CURVE = 0.0073, 0.032, 0.031
"""Half the second derivative of relative loss over t, by the statements above."""
CURVE_SD, GROWTH_SD = 0.7, 0.03
"""Standard deviations of the log of a curvature, a factor of two, and of its exponent in compute."""


def phases() -> dict[int, PhaseLaw]:
    """Phases 1 and 2."""
    h = np.log(BUDGETS) - np.log(BUDGETS).mean()
    density, ratio, width = AxisForm("pole_linear"), AxisForm("two_pole", POLE), AxisForm("quadratic_log")
    one = [
        _line("compute_density", density, density.t([7.0, 17.0]), h, density.t(COMPUTE_DENSITY), DENSITY_CURVE),
        _line("expansion_ratio", ratio, ratio.t([12.0, 30.0]), h, ratio.t(EXPANSION_RATIO), RATIO_CURVE),
    ]
    swept = np.log(WIDTHS)
    spread = float((swept[:, 1] - swept[:, 0]).mean())
    two = [_line("d_model", width, np.array([-0.5, 0.5]) * spread, h, swept.mean(1), WIDTH_CURVE, moving=True)]
    return {1: _law(1, one), 2: _law(2, two)}


def _line(
    name: str, form: AxisForm, ends: Array, h: Array, optima: Array, curve: float, moving: bool = False
) -> tuple[LawAxis, Array, Array]:
    """An axis, its (place, drift, bend, curve, growth) and their variances, from optima over t at h.

    Args:
        ends: The searched range of t.
        curve: Half the second derivative of relative loss over t, at the optimum.
        moving: Whether the range moves with the optima, which are then its middle, and the optimum is as likely
            anywhere in it.
    """
    extent = float(ends[1] - ends[0])
    level, slope = float(optima.mean()), float(h @ optima / (h @ h))
    residual = optima - level - slope * h
    variance = float(residual @ residual) / (len(h) - 2)
    centre = level if moving else float(ends.mean())
    axis = LawAxis(name, form, centre, slope * moving, extent)
    theta = np.array([(level - centre) / extent, slope * (not moving) / extent, 0.0, np.log(curve * extent**2), 0.0])
    place = variance / len(h) / extent**2 + moving / 12
    return axis, theta, np.array([place, variance / float(h @ h) / extent**2, 0.0, CURVE_SD**2, GROWTH_SD**2])


def _law(phase: int, lines: list[tuple[LawAxis, Array, Array]]) -> PhaseLaw:
    unknown = np.array([np.nan, 0.0, 0.0])
    theta = np.concatenate([unknown, np.stack([theta for _, theta, _ in lines], axis=1).ravel()])
    variance = np.concatenate([np.zeros(3), np.stack([variance for *_, variance in lines], axis=1).ravel()])
    return PhaseLaw(
        phase, tuple(axis for axis, *_ in lines), float(np.log(BUDGETS).mean()), theta, np.diag(variance),
        noise=0.0, points=len(BUDGETS), mean="law",
    )  # fmt: skip
