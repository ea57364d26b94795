"""What the web app keeps while it runs: uploaded images, and the jobs with all that they told.

One job at a time, in one worker thread that imports torch. Knows no HTTP: routes hand in plans and
streams of bytes and get records back. Nothing here outlives the server, except the videos.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio.to_thread

from modules.ltx.cli_show import PHASES
from modules.ltx.errors import Cancelled, HostError, LTXError, RequestError
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.media import Encoding
from modules.ltx.media_in import load_image
from modules.ltx.plan import Plan
from modules.ltx.serve_request import in_words, plan_json, request_json
from modules.ltx.state import Event, State

MAX_IMAGES = 32  # uploads kept; the oldest goes first
MAX_JOBS = 20  # finished jobs whose videos can still be asked for
_SHOWN = ("phase", "step", "of", "evaluations", "planned", "run", "runs")  # of an Event, to the page
UNEXPECTED = "something went wrong that this program has no words for; the terminal of the server shows what"

MakeHost = Callable[[Callable[[Event], None]], EmbeddedHost]


class Busy(LTXError):
    """A job is running already."""


class Images:
    """Uploaded images in a private folder, each under a random name, which is its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, tuple[int, int]] = {}  # by id, oldest first

    def path_of(self, name: object) -> Path:
        """The file of an id. Only ids that were given out are looked at, so none can be a path."""
        if not isinstance(name, str) or name not in self._sizes:
            raise RequestError("the image is not on the server any more; choose it again.")
        return self._folder / name

    async def add(self, chunks: AsyncIterator[bytes], in_use: set[Path]) -> dict[str, Any]:
        """Store and check one image; nothing stays of one that cannot be read."""
        name = secrets.token_hex(16)
        path = self._folder / name
        with ExitStack() as undo:
            undo.callback(path.unlink, missing_ok=True)
            await _store(path, chunks)
            size = await anyio.to_thread.run_sync(_size_of, path)
            undo.pop_all()
        self._sizes[name] = size
        self._evict(in_use)
        return {"id": name, "width": size[0], "height": size[1]}

    def _evict(self, in_use: set[Path]) -> None:
        idle = [name for name in self._sizes if self._folder / name not in in_use]
        for name in idle[: max(len(self._sizes) - MAX_IMAGES, 0)]:
            del self._sizes[name]
            (self._folder / name).unlink(missing_ok=True)


async def _store(path: Path, chunks: AsyncIterator[bytes]) -> None:
    try:
        with path.open("xb") as file:
            async for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise HostError(f"the image cannot be stored ({error.strerror}); is the disk full?") from error


def _size_of(path: Path) -> tuple[int, int]:
    try:
        return load_image(path).size
    except RequestError as error:  # its path says nothing to whoever chose the file
        raise RequestError(str(error).replace(str(path), "the image")) from error


class Job:
    """One run, or several behind each other: the plans, all that was told so far, and the end. The worker adds, any
    thread reads."""

    def __init__(self, *plans: Plan, encoding: Encoding | None = None) -> None:
        self.id = secrets.token_hex(8)
        self.plans, self.encoding = plans, encoding
        self.error: LTXError | None = None  # why it failed
        self.states: list[State] = []  # of the finished ones
        self.preview: Any = None  # the latest picture of what is being made
        self.began = self.phase_began = time.monotonic()
        self.cancelled = threading.Event()
        self.video: Path | None = None
        self.events: list[dict[str, Any]] = []
        self.show(Event("load", planned=self.plan.evaluations))

    @property
    def plan(self) -> Plan:
        """The one that is being run, or was last."""
        return self.plans[min(len(self.states), len(self.plans) - 1)]

    @property
    def running(self) -> bool:
        return bool(self.events[-1]["state"] == "running")

    def show(self, event: Event) -> None:
        told = {name: getattr(event, name) for name in _SHOWN}
        if not self.events or self.events[-1].get("phase") != event.phase:
            self.phase_began = time.monotonic()
        words = {"label": PHASES.get(event.phase, event.phase), "message": in_words(event.message)}
        self.events.append({"state": "running", **told, **words})

    def to_json(self) -> dict[str, Any]:
        """What a page that was just opened needs to show it."""
        asked = {"request": request_json(self.plan.request), "plan": plan_json(self.plan)}
        return {"id": self.id, "elapsed": time.monotonic() - self.began, "last": self.events[-1], **asked}


class Jobs:
    """The jobs of one host. `prepare` runs in the worker thread, before the first import of a model library."""

    def __init__(self, make_host: MakeHost, prepare: Callable[[], None] = lambda: None) -> None:
        self.host = make_host(self._show)
        self.closing = False
        self._prepare = prepare
        self._jobs: dict[str, Job] = {}  # oldest first
        self._starting = threading.Lock()
        self._worker: threading.Thread | None = None

    @property
    def last(self) -> Job | None:
        return next(reversed(self._jobs.values()), None)

    @property
    def running(self) -> Job | None:
        last = self.last
        return last if last is not None and last.running else None

    @property
    def images_in_use(self) -> set[Path]:
        return {Path(at.path) for at in self.running.plan.images} if self.running else set()

    def get(self, name: str) -> Job | None:
        return self._jobs.get(name)

    def start(self, *plans: Plan, encoding: Encoding | None = None) -> Job:
        """Run the plans, one behind the other, in the worker thread. Raises Busy while another job runs."""
        with self._starting:
            if self.running or self.closing:
                raise Busy("a video is being made; wait for it or cancel it, then start the next.")
            job = Job(*plans, encoding=encoding)
            self._jobs[job.id] = job
            if len(self._jobs) > MAX_JOBS:
                del self._jobs[next(iter(self._jobs))]
            # A daemon, so that a second Ctrl-C ends the program even inside a load that takes minutes.
            self._worker = threading.Thread(target=self._work, args=(job,), name=f"job-{job.id}", daemon=True)
            self._worker.start()
        return job

    def cancel(self, job: Job) -> None:
        """Stop `job` at its next poll; one that ended stays as it is."""
        if job.running:
            job.cancelled.set()
            self.host.cancel()

    def close(self) -> None:
        """Take no more jobs and cancel the running one."""
        self.closing = True
        if self.running:
            self.cancel(self.running)

    def wait(self, seconds: float = math.inf) -> bool:
        """Until the worker has ended, and with it whatever it was writing; False if that takes longer."""
        end = time.monotonic() + seconds
        while self._worker is not None and self._worker.is_alive():
            if time.monotonic() > end:
                return False
            self._worker.join(0.2)  # a timeout, because Windows cannot interrupt a join without one
        return True

    def _show(self, event: Event) -> None:
        """The host's events, in the worker thread."""
        job = self.running
        if job is None:
            return
        job.show(event)
        if event.preview is not None:
            job.preview = self.host.picture(event.preview)
        if job.cancelled.is_set():  # again: the run forgets what was cancelled before it began
            self.host.cancel()

    def _work(self, job: Job) -> None:
        """Run a job to its last event. What is no LTXError reaches the terminal as a traceback, by threading."""
        end: dict[str, Any] = {"state": "failed", "message": UNEXPECTED}
        try:
            end = _done(job, self._run(job))
        except Cancelled as error:
            end = {"state": "cancelled", "message": str(error)}
        except LTXError as error:
            job.error = error
            end = {"state": "failed", "message": in_words(str(error))}
        finally:
            job.events.append(end)

    def _run(self, job: Job) -> State:
        self._prepare()
        from modules.ltx.ltx_process import run  # torch and diffusers: seconds

        if job.cancelled.is_set():
            raise Cancelled("cancelled; nothing was written")
        for plan in job.plans:
            job.states.append(run(plan, self.host, encoding=job.encoding))
        return job.states[-1]


def _done(job: Job, state: State) -> dict[str, Any]:
    """The last event of a job that made its video."""
    media = state.media
    if media is None:
        raise LTXError("the run ended without a file")
    job.video = media.path
    return {
        "state": "done",
        "video": f"/jobs/{job.id}/video",
        "name": media.path.name,
        "seed": state.seed,
        "seed_text": str(state.seed),  # for JavaScript, whose numbers end at 53 bits
        "seconds": [{"phase": t.phase, "label": PHASES[t.phase], "seconds": t.seconds} for t in state.timings],
        "notes": [in_words(note) for note in (*state.plan.notes, *state.notes)],
        "width": media.width,
        "height": media.height,
        "frames": media.frames,
        "fps": media.fps,
    }
