"""The file of the queue: its tables, one connection a thread, transactions, and the lock of the one who works.

Knows SQLite and the locks of operating systems; deliberately does not know what the rows mean (`jobs.py`).
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from modules.ltx.errors import HostError

_FORMAT = 1
_PATIENCE = 30.0  # seconds to wait for another process's transaction
_TABLES = """
create table jobs (
    id text primary key, kind text not null, state text not null, request text not null,
    output text not null, source text,
    priority integer not null, position real not null, batch text not null, attempts integer not null default 0,
    cancelling integer not null default 0, told integer not null default 0, path text,
    created real not null, started real, ended real, error text, result text);
create index jobs_in_order on jobs (state, priority desc, position);
create table keys (key text primary key, digest text not null, batch text not null);
create table events (job text not null, n integer not null, kept integer not null, body text not null,
    primary key (job, n)) without rowid;
create table settings (name text primary key, value text not null);
create table removed (id text primary key, at real not null, why text not null);
"""


class Database:
    """One SQLite file in WAL mode, made with its folder when it is first written to. Any thread may use it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._here = threading.local()

    def read(self, ask: Callable[[sqlite3.Connection], Any]) -> Any:
        """What `ask` finds; nothing where there is no file yet. Raises HostError."""
        if not self.file.is_file():
            return []
        with _host_errors(self.file):
            return ask(self._connection())

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed, or nothing of it. Raises HostError."""
        with _host_errors(self.file):
            base = self._connection()
            try:
                base.execute("begin immediate")
                yield base
                base.execute("commit")
            except BaseException:
                if base.in_transaction:  # a disk that is full fails the commit, and may leave it open
                    base.execute("rollback")
                raise

    def _connection(self) -> sqlite3.Connection:
        """A thread's own."""
        if getattr(self._here, "held", None) is None:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            base = sqlite3.connect(self.file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                base.execute("pragma journal_mode = wal")
                base.execute("pragma synchronous = full")  # a job that was answered for outlives a power cut
                self._here.held = _Held(_with_tables(base, self.file))
            except BaseException:
                base.close()  # with what it began, which would lock everybody else out
                raise
        return self._here.held.base  # type: ignore[no-any-return]


class _Held:
    """A thread's connection, closed when the thread ends. By itself it would stay open until a garbage collection,
    since a connection refers to itself, and every job has a thread of its own."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base

    def __del__(self) -> None:
        self.base.close()


def _with_tables(base: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    if base.execute("pragma user_version").fetchone()[0] == 0:
        base.execute("begin immediate")
        if base.execute("pragma user_version").fetchone()[0] == 0:  # nobody else has made them meanwhile
            for statement in filter(str.strip, _TABLES.split(";")):
                base.execute(statement)
            base.execute(f"pragma user_version = {_FORMAT}")
        base.execute("commit")
    found = base.execute("pragma user_version").fetchone()[0]
    if found != _FORMAT:
        raise HostError(f"{file}: it was made by another version of this program ({found}); move it away.")
    return base


@contextmanager
def _host_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise HostError(f"the queue {file} cannot be used ({error}); check its disk and permissions.") from error


class FolderLock:
    """Held by one process a folder at most. The system takes it back when the process ends, in whatever way, so that
    there is nothing to time out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held: BinaryIO | None = None

    def take(self) -> bool:
        """Whether it is ours now. Never waits."""
        if self._held is not None:
            return True
        with suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = self._file.open("ab")
            try:
                _lock(held)
            except OSError:
                held.close()
                return False
            self._held = held
        return self._held is not None

    def give_back(self, *, remove: bool = False) -> None:
        """`remove`: its file as well."""
        if self._held is not None:
            if remove and sys.platform != "win32":  # before it is closed: behind that, the file may be another's
                self._file.unlink(missing_ok=True)
            self._held.close()
            self._held = None


def _lock(file: BinaryIO) -> None:
    """Raises OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def bytes_below(folder: Path) -> int:
    """What the files in a folder take."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
