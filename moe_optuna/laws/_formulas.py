"""The algebra of the laws: log value and its analytic partial derivatives, for many sets of coefficients at once.

Shapes: every feature is ``(n,)`` (n runs), every search coordinate ``(s, 1)`` (s sets of coefficients); a model
returns the log of the law's value, ``(s, n)``, and one partial derivative ``(s, n)`` a coordinate, in the order of the
coordinates. The coordinate of a positive coefficient is its logarithm, of a negative one the logarithm of its
magnitude; exponents, floors and signed coefficients are their own coordinates (`forms.Parameter`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Answer = tuple[Array, list[Array]]

_LN10 = float(np.log(10.0))
_TINY = 1e-300


def _logarithm(value: Array, partials: list[Array]) -> Answer:
    """Log of a value and its partials; a value that is not positive gets an infinite log, which no fit accepts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / np.where(value > 0, value, np.nan)
        return np.log(value), [partial * inverse for partial in partials]


def saturated(x: Array, log_start: Array, log_max: Array) -> tuple[Array, Array, Array]:
    """Clark's transform ``1/y = 1/(x + (1/start - 1/max)^-1) + 1/max`` (arXiv:2202.01169, eq. 7): start at x = 0,
    max at infinity.

    Returns:
        log y and its derivatives by log start and log max, each ``(s, n)``.
    """
    start, inverse_max = np.exp(log_start), np.exp(-log_max)
    unit = 1.0 / np.maximum(1.0 / start - inverse_max, _TINY)
    share = unit / (x + unit)
    value = 1.0 / (share / unit + inverse_max)
    return np.log(value), value * share**2 / start, value * inverse_max * (1.0 - share**2)


def power(log_x: Array, log_a: Array, b: Array) -> Answer:
    """``a x^b``."""
    return log_a + b * log_x, [np.ones_like(log_x + b), log_x + 0.0 * b]


def two_powers(log_x: Array, log_z: Array, log_a: Array, b: Array, c: Array) -> Answer:
    """``a x^b z^c``."""
    one = np.ones_like(log_x + b)
    return log_a + b * log_x + c * log_z, [one, log_x * one, log_z * one]


def shifted_power(log_x: Array, floor: Array, log_a: Array, b: Array) -> Answer:
    """``floor + a x^b``."""
    term = np.exp(log_a + b * log_x)
    return _logarithm(floor + term, [np.ones_like(term), term, log_x * term])


def floored_power(log_x: Array, floor: Array, log_a: Array, alpha: Array) -> Answer:
    """``E + A / x^alpha``."""
    term = np.exp(log_a - alpha * log_x)
    return _logarithm(floor + term, [np.ones_like(term), term, -log_x * term])


def chinchilla(
    log_n: Array, log_d: Array, floor: Array, log_a: Array, log_b: Array, alpha: Array, beta: Array
) -> Answer:
    """``E + A / N^alpha + B / D^beta``."""
    by_size, by_data = np.exp(log_a - alpha * log_n), np.exp(log_b - beta * log_d)
    return _logarithm(
        floor + by_size + by_data,
        [np.ones_like(by_size), by_size, by_data, -log_n * by_size, -log_d * by_data],
    )


def routed(log_n: Array, experts: Array, a: Array, b: Array, c: Array, d: Array, start: Array, top: Array) -> Answer:
    """``log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d``."""
    log_e, by_start, by_top = saturated(experts - 1.0, start, top)
    n, e = log_n / _LN10, log_e / _LN10
    slope = b + c * n
    one = np.ones_like(e)
    value = _LN10 * (a * n + slope * e + d)
    return value, [_LN10 * n * one, _LN10 * e, _LN10 * n * e, _LN10 * one, slope * by_start, slope * by_top]


def krajewski(
    log_n: Array,
    log_g: Array,
    log_d: Array,
    log_a: Array,
    alpha: Array,
    log_b: Array,
    beta: Array,
    log_fine: Array,
    gamma: Array,
    floor: Array,
) -> Answer:
    """``c + (g / G^gamma + a) / N^alpha + b / D^beta``."""
    plain = np.exp(log_a - alpha * log_n)
    fine = np.exp(log_fine - gamma * log_g - alpha * log_n)
    by_data = np.exp(log_b - beta * log_d)
    return _logarithm(
        floor + plain + fine + by_data,
        [plain, -log_n * (plain + fine), by_data, -log_d * by_data, fine, -log_g * fine, np.ones_like(fine)],
    )


def ludziejewski(
    log_n: Array,
    experts: Array,
    log_d: Array,
    log_a: Array,
    alpha: Array,
    delta: Array,
    gamma: Array,
    log_b: Array,
    beta: Array,
    omega: Array,
    zeta: Array,
    start: Array,
    top: Array,
    floor: Array,
) -> Answer:
    """``a Ê^delta Na^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c``."""
    e, by_start, by_top = saturated(experts - 1.0, start, top)
    by_size = np.exp(log_a + delta * e + (alpha + gamma * e) * log_n)
    by_data = np.exp(log_b + omega * e + (beta + zeta * e) * log_d)
    by_e = by_size * (delta + gamma * log_n) + by_data * (omega + zeta * log_d)
    size = [by_size, log_n * by_size, e * by_size, e * log_n * by_size]
    data = [by_data, log_d * by_data, e * by_data, e * log_d * by_data]
    return _logarithm(floor + by_size + by_data, [*size, *data, by_e * by_start, by_e * by_top, np.ones_like(by_size)])


def abnar(
    log_n: Array,
    log_d: Array,
    log_active: Array,
    log_a: Array,
    alpha: Array,
    log_b: Array,
    beta: Array,
    log_c: Array,
    lam: Array,
    log_sparse: Array,
    delta: Array,
    gamma: Array,
    floor: Array,
) -> Answer:
    """``a / N^alpha + b / D^beta + c / (1-S)^lambda + d / ((1-S)^delta N^gamma) + e``."""
    by_size, by_data = np.exp(log_a - alpha * log_n), np.exp(log_b - beta * log_d)
    by_sparsity = np.exp(log_c - lam * log_active)
    mixed = np.exp(log_sparse - delta * log_active - gamma * log_n)
    return _logarithm(
        by_size + by_data + by_sparsity + mixed + floor,
        [
            *(by_size, -log_n * by_size, by_data, -log_d * by_data, by_sparsity, -log_active * by_sparsity),
            *(mixed, -log_active * mixed, -log_n * mixed, np.ones_like(mixed)),
        ],
    )


def zhao(
    log_n: Array,
    log_active: Array,
    log_d: Array,
    log_g: Array,
    shared: Array,
    log_e: Array,
    log_f: Array,
    log_m: Array,
    log_minus_n: Array,
    log_k: Array,
    log_h: Array,
    log_a: Array,
    alpha: Array,
    log_b: Array,
    beta: Array,
    log_c: Array,
    floor: Array,
) -> Answer:
    """``(e G + f/G + m S^2 + n S)(1/N^alpha + k/Na^alpha + h Na/N) + a/N^alpha + b/D^beta + c/Na^alpha + eps``, n <
    0.
    """
    many, few = np.exp(log_e + log_g), np.exp(log_f - log_g)
    square, line = np.exp(log_m) * shared**2, -np.exp(log_minus_n) * shared
    by_total, by_active = np.exp(-alpha * log_n), np.exp(-alpha * log_active)
    part_k, part_h = np.exp(log_k) * by_active, np.exp(log_h + log_active - log_n)
    experts, size = many + few + square + line, by_total + part_k + part_h
    term_a, term_c, by_data = np.exp(log_a) * by_total, np.exp(log_c) * by_active, np.exp(log_b - beta * log_d)
    by_alpha = -log_n * (experts * by_total + term_a) - log_active * (experts * part_k + term_c)
    return _logarithm(
        experts * size + term_a + by_data + term_c + floor,
        [
            *(many * size, few * size, square * size, line * size, experts * part_k, experts * part_h),
            *(term_a, by_alpha, by_data, -log_d * by_data, term_c, np.ones_like(by_data)),
        ],
    )


def leverage(
    ratio: Array, log2_g: Array, log10_c: Array, a: Array, d: Array, gamma: Array, beta: Array, start: Array, top: Array
) -> Answer:
    """``Â^(a + d log10 C + gamma (log2 G)^2 + beta log2 G)``."""
    log_hat, by_start, by_top = saturated(ratio, start, top)
    power = a + d * log10_c + gamma * log2_g**2 + beta * log2_g
    return power * log_hat, [
        *(log_hat, log10_c * log_hat, log2_g**2 * log_hat, log2_g * log_hat),
        *(power * by_start, power * by_top),
    ]


def leverage_activation(ratio: Array, a: Array, start: Array, top: Array) -> Answer:
    """``Â^a``."""
    log_hat, by_start, by_top = saturated(ratio, start, top)
    return a * log_hat, [log_hat, a * by_start, a * by_top]


def leverage_granularity(log2_g: Array, a: Array, b: Array, c: Array) -> Answer:
    """``10^(a + b log2 G (log2 G + c))``."""
    one = np.ones_like(log2_g + a)
    bend = log2_g * (log2_g + c)
    return _LN10 * (a + b * bend), [_LN10 * one, _LN10 * bend, _LN10 * b * log2_g * one]


def holistic(
    log_m: Array,
    log_d: Array,
    log_density: Array,
    expansion: Array,
    width: Array,
    floor: Array,
    log_a: Array,
    alpha: Array,
    log_b: Array,
    beta: Array,
    log_x0: Array,
    xi: Array,
    log_kx: Array,
    share: Array,
    log_ky: Array,
    middle: Array,
    log_kw: Array,
    nu: Array,
) -> Answer:
    """``(E + A/M^alpha + B/D^beta) (1 + penalties)``, see `forms.FORMS["holistic"]`; C = M D."""
    log_c = log_m + log_d
    by_m, by_d = np.exp(log_a - alpha * log_m), np.exp(log_b - beta * log_d)
    base = floor + by_m + by_d

    shift = log_density - log_x0 + xi * log_c
    stiffness = nu * log_c
    pole = 2.0 * np.cosh(shift) - 2.0
    poles = share**2 / expansion + (1.0 - share) ** 2 / (1.0 - expansion) - 1.0
    offset = width - middle
    k_x, k_y, k_w = (np.exp(log_k - stiffness) for log_k in (log_kx, log_ky, log_kw))
    by_x, by_y, by_w = k_x * pole, k_y * poles, k_w * offset**2
    factor = 1.0 + by_x + by_y + by_w

    lean = base * k_x * 2.0 * np.sinh(shift)
    return _logarithm(
        base * factor,
        [
            *(factor, by_m * factor, -log_m * by_m * factor, by_d * factor, -log_d * by_d * factor),
            *(-lean, log_c * lean, base * by_x),
            *(base * k_y * 2.0 * (share / expansion - (1.0 - share) / (1.0 - expansion)), base * by_y),
            *(-2.0 * base * k_w * offset, base * by_w, -log_c * base * (by_x + by_y + by_w)),
        ],
    )
