"""Where text comes from: the standard library's sources, folders of text, ``.jsonl`` files, `datasets` on disk."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_optuna.errors import InputError

__all__ = ["documents", "looked_for", "source_files"]

TEXT_SUFFIXES = frozenset(
    (".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".jsonl")
)
_KINDS = " ".join(sorted(TEXT_SUFFIXES))
_LEFT_OUT = frozenset(
    # Tests repeat themselves and hold binary-like data; `encodings` are tables; the rest is not the library's own.
    ("test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__", "_bundled")
)
_FEW_DOCUMENTS = 20
_PIECE = 16_384


def source_files(data: str) -> tuple[Path, list[Path]]:
    """The folder that `data` names and its text files, by sorted path.

    Raises:
        InputError: Where there is no such file or folder, or none of text.
    """
    if data == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [
            path
            for path in root.rglob("*.py")
            if not _LEFT_OUT & set(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
        ]
    else:
        root = Path(data)
        if root.is_file():
            if root.suffix and root.suffix not in TEXT_SUFFIXES:  # a .gz or .npy would be trained on as it stands
                raise InputError(f"{data!r}, expected a file of text ({_KINDS}) or of token ids (.bin)", where="data")
            return root.parent, [root]
        if not root.is_dir():
            raise InputError(
                f"{data!r}{looked_for(root)}, expected 'python' or an existing file or folder", where="data"
            )
        if (root / "dataset_dict.json").is_file():  # several splits: the one to train on
            root = root / "train"
        if (root / "state.json").is_file():
            return root, sorted(root.glob("*.arrow"))
        files = [path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file()]
    if not files:
        raise InputError(f"{data!r} holds no text files ({_KINDS})", where="data")
    return root, sorted(files, key=lambda path: path.relative_to(root).as_posix())


def looked_for(path: Path) -> str:
    """Where a relative path that is missing was looked for, in brackets; nothing of an absolute one."""
    return "" if path.is_absolute() else f" (looked for {path.absolute()})"


def documents(root: Path, files: list[Path]) -> Iterator[tuple[str, str]]:
    """Pairs of a document's name and text. A line of a ``.jsonl`` file is a document; where there are fewer than 20
    documents, long ones are cut at line ends, and within lines that are long themselves, so that some can be held
    out."""
    whole = list(_whole(root, files))
    if len(whole) >= _FEW_DOCUMENTS:
        yield from whole
        return
    for name, text in whole:
        for number, piece in enumerate(_pieces(text)):
            yield f"{name}#{number}", piece


def _whole(root: Path, files: list[Path]) -> Iterator[tuple[str, str]]:
    if files and files[0].suffix == ".arrow":
        yield from _rows(root)
        return
    for path in files:
        name = path.relative_to(root).as_posix()
        text = _text(path)
        if path.suffix != ".jsonl":
            if text.strip():
                yield name, text
            continue
        for number, line in enumerate(text.split("\n"), start=1):  # strings may hold what else is a line end in Unicode
            if not line.strip():
                continue
            try:
                content = json.loads(line)["text"]
            except (ValueError, TypeError, KeyError):
                content = None
            if not isinstance(content, str):
                raise InputError("expected a JSON object with a string at the key 'text'", where=f"{path}:{number}")
            yield f"{name}:{number}", content


def _text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: Where it cannot be read or is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{error.reason} at byte {error.start}, expected text in UTF-8", where=path) from None
    if "\0" in text:
        raise InputError("holds a zero byte, expected text in UTF-8", where=path)
    return text


def _rows(folder: Path) -> Iterator[tuple[str, str]]:
    """The column ``text`` of what `datasets` saved."""
    try:
        from datasets import load_from_disk
    except ImportError:
        raise InputError("needs the package 'datasets', which is not installed", where=folder) from None
    try:
        rows = load_from_disk(str(folder))
    except Exception as error:  # the package raises many kinds on what it did not save
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"not a folder of `datasets`: {reason}", where=folder) from None
    if "text" not in rows.column_names:
        raise InputError(f"columns {', '.join(rows.column_names)}, expected 'text' among them", where=folder)
    for number, text in enumerate(rows["text"]):
        if not isinstance(text, str):
            raise InputError(f"{text!r} as text of row {number}, expected a string", where=folder)
        if text.strip():
            yield f"{number}", text


def _pieces(text: str) -> Iterator[str]:
    """At the end of the line that exceeds the piece size; at the piece size itself where that line is longer still."""
    start = 0
    while start < len(text):
        full = start + _PIECE
        line = max(start, text.rfind("\n", start, full) + 1)
        end = text.find("\n", full, line + _PIECE + 1) + 1
        if not end:
            end = len(text) if len(text) <= line + _PIECE else full
        yield text[start:end]
        start = end
