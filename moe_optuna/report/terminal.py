"""What the commands print without ``--json``: each function takes exactly the object that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moe_optuna.architecture import COUNTS
from moe_optuna.report import _words as words

__all__ = ["render_count", "render_fit", "render_lattice", "render_leverage", "render_plan", "render_search"]

Payload = Mapping[str, Any]
RATIOS = ("compute_density", "expansion_ratio", "granularity", "activation_ratio", "shared_ratio")
SHAPE = ("d_model", "layers", "heads", "experts", "d_expert")
"""What tells architectures apart: dense + MoE layers, query / key-value heads, active of routed + shared experts."""
MOST_ROWS = 20
"""Architectures of a lattice that are printed; ``--json`` gives all."""


def render_count(payload: Payload) -> RenderableType:
    """Counts in both conventions, FLOP shares, ratios, memory."""
    return _sections(
        {
            "architecture": _dimensions(payload["architecture"]),
            "counts": _conventions(payload),
            "shares of flops_per_token, non_embedding": _shares(payload["shares"]),
            "ratios, non_embedding": _pairs({name: payload[name] for name in RATIOS if payload.get(name) is not None}),
            "memory of training on one device, one sequence": _pairs(
                {name: words.memory(x) for name, x in payload["memory"].items()}
            ),
        }
    )


def render_plan(payload: Payload) -> RenderableType:
    """The blueprint: budget, architecture, both conventions, predicted loss, band, alternatives."""
    loss = payload["predicted_loss"]
    intervals = payload.get("intervals", {})
    predicted = payload.get("no_loss") or "unknown"
    if loss is not None:
        sure = words.interval("loss", intervals.get("predicted_loss"))
        predicted = f"{words.value('loss', loss)} nats per token, 95 % {sure}"
    sections: dict[str, RenderableType] = {
        f"blueprint for {words.compute(payload['compute'])} training FLOPs": _pairs(
            {
                "optimal M": f"{words.flops(payload['flops_per_token'])} a token, non_embedding",
                "optimal D": f"{words.large(payload['tokens'])} tokens",
                "to train": f"{words.large(payload['training_tokens'])} tokens, C over the architecture's own M",
                "predicted_loss": predicted,
                "source": payload["source"],
                **({"space": payload["space"]} if "space" in payload else {}),
            }
        ),
        "architecture": _dimensions(payload["architecture"]),
        "counts": _conventions(payload),
        "near-optimal band: within 0.1 % of the least loss": _band(payload),
    }
    if payload["alternatives"]:
        sections["alternatives within 0.1 % of its loss"] = _alternatives(payload["alternatives"])
    return Group(_sections(sections), *_notes(payload))


def render_search(payload: Payload) -> RenderableType:
    """The end of a search: trials, the held-out budget, the blueprint."""
    trials = payload["trials"]
    counts = ", ".join(f"{trials[state]} {state}" for state in ("complete", "pruned", "failed"))
    sections: dict[str, RenderableType] = {
        "search": _pairs(
            {
                "trials": f"{counts}, in {len(payload['studies'])} studies",
                **{name: payload[name] for name in ("out", "report") if name in payload},
            }
        )
    }
    held_out = payload["held_out"]
    if held_out and held_out.get("axes"):
        title = f"held out: {words.compute(held_out['compute'])} FLOPs, predicted from the smaller budgets"
        loss = {"loss": held_out["loss"]} if held_out["loss"] else {}
        sections[title] = _held_out({**loss, **held_out["axes"]})
    return Group(_sections(sections), Text(), render_plan(payload["blueprint"]))


def render_lattice(payload: Payload) -> RenderableType:
    """How many architectures meet the triad; where none does, what binds and what is nearest."""
    triad = payload["triad"] or {}
    met = "architecture meets" if payload["count"] == 1 else "architectures meet"
    sections: dict[str, RenderableType] = {
        f"{payload['count']:,} {met} the triad": _pairs(
            {name: f"{words.value(name, triad[name])}, non_embedding" for name in COUNTS if name in triad}
        )
    }
    if payload["binding"]:
        sections["what binds"] = Group(Text(payload["binding"]), Text(payload.get("reason") or ""))
    if near := payload["nearest"]:
        counts = {name: f"{near[name]:,}, non_embedding" for name in COUNTS}
        sections["nearest"] = Group(_pairs(counts), _dimensions(near["architecture"]))
    if relaxed := payload.get("relaxations"):
        rows = ([each["rule"], each["value"], each["needed"]] for each in relaxed)
        sections["smallest relaxations that give an architecture"] = _rows(["rule", "now", "needed"], rows)
    if listed := payload.get("architectures"):
        title = "architectures, counts non_embedding"
        if len(listed) > MOST_ROWS:
            title += f"; the first {MOST_ROWS}, all with --json"
        sections[title] = _rows(
            [*SHAPE, "M", "Na", "N"],
            ([*_shape(each), *(words.large(each[name]) for name in COUNTS)] for each in listed[:MOST_ROWS]),
        )
    return _sections(sections)


def render_fit(payload: Payload) -> RenderableType:
    """Coefficients with their intervals, the residual, the held-out score, and what a reader must know."""
    intervals, held = payload["intervals"], payload["held_out"]
    score = "none"
    if held and held["rows"]:
        score = f"{held['rows']} rows: RMS log error {words.number(held['rmse_log'])}"
        if held["coverage"] is not None:
            score += f", {words.percent(held['coverage'], 3)} of them in their 95 % interval"
    influential = payload.get("influential")
    without = influential["coefficients"] if influential else {}
    columns = ["coefficient", "value", "95 % interval", *(["without the influential runs"] if without else [])]
    rows = [
        [name, value, words.interval(name, intervals.get(name)), *([without.get(name)] if without else [])]
        for name, value in payload["coefficients"].items()
    ]
    return Group(
        _sections(
            {
                f"law {payload['law']}, {payload['rows']} rows": _pairs(
                    {
                        **({"formula": payload["formula"]} if "formula" in payload else {}),
                        "RMS log error": payload["rmse_log"],
                        "held out": score,
                    }
                ),
                "coefficients": _rows(columns, rows),
            }
        ),
        *_notes(payload),
    )


def render_leverage(payload: Payload) -> RenderableType:
    """Efficiency leverage with its interval."""
    return Group(
        _sections(
            {
                "efficiency leverage: compute of a dense model over the MoE's, at the same loss": _pairs(
                    {
                        "leverage": payload["leverage"],
                        "95 % interval": words.interval("leverage", payload["interval"]),
                        **({"source": payload["source"]} if "source" in payload else {}),
                    }
                )
            }
        ),
        *_notes(payload),
    )


def _sections(sections: Mapping[str, RenderableType]) -> Group:
    parts: list[RenderableType] = []
    for title, body in sections.items():
        parts += [*([Text()] if parts else []), Text(title, style="bold"), Padding(body, (0, 0, 0, 2))]
    return Group(*parts)


def _notes(payload: Payload) -> list[RenderableType]:
    notes = [Text(f"note: {note}", style="yellow") for note in payload.get("notes") or ()]
    return [Text(), *notes] if notes else []


def _cell(value: Any) -> Text:
    """A cell; never markup, whatever a file holds."""
    if value is None:
        return Text("–")
    return Text(words.number(value) if isinstance(value, (int, float)) else str(value))


def _rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _pairs(pairs: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in pairs.items():
        table.add_row(Text(name), _cell(value))
    return table


def _dimensions(architecture: Payload, across: int = 3) -> Table:
    """Dimensions in a compact grid; a part that is not the default by its kind."""
    cells = [
        (name, value.get("kind", name) if isinstance(value, Mapping) else value) for name, value in architecture.items()
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(across):
        table.add_column(style="dim")
        table.add_column(justify="right", min_width=6)
    deep = -(-len(cells) // across)
    for row in range(deep):
        table.add_row(*(text for name, value in cells[row::deep] for text in (Text(name), _cell(value))))
    return table


def _conventions(payload: Payload) -> Table:
    return _rows(
        ["", "non_embedding", "full"],
        ([name, f"{payload['non_embedding'][name]:,}", f"{payload['full'][name]:,}"] for name in COUNTS),
    )


def _shares(shares: Payload, width: int = 40) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, share in shares.items():
        bar = "█" * round(width * share)
        table.add_row(Text(name, style="dim"), Text(f"{100 * share:.1f} %", justify="right"), Text(bar, style="cyan"))
    return table


def _band(payload: Payload) -> RenderableType:
    chosen = {**payload["architecture"], **payload.get("non_embedding", {}), **payload}
    intervals = payload.get("intervals", {})
    rows = [
        [
            axis,
            words.value(axis, chosen[axis]) if axis in chosen else None,
            words.interval(axis, ends),
            words.interval(axis, intervals.get(axis)),
        ]
        for axis, ends in payload["band"].items()
    ]
    return _rows(["axis", "chosen", "band", "optimum, 95 %"], rows) if rows else Text("the laws give none")


def _shape(architecture: Payload) -> list[Any]:
    """The cells under `SHAPE`."""
    return [
        architecture["d_model"],
        f"{architecture['n_dense_layers']} + {architecture['n_moe_layers']}",
        f"{architecture['n_heads']} / {architecture['n_kv_heads']}",
        f"{architecture['top_k']} of {architecture['n_experts']} + {architecture['n_shared_experts']}",
        architecture["d_expert"],
    ]


def _alternatives(alternatives: Sequence[Payload]) -> Table:
    return _rows(
        ["better at", *SHAPE, "loss"],
        ([each["why"], *_shape(each["architecture"]), words.signed(each["excess"])] for each in alternatives),
    )


def _held_out(entries: Mapping[str, Payload]) -> RenderableType:
    table = _rows(
        ["quantity", "predicted", "95 % interval", "found", "95 % interval", "verdict"],
        (
            [
                name,
                words.value(name, each["predicted"]),
                words.interval(name, each["interval"]),
                words.value(name, each["found"]),
                words.interval(name, each.get("found_interval")),
                words.verdict(each["interval"], each["found"], each.get("consistent"), pooled=bool(each.get("pooled"))),
            ]
            for name, each in entries.items()
        ),
    )
    pooled = any(each.get("pooled") for each in entries.values())
    return Group(table, Text(words.POOLED, style="dim")) if pooled else table
