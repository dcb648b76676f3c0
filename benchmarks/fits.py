"""Fits of scaling laws: accuracy on public data, speed, and how often 95 % intervals hold the truth.

    python benchmarks/fits.py                                   everything but the comparison with PyPI's chinchilla
    python benchmarks/fits.py --chinchilla VENV/bin/python      with it; make VENV by
                                                                python -m venv VENV && VENV/bin/pip install chinchilla
    python benchmarks/fits.py --only coverage --repetitions 50 --laws chinchilla routed

Data: the folder MOE_OPTUNA_DATA, or ../shared/data beside the checkout; what is absent is skipped. Writes
benchmarks/results/fits.json and fits.md; sections that did not run keep their last figures.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moe_optuna.laws import FORMS, PUBLISHED, fit

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MOE_OPTUNA_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"
REFIT = {"E": (1.8172, 0.03), "A": (482.01, 125), "B": (2085.43, 1293), "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}

TRUTH: dict[str, dict[str, float]] = {
    "power": {"a": 50.43, "b": -0.0663},
    "floored_power": {"E": 1.7, "A": 3000.0, "alpha": 0.2},
    "chinchilla": dict(PUBLISHED["chinchilla_refit"].coefficients),
    "routed": dict(PUBLISHED["clark_s_base"].coefficients),
    "krajewski": dict(PUBLISHED["krajewski"].coefficients),
    "ludziejewski": dict(PUBLISHED["ludziejewski"].coefficients),
    "abnar": dict(PUBLISHED["abnar"].coefficients),
    "zhao": dict(PUBLISHED["zhao"].coefficients),
    "leverage": dict(PUBLISHED["leverage"].coefficients),
    "holistic": {
        "E": 1.6, "A": 400.0, "alpha": 0.3, "B": 1500.0, "beta": 0.33, "x_0": 4.65e18**0.142, "xi": 0.142,
        "k_x": 0.02, "p": 0.67, "k_y": 0.02, "w_0": 0.45, "k_w": 0.05, "nu": 0.0,
    },
}  # fmt: skip
"""Laws that the coverage is measured on: published coefficients where there are some."""


def design(law: str, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Runs spread over what studies of these laws span, log-uniform."""
    total = 10 ** rng.uniform(8, 10.3, rows)
    columns = {
        "compute": 10 ** rng.uniform(18, 22, rows),
        "total_params": total,
        "active_params": total * 10 ** rng.uniform(-1.7, 0, rows) if law == "zhao" else 10 ** rng.uniform(7, 10, rows),
        "tokens": 10 ** rng.uniform(9, 11.3, rows),
        "n_experts": np.full(rows, 288.0) if law == "holistic" else 2.0 ** rng.integers(0, 10, rows),
        "granularity": 2.0 ** rng.integers(1, 5, rows),
        "activation_ratio": 0.5 ** rng.integers(0, 8, rows),
        "top_k": np.full(rows, 8.0) if law == "holistic" else 2.0 ** rng.integers(0, 5, rows),
        "n_shared_experts": np.ones(rows) if law == "holistic" else 1.0 * rng.integers(0, 4, rows),
        "flops_per_token": 10 ** rng.uniform(8, 10.5, rows),
        "compute_density": 6 + 10 ** rng.uniform(-0.2, 1.1, rows),
        "expansion_ratio": rng.uniform(8, 30, rows),
        "width": rng.uniform(0, 1, rows),
    }
    return {name: columns[name] for name in FORMS[law].inputs}


def repetition(task: tuple[str, int, int]) -> dict[str, tuple[bool, bool]]:
    """One simulated table with 1 % noise: for each coefficient, whether its interval holds the truth and is closed."""
    law, rows, seed = task
    rng = np.random.default_rng(seed)
    form, truth = FORMS[law], TRUTH[law]
    columns = design(law, rows, rng)
    target = form.predict(columns, truth) * np.exp(0.01 * rng.standard_normal(rows))
    found = fit(law, columns | {form.target: target}, bootstraps=0, score=False)
    return {
        name: (low <= truth[name] <= high, "the data set" not in found.identifiability[name])
        for name, (low, high) in found.intervals.items()
    }


def coverage(law: str, rows: int, repetitions: int) -> dict[str, Any]:
    start = time.perf_counter()
    with multiprocessing.Pool(min(2, os.cpu_count() or 1)) as pool:
        hits = pool.map(repetition, [(law, rows, seed) for seed in range(repetitions)], chunksize=1)
    covered = {name: float(np.mean([hit[name][0] for hit in hits])) for name in FORMS[law].names}
    closed = {name: float(np.mean([hit[name][1] for hit in hits])) for name in FORMS[law].names}
    mean, worst, best = float(np.mean(list(covered.values()))), min(covered.values()), max(covered.values())
    spent = time.perf_counter() - start
    print(f"coverage {law:14s} mean {mean:.3f}, {worst:.3f} to {best:.3f} ({spent:.0f} s)", flush=True)
    return {law: {"rows": rows, "repetitions": repetitions, "mean": mean, "coverage": covered, "closed": closed}}


def chinchilla_runs() -> dict[str, np.ndarray] | None:
    path = DATA / "chinchilla_figure4_points.csv"
    if not path.is_file():
        return None
    with path.open() as file:
        points = list(csv.DictReader(file))
    size = np.array([float(point["Model Size"]) for point in points])
    compute = np.array([float(point["Training FLOP"]) for point in points])
    return {
        "total_params": size,
        "tokens": compute / (6 * size),
        "loss": np.array([float(point["loss"]) for point in points]),
    }


def objective(coefficients: dict[str, float], runs: dict[str, np.ndarray]) -> float:
    """Sum of Huber's loss (1e-3) of the log residuals, independent of the fitting code."""
    residual = np.abs(
        np.log(
            coefficients["E"]
            + coefficients["A"] / runs["total_params"] ** coefficients["alpha"]
            + coefficients["B"] / runs["tokens"] ** coefficients["beta"]
        )
        - np.log(runs["loss"])
    )
    return float(np.where(residual < 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum())


def refit() -> dict[str, Any] | None:
    runs = chinchilla_runs()
    if runs is None:
        return None
    kept = np.argsort(runs["loss"])[:-5]
    trimmed = {name: values[kept] for name, values in runs.items()}
    fit("chinchilla", trimmed, bootstraps=2)  # imports
    seconds, cpu_seconds = {}, {}
    for name, table in (("240 runs", trimmed), ("245 runs", runs)):
        times, cpu_times = [], []
        for _ in range(3):
            start, cpu_start = time.perf_counter(), time.process_time()
            found = fit("chinchilla", table, bootstraps=200)
            times.append(time.perf_counter() - start)
            cpu_times.append(time.process_time() - cpu_start)
        seconds[name], cpu_seconds[name] = min(times), min(cpu_times)
        if name == "240 runs":
            best = found
    start = time.perf_counter()
    alone = fit("chinchilla", trimmed, bootstraps=0)
    answer = {
        "coefficients": best.coefficients,
        "intervals": best.intervals,
        "inside_published_errors": all(abs(best.coefficients[n] - v) <= e for n, (v, e) in REFIT.items()),
        "objective": objective(best.coefficients, trimmed),
        "objective_published_refit": objective({name: value for name, (value, _) in REFIT.items()}, trimmed),
        "objective_chinchilla": objective(dict(PUBLISHED["chinchilla"].coefficients), trimmed),
        "held_out": dict(vars(best.held_out)),
        "all_245": {"coefficients": found.coefficients, "influential": found.influential},
        "seconds_200_bootstraps": seconds,
        "cpu_seconds_200_bootstraps": cpu_seconds,
        "seconds_without_bootstraps": time.perf_counter() - start,
    }
    assert alone.coefficients == best.coefficients
    print(
        "refit", {name: round(value, 4) for name, value in best.coefficients.items()}, "objective", answer["objective"]
    )
    print("seconds with 200 bootstraps", seconds, "without", answer["seconds_without_bootstraps"], flush=True)
    return answer


PACKAGE = """
import json, sys, tempfile, time
import numpy as np, pandas as pd
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
runs = {name: np.array(values) for name, values in json.load(sys.stdin).items()}
grid = dict(E=np.linspace(1, 2, 5), a=np.linspace(1, 10, 5), b=np.linspace(1, 10, 5),
            alpha=np.linspace(0.1, 0.7, 5), beta=np.linspace(0.1, 0.7, 5))
law = Chinchilla(tempfile.mkdtemp(), param_grid=grid, loss_fn=lambda y, p: log_huber(y, p, 1e-3), log_level=40)
n, d = runs["total_params"], runs["tokens"]
law.database.df = pd.DataFrame(dict(C=6 * n * d, N=n, D=d, loss=runs["loss"]))
law.visualizer.optim = lambda *args, **kwargs: None
start = time.perf_counter()
law.fit()
print(json.dumps(dict(seconds=time.perf_counter() - start, starts=5**5, coefficients={
    name: float(getattr(law, name)) for name in ("E", "A", "B", "alpha", "beta")})))
"""


def package(python: str | None) -> dict[str, Any] | None:
    """One fit of PyPI's `chinchilla` without bootstraps, over the grid of starts of its README, on all cores; and ours
    with 200 bootstraps right after it."""
    runs = chinchilla_runs()
    if runs is None or python is None:
        return None
    kept = np.argsort(runs["loss"])[:-5]
    trimmed = {name: values[kept] for name, values in runs.items()}
    table = json.dumps({name: values.tolist() for name, values in trimmed.items()})
    done = subprocess.run([python, "-c", PACKAGE], input=table, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    start = time.perf_counter()
    found = fit("chinchilla", trimmed, bootstraps=200)
    answer |= {"seconds_here": time.perf_counter() - start, "objective_here": objective(found.coefficients, trimmed)}
    answer["objective"] = objective(answer["coefficients"], trimmed)
    print("PyPI chinchilla", answer, flush=True)
    return answer


def leverage() -> dict[str, Any] | None:
    path = DATA / "efficiency_leverage_fig8_points.csv"
    if not path.is_file():
        return None
    with path.open() as file:
        points = list(csv.DictReader(file))
    names = {"activation_ratio": "A_ea_over_E", "granularity": "G", "compute": "C_flops", "leverage": "EL"}
    table = [[float(point[name]) for name in names.values()] for point in points]
    table = np.unique(table, axis=0)  # a point that is in two panels counts once, as it does in the fit
    columns = dict(zip(names, table.T, strict=True))
    found = fit("leverage", columns)
    law = PUBLISHED["leverage"]
    residual = np.log(law.form.predict(columns, law.coefficients) / columns["leverage"])
    print(f"leverage RMS log error {found.rmse_log:.4f}, published {np.sqrt(np.mean(residual**2)):.4f}", flush=True)
    return {
        "rows": found.rows,
        "rmse_log": found.rmse_log,
        "rmse_log_published": float(np.sqrt(np.mean(residual**2))),
        "coefficients": found.coefficients,
        "intervals": found.intervals,
        "identifiability": found.identifiability,
        "held_out": dict(vars(found.held_out)),
    }


def large() -> dict[str, Any]:
    """Seconds for tables of some thousand runs."""
    answer = {}
    for law, rows in (("chinchilla", 3000), ("routed", 3000)):
        rng = np.random.default_rng(0)
        columns = design(law, rows, rng)
        columns["loss"] = FORMS[law].predict(columns, TRUTH[law]) * np.exp(0.01 * rng.standard_normal(rows))
        start = time.perf_counter()
        fit(law, columns)
        answer[law] = {"rows": rows, "seconds": time.perf_counter() - start}
        print("large", law, answer[law], flush=True)
    return answer


def markdown(results: dict[str, Any]) -> str:
    lines = ["# Fits of scaling laws", "", "Written by `benchmarks/fits.py`.", ""]
    for name, section in results.items():
        if section.get("figures") is None:
            continue
        head, f = section["made"], section["figures"]
        lines += [f"## {name}", "", f"{head['date']}, {head['cpu']}, {head['cores']} cores, load {head['load']}, "]
        lines += [f"{head['versions']}", "", f"`{head['command']}`", ""]
        if name == "refit":
            lines += ["| | published refit | fit | 95 % interval |", "|---|---|---|---|"]
            for key, (value, error) in REFIT.items():
                low, high = f["intervals"][key]
                lines.append(f"| {key} | {value} ± {error} | {f['coefficients'][key]:.5g} | {low:.4g} to {high:.4g} |")
            lines += [
                "",
                f"Objective {f['objective']:.10f}; of the published refit {f['objective_published_refit']:.10f}, ",
            ]
            lines += [f"of Chinchilla's own coefficients {f['objective_chinchilla']:.10f}.", ""]
            every = f["all_245"]
            rows = ", ".join(map(str, every["influential"]["rows"]))
            lines += [f"All 245 runs: beta {every['coefficients']['beta']:.4f}, E {every['coefficients']['E']:.4f}, "]
            lines += [f"B {every['coefficients']['B']:.0f}; influential runs named: {rows}; without them beta "]
            lines += [f"{every['influential']['coefficients']['beta']:.4f}.", ""]
            cpu = f["cpu_seconds_200_bootstraps"]
            spent = ", ".join(
                f"{key} {s:.2f} s ({cpu[key]:.2f} s of CPU)" for key, s in f["seconds_200_bootstraps"].items()
            )
            lines += [f"With 200 bootstraps, profiles, held-out score and influence: {spent}, best of 3; "]
            lines += [f"without bootstraps {f['seconds_without_bootstraps']:.2f} s.", ""]
        elif name == "package":
            ratio = f["seconds"] / f["seconds_here"]
            lines += [f"PyPI `chinchilla`, {f['starts']} starts (its README's grid), one fit without bootstraps: "]
            lines += [
                f"{f['seconds']:.1f} s, objective {f['objective']:.10f}. Here, with 200 bootstraps, right after: "
            ]
            lines += [f"{f['seconds_here']:.2f} s, objective {f['objective_here']:.10f}: {ratio:.0f} times faster.", ""]
        elif name == "leverage":
            lines += [f"{f['rows']} points of Fig. 8: RMS log error {f['rmse_log']:.4f} "]
            lines += [
                f"(published coefficients {f['rmse_log_published']:.4f}).",
                "",
                "| | fit | 95 % interval | verdict |",
            ]
            lines += ["|---|---|---|---|"]
            for key, value in f["coefficients"].items():
                low, high = f["intervals"][key]
                lines.append(f"| {key} | {value:.4g} | {low:.4g} to {high:.4g} | {f['identifiability'][key]} |")
            lines.append("")
        elif name == "coverage":
            lines += [
                "Share of repetitions in which the 95 % interval holds the truth (1 % noise); in brackets the share"
            ]
            lines += [
                "in which it is closed, where that is not all.",
                "",
                "| law | runs | repetitions | mean | coefficients |",
            ]
            lines += ["|---|---|---|---|---|"]
            for law, row in f.items():
                cells = " ".join(
                    f"{key} {100 * value:.3g}"
                    + (f" ({100 * row['closed'][key]:.0f})" if row["closed"][key] < 1 else "")
                    for key, value in row["coverage"].items()
                )
                lines.append(f"| {law} | {row['rows']} | {row['repetitions']} | {100 * row['mean']:.1f} | {cells} |")
            lines.append("")
        else:
            lines += [f"- {law}: {row['rows']} runs, {row['seconds']:.1f} s" for law, row in f.items()] + [""]
    return "\n".join(lines)


def made() -> dict[str, Any]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("moe-optuna", "numpy", "scipy"))
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {
        "date": date.today().isoformat(),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": f"Python {platform.python_version()}, {versions}",
        "command": "python benchmarks/fits.py" + "".join(f" {word}" for word in sys.argv[1:]),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["refit", "package", "leverage", "large", "coverage"])
    parser.add_argument("--laws", nargs="+", choices=list(TRUTH), default=list(TRUTH))
    parser.add_argument("--rows", type=int, default=300, help="runs of a simulated table")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--chinchilla", metavar="PYTHON", help="a Python that has PyPI's chinchilla")
    arguments = parser.parse_args()
    sections: list[tuple[str, Callable[[], dict[str, Any] | None]]] = [
        ("refit", refit),
        ("package", lambda: package(arguments.chinchilla)),
        ("leverage", leverage),
        ("large", large),
        *(("coverage", partial(coverage, law, arguments.rows, arguments.repetitions)) for law in arguments.laws),
    ]
    path = RESULTS / "fits.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, run in sections:
        if arguments.only and name not in arguments.only:
            continue
        head, figures = made(), run()
        if figures is None:
            print(f"{name}: skipped, no data at {DATA}" if name != "package" else "package: skipped, see --chinchilla")
            continue
        results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if name == "coverage" and name in results:
            figures = results[name]["figures"] | figures
        results[name] = {"made": head, "figures": figures}
        path.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "fits.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
