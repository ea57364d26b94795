"""The queue as the page sees it: one job or several of one batch as one thing, with what is live of it.

Knows no HTTP and no gradio. What it shows comes from the queue, so that a page that is opened anew, or a server that
was started anew, finds the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from modules.ltx.cli_show import PHASES
from modules.ltx.errors import LTXError, OutOfMemory
from modules.ltx.front import sketch
from modules.ltx.host import Host
from modules.ltx.job import PREVIEW, SHOWN
from modules.ltx.jobs import FOLDER, Row, Store
from modules.ltx.media import Encoding
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.serve_request import in_words
from modules.ltx.state import Media, Refinement, State, Timing
from modules.ltx.submit import finish, several, submit
from modules.ltx.uploads import Uploads
from modules.ltx.worker import MakeHost, Worker


class Job:
    """One row of the queue, or several of a batch, one behind the other."""

    def __init__(self, jobs: Jobs, ids: Sequence[str]) -> None:
        self._jobs, self.ids = jobs, tuple(ids)
        self.id = self.ids[0]
        self._seen = time.monotonic()

    @property
    def rows(self) -> list[Row]:
        return [self._jobs.store.get(one) for one in self.ids]

    @property
    def running(self) -> bool:
        """Whether something of it is still to be done."""
        return not all(row.over for row in self.rows)

    @property
    def current(self) -> Row:
        """The one that is being done, or waited for; when all are over, the one that says how it went."""
        rows = self.rows
        bad = [row for row in rows if row.over and row.state != "done"]
        return next((row for row in rows if not row.over), (bad or rows)[-1])

    @property
    def plans(self) -> tuple[str, ...]:
        """Its parts, to be counted."""
        return self.ids

    @property
    def plan(self) -> Plan:
        """The one that is being run, or was last."""
        return plan_of(self.current, self._jobs.host)

    @property
    def error(self) -> LTXError | None:
        """Why it failed, if it did."""
        told = self.current.error if self.current.state == "failed" else None
        if told is None:
            return None
        said = str(told["message"])
        return OutOfMemory(said, phase=str(told["phase"])) if told["type"] == "OutOfMemory" else LTXError(said)

    @property
    def states(self) -> list[State]:
        """Of the finished ones, without tensors."""
        return [state_of(row, self._jobs.host) for row in self.rows if row.state == "done"]

    @property
    def preview(self) -> Any:
        """The latest picture of what is being made, where it is made by this process."""
        return self._jobs.worker.previews.get(self.current.id)

    @property
    def phase_began(self) -> float:
        live = self._jobs.worker.live
        return live.phase_began if live is not None and live.row.id in self.ids else self._seen

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was told last, as a list of one."""
        row = self.current
        if row.over:
            return [{"state": row.state, "message": in_words((row.error or {}).get("message", row.state))}]
        told = [event for _, event in self._jobs.store.events(row.id) if "phase" in event][-1:]
        live = self._jobs.worker.live
        if live is not None and live.row.id == row.id and live.last:
            told = [live.last]
        if row.state == "queued" or not told:
            told = [self._jobs.waiting(row)]
        label = PHASES.get(told[0]["phase"], told[0]["phase"])
        return [{**told[0], "state": "running", "label": label, "message": in_words(told[0]["message"])}]


class Jobs:
    """The queue of an output folder, and the worker of this process, which begins at once."""

    def __init__(
        self, make_host: MakeHost, outputs: Path, prepare: Callable[[], None] = lambda: None, *, most: int = 1000
    ) -> None:
        """`most`: jobs that may wait at a time; for the rest see `Worker`."""
        self.store = Store(outputs, most=most)
        self.uploads = Uploads(outputs / FOLDER / "media")
        self.worker = Worker(self.store, self.uploads, make_host, prepare)
        self.host = self.worker.host
        self.worker.start()

    @property
    def closing(self) -> bool:
        return self.worker.closing

    @property
    def last(self) -> Job | None:
        """The batch that runs or waits, else the one that ended last. Drafts are shown by themselves."""
        rows = [row for row in self.store.rows(limit=50) if row.kind != "draft"]
        return None if not rows else self._batch(rows[0])

    @property
    def running(self) -> Job | None:
        last = self.last
        return last if last is not None and last.running else None

    def get(self, name: str) -> Job | None:
        """The batch of a job; None where there is none."""
        try:
            return self._batch(self.store.get(name))
        except LTXError:
            return None

    def _batch(self, row: Row) -> Job:
        return Job(self, [one.id for one in sorted(self.store.rows(batch=row.batch), key=lambda one: one.created)])

    def start(self, *plans: Plan, encoding: Encoding | None = None) -> Job:
        """Add the plans' requests to the queue, to be done one behind the other. Raises RequestError, QueueFull."""
        requests = [plan.request for plan in plans]
        return self._added(submit(self.store, self.uploads, self.host, requests, encoding=encoding))

    def draft(self, request: Request, count: int, encoding: Encoding | None = None) -> Job:
        """Add `count` drafts of the request, each with a seed of its own."""
        asked = several(request, count=count)
        return self._added(submit(self.store, self.uploads, self.host, asked, kind="draft", encoding=encoding))

    def finish(self, draft: str) -> Job:
        """Add the job that goes on from a draft. Raises Conflict, NoSuchJob."""
        return self._added([finish(self.store, draft)])

    def _added(self, rows: Sequence[Row]) -> Job:
        self.worker.wake()
        return Job(self, [row.id for row in rows])

    def drafts(self, job: Job) -> list[tuple[str, str | None, int]]:
        """(id, path of the picture, seed) of each draft that is done."""
        done = [row for row in job.rows if row.state == "done"]
        return [(row.id, preview_of(self.store, row), int(row.request["seed"])) for row in done]

    def cancel(self, job: Job) -> None:
        """Stop all of `job`; what ended stays as it is."""
        for one in job.ids:
            self.store.cancel(one)
        self.worker.wake()

    def waiting(self, row: Row) -> dict[str, Any]:
        """What is said of a job that has not begun."""
        ahead = [one.id for one in self.store.rows() if not one.over].index(row.id) if row.state == "queued" else 0
        held = "the queue is paused" if self.store.paused else f"{ahead} before it" if ahead else ""
        empty = {name: 0 for name in SHOWN if name not in ("run", "runs")}
        return {**empty, "phase": "waiting" if row.state == "queued" else "load", "message": held, "run": 1, "runs": 1}

    def close(self) -> None:
        """Begin no more; the running job makes way, and goes on when somebody works here again."""
        self.worker.close()

    def wait(self, seconds: float = math.inf) -> bool:
        """Until nothing is to be done, or the worker has ended; False if that takes longer."""
        end = time.monotonic() + seconds
        while not self.worker.join(0.05):
            counts = self.store.counts()
            if not self.closing and not counts["queued"] and not counts["running"] and self.worker.live is None:
                return True
            if time.monotonic() > end:
                return False
        return True


def plan_of(row: Row, host: Host) -> Plan:
    """The plan of a job as it was, made again; of a finished one whose length was predicted, with that length."""
    request = Request.parse(row.request)
    plan = sketch(request, host)
    if plan.predicts_frames and row.result is not None:
        plan = replace(sketch(replace(request, frames=row.result["frames"]), host), request=request)
    return plan


def state_of(row: Row, host: Host) -> State:
    """A finished job as its run returned it, but for the tensors."""
    result, plan = row.result or {}, plan_of(row, host)
    timings = tuple(Timing(one["phase"], one["seconds"], one.get("peak")) for one in result["timings"])
    refined = tuple(Refinement(one["stage"], one["rows"]) for one in result["refined"])
    notes = tuple(note for note in result["notes"] if note not in plan.notes)
    media = None if result["files"] is None else _media(result["files"])
    return State(plan, int(result["seed"]), timings=timings, refined=refined, notes=notes, media=media)


def _media(files: dict[str, Any]) -> Media:
    known = {field.name: files[field.name] for field in fields(Media) if field.name in files}
    named = {"path", "thumbnail", "frames_folder", "tensors"} & set(known)
    paths = {name: Path(known[name]) if known[name] else None for name in named}
    return Media(**{**known, **paths, "maps": tuple(map(Path, known["maps"]))})


def preview_of(store: Store, row: Row) -> str | None:
    """The picture of a draft, if it has one."""
    path = store.folder_of(row.id) / PREVIEW
    return str(path) if path.is_file() else None
