"""Tables of runs: reading and checking, once, at the boundary."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.laws._form import Form
from moe_optuna.laws._formulas import Array
from moe_optuna.laws.forms import form

__all__ = ["checked", "ended", "read_columns", "read_runs"]

_POSITIVE = (0.0, np.inf, "a positive number")
_COUNT = (-1e-9, np.inf, "a number of at least 0")
_DOMAINS: dict[str, tuple[float, float, str]] = {
    "activation_ratio": (0.0, 1.0, "a number above 0 and at most 1"),
    "compute_density": (6.0, np.inf, "a number above 6"),
    "expansion_ratio": (1.0 - 1e-9, np.inf, "a number of at least 1"),
    "n_experts": _COUNT,
    "top_k": _COUNT,
    "n_shared_experts": _COUNT,
    "width": (-np.inf, np.inf, "a finite number"),
}
"""Lower end (excluded), upper end (included) and their words; every other column is positive."""


_PROXY = {"width": "0.5"}
"""What an empty cell means: runs that do not sweep the width have the proxy width, the middle of the interval."""


_SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""Refused rather than read: with semicolons numbers often have decimal commas."""


def checked(law: Form, columns: Mapping[str, ArrayLike], *, where: object = None) -> dict[str, Array]:
    """The columns that a law reads, as float arrays ``(n,)`` of one length, all in their domain.

    Raises:
        InputError: Names the column and the row (the first is 1) that does not fit.
    """
    place = "" if where is None else f"{where}: "
    if missing := [name for name in law.columns if name not in columns]:
        hints = "".join(did_you_mean(name, columns) for name in missing[:1])
        raise InputError(
            f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}, "
            f"expected {', '.join(law.columns)} for law {law.name!r}{hints}",
            where=where,
        )
    table: dict[str, Array] = {}
    for name in law.columns:
        try:
            values = np.asarray(columns[name], dtype=float)
        except (TypeError, ValueError):
            raise InputError("not numbers", where=f"{place}column {name}") from None
        if values.ndim != 1:
            raise InputError(f"{values.ndim} dimensions, expected 1", where=f"{place}column {name}")
        low, high, words = _DOMAINS.get(name, _POSITIVE)
        if (bad := ~(np.isfinite(values) & (values > low) & (values <= high))).any():
            row = int(bad.argmax())
            raise InputError(f"{values[row]:g}, expected {words}", where=f"{place}row {row + 1}, column {name}")
        table[name] = values
    if len({len(values) for values in table.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in table.items())
        raise InputError(f"columns of different lengths: {lengths}", where=where)
    return table


def _rows(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a CSV file and its rows, those without any text left out as blank lines are."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [row for row in reader if any("".join(cell).strip() for cell in row.values())]
    except OSError as error:
        raise InputError(error.strerror or "cannot be read", where=path) from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError("not a CSV text file", where=path) from None
    for separator, word in _SEPARATORS.items():
        if len(names) == 1 and separator in names[0]:
            raise InputError(f"cells separated by {word}, expected commas", where=path)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"two columns {twice[0]}, expected one", where=path)
    if long := [number for number, row in enumerate(rows, start=1) if None in row]:
        raise InputError(f"more cells than the {len(names)} columns", where=f"{path}: row {long[0]}")
    return names, rows


def ended(state: str | None) -> str:
    """How a run ended, told as Optuna writes it or as a search does; complete where nothing is told."""
    return (state or "complete").strip().rpartition(".")[2].lower()


def read_columns(path: str | Path, needed: Sequence[str], more: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Of a CSV file of runs the columns that are needed and those more that it has, nan where a cell is empty, and
    `state` as it stands there.

    Raises:
        InputError: One line that names the file, the row (1 is the first below the header) and the column.
    """
    names, rows = _rows(path)
    if missing := [name for name in needed if name not in names]:
        raise InputError(f"no column {', '.join(missing)}, expected {', '.join(needed)}", where=path)
    table: dict[str, NDArray[Any]] = {"state": np.array([row.get("state") or "" for row in rows], dtype=str)}
    for name in [*needed, *(name for name in more if name in names)]:
        table[name] = np.full(len(rows), np.nan)
        for index, row in enumerate(rows):
            try:
                table[name][index] = float(row[name] or "nan")
            except ValueError:
                where = f"{path}: row {index + 1}, column {name}"
                raise InputError(f"{row[name]!r}, expected a number", where=where) from None
    return table


def read_runs(path: str | Path, law: str, *, group: str | None = None) -> dict[str, Array]:
    """The columns that a law reads out of a CSV file of runs; other columns are passed over.

    With `group`, a column of labels (any text), the column `group` numbers its labels from 0 on: what `fit` takes as
    `groups`.

    Where the file has a column `state`, rows of another state than complete are left out. An empty `width` (a run that
    does not sweep it) is the proxy width, 0.5.

    Raises:
        InputError: One line that names the file, the row (1 is the first below the header) and the column.
    """
    wanted = form(law)
    names, rows = _rows(path)
    if missing := [name for name in (*wanted.columns, *([group] if group else ())) if name not in names]:
        hint = did_you_mean(missing[0], names)
        grouped = f" and {group} to group by" if group else ""
        raise InputError(
            f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}, "
            f"expected {', '.join(wanted.columns)} for law {law!r}{grouped}{hint}",
            where=path,
        )
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if ended(row.get("state")) == "complete"]
    if not numbered:
        raise InputError(f"{'no complete run' if rows else 'no row'}, expected one run a row", where=path)
    table = {name: np.empty(len(numbered)) for name in wanted.columns}
    for index, (number, row) in enumerate(numbered):
        for name in wanted.columns:
            text = row[name] or _PROXY.get(name, "")
            low, high, words = _DOMAINS.get(name, _POSITIVE)
            try:
                value = float(text)
            except (TypeError, ValueError):
                value = np.nan
            if not (np.isfinite(value) and low < value <= high):
                raise InputError(f"{text!r}, expected {words}", where=f"{path}: row {number}, column {name}")
            table[name][index] = value
    if group:
        table["group"] = np.unique([row[group] for _, row in numbered], return_inverse=True)[1].astype(np.float64)
    return table
