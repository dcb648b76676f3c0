"""Where studies are kept: a journal file in the search's folder, or any Optuna storage by its URL."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation

from moe_optuna.errors import InputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["JOURNAL", "Journal", "hold", "open_storage", "redact", "repair", "together"]

JOURNAL = "journal.log"
"""The journal of a search, in its folder."""
_PASSING = {
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
    JournalOperation.SET_TRIAL_USER_ATTR,
    JournalOperation.SET_TRIAL_SYSTEM_ATTR,
}
"""Records that can wait for the disk: those of a trial that runs."""
_PASSWORD = re.compile(r"\A((?:[\w+.-]+:/+)?+[^:]*:)(.*)(?=@)", re.DOTALL)
"""In a URL: what is before the password, and the password, to the last ``@``, since it may have any other sign."""


class Journal(JournalFileBackend):
    """Optuna's journal file, whose appends are all or nothing, and faster.

    A disk that fills up in the middle of an append leaves half a line, and whatever is appended after it becomes
    unreadable; here the file is cut back to what it was. What a running trial has told reaches the disk at the latest
    with its end, rather than record by record: a machine that goes down loses nothing that was finished, and a process
    that dies loses nothing at all.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._held: list[dict[str, Any]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write what is recorded within as one append; until then the storage does not see it."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self.append_logs(held)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records; where one is more than a running trial's, wait until the whole file is on the disk.

        Raises:
            OSError: Where they could not be written; the file is as it was.
        """
        if self._held is not None:
            self._held += logs
            return
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(lines.encode())
                while rest:
                    rest = rest[file.write(rest) :]
                if any(log["op_code"] not in _PASSING for log in logs):
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def together(storage: BaseStorage) -> contextlib.AbstractContextManager[None]:
    """Within it, what is recorded about a trial is written at its end, in one go where the storage is a journal."""
    backend = getattr(storage, "_backend", None)
    return backend.together() if isinstance(backend, Journal) else contextlib.nullcontext()


def open_storage(url: str | None, out: Path, *, workers: int, create: bool = True) -> BaseStorage:
    """The storage of a search.

    Args:
        url: An Optuna storage URL, or ``None`` for ``journal.log`` in `out`.
        out: The search's folder.
        workers: Trials side by side.
        create: Whether to make the file of an SQLite URL where there is none.

    Raises:
        InputError: Where the URL is none, there is no such file, the server does not answer, the driver is missing,
            the file is not a journal, or SQLite is to serve several workers.
    """
    if url is None:
        path = out / JOURNAL
        repair(path)
        try:
            return JournalStorage(Journal(str(path)))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError):
            raise InputError("not an Optuna journal", where=path) from None
    if url.startswith("sqlite") and workers > 1:
        raise InputError(
            f"{redact(url)} with {workers} workers: SQLite locks the whole file for every write (over 1 s a trial with"
            " 8 workers, and errors); expected the journal (no --storage), PostgreSQL, or --workers 1",
            where="--storage",
        )
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from moe_optuna.search._database import open_database

    try:
        if not create:
            _find_file(url)
        return open_database(url)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"needs the module {error.name!r}; pip install 'moe-optuna[postgres]' brings psycopg for PostgreSQL",
            where=f"--storage {redact(url)}",
        ) from None
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, TypeError) as error:
        reason = _hide(url, str(getattr(error, "orig", None) or error)).strip().splitlines()
        raise InputError(
            f"{reason[0] if reason else type(error).__name__}; expected an Optuna storage URL such as"
            " postgresql+psycopg://user@host/database",
            where=f"--storage {redact(url)}",
        ) from None


def _find_file(url: str) -> None:
    from sqlalchemy import make_url

    parsed = make_url(url)
    path = parsed.database or ":memory:"
    if parsed.get_backend_name() == "sqlite" and not path.startswith("file:") and not Path(path).is_file():
        raise InputError("no such file, expected the database of a search", where=f"--storage {redact(url)}")


def redact(url: str) -> str:
    """The URL without its password, also where it stands in the query."""
    url = _PASSWORD.sub(r"\1***", url)
    return re.sub(r"([?&](?:[a-z]*passw(?:or)?d|sslkey|token)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def _hide(url: str, text: str) -> str:
    """What a driver says of the URL, without its password."""
    found = _PASSWORD.match(url)
    if found and "@" in found[2]:  # the driver takes the rest of such a password for the host, and shows it
        return "cannot be opened, and has a second @, which in a user or password is %40"
    text = text.replace(url, redact(url))
    for password in {found[2], unquote(found[2])} if found else ():
        text = text.replace(f":{password}@", ":***@")
    return text


def repair(path: Path) -> int:
    """Cut off what a crash left at the end of a journal: a line without its end, or one that is not a record.

    Only for the process that alone may write it. Returns the number of bytes cut.

    Raises:
        InputError: Where a line before the last is not a record: then the file is not a journal, or was edited.
    """
    if not path.exists():
        return 0
    if not path.is_file():
        raise InputError("not a file, expected an Optuna journal", where=path)
    _drop_stale_lock(Path(f"{path}.lock"))
    good = records = 0
    with path.open("rb") as file:
        for line in file:
            if not _is_record(line):
                break
            good += len(line)
            records += 1
        else:
            return 0
        if file.read(1) or (not records and not line.startswith(b'{"op_code"'[: len(line)])):
            raise InputError(f"line {records + 1} is not a record, expected an Optuna journal", where=path)
    size = path.stat().st_size
    os.truncate(path, good)
    return size - good


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


def _drop_stale_lock(lock: Path) -> None:
    """Remove the lock of a process that died while it appended: a live one holds it for milliseconds, and Optuna waits
    half a minute before it takes it for dead."""
    for _ in range(20):
        if not os.path.lexists(lock):
            return
        time.sleep(0.05)
    lock.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Be the only search in a folder; the kernel ends it with the process, however that dies.

    Raises:
        InputError: Where another search runs in it, or it cannot be written.
    """
    try:
        file = (out / "lock").open("a+")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}), expected a folder of its own", where=out) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise InputError(
                f"another search runs in it (process {file.read().strip() or 'unknown'}); expected a folder of its own,"
                " or PostgreSQL for several controllers",
                where=out,
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
