"""How the report writes numbers, words and units; one place, so that page, figures and terminal agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moe_optuna.architecture import COUNTS, MoEArchitecture

__all__ = [
    "AXES", "POOLED", "compute", "flops", "interval", "large", "memory", "number", "percent", "signed", "sketch",
    "tick", "title", "unit", "value", "verdict",
]  # fmt: skip

AXES: dict[str, tuple[str, str]] = {
    "flops_per_token": ("M", "FLOPs per token, non_embedding"),
    "active_params": ("Na", "parameters, non_embedding"),
    "total_params": ("N", "parameters, non_embedding"),
    "compute_density": ("M/Na", "FLOPs per parameter, non_embedding"),
    "expansion_ratio": ("N/Na", "ratio, non_embedding"),
    "d_model": ("width of the residual stream", "features"),
    "tokens": ("D", "training tokens"),
    "compute": ("C", "training FLOPs, non_embedding"),
    "loss": ("held-out loss", "nats per token"),
    "n_experts": ("routed experts of a layer", "count"),
    "top_k": ("routed experts that a token visits", "count"),
    "n_shared_experts": ("shared experts of a layer", "count"),
    "n_heads": ("query heads", "count"),
}
"""Word: (symbol or meaning, unit and counting convention)."""
COUNT_SCALES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))
LARGE = (*COUNTS, "tokens")


def title(word: str) -> str:
    """An axis title in two lines: the word and its symbol, the unit with the counting convention."""
    meaning = AXES.get(word, ("", ""))[0]
    return word + (f" · {meaning}" if meaning else "") + (f"<br>{unit(word)}" if unit(word) else "")


def unit(word: str) -> str:
    """The unit with the counting convention: ``[FLOPs per token, non_embedding]``."""
    text = AXES.get(word, ("", ""))[1]
    return f"[{text}]" if text else ""


def tick(word: str, x: float) -> str:
    """A value at a tick, whose axis title holds the unit."""
    return _scaled(x, COUNT_SCALES, write="{:.3g}".format) if word in LARGE else f"{x:.5g}"


def large(x: float) -> str:
    """A count of parameters or tokens for reading: ``726 M``, ``50.5 B``."""
    return _scaled(x, COUNT_SCALES)


def flops(x: float) -> str:
    """FLOPs per token for reading: ``5.94 GFLOPs``."""
    return _scaled(x, (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)), "FLOPs")


def _scaled(
    x: float,
    scales: Iterable[tuple[str, float]],
    unit: str = "",
    write: Callable[[float], str] | None = None,
) -> str:
    if not math.isfinite(x):
        return "unknown"
    for prefix, scale in scales:
        if abs(x) >= 0.9995 * scale:  # 999.6 M reads 1.00 B
            return f"{(write or _digits)(x / scale)} {prefix}{unit}"
    return f"{number(x)} {unit}".rstrip()


def _digits(x: float) -> str:
    """Three significant digits, zeros too."""
    return f"{x:#.3g}".rstrip(".")


def memory(x: float) -> str:
    """Bytes for reading: ``1.52 GiB``."""
    return _scaled(x, (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)), "B")


def compute(x: float) -> str:
    """Training FLOPs of a run: ``3e20``, ``1.5e12``."""
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def number(x: Any, digits: int = 4) -> str:
    """A number to so many significant digits; integers whole, with commas from 10,000 on."""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return str(x)
    if not math.isfinite(x):
        return "unknown"
    if x == int(x) and abs(x) < 1e15:
        text = f"{int(x):,}" if abs(x) >= 10_000 else str(int(x))
    else:
        text = f"{x:.{digits}g}"
    return text.replace("-", "−")


def percent(x: float, digits: int = 2) -> str:
    """A share: ``0.1 %``."""
    return f"{number(100 * x, digits)} %"


def signed(x: float) -> str:
    """A deviation as a share: ``−0.35 %``, ``+12.1 %``; a large one as a factor: ``× 22.5``."""
    if x >= 1:
        return f"× {number(1 + x, 3)}"
    return f"{100 * x:+.{2 if abs(x) < 0.1 else 1}f} %".replace("-", "−")


def sketch(a: MoEArchitecture) -> str:
    """An architecture in a line."""
    parts = [
        f"{a.n_dense_layers} dense and {a.n_moe_layers} MoE layers"
        if a.n_dense_layers
        else f"{a.n_moe_layers} MoE layers",
        f"d_model {a.d_model}",
    ]
    if a.n_moe_layers:
        shared = f" and {a.n_shared_experts} shared" if a.n_shared_experts else ""
        parts.append(f"{a.top_k} of {a.n_experts} experts{shared}, {a.d_expert} wide")
    return ", ".join([*parts, f"{a.n_heads} query heads on {a.n_kv_heads} key-value heads of {a.d_head}"])


def value(word: str, x: float) -> str:
    """A value of the quantity that the word names."""
    if word == "flops_per_token":
        return flops(x)
    if word in LARGE:
        return large(x)
    if word == "compute":
        return compute(x)
    if word == "loss":
        return f"{x:.4f}"
    if word in ("compute_density", "expansion_ratio"):
        return f"{x:#.4g}"
    return number(x)


POOLED = (
    "pooled: the largest budget has too few trainings for an optimum of its own, so that what was found is that of the "
    "law of all budgets, and agrees the more easily"
)


def verdict(interval: Sequence[float] | None, found: float, consistent: bool | None, *, pooled: bool = False) -> str:
    """Of a prediction: its interval holds what was found, only meets the interval of that, or misses both; and whether
    what was found leans on the runs behind the prediction too (`POOLED`)."""
    if interval is None or consistent is None:
        return "no interval"
    inside = interval[0] <= found <= interval[1]
    return ("inside" if inside else "overlaps" if consistent else "missed") + (", pooled" if pooled else "")


def interval(word: str, ends: Sequence[float] | None) -> str:
    """``low – high`` of the quantity that the word names, or a dash where there is none."""
    if not ends or not all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends):
        return "–"
    low, high = (value(word, end) for end in ends)
    return f"{low} to {high}" if ends[0] < 0 else f"{low} – {high}"
