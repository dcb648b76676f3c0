"""Scaling laws as the literature gives them: formula, coefficients, units, conventions, range, source.

>>> law = PUBLISHED["holistic_flops_per_token"]
>>> round(float(law(3e20)) / 1e9, 2)
5.94
>>> low, high = law.interval(3e20)

Outside a law's range a call warns (`OutsideRangeWarning`), and its interval widens: with `error` the relative standard
deviation inside, the half-width in log units is ``z * error * (1 + d)``, d being the decades by which the inputs
leave the range, added up.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.errors import InputError
from moe_optuna.laws import _formulas
from moe_optuna.laws._form import Form, Parameter
from moe_optuna.laws._formulas import Array
from moe_optuna.laws.forms import FORMS

__all__ = ["PUBLISHED", "OutsideRangeWarning", "PublishedLaw"]

_MAY_BE_0 = ("n_experts", "n_shared_experts")


class OutsideRangeWarning(UserWarning):
    """A law is asked about something that its authors did not measure."""


@dataclass(frozen=True)
class PublishedLaw:
    """A published law; call it with its inputs in order, or by name, as numbers or arrays.

    Attributes:
        name: Key in `PUBLISHED`.
        form: Its form: inputs, target, formula.
        coefficients: By the paper's names.
        units: Of inputs and result.
        conventions: What is counted, which logarithm, which ratio.
        valid_range: Lowest and highest value measured, by input; an input without one is not checked.
        source: Paper and place.
        error: Relative standard deviation of the law inside its range.
        error_source: Where that figure comes from.
    """

    name: str
    form: Form
    coefficients: Mapping[str, float]
    units: str
    conventions: str
    valid_range: Mapping[str, tuple[float, float]]
    source: str
    error: float
    error_source: str

    @property
    def formula(self) -> str:
        """Its text."""
        return self.form.formula

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments, in order."""
        return self.form.inputs

    def _columns(self, arguments: tuple[ArrayLike, ...], named: Mapping[str, ArrayLike]) -> dict[str, Array]:
        if len(arguments) > len(self.inputs):
            raise InputError(f"{len(arguments)} arguments, expected {', '.join(self.inputs)}", where=self.name)
        given = dict(zip(self.inputs, arguments, strict=False)) | dict(named)
        if twice := [name for name in self.inputs[: len(arguments)] if name in named]:
            raise InputError(f"{', '.join(twice)} given twice, expected once", where=self.name)
        if wrong := sorted(set(given) ^ set(self.inputs)):
            raise InputError(f"{', '.join(wrong)} not as expected: {', '.join(self.inputs)}", where=self.name)
        columns = {name: np.asarray(given[name], dtype=float) for name in self.inputs}
        for name, values in columns.items():
            fits, words = values > 0, "positive finite numbers"
            if name in _MAY_BE_0:
                fits, words = values >= 0, "finite numbers of at least 0"
            if not (fits & np.isfinite(values)).all():
                raise InputError(f"{given[name]!r}, expected {words}", where=f"{self.name}: {name}")
            if name == "n_experts":  # 0 counts as 1, in the range too
                columns[name] = np.where(values == 0, 1.0, values)
        return columns

    def decades_outside(self, *arguments: ArrayLike, **named: ArrayLike) -> Array:
        """Decades by which the inputs leave the valid range, added over inputs; 0 inside."""
        columns = self._columns(arguments, named)
        outside = np.zeros(np.broadcast_shapes(*(values.shape for values in columns.values())))
        for name, (low, high) in self.valid_range.items():
            nearest = np.clip(columns[name], low, high)
            outside = outside + np.abs(np.log10(np.maximum(columns[name], 1e-300) / nearest))
        return outside

    def _warn(self, columns: Mapping[str, Array]) -> None:
        for name, (low, high) in self.valid_range.items():
            values = columns[name]
            if (values < low * (1 - 1e-9)).any() or (values > high * (1 + 1e-9)).any():
                asked = f"{values.min():.3g}" if values.size == 1 else f"{values.min():.3g} to {values.max():.3g}"
                warnings.warn(
                    f"{self.name}: {name} {asked} is outside {low:.3g} to {high:.3g}, the range of {self.source}",
                    OutsideRangeWarning,
                    stacklevel=3,
                )

    def __call__(self, *arguments: ArrayLike, **named: ArrayLike) -> Any:
        """The law's value, in the shape of the inputs; a float for numbers.

        Raises:
            InputError: Where an input is missing, unknown, given twice, or not positive (experts: below 0).
        """
        columns = self._columns(arguments, named)
        self._warn(columns)
        return _plain(self.form.predict(columns, self.coefficients))

    def interval(self, *arguments: ArrayLike, level: float = 0.95, **named: ArrayLike) -> tuple[Any, Any]:
        """Ends of the interval that holds the truth with probability `level`; the rule stands in the module's head.

        Raises:
            InputError: As of a call, and where the level is not a fraction.
        """
        columns = self._columns(arguments, named)
        self._warn(columns)
        return self._ends(columns, level)

    def quietly(self, *arguments: ArrayLike, level: float = 0.95, **named: ArrayLike) -> tuple[Any, tuple[Any, Any]]:
        """Value and interval without the warning, for callers that report `decades_outside` themselves."""
        columns = self._columns(arguments, named)
        return _plain(self.form.predict(columns, self.coefficients)), self._ends(columns, level)

    def _ends(self, columns: Mapping[str, Array], level: float) -> tuple[Any, Any]:
        if not 0 < level < 1:
            raise InputError(f"{level!r}, expected a fraction above 0 and below 1, such as 0.95", where="level")
        value = self.form.predict(columns, self.coefficients)
        z = NormalDist().inv_cdf(0.5 + level / 2)
        half = z * self.error * (1.0 + self.decades_outside(**columns))
        return _plain(value * np.exp(-half)), _plain(value * np.exp(half))


def _plain(value: Array) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _power(target: str, inputs: tuple[str, ...] = ("compute",)) -> Form:
    return replace(FORMS["power"], inputs=inputs, target=target, formula=f"{target} = a {inputs[0]}^b")


_SHIFTED = Form(
    name="shifted_power",
    formula="compute_density = floor + a compute^b",
    inputs=("compute",),
    parameters=(
        Parameter("floor", 0.0, 10.0, "real"),
        Parameter("a", -20.0, 20.0),
        Parameter("b", -2.0, 2.0, "real"),
    ),
    source="arXiv:2603.21862",
    features=FORMS["power"].features,
    model=_formulas.shifted_power,
    centring=lambda f: {},
    scale=("compute",),
    target="compute_density",
)
_TWO_POWERS = Form(
    name="two_powers",
    formula="learning_rate = a total_params^b tokens^c",
    inputs=("total_params", "tokens"),
    parameters=(
        Parameter("a", -20.0, 20.0),
        Parameter("b", -2.0, 2.0, "real"),
        Parameter("c", -2.0, 2.0, "real"),
    ),
    source="arXiv:2503.04715",
    features=FORMS["power"].features,
    model=_formulas.two_powers,
    centring=lambda f: {},
    scale=("tokens",),
    target="learning_rate",
)

_HOLISTIC = "arXiv:2603.21862"
_LEVERAGE = "arXiv:2507.17702"
_STRUCTURE = "non_embedding: without embeddings, head, router, norms and biases; causal attention halved"
_LADDER = {"compute": (1e18, 3e20)}
_SWEPT = {"compute": (1e18, 6e20)}
_ASSUMED = "assumed: the paper states none"
_EFLOP = 1e18


def _holistic(name: str, target: str, a: float, b: float, units: str, error: float, note: str) -> PublishedLaw:
    """A power law of the holistic study, with C in FLOP."""
    source = f"{_HOLISTIC}{', ' + note if note else ''}"
    return PublishedLaw(
        name, _power(target), {"a": a, "b": b}, f"C in FLOP; {units}", _STRUCTURE, _LADDER, source, error,
        "its table" if error < 0.02 else "scatter of the six points about the law",
    )  # fmt: skip


def _allocation(kind: str, what: str, target: str, a: float, b: float, units: str) -> PublishedLaw:
    """A power law of the Efficiency Leverage study."""
    families = {"dense": "dense models", "moe": "4 of 64 experts and one shared, G = 2"}
    conventions = f"{families[kind]}; attention over the whole context, no embeddings or logits; C in FLOP"
    return PublishedLaw(
        f"leverage_{kind}_{what}", _power(target), {"a": a, "b": b}, f"C in FLOP; {units}", conventions, _SWEPT,
        f"{_LEVERAGE}, allocation and hyperparameters", 0.1, _ASSUMED,
    )  # fmt: skip


def _routed(kind: str, values: tuple[float, ...]) -> PublishedLaw:
    return PublishedLaw(
        f"clark_{kind}",
        FORMS["routed"],
        dict(zip(FORMS["routed"].names, values, strict=True)),
        "parameters; nats per token",
        FORMS["routed"].conventions,
        {"active_params": (1.5e7, 1.3e9), "n_experts": (1, 512)},
        f"arXiv:2202.01169, {kind.replace('_', '-').upper()} routing",
        0.01,
        _ASSUMED,
    )


def _loss(
    name: str, form: str, values: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], source: str,
    error: float = 0.02, error_source: str = _ASSUMED,
) -> PublishedLaw:  # fmt: skip
    return PublishedLaw(
        name, FORMS[form], dict(values), "parameters and tokens; nats per token", FORMS[form].conventions, ranges,
        source, error, error_source,
    )  # fmt: skip


_DENSE_RANGE = {"total_params": (5.7e7, 1.62e10), "tokens": (2.4e8, 5e11)}
_BATCH = 8192.0

_LAWS = (
    _holistic("holistic_flops_per_token", "flops_per_token", 0.04368, 0.5437, "FLOP per token", 0.01, "section 4"),
    _holistic("holistic_tokens", "tokens", 22.8929, 0.4563, "tokens", 0.01, "section 4"),
    PublishedLaw(
        "holistic_compute_density", _SHIFTED, {"floor": 6.0, "a": 4.65 * _EFLOP**0.142, "b": -0.142},
        "C in FLOP; FLOP per active parameter", _STRUCTURE, _LADDER,
        f"{_HOLISTIC}, refit of its Phase-2 tables: M/Na - 6 = 4.65 (C/EFLOP)^-0.142", 0.02,
        "scatter of the six points about the law",
    ),
    replace(
        _holistic("holistic_active_params", "active_params", 25.2e6 * _EFLOP**-0.593, 0.593, "parameters", 0.03,
                  "refit of its Phase-2 tables: 25.2e6 (C/EFLOP)^0.593"),
        conventions=f"{_STRUCTURE}; refitted on its own, it passes M/6, which no architecture has, at C = 1.04e23",
    ),
    _holistic("holistic_total_params", "total_params", 0.556e9 * _EFLOP**-0.592, 0.592, "parameters", 0.03,
              "refit of its Phase-2 tables: 0.556e9 (C/EFLOP)^0.592"),
    _holistic("holistic_expansion_ratio", "expansion_ratio", 19.15 * _EFLOP**-0.0245, 0.0245, "N per Na", 0.06,
              "refit of the minima 19.23 ... 22.07 of its Phase-1 fits; flat within 1 % over 18 to 25"),
    _holistic("holistic_learning_rate", "learning_rate", 1.20e-3 * _EFLOP**0.1595, -0.1595, "AdamW's peak", 0.01,
              "refit of its table"),
    _holistic("holistic_batch", "batch_tokens", 63.9 * _BATCH * _EFLOP**-0.2645, 0.2645,
              "tokens a step (the paper counts sequences of 8192)", 0.06, "refit of its table"),
    PublishedLaw(
        "leverage", FORMS["leverage"],
        {"a": 1.23, "d": -7.61e-2, "gamma": 1.67e-2, "beta": -1.17e-1, "A_start": 1.63e-2, "A_max": 5.28e16},
        "C in FLOP; EL = compute of the dense model over the MoE's at equal loss", FORMS["leverage"].conventions,
        {"compute": (1e18, 6e20), "activation_ratio": (0.0078, 1.0), "granularity": (2.0, 16.0)},
        f"{_LEVERAGE}, joint law", 0.065, "RMS log deviation from the points of its Fig. 8",
    ),
    _allocation("dense", "flops_per_token", "flops_per_token", 0.0655, 0.5422, "FLOP per token"),
    _allocation("dense", "tokens", "tokens", 15.2582, 0.4578, "tokens"),
    _allocation("dense", "learning_rate", "learning_rate", 2.2177, -0.1649, "AdamW's peak"),
    _allocation("dense", "batch", "batch_tokens", 0.1039, 0.3493, "tokens a step"),
    _allocation("dense", "loss", "loss", 50.43, -0.0663, "nats per token, read off Fig. 1a"),
    _allocation("moe", "flops_per_token", "flops_per_token", 0.1915, 0.5095, "FLOP per token"),
    _allocation("moe", "tokens", "tokens", 5.2232, 0.4905, "tokens"),
    _allocation("moe", "learning_rate", "learning_rate", 1.1576, -0.1529, "AdamW's peak"),
    _allocation("moe", "batch", "batch_tokens", 0.0694, 0.3644, "tokens a step"),
    _allocation("moe", "loss", "loss", 53.7, -0.0694, "nats per token, read off Fig. 1a"),
    _routed("s_base", (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)),
    _routed("rl_r", (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982)),
    _routed("hash", (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741)),
    _loss("krajewski", "krajewski",
          {"a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "g": 2.1, "gamma": 0.58, "c": 0.47},
          {"granularity": (0.5, 8.0), "tokens": (1.6e10, 1.3e11)}, "arXiv:2402.07871, 64 experts"),
    _loss("ludziejewski", "ludziejewski",
          {"a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775,
           "omega": 0.5529, "zeta": -0.0259, "E_start": 2.0732, "E_max": 290.4521, "c": 1.3637},
          {"active_params": (3e7, 2.7e9), "n_experts": (1, 32)}, "arXiv:2502.05172"),
    _loss("abnar", "abnar",
          {"a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666, "d": 17.26,
           "delta": 0.1603, "gamma": 0.1595, "e": 0.94},
          {"activation_ratio": (0.02, 1.0)}, "arXiv:2501.12370"),
    _loss("zhao", "zhao",
          {"e": 0.1577, "f": 7.2446, "m": 5.1395, "n": -3.2363, "k": 0.0013, "h": 0.045, "a": 38.051,
           "alpha": 0.2383, "b": 27129.05, "beta": 0.4694, "c": 31.096, "epsilon": 1.8182}, {}, "arXiv:2509.23678"),
    _loss("chinchilla", "chinchilla", {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, _DENSE_RANGE,
          "arXiv:2203.15556, approach 3", 0.02, "RMS log deviation from the points of its Fig. 4, twice the refit's"),
    _loss("chinchilla_refit", "chinchilla",
          {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}, _DENSE_RANGE, "arXiv:2404.10102",
          0.01, "RMS log deviation from the 240 points that it fits"),
    PublishedLaw(
        "step_learning_rate", _TWO_POWERS, {"a": 1.79, "b": -0.713, "c": 0.307}, "parameters, tokens; AdamW's peak",
        "N = total_params without embeddings", {"total_params": (6e7, 1e9), "tokens": (2e9, 1e11)},
        "arXiv:2503.04715", 0.1, _ASSUMED,
    ),
    PublishedLaw(
        "step_batch", _power("batch_tokens", ("tokens",)), {"a": 0.58, "b": 0.571}, "tokens; tokens a step",
        "tokens of the run", {"tokens": (2e9, 1e11)}, "arXiv:2503.04715", 0.1, _ASSUMED,
    ),
)  # fmt: skip
PUBLISHED: Mapping[str, PublishedLaw] = MappingProxyType({law.name: law for law in _LAWS})
"""The published laws by name."""
