"""Text of every kind to tokens: what is trained on, what is held out, and bad files told in one line."""

import argparse
import base64
import errno
import hashlib
import inspect
import json
import math
import os
import re
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from moe_optuna.errors import InputError
from moe_optuna.training import Recipe, find_text, prepare
from moe_optuna.training._corpus import _prepare
from moe_optuna.training._sources import _PIECE, _pieces, documents, source_files
from moe_optuna.training._vocabulary import learn_vocabulary, load_vocabulary

TEXT = "Größe: 3 × 4 = 12 → naïve café, the cat sat on the mat. " * 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path / "cache"))


def documents_of(tokens: Any) -> set[bytes]:
    """What lies between the separators."""
    return set(np.asarray(tokens).astype(np.uint8).tobytes().split(b"\0")) - {b""}


# ------------------------------------------------------------------------------------------ kinds of text


def test_a_folder_is_split_by_document(folder: Path) -> None:
    """Every document is on one side, whole and ended; suffixes that are no text are left out."""
    (folder / "picture.png").write_bytes(b"\x89PNG")
    corpus = prepare(Recipe(data=str(folder), held_out=0.25))
    train, held_out = documents_of(corpus.train), documents_of(corpus.held_out)
    assert train | held_out == {path.read_bytes() for path in folder.glob("*.txt")}
    assert not train & held_out
    assert 4 <= len(held_out) <= 16
    assert corpus.train[-1] == corpus.held_out[-1] == 0
    assert corpus.origin["documents"] == {"train": len(train), "held_out": len(held_out)}


def test_a_document_stays_on_its_side(folder: Path) -> None:
    before = documents_of(prepare(Recipe(data=str(folder), held_out=0.25)).held_out)
    (folder / "another.txt").write_text("one more", encoding="utf-8")
    after = documents_of(prepare(Recipe(data=str(folder), held_out=0.25)).held_out)
    assert after - {b"one more"} == before


def test_a_name_of_a_file_may_be_any_bytes(folder: Path) -> None:
    """Not UTF-8, as old archives have them."""
    name = os.fsencode(folder / "caf") + b"\xe9.txt"
    try:
        Path(os.fsdecode(name)).write_text("one more", encoding="utf-8")
    except OSError:
        pytest.skip("a file system of names in Unicode")
    corpus = prepare(Recipe(data=str(folder)))
    assert b"one more" in documents_of(corpus.train) | documents_of(corpus.held_out)


def test_lines_of_jsonl_are_documents(tmp_path: Path) -> None:
    texts = [f"document {number}: {'ä' * number}" for number in range(30)]
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(texts)]
    empty = json.dumps({"text": " \n"})  # no document, as an empty file is none
    (tmp_path / "all.jsonl").write_text("\n".join([*lines, empty, "", empty]), encoding="utf-8")
    corpus = prepare(Recipe(data=str(tmp_path / "all.jsonl"), held_out=0.2))
    assert documents_of(corpus.train) | documents_of(corpus.held_out) == {text.encode() for text in texts}


def test_what_unicode_calls_a_line_end_ends_no_document(tmp_path: Path) -> None:
    """In a file that begins with a byte order mark, too, which is not of the text."""
    texts = [f"document {number}: one\u2028two\u2029three\x85four" for number in range(30)]
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "all.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    corpus = prepare(Recipe(data=str(tmp_path / "all.jsonl"), held_out=0.2))
    assert documents_of(corpus.train) | documents_of(corpus.held_out) == {text.encode() for text in texts}
    (tmp_path / "all.txt").write_bytes(b"\xef\xbb\xbf" + b"x" * 2 * _PIECE)
    assert 0xEF not in prepare(Recipe(data=str(tmp_path / "all.txt"))).train


def test_half_a_surrogate_pair_is_a_question_mark(tmp_path: Path) -> None:
    """JSON may hold one, UTF-8 may not; whatever the vocabulary."""
    lines = [json.dumps({"text": f"document {number}: \ud83d"}) for number in range(30)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for vocabulary in ("bytes", "bpe-260"):
        corpus = prepare(Recipe(data=str(tmp_path / "all.jsonl"), vocabulary=vocabulary, held_out=0.2))
        assert corpus.bits_per_byte(1.0, corpus.held_out_windows(8, 2)) is not None
        if vocabulary == "bytes":
            assert documents_of(corpus.train) <= {f"document {number}: ?".encode() for number in range(30)}


def test_one_long_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {number} of a long text\n" for number in range(20_000))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    corpus = prepare(Recipe(data=str(tmp_path / "long.txt"), held_out=0.2))
    pieces = documents_of(corpus.train) | documents_of(corpus.held_out)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)
    assert len(corpus.held_out) > 0.05 * len(text)


@pytest.mark.parametrize("held_out", [1e-9, 1 - 1e-9])
def test_few_documents_have_one_on_either_side(tmp_path: Path, held_out: float) -> None:
    """Whatever they are called; the one whose name's hash is nearest to the other side."""
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(f"the text of {name}", encoding="utf-8")
    corpus = prepare(Recipe(data=str(tmp_path), held_out=held_out))
    hashes = {name: hashlib.sha256(f"{name}.txt#0".encode()).digest()[:8] for name in "abcde"}
    few, many = (corpus.held_out, corpus.train) if held_out < 0.5 else (corpus.train, corpus.held_out)
    alone = (min if held_out < 0.5 else max)(hashes, key=hashes.__getitem__)
    assert documents_of(few) == {f"the text of {alone}".encode()}
    assert documents_of(many) == {f"the text of {name}".encode() for name in set("abcde") - {alone}}


def test_one_very_long_line_is_cut(tmp_path: Path) -> None:
    text = "".join(f"{number} " for number in range(20_000))
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    corpus = prepare(Recipe(data=str(tmp_path / "line.txt"), held_out=0.2))
    pieces = documents_of(corpus.train) | documents_of(corpus.held_out)
    assert sorted(map(len, pieces))[1:] == [_PIECE] * (len(text) // _PIECE)
    assert sum(map(len, pieces)) == len(text)


@pytest.mark.parametrize("longest", [1, 80, _PIECE - 1, _PIECE, 3 * _PIECE])
@pytest.mark.parametrize("end", ["", "\n"])
def test_only_lines_longer_than_a_piece_are_cut(longest: int, end: str) -> None:
    random = np.random.default_rng(0)
    lines = ["x" * length for length in (*random.integers(0, longest + 1, 300_000 // longest + 4), longest)]
    text = "\n".join(lines) + end
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 2 * _PIECE + 1
    if longest <= _PIECE:  # at the first line end at or after the piece size
        expected, start = [], 0
        while start < len(text):
            found = text.find("\n", start + _PIECE) + 1
            expected.append(text[start : found or len(text)])
            start += len(expected[-1])
        assert pieces == expected


def test_the_sources_of_the_standard_library() -> None:
    corpus = prepare(Recipe(data="python"))
    assert len(corpus.train) > 5_000_000
    assert 0.02 < len(corpus.held_out) / len(corpus.train) < 0.2
    assert isinstance(corpus.train, np.memmap)
    assert corpus.vocab_size == 256
    assert any(b"def " in document for document in documents_of(corpus.held_out))


def test_documentation_is_what_python_itself_calls_it() -> None:
    """Of a module, its classes, their methods and functions within functions; no code, and nothing twice."""
    files = source_files("docs")
    assert {"numpy/ma/core.py", "scipy/optimize/_minimize.py"} <= set(files)
    for name, module, said in (
        ("json/decoder.py", json.decoder, [json.JSONDecoder, json.JSONDecoder.decode, json.JSONDecodeError]),
        ("argparse.py", argparse, [argparse, argparse.ArgumentParser, argparse.Namespace, argparse.FileType]),
    ):
        assert files[name] == Path(inspect.getsourcefile(module) or "")
        ((_, text), *rest) = documents("docs", {name: files[name]})
        assert not rest or name == "argparse.py"
        text += "".join(piece for _, piece in rest)
        assert [text.count(inspect.getdoc(thing) or "nothing") for thing in said] == [1] * len(said)
        assert not re.search(r"^(def|class|import) ", text, re.MULTILINE)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_memory_maps_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    tokens = (np.arange(1000) * 7 % 300).astype(dtype)
    tokens.tofile(tmp_path / "all.bin")
    corpus = prepare(Recipe(data=str(tmp_path / "all.bin"), token_dtype=dtype, held_out=0.1))
    assert np.array_equal(corpus.train, tokens[:900])
    assert np.array_equal(corpus.held_out, tokens[900:])
    assert corpus.vocab_size == 300
    assert corpus.bits_per_byte(1.0, np.zeros((1, 3), dtype=np.int64)) is None
    tokens[:100].tofile(tmp_path / "val.bin")
    tokens[100:].tofile(tmp_path / "train.bin")
    both = prepare(Recipe(data=str(tmp_path), token_dtype=dtype))
    assert np.array_equal(both.train, tokens[100:])
    assert np.array_equal(both.held_out, tokens[:100])


def test_a_memory_map_that_changes_in_place_is_another_text(tmp_path: Path) -> None:
    file, recipe = tmp_path / "x.bin", Recipe(data=str(tmp_path / "x.bin"))
    np.arange(4000, dtype=np.uint16).tofile(file)
    before = prepare(recipe).origin["content"]
    with file.open("r+b") as opened:
        opened.write(np.full(2000, 7, np.uint16).tobytes())
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # a clock may be coarser than this test is fast
    after = prepare(recipe)
    assert after.origin["content"] != before
    assert int(after.train[0]) == 7


def test_the_same_documents_held_out_otherwise_are_another_text(tmp_path: Path) -> None:
    file = tmp_path / "text" / "a.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(f'{{"text": "line {i}"}}' for i in range(100)))
    recipe = Recipe(data=str(file.parent))
    before = prepare(recipe)
    file.rename(file.with_name("b.jsonl"))  # sides go by the names of documents
    after = prepare(recipe)
    assert not np.array_equal(after.held_out, before.held_out)
    assert after.origin["content"] != before.origin["content"]


def test_a_text_and_a_vocabulary_that_change_are_read_anew(folder: Path, tmp_path: Path) -> None:
    """By the same process; what has not changed is not."""
    recipe = Recipe(data=str(folder), vocabulary=str(tmp_path / "vocabulary.json"))
    learn_vocabulary(["one two three"], 260, tmp_path / "vocabulary.json")
    first = prepare(recipe)
    assert prepare(recipe) is first
    (folder / "00.txt").write_text("something else", encoding="utf-8")
    second = prepare(recipe)
    assert second.origin["content"] != first.origin["content"]
    learn_vocabulary(["the quick brown fox"] * 9, 270, tmp_path / "vocabulary.json")
    assert prepare(recipe).vocab_size == find_text(recipe) == 270
    assert prepare(replace(recipe, vocabulary="bytes")).origin["documents"] == second.origin["documents"]


def test_the_same_name_elsewhere_is_another_text(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the files are of the same size and time."""
    found = []
    for place in ("a", "b"):
        texts = tmp_path / place / "texts"
        texts.mkdir(parents=True)
        for number in range(30):
            (texts / f"{number}.txt").write_text(f"{place} {number}", encoding="utf-8")
            os.utime(texts / f"{number}.txt", ns=(0, 0))
        monkeypatch.chdir(tmp_path / place)
        found.append(documents_of(prepare(Recipe(data="texts")).train))
    assert found[0] == {document.replace(b"b", b"a") for document in found[1]} != found[1]


def test_datasets_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"row {number} {TEXT}" for number in range(40)]

    def table(**columns: list[str]) -> Any:  # with a fingerprint, for which the package would pickle half of pyarrow
        return datasets.Dataset(datasets.table.InMemoryTable.from_pydict(columns), fingerprint="of these rows")

    rows = table(text=texts, title=texts)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "several"))
    for name in ("one", "several"):
        corpus = prepare(Recipe(data=str(tmp_path / name), held_out=0.2))
        assert documents_of(corpus.train) | documents_of(corpus.held_out) == {text.encode() for text in texts}
    datasets.Dataset(
        datasets.table.InMemoryTable.from_pydict({"text": [*texts, None]}), fingerprint="with a null"
    ).save_to_disk(str(tmp_path / "null"))
    with pytest.raises(InputError, match="None as text of row 40, expected a string"):
        prepare(Recipe(data=str(tmp_path / "null")))
    table(content=texts).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InputError, match="columns content, expected 'text' among them"):
        prepare(Recipe(data=str(tmp_path / "other")))


def test_a_folder_of_text_may_hold_a_file_of_the_name_that_datasets_writes(folder: Path) -> None:
    (folder / "state.json").write_text("{}", encoding="utf-8")
    corpus = prepare(Recipe(data=str(folder)))
    assert sum(corpus.origin["documents"].values()) == 40


def test_datasets_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package 'datasets', which is not installed"):
        prepare(Recipe(data=str(tmp_path)))


# ---------------------------------------------------------------------------------------------- vocabularies


def tokenizers_file(path: Path, kind: str) -> str:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=kind == "metaspace", unk_token=None))
    trainer: dict[str, Any] = {"vocab_size": 400, "special_tokens": ["<|endoftext|>"], "show_progress": False}
    if kind == "byte level":
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer["initial_alphabet"] = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
        decoders = tokenizers.decoders
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
        trainer["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer["vocab_size"] = 330
    tokenizer.train_from_iterator(["the cat sat on the mat. naïve café" * 5], tokenizers.trainers.BpeTrainer(**trainer))
    tokenizer.save(str(path))
    return str(path)


def tiktoken_file(path: Path, _: str) -> str:
    pytest.importorskip("tiktoken")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"ca", b"at"]
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens)))
    return str(path)


@pytest.mark.parametrize(
    ("write", "suffix", "kind"),
    [
        (tokenizers_file, ".json", "byte level"),
        (tokenizers_file, ".json", "metaspace"),
        (tiktoken_file, ".tiktoken", ""),
        (lambda path, kind: "bytes", "", ""),
    ],
    ids=["byte level", "metaspace", "tiktoken", "bytes"],
)
def test_tokens_stand_for_every_byte_of_the_text(tmp_path: Path, write: Any, suffix: str, kind: str) -> None:
    """Also of characters that several tokens share; the end of a document counts as one byte."""
    vocabulary = load_vocabulary(write(tmp_path / f"vocabulary{suffix}", kind))
    tokens = vocabulary.encode(TEXT)
    assert vocabulary.token_bytes.shape == (vocabulary.size,)
    assert tokens.max() < vocabulary.size
    assert vocabulary.token_bytes[tokens].sum() == len(TEXT.encode()) + 1
    assert np.flatnonzero(tokens == vocabulary.end).tolist() == [len(tokens) - 1]
    if suffix:
        assert len(tokens) < len(TEXT.encode())


def test_a_vocabulary_neither_cuts_nor_pads_nor_ends_a_document(tmp_path: Path) -> None:
    """Whatever its file says, and the text spells."""
    plain = load_vocabulary(name := tokenizers_file(tmp_path / "plain.json", "byte level"))
    for change in ("enable_truncation", "enable_padding"):
        tokenizer = tokenizers.Tokenizer.from_file(name)
        getattr(tokenizer, change)(**{"max_length": 16} if "trunc" in change else {"length": 5000})
        tokenizer.save(str(tmp_path / f"{change}.json"))
        changed = load_vocabulary(str(tmp_path / f"{change}.json"))
        assert changed.encode(TEXT).tolist() == plain.encode(TEXT).tolist()
    tokens = plain.encode("one<|endoftext|>two")
    assert np.flatnonzero(tokens == plain.end).tolist() == [len(tokens) - 1]
    assert plain.token_bytes[tokens].sum() == len("one<|endoftext|>two") + 1


def test_bits_per_byte_of_a_vocabulary(tmp_path: Path, folder: Path) -> None:
    """A uniform model over V tokens costs log(V) nats a token, whatever bytes the tokens stand for."""
    name = tokenizers_file(tmp_path / "vocabulary.json", "byte level")
    corpus = prepare(Recipe(data=str(folder), vocabulary=name, held_out=0.25))
    windows = corpus.held_out_windows(32, 5)
    text_bytes = load_vocabulary(name).token_bytes[windows[:, 1:]].sum()
    uniform = math.log(corpus.vocab_size)
    expected = math.log2(corpus.vocab_size) * windows[:, 1:].size / text_bytes
    assert corpus.bits_per_byte(uniform, windows) == pytest.approx(expected)
    plain = prepare(Recipe(data=str(folder), held_out=0.25))
    assert plain.bits_per_byte(math.log(2), plain.held_out_windows(32, 5)) == pytest.approx(1.0)


def test_a_vocabulary_is_learned_from_what_is_trained_on(folder: Path, tmp_path: Path) -> None:
    """Not from what is held out; it gives the text back, in fewer tokens, and the same every time."""
    recipe = Recipe(data=str(folder), vocabulary="bpe-300", held_out=0.25)
    held = documents_of(prepare(replace(recipe, vocabulary="bytes")).held_out)
    corpus = prepare(recipe)
    assert find_text(recipe) == corpus.vocab_size == 300
    assert corpus.bits_per_byte(math.log(2), corpus.held_out_windows(32, 5)) < 1
    (file,) = (tmp_path / "cache").rglob("vocabulary.json")
    before, tokenizer = file.read_bytes(), tokenizers.Tokenizer.from_file(str(file))
    ends = np.flatnonzero(corpus.held_out == corpus.end)
    texts = {tokenizer.decode(part[part != corpus.end]).encode() for part in np.split(corpus.held_out, ends + 1)[:-1]}
    assert texts == held
    changed = next(path for path in folder.glob("*.txt") if path.read_bytes() in held)
    changed.write_text("an utterly different quotation, " * 50, encoding="utf-8")
    prepare(recipe)
    files = set((tmp_path / "cache").rglob("vocabulary.json"))
    assert len(files) == 2
    assert {path.read_bytes() for path in files} == {before}


def test_bits_per_byte_are_unknown_where_a_tokenizer_drops_bytes(tmp_path: Path, folder: Path) -> None:
    """Words without the spaces between them: their bytes are fewer than the text's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([path.read_text() for path in folder.glob("*.txt")], trainer)
    tokenizer.save(str(tmp_path / "words.json"))
    recipe = Recipe(data=str(folder), vocabulary=str(tmp_path / "words.json"), held_out=0.25)
    for _ in range(2):  # prepared, and from the cache
        _prepare.cache_clear()
        assert prepare(recipe).bits_per_byte(1.0, np.zeros((1, 3), dtype=np.int64)) is None


# ------------------------------------------------------------------------------------------- cache and windows


def test_prepared_once_and_by_content(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(data=str(folder))
    first = prepare(recipe)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "corpora").glob("*/*")}
    _prepare.cache_clear()  # as another process
    second = prepare(recipe)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "corpora").glob("*/*")} == made
    assert isinstance(second.train, np.memmap)
    assert np.array_equal(first.train, second.train)
    (folder / "00.txt").write_text("changed", encoding="utf-8")
    assert prepare(recipe).origin["content"] != first.origin["content"]
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 2  # and nothing unfinished


FILES = ("corpus.json", "train.bin", "held_out.bin", "vocabulary.json")


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_prepared_anew(folder: Path, tmp_path: Path, name: str) -> None:
    """Whichever file is missing, empty or cut; nothing is left of it."""
    recipe = Recipe(data=str(folder), vocabulary="bpe-300")
    first = prepare(recipe)
    (file,) = (tmp_path / "cache").rglob(name)
    whole = file.read_bytes()
    for content in (None, b"", whole[: len(whole) // 4 * 2]):
        file.unlink() if content is None else file.write_bytes(content)
        _prepare.cache_clear()
        again = prepare(recipe)
        assert again.origin == first.origin
        assert np.array_equal(again.train, first.train)
        assert np.array_equal(again.held_out, first.held_out)
        assert file.read_bytes() == whole
        assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1


def test_several_that_find_it_damaged_end_with_one(folder: Path, tmp_path: Path) -> None:
    """A file in the place of the folder, too."""
    recipe = Recipe(data=str(folder))
    first = prepare(recipe)
    (place,) = (tmp_path / "cache" / "corpora").iterdir()
    shutil.rmtree(place)
    place.write_bytes(b"")
    _prepare.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(prepare, [recipe] * 4))
    assert all(np.array_equal(corpus.train, first.train) for corpus in found)
    assert list((tmp_path / "cache" / "corpora").iterdir()) == [place]


def test_a_full_disk_leaves_no_prepared_text(folder: Path, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, wherever that is; the last block of an array among them."""
    recipe = Recipe(data=str(folder))
    whole = prepare(recipe).train.nbytes
    shutil.rmtree(tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (whole - 1, whole - 2, whole // 2, 0):
        _prepare.cache_clear()
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                prepare(recipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list((tmp_path / "cache" / "corpora").iterdir()) == []


def test_windows_are_packed_and_each_is_seen_once_an_epoch(folder: Path) -> None:
    corpus = prepare(Recipe(data=str(folder)))
    windows = corpus.windows(50)
    assert windows == (len(corpus.train) - 1) // 50
    orders = [corpus.training_order(50, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(np.array_equal(np.sort(order), np.arange(windows)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    held = corpus.held_out_windows(50, 4)
    assert held.shape == (4, 51)
    starts = [next(i for i in range(0, len(corpus.held_out), 50)
                   if np.array_equal(corpus.held_out[i : i + 51], window)) for window in held]  # fmt: skip
    assert starts[0] == 0
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 50


# ------------------------------------------------------------------------------------------------ bad input


def bad_folder(path: Path) -> dict[str, Any]:
    (path / "empty").mkdir()
    (path / "picture.png").write_bytes(b"\x89PNG")
    (path / "blank.txt").write_text(" \n", encoding="utf-8")
    (path / "short.txt").write_text("one line", encoding="utf-8")
    (path / "odd.bin").write_bytes(b"123")
    (path / "none.bin").write_bytes(b"")
    (path / "half").mkdir()
    (path / "half" / "train.bin").write_bytes(b"1234")
    (path / "broken.jsonl").write_text('{"text": "fine"}\n{"no text": 1}\n', encoding="utf-8")
    (path / "null.jsonl").write_text('{"text": "fine"}\n\n{"text": null}\n', encoding="utf-8")
    (path / "latin.txt").write_bytes("fünf naïve cafés".encode("latin-1"))
    (path / "wide").write_bytes("some words".encode("utf-16-le"))
    (path / "packed.jsonl.gz").write_bytes(b"\x1f\x8b")
    (path / "deep.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n", encoding="utf-8")
    (path / "list.json").write_text('[{"text": "fine"}]', encoding="utf-8")
    (path / "broken.json").write_text("[1, 2", encoding="utf-8")
    (path / "broken.tiktoken").write_text("not base64 at all!\n", encoding="utf-8")
    (path / "vocabulary.model").write_bytes(b"1")
    return {}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"data": "missing"}, "data: .*missing.*expected 'docs', 'python' or an existing file or folder"),
        ({"data": "missing.bin"}, "data: .*expected an existing file"),
        ({"data": "empty"}, "data: .*holds no text files"),
        ({"data": "blank.txt"}, "blank.txt: 0 documents, expected at least 2"),
        ({"data": "short.txt"}, "short.txt: 1 document, expected at least 2, one of them to hold out"),
        ({"data": "odd.bin"}, "3 bytes, expected a positive multiple of 2"),
        ({"data": "none.bin"}, "0 bytes, expected a positive multiple of 2"),
        ({"data": "half"}, "val.bin: missing"),
        ({"data": "broken.jsonl"}, r"broken.jsonl:2: expected a JSON object with a string at the key 'text'"),
        ({"data": "deep.jsonl"}, r"deep.jsonl:1: expected a JSON object with a string at the key 'text'"),
        ({"data": "null.jsonl"}, r"null.jsonl:3: expected a JSON object with a string at the key 'text'"),
        ({"data": "latin.txt"}, r"latin.txt: invalid .* at byte 1, expected text in UTF-8"),
        ({"data": "wide"}, r"wide: holds a zero byte, expected text in UTF-8"),
        ({"data": "packed.jsonl.gz"}, r"packed.jsonl.gz', expected a file of text \(.c .* .txt\) or .* \(.bin\)"),
        ({"data": "list.json"}, r"list.json', expected a file of text"),
        ({"vocabulary": "missing.json"}, "vocabulary: .*expected 'bytes', 'bpe-<size>' or a file"),
        ({"vocabulary": "vocabulary.model"}, r"vocabulary: .*expected a .json \(tokenizers\) or .tiktoken file"),
        ({"vocabulary": "broken.json"}, "not a tokenizers file"),
        ({"vocabulary": "broken.tiktoken"}, "not a tiktoken file|needs the package 'tiktoken'"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, recipe: dict[str, str], expected: str) -> None:
    bad_folder(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        prepare(Recipe(**{key: str(tmp_path / value) for key, value in recipe.items()}))
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of text, of a vocabulary, of token ids; a folder whose files may not be looked at."""
    learn_vocabulary(["one two three"], 260, tmp_path / "vocabulary.json")
    np.arange(4000, dtype=np.uint16).tofile(tmp_path / "ids.bin")

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    refused = "cannot be read: Permission denied"
    with monkeypatch.context() as patch:  # who runs the tests may be allowed everything
        patch.setattr(Path, "read_bytes", refuse)
        patch.setattr(np, "memmap", refuse)
        with pytest.raises(InputError, match=f"^{folder}/00.txt: {refused}$"):
            prepare(Recipe(data=str(folder)))
        with pytest.raises(InputError, match=f"vocabulary.json: {refused}$"):
            find_text(Recipe(data=str(folder), vocabulary=str(tmp_path / "vocabulary.json")))
        with pytest.raises(InputError, match=f"ids.bin: {refused}$"):
            prepare(Recipe(data=str(tmp_path / "ids.bin")))
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(InputError, match=refused):
        find_text(Recipe(data=str(folder)))


def test_a_folder_within_that_may_not_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not passed over: the text would be another one."""
    hidden = folder / "more"
    hidden.mkdir()
    look = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == hidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)  # who runs the tests may be allowed everything
    for looking in (find_text, prepare):
        with pytest.raises(InputError, match=f"^{hidden}: cannot be read: Permission denied$"):
            looking(Recipe(data=str(folder)))


def test_a_cache_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(InputError, match=f"^{tmp_path}/cache/corpora: cannot be written: .*MOE_OPTUNA_CACHE"):
        prepare(Recipe(data=str(folder)))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".bin", "a\0b"], ids=["long", "long .bin", "zero byte"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    for looking in (find_text, prepare):
        with pytest.raises(InputError, match=r"^data: .*expected .*existing file"):
            looking(Recipe(data=name))
        with pytest.raises(InputError, match=r"^vocabulary: .*expected 'bytes', 'bpe-<size>' or a file"):
            looking(Recipe(vocabulary=name))


def test_no_name_is_not_the_current_folder() -> None:
    with pytest.raises(InputError, match="data: '', expected 'docs', 'python', a file or a folder"):
        Recipe(data="")


def test_a_vocabulary_that_cannot_be_learned(tmp_path: Path) -> None:
    np.arange(4000, dtype=np.uint16).tofile(tmp_path / "x.bin")
    for prepared in (prepare, find_text):
        with pytest.raises(InputError, match="vocabulary: 'bpe-300', expected 'bytes' or a file: there is no text"):
            prepared(Recipe(data=str(tmp_path / "x.bin"), vocabulary="bpe-300"))
        with pytest.raises(InputError, match="vocabulary: 'bpe-256', expected more than 256 token ids"):
            prepared(Recipe(vocabulary="bpe-256"))


@pytest.mark.parametrize("name", ["bpe-16777217", "bpe-" + "9" * 5000], ids=["a little", "far"])
def test_a_vocabulary_beyond_reason(name: str) -> None:
    with pytest.raises(
        InputError, match=r"vocabulary: 'bpe-.{1,40}, expected more than 256 token ids and at most"
    ) as caught:
        find_text(Recipe(vocabulary=name))
    assert len(str(caught.value)) < 200


SINGLE = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("tokens", "ranks", "expected"),
    [
        (SINGLE[1:], range(255), "no token for the byte 0, expected one for each of the 256"),
        (SINGLE, [0] * 256, "ranks twice or below 0"),
        (SINGLE, range(-1, 255), "ranks twice or below 0"),
        (SINGLE, [*range(255), 2**24 - 1], "16777217 token ids, expected at most 16777216"),
        (SINGLE, [*range(255), 10**12], "1000000000002 token ids, expected at most 16777216"),
    ],
    ids=["a byte missing", "twice", "negative", "one too many", "huge"],
)
def test_bad_ranks_are_told(tmp_path: Path, tokens: list[bytes], ranks: Any, expected: str) -> None:
    pytest.importorskip("tiktoken")
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for token, rank in zip(tokens, ranks, strict=True))
    (tmp_path / "bad.tiktoken").write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=f"bad.tiktoken: {expected}"):
        load_vocabulary(str(tmp_path / "bad.tiktoken"))


def test_a_tokenizers_file_that_cannot_write_text(tmp_path: Path, folder: Path) -> None:
    """Without tokens; without one for words that it does not know."""
    recipe = Recipe(data=str(folder), vocabulary=str(tmp_path / "bad.json"))
    for model, expected in (
        (tokenizers.models.BPE(), "no tokens"),
        (tokenizers.models.WordLevel({"a": 2**24}, unk_token="<unk>"), "16777217 token ids, expected at most"),
        (tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"), r"cannot write the text: .*Missing \[UNK\]"),
    ):
        tokenizers.Tokenizer(model).save(recipe.vocabulary)
        with pytest.raises(InputError, match=f"bad.json: {expected}"):
            prepare(recipe)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.txt", "nowhere.bin"])
def test_a_relative_path_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(f"(looked for {tmp_path / name})")):
        prepare(Recipe(data=name))
    with pytest.raises(InputError) as caught:
        prepare(Recipe(data=str(tmp_path / name)))
    assert "looked for" not in str(caught.value)


def test_text_that_is_too_short_for_a_window(tmp_path: Path) -> None:
    np.arange(20, dtype=np.uint16).tofile(tmp_path / "short.bin")
    corpus = prepare(Recipe(data=str(tmp_path / "short.bin"), held_out=0.2))
    with pytest.raises(InputError, match="data: 4 held-out tokens, expected more than context_length = 16"):
        corpus.held_out_windows(16, 4)
