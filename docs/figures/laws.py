"""Draw the curves of docs/laws.md and write its table of coefficients: ``python docs/figures/laws.py``.

SVG by hand: a figure is some lines, some dots and two axes.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from moe_optuna.laws import PUBLISHED, OutsideRangeWarning

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("MOE_OPTUNA_DATA", HERE.parents[2] / "shared" / "data"))
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5aa8", "#e28413", "#5c6670")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 320, 64, 128, 30, 46
Series = tuple[str, np.ndarray, np.ndarray, bool]  # label, x, y, dots instead of a line


def short(value: float) -> str:
    """1e8 rather than 1e+08."""
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def scale(values: np.ndarray, logarithmic: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        low, high = np.log10(low), np.log10(high)
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    if logarithmic and high - low > 1.2:
        step = max(1, round((high - low) / 6))
        return [(k, short(10.0**k))
                for k in range(int(np.ceil(low)), int(np.floor(high)) + 1, step)]  # fmt: skip
    ends = (10**low, 10**high) if logarithmic else (low, high)
    raw = (ends[1] - ends[0]) / 5
    step = 10 ** np.floor(np.log10(raw))
    step *= next(k for k in (1, 2, 5, 10) if k * step >= raw)
    values = np.arange(np.ceil(ends[0] / step) * step, ends[1], step)
    return [(float(np.log10(v) if logarithmic else v), f"{v:.4g}") for v in values if v > 0 or not logarithmic]


def chart(name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], log: str = "x") -> None:
    """Write NAME.svg; `log` holds the letters of the logarithmic axes."""
    log_x, log_y = "x" in log, "y" in log
    x_low, x_high = scale(np.concatenate([x for _, x, _, _ in series]), log_x)
    y_low, y_high = scale(np.concatenate([y for _, _, y, _ in series]), log_y)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / (y_high - y_low), 1)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="13">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" fill="none" stroke="#888888"/>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    for value, label in ticks(x_low, x_high, log_x):
        x, _ = at(value, y_low)
        parts.append(f'<path d="M{x} {bottom}v4" stroke="#888888"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for value, label in ticks(y_low, y_high, log_y):
        _, y = at(x_low, value)
        parts.append(f'<path d="M{LEFT} {y}h-4" stroke="#888888"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{label}</text>')
    lines = [label for label, _, _, dots in series if not dots]
    for label, xs, ys, dots in series:
        colour = COLOURS[lines.index(label) % len(COLOURS)] if label in lines else COLOURS[-1]
        points = [
            at(float(np.log10(x)) if log_x else float(x), float(np.log10(y)) if log_y else float(y))
            for x, y in zip(xs, ys, strict=True)
        ]
        if dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="none" stroke="{colour}"/>' for x, y in points]
        else:
            path = "M" + "L".join(f"{x} {y}" for x, y in points)
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    for row, label in enumerate(lines):
        y, colour = TOP + 12 + 16 * row, COLOURS[row % len(COLOURS)]
        parts.append(f'<path d="M{right + 8} {y - 4}h14" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 26}" y="{y}">{escape(label)}</text>')
    (HERE / f"{name}.svg").write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def curve(label: str, x: np.ndarray, y: np.ndarray) -> Series:
    return label, x, np.asarray(y), False


def dots(label: str, x: np.ndarray, y: np.ndarray) -> Series:
    return label, np.asarray(x, dtype=float), np.asarray(y, dtype=float), True


def draw() -> None:
    law = PUBLISHED
    ladder = np.array([1, 3, 10, 30, 100, 300]) * 1e18
    c = np.geomspace(1e18, 3e20, 60)
    chart(
        "holistic_allocation", "Holistic allocation (dots: Table 2)", "compute C [FLOP]", "GFLOP; billion tokens",
        [
            curve("M [GFLOP/token]", c, law["holistic_flops_per_token"](c) / 1e9),
            curve("D [billion]", c, law["holistic_tokens"](c) / 1e9),
            dots("M [GFLOP/token]", ladder, [0.2672, 0.4856, 0.9345, 1.6983, 3.2681, 5.9390]),
            dots("D [billion]", ladder, [3.7420, 6.1775, 10.7004, 17.6649, 30.5985, 50.5138]),
        ],
        log="xy",
    )  # fmt: skip
    chart(
        "holistic_density", "Holistic optimum of M/Na (dots: Phase 2)", "compute C [FLOP]", "M/Na [FLOP a parameter]",
        [
            curve("M/Na", c, law["holistic_compute_density"](c)),
            dots("M/Na", ladder, [10.95, 9.90, 9.22, 8.77, 8.35, 8.22]),
        ],
    )  # fmt: skip
    chart(
        "holistic_expansion", "Holistic optimum of N/Na (dots: Phase 1)", "compute C [FLOP]", "N/Na",
        [
            curve("N/Na", c, law["holistic_expansion_ratio"](c)),
            dots("N/Na", ladder, [19.23, 19.33, 20.69, 20.78, 21.29, 22.07]),
        ],
    )  # fmt: skip
    c = np.geomspace(1e18, 6e20, 60)
    chart(
        "learning_rates", "Learning rate against compute", "compute C [FLOP]", "peak learning rate",
        [
            curve("holistic", c[c <= 3e20], law["holistic_learning_rate"](c[c <= 3e20])),
            curve("leverage, dense", c, law["leverage_dense_learning_rate"](c)),
            curve("leverage, MoE", c, law["leverage_moe_learning_rate"](c)),
        ],
        log="xy",
    )  # fmt: skip
    chart(
        "batches", "Batch against compute", "compute C [FLOP]", "tokens a step",
        [
            curve("holistic", c[c <= 3e20], law["holistic_batch"](c[c <= 3e20])),
            curve("leverage, dense", c, law["leverage_dense_batch"](c)),
            curve("leverage, MoE", c, law["leverage_moe_batch"](c)),
        ],
        log="xy",
    )  # fmt: skip
    chart(
        "leverage_loss", "Loss against compute, Efficiency Leverage study", "compute C [FLOP]", "loss [nats a token]",
        [
            curve("dense", c, law["leverage_dense_loss"](c)),
            curve("MoE", c, law["leverage_moe_loss"](c)),
        ],
    )  # fmt: skip
    ratio = np.geomspace(0.0078, 1.0, 60)
    lines = [curve(f"C = {short(x)}", ratio, law["leverage"](ratio, 2.0, x)) for x in (1e19, 1e20, 1e21, 1e22)]
    path = DATA / "efficiency_leverage_fig8_points.csv"
    if path.is_file():
        with path.open() as file:
            points = [p for p in csv.DictReader(file) if p["panel"] == "8a"]
        for x in (1e19, 1e20, 1e21, 1e22):
            own = [p for p in points if float(p["C_flops"]) == x]
            label = f"C = {short(x)}"
            lines.append(dots(label, [float(p["A_ea_over_E"]) for p in own], [float(p["EL"]) for p in own]))
    chart(
        "leverage_activation",
        "Efficiency leverage, G = 2 (dots: Fig. 8a)",
        "activation ratio A",
        "leverage",
        lines,
        "xy",
    )
    grain = np.geomspace(2, 16, 60)
    chart(
        "leverage_granularity", "Efficiency leverage, A = 3.1 %", "granularity G", "leverage",
        [curve(f"C = {short(x)}", grain, law["leverage"](0.03125, grain, x))
         for x in (1e19, 1e20, 6e20)],
    )  # fmt: skip
    tokens = np.geomspace(2.4e8, 3e11, 60)
    chart(
        "chinchilla", "Chinchilla and its refit", "tokens D", "loss [nats a token]",
        [
            curve(f"{short(n)} {which}", tokens, law[name](n, tokens))
            for n in (1e8, 1e9, 1e10)
            for name, which in (("chinchilla", "2022"), ("chinchilla_refit", "refit"))
        ],
    )  # fmt: skip
    experts = np.geomspace(1, 512, 60)
    chart(
        "routed", "Clark: loss against experts, Na = 1e8", "experts E", "loss [nats a token]",
        [curve(name.removeprefix("clark_").replace("_", "-").upper(), experts, law[name](1e8, experts))
         for name in ("clark_s_base", "clark_rl_r", "clark_hash")],
    )  # fmt: skip
    grain = np.geomspace(0.5, 8, 60)
    chart(
        "krajewski", "Krajewski: loss against granularity, D = 5e10", "granularity", "loss [nats a token]",
        [curve(f"N = {short(n)}", grain, law["krajewski"](n, grain, 5e10)) for n in (1e9, 3e9, 1e10)],
    )  # fmt: skip
    tokens = np.geomspace(2e9, 3e11, 60)
    chart(
        "ludziejewski", "Ludziejewski: loss against tokens, Na = 5e8", "tokens D", "loss [nats a token]",
        [curve(f"{e} experts", tokens, law["ludziejewski"](5e8, e, tokens)) for e in (1, 4, 8, 32)],
    )  # fmt: skip
    ratio = np.geomspace(0.02, 1.0, 60)
    chart(
        "abnar", "Abnar: loss against activation ratio, D = 5e10", "activation ratio 1 - S", "loss [nats a token]",
        [curve(f"N = {short(n)}", ratio, law["abnar"](n, 5e10, ratio)) for n in (1e9, 5e9, 2e10)],
    )  # fmt: skip
    active = np.linspace(2, 24, 60)
    chart(
        "zhao", "Zhao: loss against active experts, D = 1e11", "active experts G", "loss [nats a token]",
        [curve(f"S = {s}", active, law["zhao"](8e9, 1e9, 1e11, (1 - s) * active, s * active))
         for s in (0.0, 0.15, 0.3, 0.5)],
        log="",
    )  # fmt: skip


def table() -> str:
    """The coefficients of every published law, as Markdown."""
    lines = ["| name | formula | coefficients | measured | error | source |", "|---|---|---|---|---|---|"]
    for law in PUBLISHED.values():
        values = ", ".join(f"{name} {value:.6g}" for name, value in law.coefficients.items())
        ranges = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in law.valid_range.items())
        error = f"{100 * law.error:.3g} %, {law.error_source}"
        cells = (f"`{law.name}`", law.formula, values, ranges or "not stated", error, law.source)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    warnings.simplefilter("ignore", OutsideRangeWarning)
    draw()
    page = HERE.parent / "laws.md"
    head, _, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, _, tail = rest.partition("<!-- end of table -->\n")
    page.write_text(f"{head}<!-- table -->\n{table()}\n<!-- end of table -->\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
