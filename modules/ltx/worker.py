"""Does the jobs of the queue, one at a time: the one process a folder that holds its lock.

A job that a dead process left goes on behind its last finished phase; one whose video is there already is done. Knows
the queue, hosts and runs; deliberately knows no HTTP, and what is shown of a running job only as values.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modules.ltx.errors import Cancelled, HostError, LTXError
from modules.ltx.front import settle
from modules.ltx.host import Host
from modules.ltx.jobs import Row, Store
from modules.ltx.jobs_base import FolderLock
from modules.ltx.media import Encoding
from modules.ltx.media_files import withdraw
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event, State
from modules.ltx.uploads import Uploads

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

STATE, PREVIEW = "state.safetensors", "preview.png"  # of a job, in its folder
UNEXPECTED = "something went wrong that this program has no words for; the terminal of the server shows what"
SHOWN = ("phase", "step", "of", "evaluations", "planned", "message", "run", "runs")  # of an Event
_DRAFT = ("draft", "done")  # what keeps its state: it may be finished
_BEAT = 0.25  # seconds between two looks at the queue
_TOLD = 0.5  # seconds between two events of a phase that are written down
_PREVIEWS = 8  # jobs whose last picture is remembered


class WorkingHost(Host, Protocol):
    """A host that can be stopped from another thread and shows what it makes."""

    def cancel(self) -> None:
        """Stop the running job at its next poll."""

    def picture(self, frame: Tensor) -> Image | None:
        """A latent frame as a picture."""


MakeHost = Callable[[Callable[[Event], None]], Any]


@dataclass
class Live:
    """The running job, as it is seen in this process."""

    row: Row
    plan: Plan | None = None
    began: float = field(default_factory=time.monotonic)
    phase_began: float = field(default_factory=time.monotonic)
    last: dict[str, Any] = field(default_factory=dict)
    written: float = 0.0  # when an event was last written down


class Worker:
    """`make_host` is given who hears its events; `prepare` runs before the first import of a model library."""

    def __init__(
        self, store: Store, uploads: Uploads, make_host: MakeHost, prepare: Callable[[], None] = lambda: None
    ) -> None:
        self.store, self.uploads = store, uploads
        self.host: Any = make_host(self._show)
        self.live: Live | None = None
        self.previews: dict[str, Any] = {}
        self.closing = False
        self.working = False  # whether this process is the one that works
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
            self._sweep()
            self.working = True
        while not self.closing:
            if self.store.recover(self._made):  # of a dead process, or ours, where its end could not be written down
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

    def _work(self, row: Row) -> None:
        """A job to its end. What is no LTXError reaches the terminal as a traceback, by threading."""
        state, result = "failed", None
        told: dict[str, Any] | None = _error(HostError(UNEXPECTED), None)
        try:
            result, state, told = self._run(row), "done", None
        except Cancelled as error:
            stopped = self.store.get(row.id).cancelling or not self.closing
            state, told = ("cancelled" if stopped else "queued"), _error(error, None)
        except LTXError as error:
            told = _error(error, self.live)
        finally:
            if state == "queued":
                self.store.release(row.id)
            else:
                self.store.end(row.id, state, result=result, error=told)

    def _run(self, row: Row) -> dict[str, Any]:
        self._prepare()
        from modules.ltx.kept import Kept  # torch and diffusers: seconds
        from modules.ltx.ltx_process import run

        plan = settle(Request.parse(row.request), self.host)
        if self.live is not None:
            self.live.plan = plan
        draft = row.kind == "draft"
        keep = Kept(
            self._state_of(row), (lambda path: None) if draft else (lambda path: self.store.named(row.id, path))
        )
        encoding, until = Encoding(**row.output), "sample" if draft else None
        state = run(plan, self.host, path=_free(row), encoding=encoding, keep=keep, until=until)
        if draft:
            from modules.ltx.ltx_process import drawn

            drawn(state, self.host).save(self.store.folder_of(row.id) / PREVIEW)
        return result_of(state)

    def _state_of(self, row: Row) -> Path:
        """Where the job's state is; that of the draft which it finishes, to begin with."""
        file = self.store.folder_of(row.id) / STATE
        source = None if row.source is None else self.store.folder_of(row.source) / STATE
        if source is not None and source.is_file() and not file.exists():
            from modules.ltx.kept import embeds_of

            file.parent.mkdir(parents=True, exist_ok=True)
            for old, new in ((embeds_of(source), embeds_of(file)), (source, file)):  # the state, which needs it, last
                shutil.copyfile(old, new.with_suffix(".new"))
                new.with_suffix(".new").replace(new)
        return file

    def _made(self, row: Row) -> dict[str, Any] | None:
        """The result of a job whose process died behind its last step: its video is there, of the latents it kept."""
        if row.path is None:
            return None
        path = Path(row.path)
        withdraw(path)
        header = None
        if path.is_file():
            self._prepare()
            from modules.ltx.kept import header_of

            header = header_of(self.store.folder_of(row.id) / STATE)
        if header is None:
            return None
        with suppress(LTXError, LookupError, TypeError):
            told: Any = read_metadata(path)
            if told["latents"]["video_sha256"] == header["video_sha256"]:
                return _result_of_file(path, told, header)
        return None

    def _show(self, event: Event) -> None:
        """The host's events, in the job's thread."""
        live = self.live
        if live is None:
            return
        now = time.monotonic()
        told = {name: getattr(event, name) for name in SHOWN}
        turned = live.last.get("phase") != event.phase
        if turned:
            live.phase_began = now
        live.last = told
        if event.preview is not None:
            self.previews[live.row.id] = self.host.picture(event.preview)
            for old in list(self.previews)[:-_PREVIEWS]:
                del self.previews[old]
        ended = event.of > 0 and event.step == event.of
        if turned or ended or now - live.written > _TOLD:
            live.written = now
            with suppress(HostError):  # progress may be lost; the job goes on
                self.store.tell(live.row.id, {"state": "running", **told}, kept=ended)


def result_of(state: State) -> dict[str, Any]:
    """What a job delivered, as JSON values."""
    return {
        "files": None if state.media is None else state.media.to_json(),
        "seed": state.seed,
        "timings": [{"phase": one.phase, "seconds": round(one.seconds, 3), "peak": one.peak} for one in state.timings],
        "notes": [*state.plan.notes, *state.notes],
        "refined": [{"stage": done.stage, "rows": done.rows} for done in state.refined],
        "frames": state.plan.frames,
    }


def _result_of_file(path: Path, told: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a video that was finished, but not written down as such."""
    import av

    plan = told["plan"]
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate if container.streams.audio else None
    beside = {"thumbnail": path.with_suffix(".jpg"), "frames_folder": path.with_name(f"{path.stem}-frames")}
    files = {
        "path": str(path),
        **{name: str(other) if other.exists() else None for name, other in beside.items()},
        "maps": [str(one) for one in sorted(path.parent.glob(f"{path.stem}-*-uncertainty.png"))],
        **{name: plan[name] for name in ("width", "height", "frames", "fps")},
        "sample_rate": rate,
        "video_latents_sha256": told["latents"]["video_sha256"],
        "audio_latents_sha256": told["latents"]["audio_sha256"],
    }
    return {
        "files": files,
        "seed": plan["seed"],
        "timings": [{"phase": name, "seconds": round(time, 3), "peak": peak} for name, time, peak in header["timings"]],
        "notes": [*plan["notes"], *told["notes"]],
        "refined": [{"stage": stage, "rows": rows} for stage, rows in told.get("self_refiner", {}).items()],
        "frames": plan["frames"],
    }


def _error(error: LTXError, live: Live | None) -> dict[str, Any]:
    phase = getattr(error, "phase", None) or (live.last.get("phase") if live else None)
    sentence = " ".join(str(error).split())
    return {"type": type(error).__name__, "message": sentence, "exit_code": error.exit_code, "phase": phase}


def _free(row: Row) -> Path | None:
    """The name that the job's video was to have, cleared of what was left; None where another file took it."""
    if row.path is None or Path(row.path).exists():
        return None
    withdraw(Path(row.path))
    return Path(row.path)


def _media(request: Mapping[str, Any]) -> list[str]:
    return [at["path"] for at in (*request.get("images", ()), *filter(None, [request.get("prefix")]))]
