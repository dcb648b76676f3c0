"""Plain data as TOML; the standard library only reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from moe_optuna.errors import InputError

__all__ = ["check", "dumps"]


def check(value: Any, where: str) -> None:
    """Refuse what has no form in both TOML and JSON.

    Raises:
        InputError: With its place.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check(item, where)
    elif not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{value!r}, expected a string, a finite number, true or false", where=where)


def dumps(data: Mapping[str, Any]) -> str:
    """A document of tables: scalars first, then one `[table]` each, lists of tables as `[[table]]`; deeper tables
    inline."""
    lines = [_pair(*item) for item in data.items() if not _is_table(item[1])]
    for key, value in data.items():
        for table in value if isinstance(value, (list, tuple)) and _is_table(value) else [value]:
            if _is_table(table):
                head = f"[[{_key(key)}]]" if isinstance(value, (list, tuple)) else f"[{_key(key)}]"
                lines += ["", head, *(_pair(*item) for item in table.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _pair(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return text if any(mark in text for mark in ".en") else text + ".0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pair(*item) for item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
