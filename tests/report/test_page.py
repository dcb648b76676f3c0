"""report.html: complete, self-contained, escaped, whole or not at all."""

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_optuna import InputError
from moe_optuna.report import _sections as sections
from moe_optuna.report import write_report
from moe_optuna.report._html import Html, join, table, tag
from moe_optuna.report._run import Run

NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;\'"'


class Page(HTMLParser):
    """A page taken apart as a browser does: elements, text, scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self.inside: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, {key: value or "" for key, value in attributes}))
        if name not in ("meta",):
            self.inside.append(name)

    def handle_endtag(self, name):
        assert self.inside.pop() == name, f"{name} closes what is not open"

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif self.inside and self.inside[-1] == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def policy(self) -> str:
        return next(a["content"] for n, a in self.elements if a.get("http-equiv") == "Content-Security-Policy")


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(finished.folder, folder)
    return Page(write_report(folder))


def test_the_answer_is_the_blueprint(finished, page):
    plan = Run.read(finished.folder).blueprint
    assert page.inside == []
    for name in ("d_model", "n_experts", "top_k", "d_expert", "n_moe_layers", "context_length"):
        assert f"{name} {getattr(plan.architecture, name)} " in page.text
    for count in ("flops_per_token", "active_params", "total_params"):
        own, full = (getattr(each, count) for each in (plan.architecture.non_embedding, plan.architecture.full))
        assert f"{count} {own:,} {full:,}" in page.text
    low, high = plan.intervals["predicted_loss"]
    assert f"{plan.predicted_loss:.4f}" in page.text
    assert f"{low:.4f} – {high:.4f}" in page.text
    assert all(each.why in page.text for each in plan.alternatives)


def test_how_sure_is_said_in_numbers(finished, page):
    run = Run.read(finished.folder)
    loss = run.held_out[0]
    assert f"the smaller ones predict a loss of {loss.predicted:.4f}" in page.text
    assert f"the architecture recommended there, trained {loss.trainings} times, found {loss.found:.4f}" in page.text
    assert "Without the runs of the largest budget (4.5e11 FLOPs)" in page.text
    assert f"Written down before its first trial: {run.recorded[0]:.4f}" in page.text


def test_what_leans_on_all_budgets_is_called_pooled(planted):
    path = planted.folder / "blueprint.json"
    data = json.loads(path.read_text())
    for pooled in (False, True):
        for axis in data["held_out"]["axes"].values():
            axis["pooled"] = pooled
        path.write_text(json.dumps(data))
        text = Page(write_report(planted.folder)).text
        assert ("too few trainings for an optimum of its own" in text) is pooled
        assert (re.search(r"(inside|overlaps|missed), pooled", text) is not None) is pooled


def test_complete_trials_that_are_not_scored_are_counted(finished, page, planted):
    run = Run.read(finished.folder)
    complete = sum(trial.state == "complete" for trial in run.select(compute=run.budgets[-1]))
    assert run.score["rows"] == complete
    assert f"Of the {complete} complete trials there, " in page.text
    path = planted.folder / "blueprint.json"
    data = json.loads(path.read_text())
    data["held_out"]["rows"] = 8
    path.write_text(json.dumps(data))
    text = Page(write_report(planted.folder)).text
    assert f"Of the {complete} complete trials there, 8 are of phases that the smaller budgets have a law for" in text


def test_exponents_are_plain_decimals(planted):
    path = planted.folder / "laws.json"
    data = json.loads(path.read_text())
    for law, exponent in zip(data["power_laws"][:2], (-9.767e-05, -1e-7), strict=True):
        law["b"] = exponent
    path.write_text(json.dumps(data))
    page = Page(write_report(planted.folder))
    assert "<sup>−0.0001</sup>" in page.source
    assert "<sup>0.0000</sup>" in page.source


def test_a_missed_prediction_is_said_plainly(planted):
    inside = "Everything that was found lies inside its predicted interval"
    path = planted.folder / "blueprint.json"
    data = json.loads(path.read_text())
    for each in (data["held_out"]["loss"], *data["held_out"]["axes"].values()):
        if each["interval"]:
            each |= {"interval": [1e-9, 1e18]}
    path.write_text(json.dumps(data))
    assert inside in Page(write_report(planted.folder)).text
    data["held_out"]["axes"]["compute_density"] |= {"interval": [20.0, 21.0], "predicted": 20.5}
    path.write_text(json.dumps(data))
    text = Page(write_report(planted.folder)).text
    assert re.search(
        r"The intervals missed [\w, ]*compute_density[\w, ]*: an extrapolation of this search is less", text
    )
    assert "missed" in text
    assert inside not in text


def test_trials_and_failures_are_counted(finished, page):
    counts = Run.read(finished.folder).counts
    assert f"In all {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed." in page.text
    assert "the loss is nan at report 4" in page.text


def test_nothing_is_loaded_from_anywhere(page):
    for name, attributes in page.elements:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form", "video", "audio")
        assert not {"src", "srcset", "action", "data"} & set(attributes)
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "")
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert page.policy.startswith("default-src 'none';")


def test_plotly_is_there_once_and_only_its_scripts_may_run(page):
    run = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(run) == 2
    assert page.source.count("plotly.js v") == 1
    for text in run:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    assert "unsafe-inline" not in page.policy.partition("script-src")[2]


def test_every_figure_has_its_place(page):
    figures = json.loads(next(text for attributes, text in page.scripts if attributes.get("id") == "figures"))
    places = {attributes["id"] for _, attributes in page.elements if attributes.get("class") == "plot"}
    assert places == {f"plot-{name}" for name in figures}
    assert len(figures) == 10


def test_what_the_files_say_is_escaped(planted):
    runs = planted.folder / "runs.csv"
    quoted = NASTY.replace('"', '""')
    text = runs.read_text().replace("the loss is nan at report 4", f'"{quoted}"')
    runs.write_text(re.sub(r"^planted/5e\+10/phase-0", lambda _: f'"{quoted}"', text, flags=re.MULTILINE))
    for name, keys in (("laws.json", ["space"]), ("blueprint.json", ["space", "source", "notes"])):
        data = json.loads((planted.folder / name).read_text())
        data |= {key: [NASTY] if key == "notes" else NASTY for key in keys}
        (planted.folder / name).write_text(json.dumps(data))
    page = Page(write_report(planted.folder))
    assert NASTY in "".join(page.texts)
    assert len(page.scripts) == 3
    assert not [name for name, _ in page.elements if name == "img"]
    # plotly reads a little HTML in its texts: what a hover shows is escaped once more
    figures = json.loads(next(text for attributes, text in page.scripts if attributes.get("id") == "figures"))
    hovers = [hover for trace in figures["loss-flops_per_token"]["data"] for hover in trace.get("text", [])]
    assert any("&lt;img src=x" in hover for hover in hovers)
    assert not any("<img" in hover for hover in hovers)


def test_a_search_that_still_runs_has_a_partial_report(planted):
    for name in ("laws.json", "blueprint.json"):
        (planted.folder / name).unlink()
    text = Page(write_report(planted.folder)).text
    assert "This is a partial report." in text
    assert "laws.json and blueprint.json come at the end" in text
    assert "Loss against d_model" in text
    assert "How sure it is" not in text


def test_a_search_that_has_only_begun(tmp_path):
    (tmp_path / "journal.log").touch()
    page = Page(write_report(tmp_path))
    assert "No training has ended yet." in page.text
    assert page.scripts == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(planted, monkeypatch):
    path = write_report(planted.folder)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"report\.html: cannot be written \(No space left on device\)"):
        write_report(planted.folder)
    assert path.read_bytes() == before
    assert not [each for each in planted.folder.iterdir() if each.name.startswith(".report")]


def test_a_wrong_file_leaves_the_old_report(planted):
    path = write_report(planted.folder)
    before = path.read_bytes()
    (planted.folder / "laws.json").write_text("{}")
    with pytest.raises(InputError, match=r"laws\.json"):
        write_report(planted.folder)
    assert path.read_bytes() == before


def test_elements_escape_whatever_is_not_html():
    assert tag("p", "a < b", None, Html("<b>c</b>"), class_='"x"') == (
        '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    )  # fmt: skip
    assert join([1, None, "&"]) == "1&amp;"
    assert "&lt;i&gt;" in table(("<i>",), [("<i>",)])


def test_the_command_to_reproduce_a_search_is_one(finished, tmp_path, monkeypatch):
    """From within its folder, and where the folder's name has a space."""
    folder = shutil.copytree(finished.folder, tmp_path / "my search")
    (folder / "space.toml").write_text(finished.space.to_toml())
    monkeypatch.chdir(folder)
    for where, named in ((Path("."), "space.toml"), (folder, f"'{folder / 'space.toml'}'")):
        assert f"moe-optuna search {named} --out 'my search-again'" in html.unescape(
            str(sections.reproduce(Run.read(where)))
        )
