"""A process of a Ray cluster that does jobs of the queue, one at a time, and keeps its model between them.

Knows one job at a time and the folder that it shares with who gives the jobs (`cluster.py`); deliberately does not know
the queue's file, which is written by that one process alone, and nothing of Ray.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from modules.ltx import job
from modules.ltx.errors import Cancelled, HostError, LTXError
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import Row
from modules.ltx.quiet import quiet_libraries
from modules.ltx.state import Event
from modules.ltx.version import VERSION


class Hand:
    """`jobs`: the folder in which each job keeps what it needs, under its id; `every`: see `job.Told`."""

    def __init__(self, settings: Settings, jobs: Path, every: float) -> None:
        self._jobs, self._every = jobs, every
        self._host = EmbeddedHost(settings, self._show)
        self._events: SimpleQueue[Event | None] = SimpleQueue()  # None: the job is over
        self._pool = ThreadPoolExecutor(1, "job")

    def greet(self, mark: Path) -> dict[str, object]:
        """Who this is. Raises HostError where it does not see the folder of who asks, or is of another version."""
        who = {"node": platform.node(), "pid": os.getpid()}
        try:
            version = mark.read_text(encoding="utf-8")
        except OSError as error:
            raise HostError(
                f"{who['node']}: {mark.parent} is not the same folder there as here ({error}); share the output "
                "folder, and this project's own, under one path on every machine."
            ) from error
        if version != VERSION:
            raise HostError(f"{who['node']}: version {VERSION} there and {version} here; use one copy of this project.")
        return who

    def work(self, row: Row, path: Path | None) -> Iterator[dict[str, Any]]:
        """A job as it goes: `{"event", "kept"}` again and again, at last `{"state", "result", "error"}`. What is no
        LTXError is raised. `path`: the name that its video gets."""
        told, doing = job.Told(every=self._every), self._pool.submit(self._do, row, path)
        while (event := self._events.get()) is not None:
            written = told.of(event)
            if written is not None:
                yield {"event": written[0], "kept": written[1]}
        yield _outcome(doing, told)

    def _do(self, row: Row, path: Path | None) -> dict[str, Any]:
        try:
            quiet_libraries()
            return job.do(row, self._host, lambda one: self._jobs / one, path=path)
        finally:
            self._events.put(None)

    def cancel(self) -> None:
        """Stop the running job at its next poll; asked again and again, since a run forgets what came before it."""
        self._host.cancel()

    def _show(self, event: Event) -> None:
        self._events.put(event)


def _outcome(doing: Future[dict[str, Any]], told: job.Told) -> dict[str, Any]:
    try:
        return {"state": "done", "result": doing.result(), "error": None}
    except Cancelled as error:
        return {"state": "cancelled", "result": None, "error": job.error_of(error)}
    except LTXError as error:
        return {"state": "failed", "result": None, "error": job.error_of(error, told.last.get("phase"))}
