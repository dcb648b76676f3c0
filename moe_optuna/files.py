"""Files that are written whole or not at all, and read back with one line where they are not what they should be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_optuna.errors import InputError

__all__ = ["SPACE_FILE", "read_object", "remove_unfinished", "replacing", "write_whole"]

SPACE_FILE = "space.toml"
"""The search space of a search, in its folder."""


class _NotFinite(Exception):
    pass


def _refuse(constant: str) -> None:
    raise _NotFinite(constant)


def read_object(path: str | Path, *, expected: str, finite: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        expected: What it should hold, for the error.
        finite: Whether NaN and Infinity, which Python writes and JSON does not know, are refused.

    Raises:
        InputError: Where it cannot be read or is no JSON object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse if finite else None)
    except OSError as error:
        raise InputError(error.strerror or "cannot be read", where=path) from None
    except _NotFinite as error:
        raise InputError(f"{error}, expected finite numbers", where=path) from None
    except (ValueError, RecursionError):
        raise InputError(f"not JSON, expected {expected}", where=path) from None
    if not isinstance(data, dict):
        raise InputError(f"not a JSON object, expected {expected}", where=path)
    return data


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` at the end, or is removed where that is an error."""
    # Not the process's id: in two containers that share a folder it may be the same.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, never half of one.

    Raises:
        OSError: Where it could not be written; the old file is as it was.
    """
    with replacing(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove the files and folders of that pattern which nobody has touched for a day: processes that were killed left
    them unfinished."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process was faster
            if path.stat().st_mtime > time.time() - 86_400:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
