"""report.html: the answer, how sure it is, the evidence, the method; one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from moe_optuna.errors import InputError
from moe_optuna.files import write_whole
from moe_optuna.laws.threads import one_thread
from moe_optuna.report import _sections as sections
from moe_optuna.report._answer import answer
from moe_optuna.report._html import Html, tag
from moe_optuna.report._run import Run

__all__ = ["write_report"]


def write_report(out: str | Path) -> Path:
    """Write report.html into the folder of a search, whole or not at all, from what is there: runs.csv, laws.json,
    blueprint.json. Of a search that still runs it is a partial report that says so.

    Returns:
        The file.

    Raises:
        InputError: Where the folder is not one of a search, a file in it is not what its name says, or the report
            cannot be written.
    """
    from moe_optuna.report._figures import figures

    run = Run.read(out)
    with one_thread:  # small matrices: beside a running search more threads only wait for one another
        drawn = {name: json.loads(figure.to_json()) for name, figure in figures(run).items()}
    path = run.folder / "report.html"
    _write(path, _document(run, drawn))
    return path


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from None


def _document(run: Run, figures: dict[str, Any]) -> str:
    """The page. Its policy lets no resource load and no script run but the two that it carries."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), _resource("_page.js")] if figures else []
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    allowed = hashes or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"
    title = sections.title(run)
    parts = [
        ("answer", "The answer", answer(run)),
        ("sure", "How sure it is", sections.sure(run, figures)),
        ("evidence", "The evidence", sections.evidence(run, figures)),
        ("alternatives", "Alternatives that suit the hardware", sections.alternatives(run)),
        ("method", "Method, noise and trials", sections.method(run)),
        ("reproduce", "How to reproduce it", sections.reproduce(run)),
    ]
    shown = [(name, heading, content) for name, heading, content in parts if content]
    # "<" would let data end the element that holds them.
    data = json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c")
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("title", title),
        tag("style", Html(_resource("_page.css"))),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("p", f"moe_optuna · search {sections.space_name(run)}", class_="kicker"),
            tag("h1", title),
            sections.lead(run),
            tag("nav", *(tag("a", heading, href=f"#{name}") for name, heading, _ in shown)),
        ),
        tag("main", *(tag("section", tag("h2", heading), content, id=name) for name, heading, content in shown)),
        tag("footer", "Losses are nats per token on held-out text. Every count names its convention: non_embedding, "
            "without embeddings, head, router, norms and biases, causal attention halved (the triad is held in it); or "
            "full, everything that the module holds and computes."),
        tag("script", Html(data), type="application/json", id="figures") if figures else None,
        *(tag("script", Html(script)) for script in scripts),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _resource(name: str) -> str:
    return resources.files("moe_optuna.report").joinpath(name).read_text(encoding="utf-8")
