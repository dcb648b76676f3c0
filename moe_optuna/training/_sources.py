"""Where text comes from: what is on every machine, folders of text, ``.jsonl`` files, `datasets` on disk."""

from __future__ import annotations

import ast
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from moe_optuna.errors import InputError

__all__ = ["BUILT_IN", "built_in_identity", "documents", "looked_for", "read_bytes", "source_files"]

BUILT_IN = ("docs", "python")
"""Texts that are on every machine: the docstrings of the standard library and of `_PACKAGES`; the former's sources."""
TEXT_SUFFIXES = frozenset(
    (".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".jsonl")
)
_KINDS = " ".join(sorted(TEXT_SUFFIXES))
_PACKAGES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "sympy": "sympy", "networkx": "networkx"}
"""What this package needs, directly or through torch, and documents itself in many words: module and distribution."""
_LEFT_OUT = frozenset(
    # Tests repeat themselves and hold binary-like data; `encodings` are tables; the rest is not the library's own.
    ("test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__", "_bundled")
)
_FEW_DOCUMENTS = 20
_PIECE = 16_384


def source_files(data: str) -> dict[str, Path]:
    """The text files that `data` names, by the name of the document that each holds, in the order of names.

    Raises:
        InputError: Where there is no such file or folder, or none of text.
    """
    if data in BUILT_IN:
        files = _modules(Path(sysconfig.get_paths()["stdlib"]))
        if data == "docs":
            for module in _PACKAGES:
                files |= _modules(_folder(module), module)
        return dict(sorted(files.items()))
    root = Path(data)
    if os.path.isfile(root):  # which takes a name that is too long for one that is not there
        if root.suffix and root.suffix not in TEXT_SUFFIXES:  # a .gz or .npy would be trained on as it stands
            raise InputError(f"{data!r}, expected a file of text ({_KINDS}) or of token ids (.bin)", where="data")
        return {root.name: root}
    if not os.path.isdir(root):
        raise InputError(
            f"{data!r}{looked_for(root)}, expected {', '.join(map(repr, BUILT_IN))} or an existing file or folder",
            where="data",
        )
    try:
        root, paths = _files_of_text(root)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=error.filename) from None
    if not paths:
        raise InputError(f"{data!r} holds no text files ({_KINDS})", where="data")
    return dict(sorted((path.relative_to(root).as_posix(), path) for path in paths))


def _files_of_text(root: Path) -> tuple[Path, list[Path]]:
    """The files of a folder that `datasets` saved, or else those of text, and the folder that their names begin in."""
    if (root / "dataset_dict.json").is_file():  # several splits: the one to train on
        root = root / "train"
    if (root / "state.json").is_file() and (rows := list(root.glob("*.arrow"))):
        return root, rows
    walk = os.walk(root, onerror=_fail)  # `rglob` would pass over a folder that it may not read
    paths = (Path(folder, name) for folder, _, names in walk for name in names)
    return root, [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]


def _fail(error: OSError) -> None:
    raise error


def _modules(root: Path, prefix: str = "") -> dict[str, Path]:
    """The modules below a folder."""
    relative = {path: path.relative_to(root) for path in root.rglob("*.py")}
    return {
        (prefix / name).as_posix(): path
        for path, name in relative.items()
        if not _LEFT_OUT & set(name.parts) and not path.name.startswith("_sysconfigdata")
    }


def _folder(module: str) -> Path:
    """Where a package lies, without importing it."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"'docs' needs the package {_PACKAGES[module]!r}, which is not installed", where="data")
    return Path(spec.submodule_search_locations[0])


def built_in_identity(data: str) -> str | None:
    """What a built-in text is, by versions; ``None`` of one that only its files tell.

    Raises:
        InputError: Where a package is not installed.
    """
    if data not in BUILT_IN:
        return None
    parts = [data, f"python {sys.version}"]
    for module, package in _PACKAGES.items() if data == "docs" else ():
        _folder(module)
        parts.append(f"{package} {version(package)}")
    return " ".join(parts)


def looked_for(path: Path) -> str:
    """Where a relative path that is missing was looked for, in brackets; nothing of an absolute one."""
    return "" if path.is_absolute() else f" (looked for {path.absolute()})"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: Where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from None


def documents(data: str, files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Pairs of a document's name and text, of what `source_files` found. A line of a ``.jsonl`` file is a document;
    where there are fewer than 20 documents, long ones are cut at line ends, and within lines that are long themselves,
    so that some can be held out."""
    whole = list(_whole(data, files))
    if len(whole) >= _FEW_DOCUMENTS:
        yield from whole
        return
    for name, text in whole:
        for number, piece in enumerate(_pieces(text)):
            yield f"{name}#{number}", piece


def _whole(data: str, files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    first = next(iter(files.values()))
    if first.suffix == ".arrow":
        yield from _rows(first.parent)
        return
    for name, path in files.items():
        text = _docstrings(path) if data == "docs" else _text(path)
        if path.suffix != ".jsonl":
            if text.strip():
                yield name, text
            continue
        for number, line in enumerate(text.split("\n"), start=1):  # strings may hold what else is a line end in Unicode
            if not line.strip():
                continue
            try:
                content = json.loads(line)["text"]
            except (ValueError, TypeError, KeyError, RecursionError):
                content = None
            if not isinstance(content, str):
                raise InputError("expected a JSON object with a string at the key 'text'", where=f"{path}:{number}")
            if content.strip():
                yield f"{name}:{number}", content.encode("utf-8", errors="replace").decode()  # half a surrogate pair


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


def _docstrings(path: Path) -> str:
    """What a module says about itself and its classes and functions; nothing where it is no module of this Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    found: list[str] = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(node) or "")
        for block in ("finalbody", "orelse", "handlers", "body"):  # reversed: the last is taken first
            nodes += reversed(getattr(node, block, ()))
    return "\n\n".join(filter(None, found))


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
