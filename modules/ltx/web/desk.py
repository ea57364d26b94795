"""What the web app's events ask for: plans, jobs, restored settings, earlier videos. Knows jobs and hosts, not gradio.

Everything that is shown comes back as text, HTML, a picture or a path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modules.ltx import advice, ltx_ui, pace, panel, styles
from modules.ltx.advice import Advice
from modules.ltx.errors import LTXError
from modules.ltx.front import restored, settle, variants
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.media import Encoding
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.recipe import memory_gb
from modules.ltx.request import Request
from modules.ltx.serve_jobs import Job, Jobs
from modules.ltx.serve_request import in_words, on_this_machine
from modules.ltx.state import Event

_GALLERY = 24  # videos shown, newest first
_LINE = 50  # jobs shown of the queue
_MEDIA = ("image", "files", "video")
_OWN = ("Sampling", "Guidance", "Decoding")  # what advice on another variant takes from that variant


@dataclass(frozen=True)
class Form:
    """The page's values: the variant's id, words, frames a second, its controls by name, names of styles, and how the
    file is written."""

    model: str
    prompt: str
    negative: str
    fps: float
    values: Mapping[str, Any]
    styles: Sequence[str] = ()
    output: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """The plan panel; what is wrong with the self-refiner's plan, if that is it; what would help."""

    html: str
    wrong: str = ""
    advice: Advice | None = None


class Desk:
    """`jobs` run; `outputs` is where their videos are, `learned` where it is kept how fast they ran, `words` a file of
    styles."""

    def __init__(self, jobs: Jobs, outputs: Path, learned: Path, words: Path | None = None) -> None:
        self.jobs, self.outputs, self._learned, self._words = jobs, outputs, learned, words or Path(styles.NAME)
        self._timed: set[str] = set()  # jobs whose times are learned: a page that is opened anew shows them again
        self.rows = {caps.id: caps for caps in variants(jobs.host)}

    def models(self) -> list[tuple[str, str]]:
        """(label, id) of every variant, by generation, then Dev or Distilled, then what it takes."""

        def order(caps: Caps) -> tuple[Any, ...]:
            nano = caps.source.startswith("nano:")
            return (
                not nano,
                [-float(part) for part in caps.generation.split(".")],
                not caps.is_distilled,
                caps.quantization,
            )

        return [
            (caps.label if not caps.unavailable else f"{caps.label} (not here)", caps.id)
            for caps in sorted(self.rows.values(), key=order)
        ]

    def about(self, caps: Caps) -> str:
        """What a variant is and needs, in a line."""
        return panel.about_html(caps, on_this_machine(caps))

    def request(self, form: Form) -> Request:
        """Raises RequestError for what cannot be asked."""
        caps = self.rows[form.model]
        seed = form.values.get("seed")
        values = dict(form.values) | {"seed": None if seed is None or int(seed) < 0 else int(seed)}
        prompt, negative = styles.styled(form.prompt, form.negative, form.styles, self.styles())
        asked = ltx_ui.Asked(form.model, prompt, negative, form.fps, _path)
        return Request.parse(ltx_ui.request_values(caps, asked, values))

    def styles(self) -> dict[str, styles.Style]:
        """Those of the file, as it is now."""
        return styles.read(self._words)

    def encoding(self, form: Form) -> Encoding:
        """How the file is to be written. Raises RequestError for what no codec takes."""
        given = {name: value for name, value in form.output.items() if value is not None}
        crf = int(given.pop("crf", -1))
        return Encoding(**given, crf=None if crf < 0 else crf)

    def planned(self, form: Form) -> Planned:
        """What would be made, or why it cannot be."""
        request: Request | None = None
        try:
            request = self.request(form)
            plan = settle(request, self.jobs.host)
        except LTXError as error:
            said = in_words(str(error))
            wrong = said if "self-refine" in str(error) or "self refine" in said else ""
            help = advice.for_request(request, self.rows[form.model], self.rows.values()) if request else None
            return Planned(panel.error_html(said), wrong, help)
        return Planned(panel.plan_html(plan, self._around(plan)))

    def advised(self, form: Form, given: Advice) -> tuple[Form, Caps]:
        """The form as the advice has it. Of another variant what was set is kept, where it has it; None is its own."""
        caps = self.rows[given.model or form.model]
        values = {}
        for one in ltx_ui.shown(caps):
            name = one.control.name
            value = given.values.get(name, form.values.get(name)) if one.applies else one.value
            values[name] = one.value if value is None and one.control.kind not in _MEDIA else value
        if caps.id != form.model:  # steps, guidance and the like are each variant's own
            values |= {one.control.name: one.value for one in ltx_ui.shown(caps) if one.control.section in _OWN}
        fps = form.fps if caps.id == form.model else caps.default_fps
        return replace(form, model=caps.id, fps=fps, values=values), caps

    def advice(self, job: Job) -> Advice | None:
        """What would help a job that failed."""
        return None if job.error is None else advice.for_job(job.error, job.plan, self.rows.values())

    def _around(self, plan: Plan) -> panel.Around:
        free = shutil.disk_usage(
            next(path for path in (self.outputs, *self.outputs.absolute().parents) if path.is_dir())
        ).free
        known = pace.read(self._learned).seconds(plan, self._device)
        here = on_this_machine(plan.caps)
        return panel.Around(
            0.0 if here else memory_gb(plan.caps)["weights"], free / 1e9, sum(known.values()) if known else None
        )

    @property
    def _device(self) -> str:
        return str(self.jobs.host.settings.device or "this machine")

    def start(self, form: Form) -> Job:
        """Add it to the queue. Raises RequestError for what cannot be done, QueueFull."""
        return self.jobs.start(settle(self.request(form), self.jobs.host), encoding=self.encoding(form))

    def start_both(self, form: Form) -> Job:
        """The same seed with the self-refiner off and on, one behind the other."""
        from modules.ltx.compare import both  # torch: seconds

        return self.jobs.start(*both(self.request(form), self.jobs.host), encoding=self.encoding(form))

    def draft(self, form: Form, count: int) -> Job:
        """Add `count` drafts: stage 1 alone, each with a seed of its own."""
        return self.jobs.draft(self.request(form), count, self.encoding(form))

    def drafts(self, job: Job) -> list[tuple[str, str | None, int]]:
        """(id, path of its picture, seed) of each draft of `job` that is done."""
        return self.jobs.drafts(job)

    def finish(self, draft: str) -> Job:
        """Add the job that makes the video of a draft. Raises Conflict where that is not done, NoSuchJob."""
        return self.jobs.finish(draft)

    def line(self) -> str:
        """The queue, as a table."""
        return panel.line_html(self.jobs.store.rows(limit=_LINE), self.jobs.store.paused)

    def waiting(self) -> list[tuple[str, str]]:
        """(words, id) of the jobs that run or wait."""
        rows = [row for row in self.jobs.store.rows(limit=_LINE) if not row.over]
        return [(f"{row.request.get('prompt', '')[:60]} | seed {row.request.get('seed')}", row.id) for row in rows]

    def first(self, job: str) -> None:
        """Make it the next. Raises Conflict for one that does not wait, NoSuchJob."""
        self.jobs.store.move(job, 0)

    def drop(self, job: str) -> None:
        """Cancel it. Raises NoSuchJob."""
        self.jobs.store.cancel(job)
        self.jobs.worker.wake()

    def hold(self) -> str:
        """Begin no further job, or begin them again; a sentence."""
        self.jobs.store.pause(not self.jobs.store.paused)
        self.jobs.worker.wake()
        return "what runs is finished, nothing else is begun" if self.jobs.store.paused else "the queue goes on"

    def running(self, job: Job) -> str:
        """How far a job is."""
        told = job.events[-1]
        if told["state"] != "running":
            return ""
        event = Event(**{name: told[name] for name in ("phase", "step", "of", "evaluations", "planned")})
        left = pace.read(self._learned).left(job.plan, self._device, event, time.monotonic() - job.phase_began)
        several = f"<p>video {len(job.states) + 1} of {len(job.plans)}</p>" if len(job.plans) > 1 else ""
        return several + panel.running_html(told, left)

    def ended(self, job: Job) -> str:
        """What became of a job; what it says of this machine's pace is learned."""
        last = job.events[-1]
        if last["state"] == "cancelled":
            return panel.words_html(str(last["message"]))
        if last["state"] != "done":
            return panel.error_html(str(last["message"]))
        if job.id not in self._timed:
            self._timed.add(job.id)
            self._learn(job)
        return "".join(panel.result_html(state) for state in job.states)

    def _learn(self, job: Job) -> None:
        known = pace.read(self._learned)
        for state in job.states:
            known = known.after(state.plan, self._device, state.timings)
        pace.write(self._learned, known)

    def restored(self, path: Path) -> tuple[Form, Caps, str]:
        """The form that made an mp4 of ours, and what is to be said. Raises RequestError for any other file."""
        request, caps, said = restored(path, self.rows.values())
        values = ltx_ui.values_of(request, caps)
        form = Form(caps.id, request.prompt, request.negative or "", request.fps or caps.default_fps, values)
        return form, caps, said

    def earlier(self) -> list[tuple[str, str]]:
        """(path, caption) of the newest videos in the output folder."""
        if not self.outputs.is_dir():
            return []
        found = sorted(self.outputs.glob("*.mp4"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [(str(path), _caption(path)) for path in found[:_GALLERY]]

    def settings(self, path: Path) -> str:
        """What a video of the output folder was made with."""
        try:
            found = read_metadata(path).get("request")
        except LTXError as error:
            return panel.error_html(str(error).replace(str(path), path.name))
        if not isinstance(found, Mapping):
            return panel.words_html(f"{path.name}: no settings are in it.")
        return panel.settings_html(path.name, found)

    def open_folder(self) -> str:
        """Show the videos in the machine's own file manager, and say where they are."""
        folder = self.outputs.absolute()
        if not folder.is_dir():
            return panel.words_html(f"{folder} is made with the first video.")
        opener = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
        screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
        found = shutil.which(opener)
        if found and screen:
            subprocess.Popen([found, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return panel.words_html(f"the videos are in {folder}")


def _caption(path: Path) -> str:
    try:
        request = read_metadata(path).get("request")
    except LTXError:
        return path.name
    if not isinstance(request, Mapping):
        return path.name
    return f"{request.get('prompt', '')} | {request.get('model', '')}, seed {request.get('seed', '?')}"


def _path(_name: str, value: Any) -> str | None:
    """Uploads are paths already; a video may come as a pair with its subtitles."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return str(value) if value else None
