"""One job of the queue, done with a host: from its row to its result, and what of it is told on the way.

Knows rows, runs and where a job keeps its files; deliberately knows no queue (`worker.py`, `cluster.py`), so that it
can be done in this process or in another one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modules.ltx.errors import HostError, LTXError
from modules.ltx.front import settle
from modules.ltx.host import Host
from modules.ltx.jobs import Row
from modules.ltx.media import Encoding
from modules.ltx.media_files import withdraw
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event, State

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

STATE, PREVIEW = "state.safetensors", "preview.png"  # of a job, in its folder
SHOWN = ("phase", "step", "of", "evaluations", "planned", "message", "run", "runs")  # of an Event
UNEXPECTED = "something went wrong that this program has no words for; the terminal of the server shows what"
_TOLD = 0.5  # seconds


class WorkingHost(Host, Protocol):
    """A host that can be stopped from another thread and shows what it makes."""

    def cancel(self) -> None:
        """Stop the running job at its next poll."""

    def picture(self, frame: Tensor) -> Image | None:
        """A latent frame as a picture."""


@dataclass
class Told:
    """Which of a job's events are written down: those that begin or end something, and between them one `every` so many
    seconds."""

    every: float = _TOLD
    last: dict[str, Any] = field(default_factory=dict)
    phase_began: float = field(default_factory=time.monotonic)
    written: float = 0.0  # when an event was last written down

    def of(self, event: Event) -> tuple[dict[str, Any], bool] | None:
        """The event's values and whether they are kept for good; None where it is too soon for another."""
        now = time.monotonic()
        told = {name: getattr(event, name) for name in SHOWN}
        turned = self.last.get("phase") != event.phase
        if turned:
            self.phase_began = now
        self.last = told
        ended = event.of > 0 and event.step == event.of
        if not (turned or ended or now - self.written > self.every):
            return None
        self.written = now
        return {"state": "running", **told}, ended


def do(
    row: Row,
    host: Any,
    folder_of: Callable[[str], Path],
    *,
    path: Path | None,
    named: Callable[[Path], None] = lambda path: None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """The result of a job, as JSON values. `folder_of`: where the job of an id keeps what it has; `path`: the video's
    name, where it is settled already; `named` hears what it will be. Raises LTXError."""
    from modules.ltx.kept import Kept  # torch and diffusers: seconds
    from modules.ltx.ltx_process import drawn, run

    plan = settle(Request.parse(row.request), host)
    planned(plan)
    draft = row.kind == "draft"
    keep = Kept(_state_of(row, folder_of), (lambda path: None) if draft else named)
    until = "sample" if draft else None
    state = run(plan, host, path=path, encoding=Encoding(**row.output), keep=keep, until=until)
    if draft:
        drawn(state, host).save(folder_of(row.id) / PREVIEW)
    return result_of(state)


def _state_of(row: Row, folder_of: Callable[[str], Path]) -> Path:
    """Where the job's state is; that of the draft which it finishes, to begin with."""
    file = folder_of(row.id) / STATE
    source = None if row.source is None else folder_of(row.source) / STATE
    if source is not None and source.is_file() and not file.exists():
        from modules.ltx.kept import embeds_of

        file.parent.mkdir(parents=True, exist_ok=True)
        for old, new in ((embeds_of(source), embeds_of(file)), (source, file)):  # the state, which needs it, last
            shutil.copyfile(old, new.with_suffix(".new"))
            new.with_suffix(".new").replace(new)
    return file


def made(row: Row, folder_of: Callable[[str], Path]) -> dict[str, Any] | None:
    """The result of a job whose process died behind its last step: its video is there, of the latents it kept."""
    if row.path is None:
        return None
    path = Path(row.path)
    withdraw(path)
    header = None
    if path.is_file():
        from modules.ltx.kept import header_of

        header = header_of(folder_of(row.id) / STATE)
    if header is None:
        return None
    with suppress(LTXError, LookupError, TypeError):
        told: Any = read_metadata(path)
        if told["latents"]["video_sha256"] == header["video_sha256"]:
            return _result_of_file(path, told, header)
    return None


def free(row: Row) -> Path | None:
    """The name that the job's video was to have, cleared of what was left; None where another file took it."""
    if row.path is None or Path(row.path).exists():
        return None
    withdraw(Path(row.path))
    return Path(row.path)


def error_of(error: LTXError, phase: str | None = None) -> dict[str, Any]:
    """An error as JSON values; `phase` is what the job was at."""
    phase = getattr(error, "phase", None) or phase
    sentence = " ".join(str(error).split())
    return {"type": type(error).__name__, "message": sentence, "exit_code": error.exit_code, "phase": phase}


def unexpected() -> dict[str, Any]:
    """The error of a job that was ended by what is no LTXError."""
    return error_of(HostError(UNEXPECTED))


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
