"""Files written whole or not at all, and read back."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe_optuna import files
from moe_optuna.errors import InputError
from moe_optuna.files import read_object, remove_unfinished, write_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.csv"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


def test_writers_of_equal_process_id_do_not_meet(tmp_path: Path) -> None:
    """As two containers have them: each writes its own file, and what is read is whole."""
    path, texts = tmp_path / "runs.csv", [letter * 20_000 for letter in "ab"]
    write_whole(path, texts[0])
    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(lambda text=text: [write_whole(path, text) for _ in range(100)]) for text in texts]
        while not all(writer.done() for writer in writers):
            assert path.read_text() in texts
        for writer in writers:
            writer.result()
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


def test_only_what_lies_unfinished_for_a_day_is_removed(tmp_path: Path) -> None:
    for name in ("state.pt", "state.12", "state.34"):
        (tmp_path / name).write_text("part")
    for name in ("state.5", "state.6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("part")
    for name in ("state.pt", "state.12", "state.5"):
        os.utime(tmp_path / name, (0, 0))
    remove_unfinished(tmp_path, "state.[0-9]*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.34", "state.6", "state.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON, expected a blueprint"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object, expected a blueprint"),
    ],
)
def test_what_is_no_object_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x.json: {message}"):
        read_object(path, expected="a blueprint")
    with pytest.raises(InputError, match="No such file"):
        read_object(tmp_path / "nowhere.json", expected="a blueprint")
