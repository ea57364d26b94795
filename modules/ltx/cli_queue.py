"""`queue`, `draft` and `finish` on the command line: the same jobs that the page and the API have.

Knows arguments, tables and progress lines; what can be done to a job is in `jobs.py`, what does it in `worker.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.cli import (
    Parser,
    add_file_options,
    add_machine_options,
    add_request_options,
    encoding_of,
    print_json,
    request_of,
)
from modules.ltx.errors import Cancelled, LTXError, RequestError
from modules.ltx.jobs import FOLDER, Row, Store
from modules.ltx.request import Option
from modules.ltx.submit import COUNT, LEVEL, finish, several, submit

if TYPE_CHECKING:
    from modules.ltx.worker import Taker

_BEAT = 0.2  # seconds between two looks at a job
_VERBS = {
    "list": "show what runs, waits and ended",
    "add": "add a job, to be done by whoever works on the folder",
    "cancel": "cancel jobs",
    "run": "do what waits, here, until nothing does",
    "watch": "follow a job to its end",
    "move": "move a job among those that wait",
    "priority": "give a job another priority",
    "pause": "begin no further job",
    "resume": "begin jobs again",
    "delete": "forget jobs that ended; their videos stay",
}


def add_parsers(commands: Any) -> None:
    """The three commands and what each takes."""
    queue = commands.add_parser("queue", help="jobs that are kept and done one by one")
    verbs = queue.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    made = {name: verbs.add_parser(name, help=said) for name, said in _VERBS.items()}
    for name in ("cancel", "delete"):
        made[name].add_argument("ids", nargs="+", metavar="ID")
    for name in ("watch", "move", "priority"):
        made[name].add_argument("id", metavar="ID")
    made["move"].add_argument("place", metavar="PLACE", help="0 is the next to run")
    made["priority"].add_argument("priority", metavar="N", help=LEVEL.allowed())
    made["list"].add_argument("--state", metavar="NAME", help="queued, running, done, failed or cancelled alone")
    draft = commands.add_parser("draft", help="stage 1 alone for several seeds, to choose one to finish")
    done = commands.add_parser("finish", help="make the video of a draft")
    done.add_argument("id", metavar="ID", help="of the draft, as `draft` printed it")
    for parser in (made["add"], draft):
        add_request_options(parser)
        add_machine_options(parser)
        _add_batch_options(parser)
        add_file_options(parser.add_argument_group("output"))
    for parser in (made["run"], done):
        add_machine_options(parser)
    _add_engine_options(made["run"])
    for parser in (made["add"], done):
        parser.add_argument("--priority", metavar="N", help=LEVEL.help)
    for parser in (*made.values(), draft, done):
        parser.add_argument("--json", action="store_true", help="print JSON for programs")
        parser.add_argument(
            "--outputs", metavar="FOLDER", default="outputs", help="folder for videos (default outputs)"
        )


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several at once")
    group.add_argument("--count", metavar="N", help=f"{COUNT.help}: {COUNT.allowed()} (default 1)")
    group.add_argument("--seeds", metavar="N,N", help="these seeds")


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several at a time")
    group.add_argument("--engine", metavar="NAME", help="here: one by one (default); ray: on a Ray cluster")
    group.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster that runs (default: one of this machine)")
    group.add_argument("--workers", metavar="N", help="jobs at a time (default: one a GPU)")


ENGINE = Option("engine", "choice", "who does the jobs", "--engine", choices=("here", "ray"))
WORKERS = Option("workers", "int", "jobs at a time", "--workers", 1, 10000)
MakeHost = Callable[..., Any]


class Here:
    """The queue of the folder that a command line names; `make_host` builds the host of its machine options."""

    def __init__(self, args: argparse.Namespace, make_host: MakeHost, prepare: Callable[[], None]) -> None:
        from modules.ltx.uploads import Uploads  # PyAV and numpy, which `--help` must not wait for

        self.args, self._make_host, self._prepare = args, make_host, prepare
        self.outputs = Path(args.outputs)
        self.store = Store(self.outputs)
        self.uploads = Uploads(self.outputs / FOLDER / "media")

    def queue(self) -> None:
        verbs: dict[str, Callable[[], None]] = {
            "list": self._list,
            "add": lambda: self._print([_told(row) for row in self._added("video")]),
            "cancel": lambda: self._print([_told(self.store.cancel(one)) for one in self.args.ids]),
            "run": self._run,
            "watch": lambda: self._result([self._watched(self.args.id)]),
            "move": self._move,
            "priority": self._prioritise,
            "pause": lambda: self._hold(True),
            "resume": lambda: self._hold(False),
            "delete": self._delete,
        }
        verbs[self.args.verb]()

    def draft(self) -> None:
        """Make the drafts here, or wait for who works on the folder."""
        from modules.ltx.serve_jobs import preview_of

        rows = self._added("draft")
        with self._working():
            done = [self._watched(row.id) for row in rows]
        if self.args.json:
            return self._print([_told(row) | {"preview": preview_of(self.store, row)} for row in done])
        for row in done:
            print(f"{row.id}  seed {row.request['seed']}  {preview_of(self.store, row) or ''}")
        print("finish ID makes the video of the one you choose", file=sys.stderr)
        _require_done(done)

    def finish(self) -> None:
        level = LEVEL.parse(self.args.priority) or 0
        row = finish(self.store, self.args.id, priority=level)
        with self._working():
            self._result([self._watched(row.id)])

    def _added(self, kind: str) -> list[Row]:
        request = request_of(self.args)
        count = COUNT.parse(self.args.count) or 1
        asked = several(request, count=count, seeds=_seeds(self.args.seeds))
        level = LEVEL.parse(getattr(self.args, "priority", None)) or 0
        host = self._make_host(self.args)
        encoding = encoding_of(self.args)
        return submit(self.store, self.uploads, host, asked, kind=kind, priority=level, encoding=encoding)

    def _list(self) -> None:
        rows = self.store.rows(state=self.args.state)
        if self.args.json:
            return print_json({"paused": self.store.paused, "jobs": [_told(row) for row in rows]})
        for row in rows:
            print(_line(row))
        if self.store.paused:
            print("the queue is paused; `queue resume` goes on", file=sys.stderr)

    def _run(self) -> None:
        """Whoever else works on the folder does its jobs; here they are only followed then."""
        with self._working() as worker:
            while not worker.closing and any(not row.over for row in self.store.rows()) and not self.store.paused:
                for row in self.store.rows(state="running")[:1]:
                    self._watched(row.id, lambda: not worker.closing)
                time.sleep(_BEAT)
        if worker.broken is not None:
            raise worker.broken
        if self.args.json:
            print_json({"jobs": [_told(row) for row in self.store.rows()]})

    def _move(self) -> None:
        place = _whole(self.args.place, "place")
        self._print([_told(self.store.move(self.args.id, place))])

    def _prioritise(self) -> None:
        level = LEVEL.parse(self.args.priority)
        self._print([_told(self.store.prioritise(self.args.id, level))])

    def _hold(self, paused: bool) -> None:
        self.store.pause(paused)
        if self.args.json:
            print_json({"paused": paused})

    def _delete(self) -> None:
        for one in self.args.ids:
            self.store.delete(one)
        if self.args.json:
            print_json({"deleted": self.args.ids})

    @contextmanager
    def _working(self) -> Iterator[Taker]:
        """A worker of this process, which does what waits unless another process does; a job it has begun makes way
        where this is left before its end."""
        worker = self._taker()
        worker.start()
        try:
            yield worker
        finally:
            worker.close()
            while not worker.join(0.2):
                pass

    def _taker(self) -> Taker:
        """Who does the jobs: this process, or a cluster."""
        from modules.ltx.worker import Worker

        args = self.args
        if ENGINE.parse(getattr(args, "engine", None)) == "ray":
            from modules.ltx.cluster import Cluster, Ray

            at = Ray(args.address, WORKERS.parse(args.workers))
            return Cluster(self.store, self.uploads, self._make_host(args).settings, at, self._prepare)
        for name in ("address", "workers"):
            if getattr(args, name, None) is not None:
                raise RequestError(f"--{name}: it goes with --engine ray.")
        return Worker(self.store, self.uploads, lambda heard: self._make_host(args, on_event=heard), self._prepare)

    def _watched(self, job: str, going: Callable[[], bool] = lambda: True) -> Row:
        """A job when it is over, or nobody is `going` on with it; its progress on a terminal's stderr meanwhile."""
        from modules.ltx.cli_show import PHASES

        self.store.get(job)
        seen, shown = 0, sys.stderr.isatty()
        while True:
            for number, event in self.store.events(job, seen):
                seen = number
                if shown and "phase" in event:
                    step = f" {event['step']}/{event['of']}" if event["of"] else ""
                    print(f"\r{job}  {PHASES.get(event['phase'], event['phase'])}{step}\033[K", end="", file=sys.stderr)
            row = self.store.get(job)
            if row.over or not going():
                if shown:
                    print("\r\033[K", end="", file=sys.stderr)
                return row
            time.sleep(_BEAT)

    def _print(self, told: Sequence[dict[str, Any]]) -> None:
        if self.args.json:
            return print_json({"jobs": list(told)})
        for one in told:
            print(one["id"])

    def _result(self, rows: Sequence[Row]) -> None:
        if self.args.json:
            self._print([_told(row) for row in rows])
        _require_done(rows)
        for row in rows if not self.args.json else ():
            print(((row.result or {}).get("files") or {}).get("path", row.id))


def _require_done(rows: Sequence[Row]) -> None:
    """Raises what a job failed with, so that the command ends as if it had done it itself."""
    for row in rows:
        if row.state == "cancelled":
            raise Cancelled(f"{row.id}: it was cancelled")
        if row.state == "failed":
            told = row.error or {}
            error = RequestError if told.get("exit_code") == RequestError.exit_code else LTXError
            raise error(f"{row.id}: {told.get('message', 'it failed')}")


def _told(row: Row) -> dict[str, Any]:
    names = ("id", "kind", "state", "batch", "priority", "attempts", "source", "request", "error", "result")
    return {name: getattr(row, name) for name in names}


def _line(row: Row) -> str:
    said = (row.error or {}).get("message", "") if row.state == "failed" else row.request.get("prompt", "")
    return f"{row.id}  {row.state:9}  {row.kind:6}  {row.priority:4}  seed {row.request.get('seed')}  {said[:60]}"


def _seeds(text: str | None) -> list[int]:
    from modules.ltx.request import BY_NAME

    return [BY_NAME["seed"].parse(part) for part in text.split(",")] if text else []


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"{name} {text!r}: not valid; it takes a whole number.") from None
