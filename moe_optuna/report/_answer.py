"""The first section of the report: the architecture, its counts and its near-optimal band."""

from __future__ import annotations

import json

from moe_optuna.architecture import COUNTS, DIMENSIONS, MoEArchitecture
from moe_optuna.report import _words as words
from moe_optuna.report._html import Html, join, table, tag, word
from moe_optuna.report._run import Run, quantity
from moe_optuna.search.blueprint import Blueprint

__all__ = ["answer", "growth"]

MEANINGS = {
    "d_model": "width of the residual stream",
    "n_dense_layers": "first layers, with a dense block",
    "n_moe_layers": "layers with experts",
    "n_heads": "query heads",
    "n_kv_heads": "key and value heads",
    "d_head": "features of a head",
    "d_dense": "hidden width of a dense block",
    "d_expert": "hidden width of an expert",
    "n_experts": "routed experts of a layer",
    "top_k": "routed experts that a token visits",
    "n_shared_experts": "experts that every token visits",
    "context_length": "tokens of a sequence",
    "vocab_size": "entries of the vocabulary",
}


def answer(run: Run) -> Html | None:
    if run.blueprint is None:
        return None
    plan, chosen = run.blueprint, run.blueprint.architecture
    counts = chosen.non_embedding
    tiles = [
        ("M · flops_per_token", words.flops(counts.flops_per_token), "training, non_embedding"),
        (
            "D · tokens",
            words.large(plan.training_tokens),
            f"C / M, {words.number(plan.training_tokens / counts.active_params, 3)} per active parameter",
        ),
        ("Na · active_params", words.large(counts.active_params), "non_embedding"),
        ("N · total_params", words.large(counts.total_params), "non_embedding"),
    ]
    if plan.predicted_loss is not None:
        sure = words.interval("loss", plan.intervals.get("predicted_loss"))
        tiles.append(("predicted loss", words.value("loss", plan.predicted_loss), f"nats per token, 95 % {sure}"))
    return join(
        [
            tag("div", *(_tile(*each) for each in tiles), class_="tiles"),
            *(tag("p", f"Note: {note}.", class_="soft") for note in plan.notes),
            tag("div", tag("div", _dimensions(chosen)), tag("div", _counts(chosen), _ratios(chosen)), class_="columns"),
            tag("h3", "The near-optimal band"),
            tag(
                "p",
                "Any value in the band predicts a loss within 0.1 % of the least, the others at their best: choose by "
                "your hardware inside it.",
            ),
            _band(run, plan),
        ]
    )


def _tile(name: str, value: str, note: str) -> Html:
    return tag(
        "div",
        tag("div", name, class_="name"),
        tag("div", value, class_="value"),
        tag("div", note, class_="note"),
        class_="tile",
    )


def _dimensions(chosen: MoEArchitecture) -> Html:
    rows: list[tuple[object, ...]] = [
        (word(name), words.number(getattr(chosen, name)), MEANINGS[name]) for name in DIMENSIONS
    ]
    for name, value in chosen.to_dict().items():
        if name not in DIMENSIONS:
            text = value.get("kind", json.dumps(value)) if isinstance(value, dict) else str(value).lower()
            rows.append((word(name), text, ""))
    return table(("dimension", "value", ""), rows, numeric=False)


def _counts(chosen: MoEArchitecture) -> Html:
    rows = [
        (word(name), f"{getattr(chosen.non_embedding, name):,}", f"{getattr(chosen.full, name):,}") for name in COUNTS
    ]
    return table(("count", "non_embedding", "full"), rows)


def _ratios(chosen: MoEArchitecture) -> Html:
    ratios = ("compute_density", "expansion_ratio", "granularity", "activation_ratio", "shared_ratio")
    rows: list[tuple[object, ...]] = [
        (word(name), words.number(x)) for name in ratios if (x := getattr(chosen, name)) is not None
    ]
    rows += [(f"share of {name} in M", words.percent(share, 3)) for name, share in chosen.shares.items()]
    return table(("ratio, non_embedding", ""), rows)


def _band(run: Run, plan: Blueprint) -> Html:
    rows = [
        (
            word(axis),
            words.value(axis, quantity(plan.architecture, axis)),
            words.interval(axis, plan.intervals.get(axis)),
            words.interval(axis, ends),
            " and ".join(words.interval(axis, edge) for edge in plan.band_intervals.get(axis, ())) or "–",
            growth(run, axis),
        )
        for axis, ends in plan.band.items()
    ]
    columns = ("axis", "chosen", "optimum, 95 %", "0.1 % band", "its edges, 95 %", "with compute it")
    return table(columns, rows)


def growth(run: Run, axis: str) -> str:
    """Whether the band of an axis widens with compute."""
    growth = run.laws.growth.get(axis, {}).get("relative") if run.laws is not None else None
    return growth.verdict if growth is not None else "–"
