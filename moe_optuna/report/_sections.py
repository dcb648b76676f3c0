"""The sections of the report after the answer: each takes the run and gives HTML, or nothing where there is nothing to
say."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata
from typing import Any

from moe_optuna.files import SPACE_FILE
from moe_optuna.report import _words as words
from moe_optuna.report._answer import growth
from moe_optuna.report._html import Html, join, table, tag, word
from moe_optuna.report._run import Comparison, Run

__all__ = ["alternatives", "evidence", "lead", "method", "reproduce", "space_name", "sure", "title"]

PACKAGES = ("moe-optuna", "optuna", "torch", "lightning", "numpy", "scipy", "scikit-learn", "plotly")
AXIS_CAPTION = (
    "A panel a budget. Green: values whose loss is within 0.1 % of the least; yellow: what the noise cannot tell from "
    "the optimum. Trials stand at the loss that they would have with the other axes of the phase at their best, by the "
    "fit; point at one for its architecture and its measured loss."
)
HEADINGS = {
    "optimum": "The optimum against compute",
    "band": "The band against compute",
    "loss": "Loss against compute",
    "shape": "The shape of the architecture",
}
CAPTIONS = {
    "optimum": "Optimum of each quantity against compute: the fits at the budgets of the ladder, the power law through "
    "them with its 95 % interval, and its extrapolation to the target. The square is the integer architecture that was "
    "chosen; it lies where the lattice and the band allow.",
    "band": "Edges of the near-optimal band against compute, by the law over all budgets, and their 95 % intervals. "
    "“Widens”, “narrows” or “can't tell” speaks of high over low.",
    "held-out": "The largest budget as the smaller ones predicted it, and as it came out. Shaded: the predicted "
    "0.1 % band, into which the outcome should fall. In the table “bands” is the error in widths of the band found.",
    "loss": "Held-out loss against compute: every complete trial, the least loss of the fits, and the law.",
    "shape": "Where the FLOPs of a token go, non_embedding.",
}


def space_name(run: Run) -> str:
    if run.laws is not None and run.laws.space:
        return run.laws.space
    return run.trials[0].study.split("/")[0] if run.trials else ""


def title(run: Run) -> str:
    if run.target is not None:
        return f"An architecture for {words.compute(run.target)} training FLOPs"
    return "A search that is not finished"


def lead(run: Run) -> Html:
    budgets, trained = run.budgets, sum(trial.state != "failed" for trial in run.trials)
    ladder = f"{trained} trainings at {', '.join(map(words.compute, budgets))} FLOPs" if budgets else ""
    if run.blueprint is not None:
        base = (
            f"from {ladder}, extrapolated {words.number(run.blueprint.compute / budgets[-1], 3)} times"
            if budgets
            else ""
        )
        text = f"{words.sketch(run.blueprint.architecture)}: {base or run.blueprint.source}."
        return tag("p", text[:1].upper() + text[1:], class_="lead")
    state = f"{ladder} so far. " if budgets else "No training has ended yet. "
    missing = [name for name, part in (("laws.json", run.laws), ("blueprint.json", run.blueprint)) if part is None]
    return tag(
        "p",
        tag("strong", "This is a partial report. "),
        state,
        f"{' and '.join(missing)} come at the end of the search; the command that began it resumes it.",
        class_="notice",
    )


def sure(run: Run, figures: dict[str, Any]) -> Html | None:
    if not run.held_out:
        return None
    return join(
        [
            _verdict(run),
            table(
                ("quantity", "predicted", "95 % interval", "found", "95 % interval", "off by", "bands", "verdict"),
                [
                    (
                        word(each.quantity),
                        words.value(each.quantity, each.predicted),
                        words.interval(each.quantity, each.interval),
                        words.value(each.quantity, each.found),
                        words.interval(each.quantity, each.found_interval),
                        words.signed(each.error),
                        "–" if each.band_widths is None else f"{each.band_widths:+.2f}".replace("-", "−"),
                        _judged(each),
                    )
                    for each in run.held_out
                ],
            ),
            _figure("held-out", figures),
            _laws_verdicts(run),
        ]
    )


def _told(each: Comparison) -> str:
    return words.verdict(each.interval, each.found, each.consistent, pooled=each.pooled)


def _judged(each: Comparison) -> Html:
    told = _told(each)
    classes = {"inside": {"class_": "good"}, "missed": {"class_": "bad"}, "missed, pooled": {"class_": "bad"}}
    return tag("span", told, **classes.get(told, {}))


def _verdict(run: Run) -> Html:
    """The held-out budget in a sentence or two."""
    where = f"the largest budget ({words.compute(run.budgets[-1])} FLOPs)" if run.budgets else "the largest budget"
    sentences = [
        f"Without the runs of {where}, the smaller ones predict a loss of {words.value('loss', each.predicted)} "
        f"({words.interval('loss', each.interval)}) nats per token; "
        + (f"the architecture recommended there, trained {each.trainings} times, " if each.trainings else "the search ")
        + f"found {words.value('loss', each.found)}: off by {words.signed(each.error)}."
        for each in run.held_out
        if each.quantity == "loss"
    ]
    if run.recorded is not None:
        loss, sure = run.recorded
        sentences.append(
            f"Written down before its first trial: {words.value('loss', loss)} ({words.interval('loss', sure)})."
        )
    if missed := [each.quantity for each in run.held_out if each.consistent is False]:
        sentences.append(
            f"The intervals missed {', '.join(missed)}: an extrapolation of this search is less sure than its "
            "intervals say."
        )
    elif any(each.consistent for each in run.held_out):
        met = [each.quantity for each in run.held_out if _told(each).startswith("overlaps")]
        sentences.append(
            f"Outside its predicted interval, though the interval of what was found meets it: {', '.join(met)}."
            if met
            else "Everything that was found lies inside its predicted interval."
        )
    if any(each.pooled for each in run.held_out):
        sentences.append(f"{words.POOLED[0].upper()}{words.POOLED[1:]}.")
    if run.score.get("coverage") is not None:
        scored = run.score["rows"]
        complete = sum(t.state == "complete" for t in run.select(compute=run.budgets[-1])) if run.budgets else scored
        those = f"the {scored} complete trials there"
        if scored < complete:
            known = f"{scored} are of phases that the smaller budgets have a law for"
            those = f"the {complete} complete trials there, {known}; of these"
        sentences.append(
            f"Of {those}, {words.percent(run.score['coverage'], 3)} lie in their 95 % intervals "
            f"(RMS log error {words.number(run.score['rmse_log'], 3)})."
        )
    return tag("p", " ".join(sentences), class_="lead")


def _laws_verdicts(run: Run) -> Html | None:
    if run.laws is None:
        return None
    rows = []
    for name, law in run.laws.power_laws.items():
        if name.endswith(("_low", "_high")):
            continue
        low, high = law.b_interval
        trend = "rises with compute" if low > 0 else "falls with compute" if high < 0 else "no trend can be told"
        shift = f"{law.offset:g} + " if law.offset else ""
        power, sure = (text.replace("-", "−") for text in (f"{law.b:z.4f}", f"{low:z.3f} to {high:z.3f}"))
        formula = join([f"{shift}{words.number(law.a)} C", tag("sup", power)])
        rows.append((word(name), formula, sure, trend, growth(run, name)))
    if not rows:
        return None
    return join(
        [
            tag("h3", "The power laws"),
            table(("optimum of", "law, C in FLOPs", "exponent, 95 % interval", "verdict", "its band"), rows),
        ]
    )


def _figure(name: str, figures: dict[str, Any]) -> Html | None:
    if name not in figures:
        return None
    height = figures[name]["layout"].get("height", 400)
    return tag(
        "figure",
        tag("div", id=f"plot-{name}", class_="plot", style=f"min-height:{int(height)}px"),
        tag("figcaption", CAPTIONS[name]) if name in CAPTIONS else None,
    )


def evidence(run: Run, figures: dict[str, Any]) -> Html | None:
    shown: list[object] = []
    for name in figures:
        if name != "held-out":
            shown += [
                tag("h3", HEADINGS.get(name, f"Loss against {name.removeprefix('loss-')}")),
                _figure(name, figures),
            ]
    if not shown:
        return None
    script = tag("noscript", tag("p", "The figures need JavaScript; the tables do not.", class_="notice"))
    return join([script, tag("p", AXIS_CAPTION) if run.fits else None, *shown])


def alternatives(run: Run) -> Html | None:
    if run.blueprint is None:
        return None
    if not run.blueprint.alternatives:
        return tag("p", "None: no other architecture within 0.1 % of its predicted loss suits the hardware better.")
    rows = []
    for each in run.blueprint.alternatives:
        a, counts = each.architecture, each.architecture.non_embedding
        low, high = each.interval
        rows.append(
            (
                each.why,
                a.d_model,
                f"{a.n_dense_layers} + {a.n_moe_layers}",
                f"{a.top_k} of {a.n_experts} + {a.n_shared_experts}",
                a.d_expert,
                words.flops(counts.flops_per_token),
                words.large(counts.active_params),
                words.large(counts.total_params),
                f"{words.signed(each.excess)} ({words.signed(low)} to {words.signed(high)})",
            )
        )
    columns = ("better at", "d_model", "layers", "experts", "d_expert", "M", "Na", "N", "predicted loss, 95 %")
    text = (
        "All are within 0.1 % of the blueprint's predicted loss. Layers are dense + MoE, experts active of routed + "
        "shared, counts non_embedding; the loss is over the blueprint's, by the laws."
    )
    return join([tag("p", text), table(columns, rows)])


def method(run: Run) -> Html:
    noise = (
        f"A run's loss scatters by {words.percent(run.laws.noise, 3)} (standard deviation over seeds and what the fits "
        "leave over); where that is more than the 0.1 % band, the figures also shade what it cannot tell apart."
        if run.laws is not None
        else "The noise is told when the laws are fitted."
    )
    counts = run.counts
    failed = [trial for trial in run.trials if trial.state == "failed"]
    return join(
        [
            tag(
                "p",
                "At each budget C, phase 0 searches how much of it goes to M, phase 1 searches M/Na and N/Na at the "
                "proxy width, phase 2 locks the triad (M, Na, N) and searches the width and what else the space frees. "
                "Every trial is an integer architecture that meets the triad within its tolerances, trained on C "
                "FLOPs.",
            ),
            tag("p", noise),
            _studies(run),
            tag("p", f"In all {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed."),
            table(
                ("failed trial", "reason"),
                [(f"{trial.study}, {trial.number}", trial.reason or "not told") for trial in failed],
                numeric=False,
            )
            if failed
            else None,
        ]
    )


def _studies(run: Run) -> Html | None:
    rows = []
    for study in dict.fromkeys(trial.study for trial in run.trials):
        mine = [trial for trial in run.trials if trial.study == study]
        complete = [trial.loss for trial in mine if trial.state == "complete"]
        seconds = sum(trial["seconds"] for trial in mine if trial["seconds"] > 0)
        rows.append(
            (
                word(study),
                words.compute(mine[0].compute),
                *(sum(trial.state == state for trial in mine) for state in run.counts),
                words.value("loss", min(complete)) if complete else "–",
                words.number(round(seconds)),
            )
        )
    columns = ("study", "C [FLOPs]", *run.counts, "least loss", "seconds")
    return table(columns, rows) if rows else tag("p", "No trial has ended yet.")


def reproduce(run: Run) -> Html:
    seeds = sorted({int(trial["seed"]) for trial in run.trials if trial["seed"] >= 0})
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    space = run.folder / SPACE_FILE if (run.folder / SPACE_FILE).is_file() else space_name(run) or "SPACE"
    again = f"{run.folder.resolve().name}-again"
    command = f"moe-optuna search {shlex.quote(str(space))} --out {shlex.quote(again)}"
    if seeds:
        command += f" --seed {seeds[0]}"
    return join(
        [
            tag("pre", command),
            tag("p", f"Seeds of the trainings: {', '.join(map(str, seeds)) or 'none yet'}."),
            tag("p", f"This report was written with Python {platform.python_version()}, {', '.join(found)}."),
            tag(
                "p",
                "Beside it lie ", word("runs.csv"), " (every trial), ", word("laws.json"), " (every fit) and ",
                word("blueprint.json"), " (the answer): the figures show nothing that is not in them.",
            ),
        ]
    )  # fmt: skip
