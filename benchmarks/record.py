"""Write a result with what is needed to judge it: date, machine, versions, command."""

from __future__ import annotations

import json
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, data: Any) -> Path:
    """Write ``results/<name>.json``; an earlier result of the same name is replaced."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"date": datetime.now(UTC).date().isoformat(), "cpu": _cpu(), "python": platform.python_version()}
    content |= {
        "versions": _versions("optuna", "numpy", "scipy", "torch", "transformers", "lightning"),
        "command": " ".join(sys.argv),
        "data": data,
    }
    text = json.dumps(content, indent=1, default=float)
    text = re.sub(r"\[[^][{}\"]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # numbers: a list a line
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
