"""A PostgreSQL server on loopback, in a folder of its own, for as long as the tests of a module need it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


class Server:
    """A server that can be killed and started again."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self.binaries, self.folder, self.user = binaries, folder, user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "password").write_text("s3cret")
        self._call("initdb", "-D", "data", "-U", "eve", "--pwfile=password", "-A", "scram-sha-256", "-E", "UTF8", "-N")
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://eve:s3cret@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        import psycopg

        with psycopg.connect(self.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"create database {database}")
        return self.url(database)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _call(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.binaries / name), *arguments],
            cwd=self.folder,
            user=self.user,
            check=True,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@pytest.fixture(scope="module")
def postgres():
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine")
    user = None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.getuid() == 0:  # the server refuses to run as root
        names = [name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}]
        if not names:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
        user = names[0]
        shutil.chown(folder, user)
    server = Server(binaries, folder, user)
    yield server
    server.stop()
    shutil.rmtree(folder)
