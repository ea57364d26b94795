"""Does the jobs of the queue, one at a time: the one process a folder that holds its lock.

A job that a dead process left goes on behind its last finished phase; one whose video is there already is done. Knows
the queue and threads; how a job is done is in `job.py`. Deliberately knows no HTTP, and what is shown of a running job
only as values.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.ltx import job
from modules.ltx.errors import Cancelled, HostError, LTXError
from modules.ltx.jobs import Row, Store
from modules.ltx.jobs_base import FolderLock
from modules.ltx.plan import Plan
from modules.ltx.state import Event
from modules.ltx.uploads import Uploads

_DRAFT = ("draft", "done")  # what keeps its state: it may be finished
_BEAT = 0.25  # seconds between two looks at the queue
_PREVIEWS = 8  # jobs whose last picture is remembered

MakeHost = Callable[[Callable[[Event], None]], Any]


class Taker(ABC):
    """Who does a folder's jobs: a thread that takes the folder's lock, brings order into what a dead process left, and
    looks for jobs until it is closed. How they are done is for who inherits this."""

    def __init__(self, store: Store, uploads: Uploads, prepare: Callable[[], None]) -> None:
        self.store, self.uploads = store, uploads
        self.closing = False
        self.working = False  # whether this process is the one that works
        self.broken: LTXError | None = None  # why it closed by itself
        self._prepare = prepare
        self._wake = threading.Event()
        self._lock = FolderLock(store.folder / "worker.lock")
        self._thread = threading.Thread(target=self._loop, name="ltx-queue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was asked of the queue: look now."""
        self._wake.set()

    def close(self) -> None:
        """Begin nothing any more; the running job stops at its next poll and waits for the next worker."""
        self.closing = True
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Whether it has ended, within `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @abstractmethod
    def _work_off(self) -> None:
        """Do what waits, until nothing does or this is closed."""

    def _loop(self) -> None:
        while not self.closing:
            try:
                self._turn()
            except LTXError as error:  # the queue's file or disk: try again, since jobs are in it
                print(f"queue: {error}", file=sys.stderr)
                self._wake.wait(5)
            self._wake.wait(_BEAT)
            self._wake.clear()
        self._lock.give_back()

    def _turn(self) -> None:
        """All that there is to do now."""
        if not self.store.there:
            return
        if not self.working:
            if not self._lock.take():
                return
            self.store.recover(self._made)
            self._sweep()
            self.working = True
        self._work_off()

    def _made(self, row: Row) -> dict[str, Any] | None:
        if row.path is not None and Path(row.path).is_file():
            self._prepare()
        return job.made(row, self.store.folder_of)

    def _sweep(self) -> None:
        """Remove what jobs kept that are over: all of them, since their process may have died before it did that."""
        folder = self.store.folder / "jobs"
        kept = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        needed = {
            row.id
            for row in self.store.rows(limit=-1)
            if not row.over or (row.kind, row.state) == _DRAFT or row.can_go_on
        }
        for name in kept - needed:
            self.store.clear(name)

    def _tidy(self) -> None:
        """Remove what ended jobs kept, and what is too much by now; said on the terminal."""
        self._sweep()
        for said in self.store.retain():
            print(f"queue: {said}", file=sys.stderr)
        self.uploads.forget({Path(path).stem for one in self.store.rows(limit=-1) for path in _media(one.request)})


@dataclass
class Live:
    """The running job, as it is seen in this process."""

    row: Row
    plan: Plan | None = None
    began: float = field(default_factory=time.monotonic)
    told: job.Told = field(default_factory=job.Told)

    @property
    def last(self) -> dict[str, Any]:
        return self.told.last

    @property
    def phase_began(self) -> float:
        return self.told.phase_began


class Worker(Taker):
    """Does them here. `make_host` is given who hears its events; `prepare` runs before the first import of a model
    library."""

    def __init__(
        self, store: Store, uploads: Uploads, make_host: MakeHost, prepare: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(store, uploads, prepare)
        self.host: Any = make_host(self._show)
        self.live: Live | None = None
        self.previews: dict[str, Any] = {}

    def _work_off(self) -> None:
        while not self.closing:
            if self.store.recover(self._made):  # ours, where its end could not be written down
                self._sweep()
            row = self.store.claim()
            if row is None:
                return
            self._watch(row)

    def _watch(self, row: Row) -> None:
        """Run a job in a thread of its own, which an unknown error ends, and pass a cancel on to it."""
        self.live = Live(row)
        # A daemon, so that a second Ctrl-C ends the program even inside a load that takes minutes.
        running = threading.Thread(target=self._work, args=(row,), name=f"job-{row.id}", daemon=True)
        running.start()
        while running.is_alive():
            with suppress(HostError):  # the queue cannot be read now: the job goes on, and it is looked at again
                if self.closing or self.store.get(row.id).cancelling:
                    self.host.cancel()  # again and again: a run forgets what was cancelled before it began
            self._wake.wait(_BEAT / 2 if self.closing else _BEAT)
            self._wake.clear()
            running.join(0.01)
        self.live = None
        self._tidy()

    def _work(self, row: Row) -> None:
        """A job to its end. What is no LTXError reaches the terminal as a traceback, by threading."""
        state, result = "failed", None
        told: dict[str, Any] | None = job.unexpected()
        try:
            result, state, told = self._run(row), "done", None
        except Cancelled as error:
            stopped = self.store.get(row.id).cancelling or not self.closing
            state, told = ("cancelled" if stopped else "queued"), job.error_of(error)
        except LTXError as error:
            told = job.error_of(error, self.live.last.get("phase") if self.live else None)
        finally:
            if state == "queued":
                self.store.release(row.id)
            else:
                self.store.end(row.id, state, result=result, error=told)

    def _run(self, row: Row) -> dict[str, Any]:
        self._prepare()

        def named(path: Path) -> None:
            self.store.named(row.id, path)

        return job.do(row, self.host, self.store.folder_of, path=job.free(row), named=named, planned=self._planned)

    def _planned(self, plan: Plan) -> None:
        if self.live is not None:
            self.live.plan = plan

    def _show(self, event: Event) -> None:
        """The host's events, in the job's thread."""
        live = self.live
        if live is None:
            return
        told = live.told.of(event)
        if event.preview is not None:
            self.previews[live.row.id] = self.host.picture(event.preview)
            for old in list(self.previews)[:-_PREVIEWS]:
                del self.previews[old]
        if told is not None:
            with suppress(HostError):  # progress may be lost; the job goes on
                self.store.tell(live.row.id, told[0], kept=told[1])


def _media(request: Mapping[str, Any]) -> list[str]:
    return [at["path"] for at in (*request.get("images", ()), *filter(None, [request.get("prefix")]))]
