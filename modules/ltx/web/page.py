"""The web app's page: its layout, and which event asks the desk for what.

Decides nothing: every event hands the page's values to `desk.py` and shows what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from modules.ltx import ltx_ui, panel
from modules.ltx.advice import Advice
from modules.ltx.errors import LTXError
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_util import get_frames
from modules.ltx.serve_jobs import Job
from modules.ltx.serve_request import in_words
from modules.ltx.web.components import CSS, IN_STEP, KEYS, regard, theme, update
from modules.ltx.web.desk import Desk, Form
from modules.ltx.web.layout import Layout, named

__all__ = ["CSS", "Page", "theme"]
_BEAT = 0.25  # seconds between two looks at a running job
_QUIET: dict[str, Any] = {"show_progress": "hidden"}
_LIVE: dict[str, Any] = {**_QUIET, "queue": False, "trigger_mode": "always_last"}


class Page(Layout):
    """The components and the events between them."""

    def __init__(self, desk: Desk) -> None:
        with gr.Blocks(title="LTX video", analytics_enabled=False) as self.blocks:
            super().__init__(desk)
            self._plans()
            self._sized_by_shape_and_time()
            self._jobs()
            self._restores()
            self.queue.wire()
            self.drafts.wire(self.form, self.read)
            for script in (KEYS, IN_STEP):
                self.blocks.load(None, js=script)

    def _plans(self) -> None:
        """The plan follows every value; another model brings its own."""
        inputs = [one for one in self.form if one is not self.model]
        gr.on([one.change for one in inputs], self._planned, self.form, self.planned, **_LIVE)
        change = self.model.input(self._changed, self.model, self.filled, **_LIVE)
        change.then(self._planned, self.form, self.planned, **_LIVE)
        self.blocks.load(self._planned, self.form, self.planned, **_LIVE)

    def _sized_by_shape_and_time(self) -> None:
        size = [self.controls["width"], self.controls["height"]]
        self.preset.input(self._sized, [self.model, self.preset], size, **_LIVE)
        frames = self.controls["frames"]
        frames.input(lambda count, fps: round(count / (fps or 1), 2), [frames, self.fps], self.seconds, **_LIVE)
        length = partial(gr.on, fn=_frames, inputs=[self.model, self.seconds, self.fps], outputs=frames, **_LIVE)
        length([self.seconds.input, self.fps.input])

    def _jobs(self) -> None:
        self.generate.click(partial(self._run, self.desk.start), self.form, self.shown, **_QUIET)
        self.both.click(partial(self._run, self.desk.start_both), self.form, self.shown, **_QUIET)
        self.drafts.finish.click(self._finished, self.drafts.picked, self.shown, **_QUIET)
        self.add.click(self._added, self.form, [self.tabs, self.queue.table, self.queue.said], **_QUIET)
        self.blocks.load(self._resumed, None, self.shown, **_QUIET)
        self.cancel.click(self._cancelled, self.job, None, queue=False, **_QUIET)
        self.pause.click(self._paused, self.pause, self.pause, queue=False, **_QUIET)

    def _restores(self) -> None:
        """What fills the form: files, earlier videos, advice."""
        filled = [self.model, self.prompt, self.negative, self.styles, *self.filled]
        for event, path in (
            (self.file.upload, self.file),
            (self.again.click, self.made),
            (self.use.click, self.picked),
        ):
            done = event(self._restored, path, [self.told, *filled], **_QUIET)
            done.then(self._planned, self.form, self.planned, **_LIVE)
        for button, advice in ((self.help, self.advice), (self.save, self.rescue)):
            done = button.click(self._advised, [advice, *self.form], filled, **_QUIET)
            done.then(self._planned, self.form, self.planned, **_LIVE)
        self.same.click(self._seed, self.made, self.controls["seed"], **_QUIET)
        self.earlier.select(self.desk.earlier, None, self.gallery, **_QUIET)
        self.gallery.select(self._look, None, [self.chosen, self.picked, self.use], **_QUIET)
        self.folder.click(self.desk.open_folder, None, self.chosen, **_QUIET)

    def read(self, values: Sequence[Any]) -> Form:
        """The values of `form` as a form."""
        model, prompt, negative, styles, fps, *rest = values
        count = len(self.controls)
        controls, output = named(list(self.controls), rest[:count]), named(list(self.outputs), rest[count:])
        return Form(model, prompt or "", negative or "", float(fps or 0), controls, tuple(styles or ()), output)

    def fill(self, form: Form, caps: Caps) -> list[Any]:
        """The updates of `filled` that show a form."""
        seen, frames = ltx_ui.sections(caps), form.values["frames"] or caps.default_frames
        return [
            self.desk.about(caps),
            gr.update(choices=list(ltx_ui.presets(caps)), value=None),
            round(frames / (form.fps or caps.default_fps), 2),
            form.fps,
            *(gr.update(visible=seen[section]) for section in self.groups),
            *(update(one, form.values[one.control.name]) for one in ltx_ui.shown(caps, form.values)),
        ]

    def _changed(self, model: str) -> list[Any]:
        """Everything as another variant has it."""
        caps = self.desk.rows[model]
        own = {one.control.name: one.value for one in ltx_ui.shown(caps)}
        return self.fill(Form(model, "", "", caps.default_fps, own), caps)

    def _planned(self, *values: Any) -> list[Any]:
        form = self.read(values)
        told = self.desk.planned(form)
        dependent = ltx_ui.dependent(self.desk.rows[form.model], form.values)
        wrong = {"self_refine_plan": told.wrong}
        live = [regard(one, wrong.get(one.control.name, "")) for one in dependent]
        return [told.html, *live, _help(told.advice), told.advice]

    def _sized(self, model: str, name: str | None) -> tuple[Any, Any]:
        width, height = ltx_ui.presets(self.desk.rows[model]).get(name or "", (gr.skip(), gr.skip()))
        return width, height

    def _run(self, start: Callable[[Form], Job], *values: Any) -> Iterator[list[Any]]:
        try:
            job = start(self.read(values))
        except LTXError as error:
            yield self._shown(state=panel.error_html(in_words(str(error))), tab="video")
            return
        yield from self._followed(job)

    def _added(self, *values: Any) -> tuple[Any, str, str]:
        """One more job for the queue; what is being shown goes on."""
        try:
            job = self.desk.start(self.read(values))
        except LTXError as error:
            return gr.update(selected="queue"), self.desk.line(), panel.error_html(in_words(str(error)))
        ahead = job.events[-1]["message"]
        said = "it is in the queue" + (f", {ahead}" if ahead else "")
        return gr.update(selected="queue"), self.desk.line(), panel.words_html(said)

    def _finished(self, draft: str) -> Iterator[list[Any]]:
        try:
            job = self.desk.finish(draft)
        except LTXError as error:
            yield self._shown(state=panel.error_html(in_words(str(error))), tab="video")
            return
        yield from self._followed(job)

    def _resumed(self) -> Iterator[list[Any]]:
        """A page that was opened anew finds the job that is running, or behind its plan the last one."""
        job = self.desk.jobs.last
        if job is None:
            yield self._shown()
            return
        yield from self._followed(job, tab="video" if job.running else None)

    def _followed(self, job: Job, tab: str | None = "video") -> Iterator[list[Any]]:
        """A job to its end, then those behind it in the queue; for them no tab is turned to, since one may be looking
        at the queue."""
        yield from self._one(job, tab)
        while (after := self.desk.jobs.running) is not None and not self.desk.jobs.closing:
            yield from self._one(after, None)

    def _one(self, job: Job, tab: str | None) -> Iterator[list[Any]]:
        """The tab is turned to once, at the beginning: whoever looks elsewhere meanwhile is let."""
        seen: Any = None
        while job.running and not self.desk.jobs.closing:
            picture = gr.skip()
            if job.preview is not None and job.preview is not seen:
                seen = job.preview
                picture = gr.update(value=seen, visible=True)
            yield self._shown(state=self.desk.running(job), preview=picture, tab=tab, running=True, job=job.id)
            tab = None
            time.sleep(_BEAT)
        media = [state.media for state in job.states if state.media is not None]
        first = str(media[0].path) if media else None
        second = str(media[1].path) if len(media) > 1 else None
        maps = [str(path) for one in media for path in one.maps]
        yield self._shown(
            preview=gr.update(visible=False),
            video=gr.update(value=first, label="Without the self-refiner" if second else "Video"),
            other=gr.update(value=second, visible=second is not None),
            maps=gr.update(value=maps, visible=bool(maps)),
            done=self.desk.ended(job),
            tab=tab,
            job=job.id,
            made=str(media[-1].path) if media else "",
            rescue=self.desk.advice(job),
        )

    def _shown(
        self,
        *,
        state: Any = "",
        preview: Any = None,
        video: Any = None,
        other: Any = None,
        maps: Any = None,
        done: Any = None,
        tab: str | None = None,
        running: bool = False,
        job: str = "",
        made: str = "",
        rescue: Advice | None = None,
    ) -> list[Any]:
        """The outputs of a job's events; what is None stays as it is."""
        kept = [gr.skip() if one is None else one for one in (preview, video, other, maps, "" if running else done)]
        buttons = [gr.update(interactive=not running)] * 2 + [gr.update(interactive=running)] * 2
        after = [gr.update(interactive=bool(made))] * 2
        tabs = gr.skip() if tab is None else gr.update(selected=tab)
        return [tabs, state, *kept, _help(rescue), *buttons, *after, job, made, rescue]

    def _cancelled(self, job: str) -> None:
        shown = self.desk.jobs.get(job) or self.desk.jobs.running
        if shown is not None:
            self.desk.jobs.cancel(shown)

    def _paused(self, label: str) -> str:
        self.desk.jobs.host.pause(label == "Pause")
        return "Go on" if label == "Pause" else "Pause"

    def _restored(self, path: str | None) -> list[Any]:
        """The form of a video's settings; first what is said of it."""
        nothing = [gr.skip()] * (4 + len(self.filled))
        if not path:
            return [gr.skip(), *nothing]
        try:
            form, caps, said = self.desk.restored(Path(path))
        except LTXError as error:
            return [panel.error_html(in_words(str(error))), *nothing]
        return [panel.words_html(said), *self._form_of(form, caps)]

    def _advised(self, given: Advice | None, *values: Any) -> list[Any]:
        """The form as the button's advice has it."""
        if given is None:
            return [gr.skip()] * (4 + len(self.filled))
        return self._form_of(*self.desk.advised(self.read(values), given))

    def _form_of(self, form: Form, caps: Caps) -> list[Any]:
        return [form.model, form.prompt, form.negative, list(form.styles), *self.fill(form, caps)]

    def _seed(self, path: str) -> Any:
        """The seed of the last video into its field."""
        return self.desk.restored(Path(path))[0].values["seed"] if path else gr.skip()

    def _look(self, event: gr.SelectData) -> tuple[str, str, Any]:
        path, _ = self.desk.earlier()[event.index]
        return self.desk.settings(Path(path)), path, gr.update(interactive=True)


def _help(given: Advice | None) -> Any:
    """The button that does what would help."""
    return gr.update(visible=given is not None, value=given.label if given else "")


def _frames(model: str, seconds: float | None, fps: float | None) -> int:
    return get_frames(round((seconds or 0) * (fps or 24)) + 1)
