"""Vocabularies: from text to token ids, and how many bytes of text each token stands for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten

import numpy as np
from numpy.typing import NDArray

from moe_optuna.errors import InputError
from moe_optuna.training._sources import read_bytes

__all__ = ["Vocabulary", "learn_vocabulary", "learned_size", "load_vocabulary"]

SEPARATOR = 0
"""The byte that ends a document; text does not hold it."""
_MOST = 2**24
"""Token ids of any vocabulary: sixteen times those of the largest in use, and each costs memory."""
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")


@dataclass(frozen=True)
class Vocabulary:
    """A way to write text as integers.

    Attributes:
        identity: What it is, as a string that a cache can depend on.
        size: Number of token ids.
        end: The token id that ends a document.
        encode: Text of one document to token ids, `end` included.
        token_bytes: Bytes of text that each token stands for, shape (size,); the end of a document counts as one.
    """

    identity: str
    size: int
    end: int
    encode: Callable[[str], NDArray[np.integer]]
    token_bytes: NDArray[np.int64]


def learned_size(name: str) -> int | None:
    """Token ids of ``"bpe-<size>"``, the vocabulary that is learned from the text itself; ``None`` of any other.

    Raises:
        InputError: Where it is too small to hold every byte and the end of a document, or beyond reason.
    """
    if (match := re.fullmatch(r"bpe-(\d+)", name)) is None:
        return None
    if len(match[1]) > len(str(_MOST)) or not 256 < int(match[1]) <= _MOST:
        raise InputError(f"{shorten(name)}, expected more than 256 token ids and at most {_MOST}", where="vocabulary")
    return int(match[1])


def learn_vocabulary(texts: Iterable[str], size: int, file: Path) -> None:
    """Write the byte-pair encoding of some texts, with `size` token ids, as a `tokenizers` file. The same texts in the
    same order give the same file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_ENDS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    file.write_bytes(tokenizer.to_str(pretty=True).encode())


def load_vocabulary(name: str) -> Vocabulary:
    """``"bytes"``, or the vocabulary in a file: `tokenizers`' ``.json`` or tiktoken's ``.tiktoken`` ranks.

    Raises:
        InputError: On an unknown name, an unreadable file, or where the package that reads it is not installed.
    """
    if name == "bytes":
        return Vocabulary("bytes", 256, SEPARATOR, _encode_bytes, np.ones(256, dtype=np.int64))
    path = Path(name)
    if not os.path.isfile(path):
        raise InputError(f"{name!r}, expected 'bytes', 'bpe-<size>' or a file", where="vocabulary")
    content = read_bytes(path)
    identity = f"{path.suffix}:{hashlib.sha256(content).hexdigest()}"
    if path.suffix == ".json":
        return _tokenizers(path, content, identity)
    if path.suffix == ".tiktoken":
        return _tiktoken(path, content, identity)
    raise InputError(f"{name!r}, expected a .json (tokenizers) or .tiktoken file", where="vocabulary")


def _encode_bytes(text: str) -> NDArray[np.integer]:
    data = text.encode("utf-8", errors="replace").replace(b"\0", b"") + bytes([SEPARATOR])
    return np.frombuffer(data, dtype=np.uint8)


def _tokenizers(path: Path, content: bytes, identity: str) -> Vocabulary:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the package raises bare exceptions of its own
        raise InputError(f"not a tokenizers file: {_first_line(error)}", where=path) from None
    tokenizer.no_truncation()  # a file may carry what a model was once trained with
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # text that spells the end of a document does not end one
    known = tokenizer.get_vocab(with_added_tokens=True)
    if not known:
        raise InputError("no tokens, expected some", where=path)
    size = _fitting(max(known.values()) + 1, path)
    ends = [known[token] for token in _ENDS if token in known]
    end = ends[0] if ends else size
    size = max(size, end + 1)
    token_bytes = np.ones(size, dtype=np.int64)
    kinds = set(re.findall(r'"type":\s*"(\w+)"', json.dumps(json.loads(tokenizer.to_str())["decoder"])))
    for token, index in known.items():
        token_bytes[index] = _bytes_of(token, kinds)
    token_bytes[end] = 1

    def encode(text: str) -> NDArray[np.integer]:
        try:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # above all of a model that has no token for what it does not know
            raise InputError(f"cannot write the text: {_first_line(error)}", where=path) from None
        return np.array([*ids, end], dtype=np.int64)

    return Vocabulary(identity, size, end, encode, token_bytes)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _fitting(size: int, path: Path) -> int:
    if size > _MOST:
        raise InputError(f"{size} token ids, expected at most {_MOST}", where=path)
    return size


def _bytes_of(token: str, decoders: set[str]) -> int:
    """Bytes that a token stands for; decoding it alone would not tell (a part of a character, a space at the start)."""
    if "ByteLevel" in decoders:
        return len(token)  # a character a byte
    if "ByteFallback" in decoders and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return 1
    return len(token.replace("▁", " ").removeprefix("##").encode()) or 1


# GPT-4's pattern (cl100k_base), which tiktoken's ranks do not carry with them.
_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
    r"""\s*[\r\n]|\s+(?!\S)|\s"""
)


def _tiktoken(path: Path, content: bytes, identity: str) -> Vocabulary:
    try:
        import tiktoken
    except ImportError:
        raise InputError("needs the package 'tiktoken', which is not installed", where=path) from None
    import base64

    try:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines()) if token}
    except ValueError:
        ranks = {}
    if not ranks:
        raise InputError("not a tiktoken file, expected lines of base64 and rank", where=path)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:  # which tiktoken panics about, as about ranks that are not one a token
        raise InputError(f"no token for the byte {missing[0]}, expected one for each of the 256", where=path)
    if len(set(ranks.values())) < len(ranks) or min(ranks.values()) < 0:
        raise InputError("ranks twice or below 0, expected one of at least 0 for each token", where=path)
    end = _fitting(max(ranks.values()) + 2, path) - 1
    encoding = tiktoken.Encoding(path.stem, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={"<|end|>": end})
    token_bytes = np.ones(end + 1, dtype=np.int64)
    for token, rank in ranks.items():
        token_bytes[rank] = len(token)

    def encode(text: str) -> NDArray[np.integer]:
        return np.array([*encoding.encode_ordinary(text), end], dtype=np.int64)

    return Vocabulary(identity, end + 1, end, encode, token_bytes)
