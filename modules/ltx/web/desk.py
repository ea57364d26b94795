"""What the web app's events ask for: plans, jobs, restored settings, earlier videos. Knows jobs and hosts, not gradio.

Everything that is shown comes back as text, HTML, a picture or a path.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from modules.ltx import ltx_ui, pace, panel
from modules.ltx.errors import LTXError, RequestError
from modules.ltx.front import request_of_file, settle, variants
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.recipe import memory_gb
from modules.ltx.request import Request
from modules.ltx.serve_jobs import Job, Jobs
from modules.ltx.serve_request import in_words, on_this_machine
from modules.ltx.state import Event

_GALLERY = 24  # videos shown, newest first


@dataclass(frozen=True)
class Form:
    """The page's values: the variant's id, words, frames a second, and its controls by name."""

    model: str
    prompt: str
    negative: str
    fps: float
    values: Mapping[str, Any]


class Desk:
    """`jobs` run; `outputs` is where their videos are, `learned` where it is kept how fast they ran."""

    def __init__(self, jobs: Jobs, outputs: Path, learned: Path) -> None:
        self.jobs, self.outputs, self._learned = jobs, outputs, learned
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
        kind = "Distilled, without guidance" if caps.is_distilled else "Dev, with guidance"
        takes = (
            "text and images at any frame"
            if caps.supports_multi_condition
            else "text and a first image"
            if caps.is_i2v
            else "text"
        )
        need = memory_gb(caps)["weights"]
        memory = (
            "runs anywhere"
            if need < 0.1
            else f"{need:g} GB of weights" + ("" if on_this_machine(caps) else ", to download first")
        )
        why = f"<br><b>cannot run here: {escape('; '.join(caps.unavailable))}</b>" if caps.unavailable else ""
        sound = "sound" if caps.supports_audio else "no sound"
        return f"LTX {caps.generation} {kind}; takes {takes}; {sound}; {memory}{why}"

    def request(self, form: Form) -> Request:
        """Raises RequestError for what cannot be asked."""
        caps = self.rows[form.model]
        seed = form.values.get("seed")
        values = dict(form.values) | {"seed": None if seed is None or int(seed) < 0 else int(seed)}
        asked = ltx_ui.Asked(form.model, form.prompt, form.negative, form.fps, _path)
        return Request.parse(ltx_ui.request_values(caps, asked, values))

    def planned(self, form: Form) -> tuple[str, str]:
        """The plan panel, and what is wrong with the self-refiner's plan, if that is it."""
        try:
            plan = settle(self.request(form), self.jobs.host)
        except LTXError as error:
            said = in_words(str(error))
            return panel.error_html(said), said if "self-refine" in str(error) or "self refine" in said else ""
        return panel.plan_html(plan, self._around(plan)), ""

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
        return self.jobs.start(settle(self.request(form), self.jobs.host))

    def start_both(self, form: Form) -> Job:
        """The same seed with the self-refiner off and on, one behind the other."""
        from modules.ltx.compare import both  # torch: seconds

        return self.jobs.start(*both(self.request(form), self.jobs.host))

    def draft(self, form: Form, count: int) -> Job:
        """Add `count` drafts: stage 1 alone, each with a seed of its own."""
        return self.jobs.draft(self.request(form), count)

    def drafts(self, job: Job) -> list[tuple[str, str | None, int]]:
        """(id, path of its picture, seed) of each draft of `job` that is done."""
        return self.jobs.drafts(job)

    def finish(self, draft: str) -> Job:
        """Add the job that makes the video of a draft. Raises Conflict where that is not done, NoSuchJob."""
        return self.jobs.finish(draft)

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

    def restored(self, path: Path) -> tuple[Form, Caps]:
        """The form that made an mp4 of ours. Raises RequestError for any other file."""
        try:
            request = Request.parse(request_of_file(path))
        except LTXError as error:
            raise RequestError(str(error).replace("--from ", "").replace(str(path), path.name)) from error
        model = next((row for row in self.rows.values() if request.model in (row.id, row.label)), None)
        if model is None:
            raise RequestError(f"{path.name}: it was made with {request.model}, which is not in the list of models.")
        caps = model
        values = ltx_ui.values_of(request, caps)
        return Form(caps.id, request.prompt, request.negative or "", request.fps or caps.default_fps, values), caps

    def earlier(self) -> list[tuple[str, str]]:
        """(path, caption) of the newest videos in the output folder."""
        if not self.outputs.is_dir():
            return []
        found = sorted(self.outputs.glob("*.mp4"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [(str(path), _caption(path)) for path in found[:_GALLERY]]


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
