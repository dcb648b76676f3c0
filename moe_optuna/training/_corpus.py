"""`Corpus`: a text as two memory maps of token ids, one to train on and one held out by document.

Prepared once and cached by a hash of its content under `cache_folder`; several processes may prepare it at the same
time, since a finished folder is put in place by one atomic rename. One that is damaged is prepared anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError
from moe_optuna.files import remove_unfinished
from moe_optuna.training._recipe import Recipe
from moe_optuna.training._sources import BUILT_IN, built_in_identity, documents, looked_for, read_bytes, source_files
from moe_optuna.training._vocabulary import Vocabulary, learn_vocabulary, learned_size, load_vocabulary

__all__ = ["Corpus", "cache_folder", "find_text"]

FORMAT = 6
_LEARNED = "vocabulary.json"
_ATTEMPTS = 3  # at a prepared text that others, who found it damaged too, may be replacing
_AS_IT_IS = "surrogateescape"  # names of files may be any bytes
_SAME_BYTES = 0.01  # how far the bytes of a text's tokens may be from the text's own, for bits per byte to be told
Tokens = NDArray[np.unsignedinteger[Any]]


def cache_folder() -> Path:
    """``$MOE_OPTUNA_CACHE``, or ``moe_optuna`` in the platform's folder for caches."""
    if chosen := os.environ.get("MOE_OPTUNA_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "moe_optuna"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to train on and to evaluate on.

    Attributes:
        train, held_out: Token ids, documents one after the other.
        vocab_size: Number of token ids; an architecture that trains on it has at least as many.
        token_bytes: Bytes of text behind each token id, shape (vocab_size,), or ``None`` where unknown: of a memory
            map without a vocabulary, or where the tokens of the text do not add up to its bytes.
        end: The token id that ends a document, or ``None`` where unknown.
        origin: What it was made of: source, content hash, number of documents, Python version.
    """

    train: Tokens
    held_out: Tokens
    vocab_size: int
    token_bytes: NDArray[np.int64] | None
    end: int | None
    origin: dict[str, Any]

    @classmethod
    def prepare(cls, recipe: Recipe) -> Corpus:
        """The recipe's text, tokenised and cached if it was not.

        Raises:
            InputError: Where the text or the vocabulary is not there, cannot be read or is too short.
        """
        tokenised = _tokenised(recipe.data)
        files = list(tokenised)
        if not tokenised and recipe.data not in BUILT_IN:
            files += source_files(recipe.data).values()
        if os.path.isfile(recipe.vocabulary):
            files.append(Path(recipe.vocabulary))
        cache = str(cache_folder())
        return _prepare(
            recipe.data, recipe.vocabulary, recipe.token_dtype, recipe.held_out, cache, tokenised, _versions(files)
        )

    def windows(self, context_length: int) -> int:
        """Training windows of `context_length` tokens and the token after them."""
        return max(0, (len(self.train) - 1) // context_length)

    def training_order(self, context_length: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """The windows of one epoch in the order in which they are trained on: a permutation fixed by seed and epoch,
        the same for every architecture."""
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        return generator.permutation(self.windows(context_length))

    def held_out_windows(self, context_length: int, count: int) -> NDArray[np.int64]:
        """`count` windows of the held-out text, evenly spaced (all there are, where there are fewer), with the token
        after each: shape (count, context_length + 1)."""
        available = (len(self.held_out) - 1) // context_length
        if available < 1:
            raise InputError(
                f"{len(self.held_out)} held-out tokens, expected more than context_length = {context_length}",
                where="data",
            )
        chosen = np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(np.int64))
        return np.stack([self.held_out[i * context_length : (i + 1) * context_length + 1] for i in chosen]).astype(
            np.int64
        )

    def bits_per_byte(self, loss: float, windows: NDArray[np.int64]) -> float | None:
        """Loss [nats per token] on `windows` in bits per byte of the text that they stand for."""
        if self.token_bytes is None:
            return None
        targets = windows[:, 1:]
        return float(loss * targets.size / (math.log(2) * self.token_bytes[targets].sum()))


def find_text(recipe: Recipe) -> int:
    """Look for the recipe's text, without reading it, and read its vocabulary; the vocabulary's number of token ids.

    Raises:
        InputError: Where either is not there, or the vocabulary cannot be read.
    """
    learned = learned_size(recipe.vocabulary)
    if _tokenised(recipe.data):
        _refuse_learned(recipe.vocabulary)
    elif recipe.data not in BUILT_IN:  # which are always there
        source_files(recipe.data)
    return learned or load_vocabulary(recipe.vocabulary).size


def _refuse_learned(vocabulary: str) -> None:
    if learned_size(vocabulary):
        raise InputError(
            f"{vocabulary!r}, expected 'bytes' or a file: there is no text to learn it from, 'data' holds token ids",
            where="vocabulary",
        )


def _tokenised(data: str) -> tuple[Path, ...]:
    """The files that hold token ids, which are mapped where they lie; none where `data` is text.

    Raises:
        InputError: Where one is missing.
    """
    path = Path(data)
    if path.suffix != ".bin" and not os.path.isfile(path / "train.bin"):
        return ()
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file{looked_for(path)}, expected an existing file", where="data")
    files = [path] if path.is_file() else [path / "train.bin", path / "val.bin"]
    for file in files:
        if not file.is_file():
            raise InputError("missing", where=file)
    return tuple(files)


def _versions(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Where files lie, with size and time, by which this process knows whether it has prepared them already.

    Raises:
        InputError: Where one is gone.
    """
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=file) from None
        found.append((str(file.absolute()), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=8)
def _prepare(
    data: str,
    vocabulary_name: str,
    token_dtype: str,
    held_out: float,
    cache: str,
    tokenised: tuple[Path, ...],
    versions: tuple[tuple[str, int, int], ...],
) -> Corpus:
    """What `Corpus.prepare` gives, as long as the `versions` of all files are the same."""
    if tokenised:
        _refuse_learned(vocabulary_name)
        vocabulary = load_vocabulary(vocabulary_name)
        return _from_bin(Path(data), list(tokenised), vocabulary, token_dtype, held_out)
    vocabulary_or_size = learned_size(vocabulary_name) or load_vocabulary(vocabulary_name)
    identity = vocabulary_name if isinstance(vocabulary_or_size, int) else vocabulary_or_size.identity
    built_in = built_in_identity(data)
    files = {} if built_in else source_files(data)  # of a built-in text thousands, which its versions tell as well
    folder = Path(cache) / "corpora" / _key(built_in, files, identity, held_out)
    for attempt in range(_ATTEMPTS):
        if attempt:
            _write(folder, data, files or source_files(data), vocabulary_or_size, held_out)
        if (corpus := _read(folder, vocabulary_or_size)) is not None:
            return corpus
    raise OSError(f"{folder}: the prepared text is gone or cut as soon as it is written")


def _key(built_in: str | None, files: dict[str, Path], vocabulary: str, held_out: float) -> str:
    """A hash of everything that the prepared corpus depends on."""
    digest = hashlib.sha256(f"{FORMAT} {vocabulary} {held_out!r} {built_in}".encode())
    for name, path in files.items():
        content = read_bytes(path)
        digest.update(f"\n{name} {len(content)}\n".encode(errors=_AS_IT_IS))
        digest.update(content)
    return digest.hexdigest()[:32]


def _are_held_out(names: list[str], share: float) -> list[bool]:
    """By a hash of each document's name, so that a document stays on its side when others come or go.

    Where that leaves a side of two or more documents empty, the nearest document of the other changes over.
    """
    hashes = [int.from_bytes(hashlib.sha256(name.encode(errors=_AS_IT_IS)).digest()[:8], "big") for name in names]
    sides = [number < share * 2**64 for number in hashes]
    if len(sides) > 1 and len(set(sides)) == 1:
        nearest = max(hashes) if sides[0] else min(hashes)
        sides[hashes.index(nearest)] ^= True
    return sides


def _write(folder: Path, data: str, files: dict[str, Path], vocabulary: Vocabulary | int, held_out: float) -> None:
    """Tokenise into a folder beside `folder`, and put it in place once the disk has it.

    A vocabulary of which only the size is given is learned from what is trained on, and lies beside it.

    Raises:
        InputError: Where there are too few documents, or nothing can be written there.
        OSError: Where it could not be written whole.
    """
    named = dict(documents(data, files))
    if len(named) < 2:
        raise InputError(
            f"{len(named)} document{'s' * (len(named) != 1)}, expected at least 2, one of them to hold out", where=data
        )
    held = _are_held_out(list(named), held_out)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder.parent, ".unfinished-*")
        room = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    except OSError as error:
        reason = f"cannot be written: {error.strerror}, expected a folder for prepared texts (MOE_OPTUNA_CACHE)"
        raise InputError(reason, where=folder.parent) from None
    unfinished = room / "corpus"
    wanted = vocabulary
    try:
        unfinished.mkdir()
        if isinstance(vocabulary, int):
            trained = (text for text, side in zip(named.values(), held, strict=True) if not side)
            learn_vocabulary(trained, vocabulary, unfinished / _LEARNED)
            vocabulary = load_vocabulary(str(unfinished / _LEARNED))
        _tokenise(unfinished, data, named, held, vocabulary)
        for file in unfinished.iterdir():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())
        _place(unfinished, folder, wanted)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _place(unfinished: Path, folder: Path, vocabulary: Vocabulary | int) -> None:
    """Put in place by a rename; who comes second throws theirs away, and what is damaged gives way."""
    try:
        unfinished.rename(folder)
        return
    except OSError:
        if _read(folder, vocabulary) is not None:
            return
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(unfinished.with_name("damaged"))
    try:
        unfinished.rename(folder)
    except OSError:
        if _read(folder, vocabulary) is None:
            raise


def _tokenise(folder: Path, data: str, named: dict[str, str], held: list[bool], vocabulary: Vocabulary) -> None:
    """Write the token ids of both sides, and what they were made of."""
    sides: dict[bool, list[NDArray[Any]]] = {False: [], True: []}
    digest = hashlib.sha256()
    counted = size = 0
    for text, side in zip(named.values(), held, strict=True):
        tokens = vocabulary.encode(text)
        counted += int(vocabulary.token_bytes[tokens].sum()) - 1  # the end of a document is none of its bytes
        size += len(text.encode("utf-8", errors="replace"))
        digest.update(bytes([side]) + tokens.tobytes())
        sides[side].append(tokens)
    origin = {
        "format": FORMAT,
        "data": data,
        "content": digest.hexdigest(),
        "python": platform.python_version(),
        "documents": {"train": len(held) - sum(held), "held_out": sum(held)},
        "dtype": "uint16" if vocabulary.size <= 2**16 else "uint32",
        "bytes_counted": counted / max(size, 1),
    }
    for side, name in ((False, "train.bin"), (True, "held_out.bin")):
        with (folder / name).open("wb") as stream:  # `tofile` tells nobody that a full disk took only a part
            stream.write(np.concatenate(sides[side]).astype(origin["dtype"]).data)  # type: ignore[call-overload]
    origin["sizes"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    (folder / "corpus.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path, vocabulary: Vocabulary | int) -> Corpus | None:
    """What `_write` wrote; ``None`` where it is not there as a whole: cleaners of caches take single files, too."""
    try:
        origin = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        sizes = origin.pop("sizes")
        if origin["format"] != FORMAT or any((folder / name).stat().st_size != sizes[name] for name in sizes):
            return None
        if isinstance(vocabulary, int):
            vocabulary = load_vocabulary(str(folder / _LEARNED))
        train, held_out = (
            np.memmap(folder / name, dtype=origin["dtype"], mode="r") for name in ("train.bin", "held_out.bin")
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # A tokenizer may drop spaces or fold letters; what its tokens then stand for is not the text.
    exact = abs(origin.get("bytes_counted", 1.0) - 1) <= _SAME_BYTES
    token_bytes = vocabulary.token_bytes if exact else None
    return Corpus(train, held_out, vocabulary.size, token_bytes, vocabulary.end, origin)


def _from_bin(path: Path, files: list[Path], vocabulary: Vocabulary, token_dtype: str, share: float) -> Corpus:
    """A tokenised memory map as it is: ``train.bin`` and ``val.bin`` of a folder, or one file whose end is held out.

    Bits per byte and ends of documents need a vocabulary; without one (``bytes`` and ids above 255) they are unknown.
    """
    width = np.dtype(token_dtype).itemsize
    for file in files:
        if file.stat().st_size == 0 or file.stat().st_size % width:
            raise InputError(f"{file.stat().st_size} bytes, expected a positive multiple of {width}", where=file)
    try:
        maps = [np.memmap(file, dtype=token_dtype, mode="r") for file in files]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=error.filename or path) from None
    if len(maps) == 1:
        cut = round(len(maps[0]) * (1 - share))
        maps = [maps[0][:cut], maps[0][cut:]]  # type: ignore[list-item]
    greatest = int(max(part.max() for part in maps if len(part)))
    known = greatest < vocabulary.size
    digest = hashlib.sha256()
    for part in maps:
        digest.update(f"{len(part)}\n".encode())
        digest.update(part.data)
    origin = {
        "format": FORMAT,
        "data": str(path),
        "content": digest.hexdigest(),
        "python": platform.python_version(),
        "documents": None,
        "dtype": token_dtype,
    }
    size, token_bytes, end = (
        (vocabulary.size, vocabulary.token_bytes, vocabulary.end) if known else (greatest + 1, None, None)
    )
    return Corpus(maps[0], maps[1], size, token_bytes, end, origin)
