"""The forms of scaling laws, in one table.

`fit` learns the coefficients of any of them from runs; `published` holds those that the literature gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.laws import _formulas
from moe_optuna.laws._form import Features, Form, Parameter
from moe_optuna.laws._formulas import Array

__all__ = ["FORMS", "Form", "Parameter", "form"]


def form(name: str) -> Form:
    """The form of that name.

    Raises:
        InputError: Where there is none.
    """
    if name not in FORMS:
        raise InputError(f"unknown law {name!r}, expected one of {', '.join(FORMS)}{did_you_mean(name, FORMS)}")
    return FORMS[name]


def _logs(*columns: Array) -> Features:
    return tuple(np.log(column) for column in columns)


def _mean(values: Array) -> float:
    return float(values.mean())


def _amplitude(name: str) -> Parameter:
    """A term's value at the mean of the runs, as a share of the least loss: from a ten-thousandth to twenty times."""
    return Parameter(name, -9.0, 3.0, starts=(-2.5, 0.0))


def _exponent(name: str, high: float = 2.5) -> Parameter:
    return Parameter(name, 0.0, high, "real", starts=(0.05, 0.8))


def _real(name: str, low: float, high: float, *starts: float) -> Parameter:
    return Parameter(name, low, high, "real", starts=(starts[0], starts[1]) if starts else None)


def _floor(name: str) -> Parameter:
    return Parameter(name, 0.0, 1.02, "floor", starts=(0.1, 0.95))


_SATURATION = (
    Parameter("E_start", float(np.log(0.1)), float(np.log(1e3)), starts=(-0.5, 2.5)),
    Parameter("E_max", 0.2, 30.0, starts=(2.0, 8.0)),  # log E_max / E_start
)


def _experts(n_experts: Array) -> Array:
    return np.maximum(n_experts, 1.0)  # a dense model has none; Clark's E counts it as one


def _zhao_features(total: Array, active: Array, tokens: Array, top_k: Array, shared: Array) -> Features:
    visited = top_k + shared
    return np.log(total), np.log(active), np.log(tokens), np.log(visited), shared / visited


def _zhao_centring(f: Features) -> dict[tuple[str, str], float]:
    total, active = _mean(f[0]), _mean(f[1])
    scale = {(name, "alpha"): total for name in ("e", "f", "m", "n", "a")}
    unit = {(name, "loss"): 1.0 for name in ("e", "f", "m", "n", "a", "b", "c")}
    group = {("e", ""): -_mean(f[3]), ("f", ""): _mean(f[3])}
    ratios = {("k", "alpha"): active - total, ("h", "alpha"): -total, ("h", ""): total - active}
    return scale | unit | group | ratios | {("c", "alpha"): active, ("b", "beta"): _mean(f[2])}


def _holistic_features(
    m: Array, d: Array, density: Array, expansion: Array, width: Array, experts: Array, top: Array, shared: Array
) -> Features:
    pole = (experts + shared) / np.maximum(top + shared, 1.0)
    position = np.clip((expansion - 1.0) / np.maximum(pole - 1.0, 1e-9), 1e-3, 1.0 - 1e-3)
    return np.log(m), np.log(d), np.log(np.maximum(density - 6.0, 1e-6)), position, width


def _holistic_centring(f: Features) -> dict[tuple[str, str], float]:
    compute = _mean(f[0] + f[1])
    drift: dict[tuple[str, str], float] = {(name, "nu"): compute for name in ("k_x", "k_y", "k_w")}
    drift |= {("x_0", "xi"): compute, ("x_0", ""): _mean(f[2])}
    return drift | {("A", "alpha"): _mean(f[0]), ("B", "beta"): _mean(f[1]), ("A", "loss"): 1.0, ("B", "loss"): 1.0}


def _leverage_centring(f: Features) -> dict[tuple[str, str], float]:
    g = _mean(f[1])
    centred = {("a", "d"): -_mean(f[2]), ("a", "beta"): -g, ("a", "gamma"): g**2, ("beta", "gamma"): -2 * g}
    return centred | {("A_max", "A_start"): 1.0}


_RATIO_SATURATION = (
    Parameter("A_start", float(np.log(1e-6)), 0.0, starts=(-7.0, -2.0)),
    Parameter("A_max", 0.2, 50.0, starts=(3.0, 40.0)),  # log A_max / A_start
)
_READ_OFF = 0.05  # leverages are read off fitted curves: a few per cent of error are their noise, not outliers
_GRANULARITY = "granularity = 2 d_model / d_expert, activation_ratio = top_k / n_experts"

_ALL: Sequence[Form] = (
    Form(
        name="power",
        formula="loss = a compute^b",
        inputs=("compute",),
        parameters=(Parameter("a", -4.0, 8.0, starts=(-0.5, 2.0)), _real("b", -3.0, 3.0, -0.5, 0.0)),
        source="arXiv:2507.17702, section 3: no floor",
        features=_logs,
        model=_formulas.power,
        centring=lambda f: {("a", "b"): -_mean(f[0]), ("a", "loss"): 1.0},
        scale=("compute",),
    ),
    Form(
        name="floored_power",
        formula="loss = E + A / compute^alpha",
        inputs=("compute",),
        parameters=(_floor("E"), _amplitude("A"), _exponent("alpha")),
        source="arXiv:2010.14701",
        features=_logs,
        model=_formulas.floored_power,
        centring=lambda f: {("A", "alpha"): _mean(f[0]), ("A", "loss"): 1.0},
        scale=("compute",),
    ),
    Form(
        name="chinchilla",
        formula="loss = E + A / N^alpha + B / D^beta",
        inputs=("total_params", "tokens"),
        parameters=(_floor("E"), _amplitude("A"), _amplitude("B"), _exponent("alpha"), _exponent("beta")),
        source="arXiv:2203.15556, approach 3; refit arXiv:2404.10102",
        features=_logs,
        model=_formulas.chinchilla,
        centring=lambda f: {
            ("A", "alpha"): _mean(f[0]),
            ("B", "beta"): _mean(f[1]),
            ("A", "loss"): 1.0,
            ("B", "loss"): 1.0,
        },
        scale=("total_params", "tokens"),
        conventions="N = total_params, D = tokens",
    ),
    Form(
        name="routed",
        formula="log10 loss = a log10 Na + b log10 Ê + c log10 Na log10 Ê + d, "
        "1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max",
        inputs=("active_params", "n_experts"),
        parameters=(
            _real("a", -1.0, 0.5, -0.3, 0.0),
            _real("b", -1.5, 0.5, -0.3, 0.0),
            _real("c", -0.5, 0.5, -0.05, 0.05),
            _real("d", -1.0, 3.0, 0.0, 0.8),
            *_SATURATION,
        ),
        source="arXiv:2202.01169, eqs. 6 and 7",
        features=lambda n, e: (np.log(n), _experts(e)),
        model=_formulas.routed,
        centring=lambda f: {
            ("d", "a"): -_mean(f[0]) / float(np.log(10)),
            ("b", "c"): -_mean(f[0]) / float(np.log(10)),
            ("d", "loss"): 1.0 / float(np.log(10)),
            ("E_max", "E_start"): 1.0,
        },
        scale=("active_params",),
        conventions="base-10 logs; Na = active_params of the model (Clark's N, the dense base model); E = n_experts, "
        "1 for a dense model (0 counts as 1)",
    ),
    Form(
        name="krajewski",
        formula="loss = c + (g / G^gamma + a) / N^alpha + b / D^beta",
        inputs=("total_params", "granularity", "tokens"),
        parameters=(
            *(_amplitude("a"), _exponent("alpha"), _amplitude("b"), _exponent("beta")),
            *(_amplitude("g"), _exponent("gamma", 4.0), _floor("c")),
        ),
        source="arXiv:2402.07871",
        features=lambda n, g, d: (np.log(n), np.log(2.0 * g), np.log(d)),
        model=_formulas.krajewski,
        centring=lambda f: {
            ("a", "alpha"): _mean(f[0]),
            ("g", "alpha"): _mean(f[0]),
            ("g", "gamma"): _mean(f[1]),
            ("b", "beta"): _mean(f[2]),
            **{(name, "loss"): 1.0 for name in ("a", "b", "g")},
        },
        scale=("total_params", "tokens"),
        conventions="N = total_params; the paper's G = 4 d_model / d_expert is twice the column granularity = "
        "2 d_model / d_expert, and the coefficients are those of the paper's G",
    ),
    Form(
        name="ludziejewski",
        formula="loss = a Ê^delta Na^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c, Ê as in routed",
        inputs=("active_params", "n_experts", "tokens"),
        parameters=(
            *(_amplitude("a"), _real("alpha", -2.5, 0.0, -0.8, -0.05)),
            *(_real("delta", -1.5, 1.5, -0.2, 0.1), _real("gamma", -0.3, 0.3, -0.03, 0.03)),
            *(_amplitude("b"), _real("beta", -2.5, 0.0, -0.8, -0.05)),
            *(_real("omega", -1.5, 1.5, -0.1, 0.2), _real("zeta", -0.3, 0.3, -0.03, 0.03)),
            *_SATURATION,
            _floor("c"),
        ),
        source="arXiv:2502.05172",
        features=lambda n, e, d: (np.log(n), _experts(e), np.log(d)),
        model=_formulas.ludziejewski,
        centring=lambda f: {
            ("a", "alpha"): -_mean(f[0]),
            ("delta", "gamma"): -_mean(f[0]),
            ("b", "beta"): -_mean(f[2]),
            ("omega", "zeta"): -_mean(f[2]),
            ("E_max", "E_start"): 1.0,
            **{(name, "loss"): 1.0 for name in ("a", "b")},
        },
        scale=("active_params", "tokens"),
        conventions="natural logs; Na = active_params, E = n_experts (0 counts as 1, dense), D = tokens",
    ),
    Form(
        name="abnar",
        formula="loss = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e",
        inputs=("total_params", "tokens", "activation_ratio"),
        parameters=(
            *(_amplitude("a"), _exponent("alpha"), _amplitude("b"), _exponent("beta"), _amplitude("c")),
            *(_real("lambda", -2.0, 2.0, -0.5, 0.5), _amplitude("d"), _real("delta", -2.0, 2.0, -0.3, 0.5)),
            *(_exponent("gamma"), _floor("e")),
        ),
        source="arXiv:2501.12370",
        features=_logs,
        model=_formulas.abnar,
        centring=lambda f: {
            ("a", "alpha"): _mean(f[0]),
            ("b", "beta"): _mean(f[1]),
            ("c", "lambda"): _mean(f[2]),
            ("d", "delta"): _mean(f[2]),
            ("d", "gamma"): _mean(f[0]),
            **{(name, "loss"): 1.0 for name in ("a", "b", "c", "d")},
        },
        scale=("total_params", "tokens"),
        conventions="N = total_params, D = tokens; S is the sparsity, 1 - S = activation_ratio",
    ),
    Form(
        name="zhao",
        formula="loss = (e G + f/G + m S^2 + n S)(1/N^alpha + k/Na^alpha + h Na/N) + a/N^alpha + b/D^beta "
        "+ c/Na^alpha + epsilon",
        inputs=("total_params", "active_params", "tokens", "top_k", "n_shared_experts"),
        parameters=(
            *(_amplitude("e"), _amplitude("f"), _amplitude("m"), Parameter("n", -9.0, 3.0, "negative", (-2.5, 0.0))),
            *(_amplitude("k"), _amplitude("h"), _amplitude("a"), _exponent("alpha")),
            *(_amplitude("b"), _exponent("beta"), _amplitude("c"), _floor("epsilon")),
        ),
        source="arXiv:2509.23678",
        features=_zhao_features,
        model=_formulas.zhao,
        centring=_zhao_centring,
        scale=("active_params", "tokens"),
        conventions="N = total_params, Na = active_params, D = tokens; G = top_k + n_shared_experts active experts, "
        "S = n_shared_experts / G",
    ),
    Form(
        name="leverage",
        formula="EL = Â^(a + d log10 C + gamma (log2 G)^2 + beta log2 G), "
        "1/Â = 1/(A + (1/A_start - 1/A_max)^-1) + 1/A_max",
        inputs=("activation_ratio", "granularity", "compute"),
        parameters=(
            *(_real("a", -3.0, 0.5, -1.0, 0.0), _real("d", -0.6, 0.6, -0.2, 0.1)),
            *(_real("gamma", -0.6, 0.6, -0.1, 0.1), _real("beta", -1.0, 1.0, -0.2, 0.2)),
            *_RATIO_SATURATION,
        ),
        source="arXiv:2507.17702, joint law",
        features=lambda ratio, g, c: (ratio, np.log2(g), np.log10(c)),
        model=_formulas.leverage,
        centring=_leverage_centring,
        scale=("compute",),
        target="leverage",
        delta=_READ_OFF,
        conventions=f"{_GRANULARITY}; log C to base 10, log G to base 2; A = top_k / n_experts without shared experts",
    ),
    Form(
        name="leverage_activation",
        formula="EL = Â^a, Â as in leverage",
        inputs=("activation_ratio",),
        parameters=(_real("a", -3.0, 0.5, -1.0, 0.0), *_RATIO_SATURATION),
        source="arXiv:2507.17702, separable law at fixed G and C",
        features=lambda ratio: (ratio,),
        model=_formulas.leverage_activation,
        centring=lambda f: {("A_max", "A_start"): 1.0},
        scale=("activation_ratio",),
        target="leverage",
        delta=_READ_OFF,
        conventions=_GRANULARITY,
    ),
    Form(
        name="leverage_granularity",
        formula="log10 EL = a + b log2 G (log2 G + c)",
        inputs=("granularity",),
        parameters=(_real("a", -2.0, 4.0), _real("b", -1.0, 1.0, -0.2, 0.2), _real("c", -30.0, 30.0, -10.0, 0.0)),
        source="arXiv:2507.17702, separable law at fixed A and C",
        features=lambda g: (np.log2(g),),
        model=_formulas.leverage_granularity,
        centring=lambda f: {("a", "loss"): 1.0 / float(np.log(10))},
        scale=("granularity",),
        target="leverage",
        delta=_READ_OFF,
        conventions=_GRANULARITY,
    ),
    Form(
        name="leverage_compute",
        formula="EL = a C^b",
        inputs=("compute",),
        parameters=(Parameter("a", -4.0, 8.0, starts=(-0.5, 2.0)), _real("b", -3.0, 3.0, -0.2, 0.2)),
        source="arXiv:2507.17702, separable law at fixed A and G: log EL = a_C log C + c_C",
        features=_logs,
        model=_formulas.power,
        centring=lambda f: {("a", "b"): -_mean(f[0]), ("a", "loss"): 1.0},
        scale=("compute",),
        target="leverage",
        delta=_READ_OFF,
    ),
    Form(
        name="holistic",
        formula="loss = (E + A/M^alpha + B/D^beta) (1 + k_x C^-nu (x0/(x-6) + (x-6)/x0 - 2) "
        "+ k_y C^-nu (p^2/v + (1-p)^2/(1-v) - 1) + k_w C^-nu (w - w_0)^2), x0 = x_0 C^-xi",
        inputs=(
            *("flops_per_token", "tokens", "compute_density", "expansion_ratio", "width"),
            *("n_experts", "top_k", "n_shared_experts"),
        ),
        parameters=(
            *(_floor("E"), _amplitude("A"), _exponent("alpha"), _amplitude("B"), _exponent("beta")),
            *(Parameter("x_0", -3.0, 3.0, starts=(-0.7, 0.7)), _real("xi", -0.6, 0.6, -0.2, 0.2)),
            *(Parameter("k_x", -12.0, 1.0, starts=(-6.0, -2.5)), _real("p", 0.02, 0.98, 0.3, 0.8)),
            *(Parameter("k_y", -12.0, 1.0, starts=(-6.0, -2.5)), _real("w_0", -0.5, 1.5, 0.2, 0.8)),
            *(Parameter("k_w", -12.0, 1.0, starts=(-6.0, -2.0)), _real("nu", -0.6, 0.6, -0.1, 0.1)),
        ),
        source="the axis forms of arXiv:2603.21862 on one loss surface across budgets (this project's joint form)",
        features=_holistic_features,
        model=_formulas.holistic,
        centring=_holistic_centring,
        scale=("flops_per_token", "tokens"),
        conventions="non_embedding counts; M = flops_per_token, C = M tokens, x = compute_density, w = width, "
        "v = (expansion_ratio - 1) / (pole - 1) with pole = (n_experts + shared) / (top_k + shared)",
    ),
)
FORMS: dict[str, Form] = {each.name: each for each in _ALL}
"""The forms by name."""
