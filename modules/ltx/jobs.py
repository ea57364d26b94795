"""The queue: jobs in one SQLite file in the dot-folder `.ltx` of the output folder, shared by all who use that folder.

Every operation is one short transaction, so that whoever is killed leaves no half of one. Knows what states a job
may be in and in which order they run; deliberately does not know what a request means, how a job is done
(`worker.py`) or who asks (page, API, command line).
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modules.ltx.errors import LTXError, RequestError
from modules.ltx.jobs_base import Database, bytes_below

FOLDER = ".ltx"
KINDS = ("video", "draft", "finish")
STATES = ("queued", "running", "done", "failed", "cancelled")
ATTEMPTS = 3  # how often a job is begun in all, where its process dies every time
PROGRESS = 20  # newest events of a job that are kept beside those that say that something ended
PRIORITY = 100  # from minus this to this; higher runs first


class NoSuchJob(LTXError):
    """There is no job of that id."""

    exit_code = 2


class Removed(NoSuchJob):
    """There was one; the sentence says when and why it went."""


class Conflict(LTXError):
    """The job is in a state in which this cannot be done to it."""

    exit_code = 2


class KeyReused(LTXError):
    """The idempotency key came with another request before."""

    exit_code = 2


class QueueFull(LTXError):
    """There are as many jobs waiting as may."""


@dataclass(frozen=True)
class New:
    """A job to add: its checked request as JSON values, seed settled; `source` is the draft that it finishes, `output`
    how its file is written, as `media.Encoding` takes it."""

    request: Mapping[str, Any]
    kind: str = "video"
    priority: int = 0
    source: str | None = None
    output: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A job as it is kept. Times in seconds since the epoch; `path` is the video's name, once it is settled."""

    id: str
    kind: str
    state: str
    request: dict[str, Any]
    output: dict[str, Any]
    source: str | None
    priority: int
    position: float
    batch: str
    attempts: int
    cancelling: bool
    path: str | None
    created: float
    started: float | None
    ended: float | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def can_go_on(self) -> bool:
        """Whether it failed for want of memory: what it had by then is kept, for a job that goes on from there."""
        told = self.error or {}
        return self.state == "failed" and self.kind != "draft" and told.get("type") == "OutOfMemory"


@dataclass(frozen=True)
class Retention:
    """How many ended jobs are remembered, and how many bytes of `.ltx` they and their media may take."""

    count: int = 1000
    size: int = 20 << 30


_COLUMNS = ", ".join(field.name for field in fields(Row))
_ORDER = "order by priority desc, position"


class Store:
    """The queue of one output folder. Its file is made when the first job is added. Any thread may use it."""

    def __init__(self, outputs: Path, *, most: int = 1000) -> None:
        """`most`: jobs that may wait at a time."""
        self.folder = outputs.absolute() / FOLDER
        self._most = most
        self._base = Database(self.folder / "queue.db")

    @property
    def there(self) -> bool:
        """Whether a job was ever added."""
        return self._base.file.is_file()

    def folder_of(self, job: str) -> Path:
        """Where a job keeps what it needs until it ends."""
        return self.folder / "jobs" / job

    def add(self, several: Sequence[New], *, key: str | None = None, digest: str = "") -> list[Row]:
        """Add jobs as one batch. With a `key` that came before, together with the same `digest` of what was asked, the
        jobs of then. Raises KeyReused where the digest is another, QueueFull, HostError."""
        with self._base.transaction() as base:
            if key is not None:
                known = base.execute("select digest, batch from keys where key = ?", [key]).fetchone()
                if known is not None:
                    return _same(base, key, digest, *known)
            waiting = base.execute("select count(*) from jobs where state = 'queued'").fetchone()[0]
            if waiting + len(several) > self._most:
                raise QueueFull(f"{waiting} jobs are waiting, of {self._most} that may; wait until some are done.")
            batch = secrets.token_hex(8)
            if key is not None:
                base.execute("insert into keys values (?, ?, ?)", [key, digest, batch])
            last = base.execute("select coalesce(max(position), 0) from jobs").fetchone()[0]
            for number, new in enumerate(several):
                job = secrets.token_hex(8)
                told = [json.dumps(new.request), json.dumps(dict(new.output)), new.source, new.priority]
                base.execute(
                    "insert into jobs (id, kind, state, request, output, source, priority, position, batch, created) "
                    "values (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
                    [job, new.kind, *told, last + 1 + number, batch, time.time()],
                )
                _tell(base, job, {"state": "queued"}, kept=True)
            return _rows(base, "where batch = ? order by position", batch)

    def get(self, job: str) -> Row:
        """Raises NoSuchJob, Removed."""
        found: list[Row] = self._base.read(lambda base: _rows(base, "where id = ?", job))
        if not found:
            why = self._base.read(lambda base: base.execute("select why from removed where id = ?", [job]).fetchall())
            raise Removed(f"{job}: {why[0][0]}.") if why else NoSuchJob(f"{job[:80]!r}: there is no such job.")
        return found[0]

    def rows(self, *, state: str | None = None, batch: str | None = None, limit: int = 1000) -> list[Row]:
        """Running ones, then those that wait in the order in which they run, then ended ones, newest first."""
        wanted = [(name, value) for name, value in (("state", state), ("batch", batch)) if value is not None]
        where = f"where {' and '.join(f'{name} = ?' for name, _ in wanted)}" if wanted else ""
        rank = "case state when 'running' then 0 when 'queued' then 1 else 2 end"
        late = "case when ended is null then -priority else -ended end, position"
        values = [value for _, value in wanted]
        found: list[Row] = self._base.read(
            lambda base: _rows(base, f"{where} order by {rank}, {late} limit ?", *values, limit)
        )
        return found

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        found = self._base.read(lambda base: base.execute("select state, count(*) from jobs group by state").fetchall())
        return {state: dict(found).get(state, 0) for state in STATES}

    def claim(self) -> Row | None:
        """The next job, which is running from now on; None where there is none, or the queue is held."""
        if self.paused or not self.counts()["queued"]:
            return None
        with self._base.transaction() as base:
            found = _rows(base, f"where state = 'queued' {_ORDER} limit 1")
            if not found:
                return None
            job = found[0].id
            change = "state = 'running', started = ?, attempts = attempts + 1"
            base.execute(f"update jobs set {change} where id = ?", [time.time(), job])
            _tell(base, job, {"state": "running"}, kept=True)
            return _rows(base, "where id = ?", job)[0]

    def named(self, job: str, path: Path | None) -> None:
        """What the job's video will be called, written down before anything stands under that name."""
        with self._base.transaction() as base:
            base.execute("update jobs set path = ? where id = ?", [None if path is None else str(path), job])

    def end(self, job: str, state: str, *, result: Any = None, error: Any = None) -> Row:
        """A running job is over. Its event is the last of it."""
        told = [None if value is None else json.dumps(value) for value in (result, error)]
        with self._base.transaction() as base:
            change = "state = ?, ended = ?, cancelling = 0, result = ?, error = ?"
            values = [state, time.time(), *told, job]
            if base.execute(f"update jobs set {change} where id = ? and state = 'running'", values).rowcount:
                _tell(base, job, {"state": state, "result": result, "error": error}, kept=True)
            return _rows(base, "where id = ?", job)[0]

    def release(self, job: str) -> None:
        """A running job waits again, at its old place, and this time is not counted: it was told to make way."""
        with self._base.transaction() as base:
            change = "state = 'queued', attempts = attempts - 1"
            if base.execute(f"update jobs set {change} where id = ? and state = 'running'", [job]).rowcount:
                _tell(base, job, {"state": "queued"}, kept=True)

    def recover(self, made: Callable[[Row], Any]) -> list[Row]:
        """What a dead process left running waits again, or is done where `made` finds its result, or has failed where
        it was tried often enough. To be called by who holds the folder's lock."""
        left = self.rows(state="running")
        for row in left:
            result = made(row)
            if result is not None:
                self.end(row.id, "done", result=result)
            elif row.cancelling:
                self.end(row.id, "cancelled")
            elif row.attempts >= ATTEMPTS:
                said = f"the program ended {row.attempts} times while it made this; it is not tried again"
                self.end(row.id, "failed", error={"type": "HostError", "message": said, "exit_code": 1})
            else:
                with self._base.transaction() as base:
                    base.execute("update jobs set state = 'queued' where id = ?", [row.id])
                    _tell(base, row.id, {"state": "queued"}, kept=True)
        return [self.get(row.id) for row in left]

    def cancel(self, job: str) -> Row:
        """A waiting job is cancelled, a running one is asked to stop, one that is over stays as it is."""
        self.get(job)
        with self._base.transaction() as base:
            change = "state = 'cancelled', ended = ?"
            done = base.execute(f"update jobs set {change} where id = ? and state = 'queued'", [time.time(), job])
            if done.rowcount:
                _tell(base, job, {"state": "cancelled", "result": None, "error": None}, kept=True)
            base.execute("update jobs set cancelling = 1 where id = ? and state = 'running'", [job])
            return _rows(base, "where id = ?", job)[0]

    def move(self, job: str, place: int) -> Row:
        """To be the `place`th (from 0) of those that wait; its priority becomes that of where it comes to stand."""
        self._waiting(job, "moved")
        with self._base.transaction() as base:
            line = _rows(base, f"where state = 'queued' and id != ? {_ORDER}", job)
            place = min(max(place, 0), len(line))
            if line:
                change = "update jobs set priority = ? where id = ?"
                base.execute(change, [line[min(place, len(line) - 1)].priority, job])
            order = [row.id for row in line]
            order.insert(place, job)
            base.executemany("update jobs set position = ? where id = ?", list(enumerate(order)))
            return _rows(base, "where id = ?", job)[0]

    def prioritise(self, job: str, priority: int) -> Row:
        """Raises Conflict for a job that does not wait, RequestError for a priority out of range."""
        if not -PRIORITY <= priority <= PRIORITY:
            raise RequestError(f"priority {priority}: out of range; it takes -{PRIORITY} to {PRIORITY}.")
        self._waiting(job, "given another priority")
        with self._base.transaction() as base:
            base.execute("update jobs set priority = ? where id = ?", [priority, job])
            return _rows(base, "where id = ?", job)[0]

    def _waiting(self, job: str, what: str) -> None:
        state = self.get(job).state
        if state != "queued":
            raise Conflict(f"{job}: it is {state}; only a job that waits can be {what}.")

    def delete(self, job: str, why: str = "it was deleted") -> None:
        """Forget a job that does not run, and what it kept; its video stays. Raises Conflict for a running one."""
        row = self.get(job)
        with self._base.transaction() as base:
            if not base.execute("delete from jobs where id = ? and state != 'running'", [job]).rowcount:
                raise Conflict(f"{job}: it is running; cancel it first.")
            base.execute("delete from events where job = ?", [job])
            if not _rows(base, "where batch = ?", row.batch):
                base.execute("delete from keys where batch = ?", [row.batch])
            base.execute("insert or replace into removed values (?, ?, ?)", [job, time.time(), why])
            base.execute("delete from removed where id not in (select id from removed order by at desc limit 1000)")
        self.clear(job)

    def clear(self, job: str) -> None:
        """Remove what a job kept on the way; what cannot be removed now goes with the job."""
        shutil.rmtree(self.folder_of(job), ignore_errors=True)

    @property
    def paused(self) -> bool:
        """Whether no further job is begun."""
        return self.setting("paused", False) is True

    def pause(self, paused: bool) -> None:
        self.set("paused", paused)

    @property
    def retention(self) -> Retention:
        return Retention(**self.setting("retention", {}))

    def setting(self, name: str, default: Any) -> Any:
        found = self._base.read(
            lambda base: base.execute("select value from settings where name = ?", [name]).fetchall()
        )
        return json.loads(found[0][0]) if found else default

    def set(self, name: str, value: Any) -> None:
        with self._base.transaction() as base:
            base.execute("insert or replace into settings values (?, ?)", [name, json.dumps(value)])

    def retain(self) -> list[str]:
        """Forget the oldest ended jobs that are too many or too large, and say of each that it went."""
        limit = self.retention
        ended = [row for row in self.rows(limit=-1) if row.over]  # newest first
        said, size = [], 0
        for number, row in enumerate(ended):
            size += bytes_below(self.folder_of(row.id))
            if number >= limit.count or size > limit.size:
                why = (
                    f"more than {limit.count} ended jobs" if number >= limit.count else f"more than {limit.size} bytes"
                )
                self.delete(row.id, f"it was forgotten, because there were {why}")
                said.append(f"job {row.id} was forgotten: there are {why}; its video stays")
        return said

    def tell(self, job: str, body: Mapping[str, Any], *, kept: bool) -> None:
        """An event of a job; those that are not `kept` make room for newer ones."""
        with self._base.transaction() as base:
            _tell(base, job, body, kept=kept)

    def events(self, job: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """(number, event) of what was told after number `after`, in order; numbers begin at 1."""
        asked = "select n, body from events where job = ? and n > ? order by n"
        found = self._base.read(lambda base: base.execute(asked, [job, after]).fetchall())
        return [(n, json.loads(body)) for n, body in found]


def _same(base: sqlite3.Connection, key: str, asked: str, digest: str, batch: str) -> list[Row]:
    if asked != digest:
        raise KeyReused(f"Idempotency-Key {key[:80]!r}: it came with another request before; take a new one.")
    return _rows(base, "where batch = ? order by position", batch)


def _tell(base: sqlite3.Connection, job: str, body: Mapping[str, Any], *, kept: bool) -> None:
    base.execute("update jobs set told = told + 1 where id = ?", [job])
    found = base.execute("select told from jobs where id = ?", [job]).fetchone()
    if found is None:
        return
    base.execute(
        "insert into events values (?, ?, ?, ?)", [job, found[0], kept, json.dumps({**body, "at": time.time()})]
    )
    newest = "select n from events where job = ? and kept = 0 order by n desc limit -1 offset ?"
    base.execute(f"delete from events where job = ? and n in ({newest})", [job, job, PROGRESS])


def _rows(base: sqlite3.Connection, where: str, *values: Any) -> list[Row]:
    found = base.execute(f"select {_COLUMNS} from jobs {where}", values).fetchall()
    return [_row(dict(zip((field.name for field in fields(Row)), values, strict=True))) for values in found]


def _row(values: dict[str, Any]) -> Row:
    for name in ("request", "output", "error", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Row(**{**values, "cancelling": bool(values["cancelling"])})
