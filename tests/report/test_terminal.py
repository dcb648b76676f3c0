"""What the commands print: the numbers of the payload, with their convention, and no markup from files."""

import json

import numpy as np
import pytest
from rich.console import Console

from moe_optuna import laws
from moe_optuna.interchange import count_payload
from moe_optuna.report._run import Run
from moe_optuna.report.terminal import (
    _held_out,
    render_count,
    render_fit,
    render_lattice,
    render_leverage,
    render_plan,
    render_search,
)
from moe_optuna.space import SearchSpace, lattice_payload


def printed(renderable, width=300):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return " ".join(capture.get().split())


@pytest.fixture(scope="module")
def blueprint(finished):
    return Run.read(finished.folder).blueprint


def test_count(blueprint):
    payload = json.loads(json.dumps(count_payload(blueprint.architecture)))
    text = printed(render_count(payload))
    for name in ("flops_per_token", "active_params", "total_params"):
        assert f"{name} {payload['non_embedding'][name]:,} {payload['full'][name]:,}" in text
    assert "non_embedding full" in text
    assert f"attention {100 * payload['shares']['attention']:.1f} %" in text
    assert "memory" in text
    assert "iB" in text


def test_plan(blueprint):
    text = printed(render_plan(json.loads(json.dumps(blueprint.to_dict()))))
    assert "blueprint for 1e13 training FLOPs" in text
    assert f"{blueprint.predicted_loss:.4f} nats per token" in text
    assert f"d_model {blueprint.architecture.d_model} " in text
    for axis, (low, high) in blueprint.band.items():
        assert axis in text
        assert f"{low:.4g}"[:4] in text
        assert f"{high:.4g}"[:4] in text
    assert all(each.why.split(":")[0] in text for each in blueprint.alternatives)


def test_a_narrow_terminal_cuts_no_names(blueprint):
    assert "…" not in printed(_held_out(blueprint.held_out["axes"]), width=80)


def test_plan_without_a_loss_says_why(blueprint):
    payload = blueprint.to_dict() | {"predicted_loss": None, "no_loss": "the published laws do not give the loss"}
    assert "the published laws do not give the loss" in printed(render_plan(payload))


def test_search(finished, blueprint):
    run = Run.read(finished.folder)
    payload = {
        "blueprint": blueprint.to_dict(), "studies": ["a", "b"], "trials": run.counts, "held_out": blueprint.held_out,
        "report": "runs/cpu/report.html",
    }  # fmt: skip
    text = printed(render_search(payload))
    assert f"{run.counts['complete']} complete, {run.counts['pruned']} pruned, 1 failed, in 2 studies" in text
    assert f"loss {run.held_out[0].predicted:.4f}" in text
    assert "runs/cpu/report.html" in text
    assert "held out" not in printed(render_search(payload | {"held_out": None}))


@pytest.mark.parametrize(
    ("interval", "found", "consistent", "told"),
    [
        ((2.0, 3.0), 2.5, True, "inside"),
        ((2.0, 3.0), 3.5, True, "overlaps"),  # the interval of what was found begins below 3
        ((2.0, 3.0), 3.5, False, "missed"),
        (None, 3.5, None, "no interval"),
    ],
)
def test_a_verdict_is_by_what_was_found(interval, found, consistent, told):
    entry = {"predicted": 2.5, "interval": interval, "found": found, "found_interval": (2.9, 4.1)}
    text = printed(_held_out({"loss": entry | {"consistent": consistent}}))
    assert text.rstrip().endswith(told)


def test_lattice():
    space = SearchSpace.load("cpu")
    payload = lattice_payload(space, compute=1e11, list_all=True)
    text = printed(render_lattice(payload))
    assert f"{payload['count']} architectures meet the triad" in text
    assert "the first 20, all with --json" in text
    assert "1 architecture meets the triad" in printed(render_lattice(payload | {"count": 1}))
    empty = lattice_payload(space, flops_per_token=3e5, active_params=49900, total_params=279440)
    text = printed(render_lattice(empty))
    assert "0 architectures meet the triad" in text
    assert empty["binding"] in text
    assert empty["relaxations"][0]["rule"] in text
    assert f"active_params {empty['nearest']['active_params']:,}" in text


def test_fit():
    rng = np.random.default_rng(0)
    params, tokens = np.geomspace(1e7, 1e10, 8)[:, None], np.geomspace(1e9, 1e12, 8)[None]
    loss = 1.8 + 480 / params**0.35 + 2000 / tokens**0.37
    columns = {
        name: np.broadcast_to(each, (8, 8)).ravel()
        for name, each in {"total_params": params, "tokens": tokens}.items()
    }  # fmt: skip
    columns["loss"] = loss.ravel() * np.exp(0.01 * rng.standard_normal(64))
    payload = json.loads(json.dumps(laws.fit("chinchilla", columns, bootstraps=5).to_dict()))
    text = printed(render_fit(payload))
    assert "law chinchilla, 64 rows" in text
    for name, value in payload["coefficients"].items():
        assert f"{name} {value:.4g}" in text.replace("−", "-").replace(",", "")
    assert f"{payload['held_out']['rows']} rows: RMS log error" in text
    bare = {key: payload[key] for key in ("law", "coefficients", "intervals", "rmse_log", "held_out", "rows")}
    assert "law chinchilla" in printed(render_fit(bare))


def test_leverage():
    payload = laws.leverage(0.05, 8, 1e20).to_dict()
    low, high = payload["interval"]
    text = printed(render_leverage(payload))
    assert f"leverage {payload['leverage']:.4g}" in text
    assert f"{low:.4g} – {high:.4g}" in text


def test_text_of_files_is_not_markup(blueprint):
    payload = blueprint.to_dict() | {"source": "[bold red]laws[/]", "notes": ["[/oops]"]}
    text = printed(render_plan(payload))
    assert "[bold red]laws[/]" in text
    assert "[/oops]" in text
