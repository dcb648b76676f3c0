"""The command line as a user meets it: one JSON object, or one line and status 2."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_optuna import MoEArchitecture
from moe_optuna.cli import main


@pytest.fixture
def architecture_file(tmp_path: Path) -> Path:
    architecture = MoEArchitecture(
        d_model=64, n_dense_layers=1, n_moe_layers=2, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
        n_experts=8, top_k=2, n_shared_experts=1, context_length=256, vocab_size=256,
    )  # fmt: skip
    path = tmp_path / "architecture.json"
    architecture.save(path)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 0, err
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def test_count_prints_both_conventions(capsys: pytest.CaptureFixture[str], architecture_file: Path) -> None:
    answer = as_json(capsys, "count", architecture_file)
    architecture = MoEArchitecture.load(architecture_file)
    assert answer["non_embedding"]["flops_per_token"] == architecture.non_embedding.flops_per_token
    assert answer["full"]["total_params"] == architecture.full.total_params
    assert sum(answer["shares"].values()) == pytest.approx(1)
    assert answer["architecture"]["d_model"] == 64


def test_count_says_that_of_a_multimodal_model_it_is_the_text_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}))
    status, out, err = call(capsys, "count", path, "--json")
    assert (status, err) == (0, f"moe-optuna: {path}: text_config: counted is the text model of llama4 alone\n")
    assert json.loads(out)["full"]["total_params"] == pytest.approx(108e9, rel=0.01)


def test_plan_gives_an_architecture_within_the_triad(capsys: pytest.CaptureFixture[str]) -> None:
    answer = as_json(capsys, "plan", "--compute", "3e20")
    architecture = MoEArchitecture.from_dict(answer["architecture"])
    counts, triad = architecture.non_embedding, answer["triad"]
    for name in ("flops_per_token", "active_params", "total_params"):
        assert getattr(counts, name) == pytest.approx(triad[name], rel=triad["tolerances"][name] + 1e-9)
    assert answer["tokens"] * answer["flops_per_token"] == pytest.approx(3e20, rel=1e-3)


def test_lattice_counts_what_it_lists(capsys: pytest.CaptureFixture[str]) -> None:
    at = ("lattice", "cpu", "--compute", "1e12", "--compute-density", "9", "--expansion-ratio", "4")
    answer = as_json(capsys, *at, "--list")
    assert answer["count"] == len(answer["architectures"]) == as_json(capsys, *at)["count"]


def test_lattice_says_what_binds(capsys: pytest.CaptureFixture[str]) -> None:
    answer = as_json(
        capsys, "lattice", "cpu", "--flops-per-token", "7e5", "--active-params", "1e5", "--total-params", "9e9"
    )
    assert answer["count"] == 0
    assert answer["binding"]
    assert answer["nearest"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["count", "nowhere.json"],
        ["count"],
        ["plan", "--compute", "-1"],
        ["plan", "--compute", "nan"],
        ["plan", "--compute", "inf"],
        ["plan", "--compute", "many"],
        ["plan", "--compute", "1e20", "--laws", "nowhere.json"],
        ["lattice", "no_such_space", "--compute", "1e18"],
        ["lattice", "cpu"],
        ["lattice", "cpu", "--compute", "1e12", "--compute-density", "5", "--expansion-ratio", "4"],
        ["fit", "nowhere.csv", "--law", "chinchilla"],
        ["leverage", "--activation-ratio", "2", "--granularity", "4", "--compute", "1e20"],
        ["leverage", "--activation-ratio", "0.1", "--granularity", "nan", "--compute", "1e20"],
        ["export", "nowhere.json", "--to", "hf"],
        ["report", "nowhere"],
        ["dashboard", "nowhere"],
        ["search", "no_such_space"],
        ["search", "cpu", "--workers", "0"],
        ["search", "cpu", "--executor", "carrier-pigeon"],
        ["search", "cpu", "--storage", "sqlite:///x.db", "--workers", "2"],
        ["astrology"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "something was written"


def test_fit_draws_groups_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    size, tokens = 10 ** random.uniform(7, 10, 60), 10 ** random.uniform(9, 12, 60)
    loss = (1.8 + 480 / size**0.35 + 2085 / tokens**0.37) * np.exp(0.01 * random.standard_normal(60))
    path = tmp_path / "runs.csv"
    rows = [
        f"{n},{d},{y * (1 + 1e-9 * copy)},run-{k}"
        for k, (n, d, y) in enumerate(zip(size, tokens, loss, strict=True))
        for copy in range(9)
    ]
    path.write_text("\n".join(["total_params,tokens,loss,run", *rows]))

    def spread(*options: str) -> float:
        words = ("fit", path, "--law", "chinchilla", "--bootstraps", 100, *options)
        low, high = as_json(capsys, *words)["bootstrap_intervals"]["alpha"]
        return float(high - low)

    assert spread("--group", "run") / spread() == pytest.approx(3.0, rel=0.35)  # nine copies are no nine runs: sqrt(9)
    status, _, err = call(capsys, "fit", path, "--law", "chinchilla", "--group", "runs")
    assert status == 2
    assert "did you mean 'run'" in err


def test_what_is_asked_outside_a_range_is_a_note_and_no_warning(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    words = ("leverage", "--activation-ratio", 0.03, "--granularity", 12, "--compute", 1e26)
    status, out, err = call(capsys, *words)
    assert (status, err, list(recwarn)) == (0, "", [])
    assert "outside the range" in out


@pytest.mark.parametrize(
    ("command", "function", "says"),
    [
        ("count", "moe_optuna.interchange.read", "interrupted\n"),
        (
            "search",
            "moe_optuna.search.search",
            "interrupted; what it was training is saved, and the same command goes on\n",
        ),
    ],
)
def test_an_interruption_is_told(
    capsys: pytest.CaptureFixture[str],
    architecture_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    function: str,
    says: str,
) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupted)
    assert call(capsys, command, architecture_file) == (130, "", says)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"moe-optuna {metadata.version('moe-optuna')}\n", "")
    assert call(capsys, "--version", "count") == call(capsys, "--version")


def test_the_package_runs_as_the_command(architecture_file: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "moe_optuna", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("count", architecture_file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["architecture"]["d_model"] == 64
    assert run("count", "nowhere.json").returncode == 2


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which ``$MOE`` is the command."""
    known = os.environ | {"MOE": f"{sys.executable} -m moe_optuna"} | environment
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=known)


def test_a_terminal_without_utf8_gets_what_it_can_show() -> None:
    whole, done = (shell("$MOE plan --compute 3e20", PYTHONIOENCODING=encoding) for encoding in ("utf-8", "ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert not whole.stdout.isascii()
    assert done.stdout.isascii()
    assert "blueprint" in done.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("$MOE count FILE > /dev/full", "moe-optuna: cannot go on: No space left on device\n"),
        ("$MOE --version > /dev/full", "moe-optuna: cannot go on: No space left on device\n"),
        ("$MOE count FILE --json >&-", "moe-optuna: standard output is closed\n"),
        ("$MOE count nowhere.json 2> /dev/full", ""),
        ("$MOE count nowhere.json 2>&-", ""),
    ],
)
def test_output_that_goes_nowhere_is_one_line_and_status_two(architecture_file: Path, line: str, says: str) -> None:
    done = shell(line.replace("FILE", str(architecture_file)))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says)


def test_export_takes_only_known_frameworks(capsys: pytest.CaptureFixture[str], architecture_file: Path) -> None:
    status, out, _ = call(capsys, "export", architecture_file, "--to", "hf")
    assert status == 0
    assert json.loads(out)["hidden_size"] == 64
    status, _, err = call(capsys, "export", architecture_file, "--to", "abacus")
    assert status == 2
    assert "abacus" in err


def test_the_dashboard_needs_no_fcntl(tmp_path: Path) -> None:
    """Which Windows has not, and only a search and a storage by URL need."""
    code = "import sys; sys.modules['fcntl'] = None; from moe_optuna.cli import main; main(['dashboard', 'nowhere'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("moe-optuna: nowhere/journal.log: no such file")
