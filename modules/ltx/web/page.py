"""The web app's page: the controls of `ltx_controls.py` as gradio components, and which event asks the desk for what.

Decides nothing: every event hands the page's values to `desk.py` and shows what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from modules.ltx import ltx_ui, panel
from modules.ltx.errors import LTXError
from modules.ltx.ltx_capabilities import Caps, caps_for
from modules.ltx.ltx_util import get_frames
from modules.ltx.serve_jobs import Job
from modules.ltx.serve_request import in_words
from modules.ltx.web.desk import Desk, Form

_OPEN = ("Size", "Input media", "Stages", "Self-refiner")
_BEAT = 0.25  # seconds between two looks at a running job
# Fonts of the machine alone: the page loads nothing from elsewhere.
_FONT, _MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
CSS = """
.ltx-about {opacity: .85; padding: 0 .6em}
.ltx-panel table, .ltx-panel th, .ltx-panel td {border: none}
footer {display: none !important}
"""
_KEYS = """() => document.addEventListener('keydown', (event) => {
    const press = (id) => document.querySelector(`#${id}:not([disabled])`)?.click();
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) press('ltx_generate');
    if (event.key === 'Escape') press('ltx_cancel');
})"""

Update = dict[str, Any]


def theme() -> Any:
    return gr.themes.Default(font=_FONT, font_mono=_MONO)


class Page:
    """The components, by what they are for, and the events between them."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.controls: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        caps = caps_for("nano")[0]
        with gr.Blocks(title="LTX video", analytics_enabled=False) as self.blocks:
            with gr.Row():
                with gr.Column(scale=5, min_width=340):
                    self._ask(caps)
                with gr.Column(scale=6, min_width=340):
                    self._show()
            self._wire()

    def _ask(self, caps: Caps) -> None:
        """What can be asked, on the left."""
        self.model = gr.Dropdown(
            self.desk.models(),
            value=caps.id,
            label="Model",
            info="type to search",
            elem_id="ltx_model",
            filterable=True,
        )
        self.about = gr.HTML(self.desk.about(caps), elem_classes=["ltx-about"])
        self.prompt = gr.Textbox(
            label="Prompt", lines=3, placeholder="a small red ball moving right on black", elem_id="ltx_prompt"
        )
        self.negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="ltx_negative")
        with gr.Row():
            small: dict[str, Any] = {"min_width": 90, "size": "md"}
            self.generate = gr.Button("Generate", variant="primary", elem_id="ltx_generate", **small)
            self.both = gr.Button("Compare", elem_id="ltx_both", **small)
            self.pause = gr.Button("Pause", interactive=False, elem_id="ltx_pause", **small)
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="ltx_cancel", **small)
        visible = ltx_ui.sections(caps)
        for section in ltx_ui.SECTIONS:
            with gr.Accordion(section, open=section in _OPEN, visible=visible[section]) as group:
                self.groups[section] = group
                if section == "Size":
                    self._sizes(caps)
                self._fill([one for one in ltx_ui.shown(caps) if one.control.section == section])

    def _sizes(self, caps: Caps) -> None:
        with gr.Row():
            self.preset = gr.Dropdown(
                list(ltx_ui.presets(caps)), value=None, label="Size by shape", elem_id="ltx_preset"
            )
            seconds = round(caps.default_frames / caps.default_fps, 2)
            self.seconds = gr.Number(seconds, label="Seconds", minimum=0.04, step=0.1, elem_id="ltx_seconds")
            self.fps = gr.Number(caps.default_fps, label="Frames a second", minimum=1, maximum=120, elem_id="ltx_fps")

    def _fill(self, several: Sequence[ltx_ui.Shown]) -> None:
        """Controls in their order: small ones beside one another, large ones below one another."""
        for large, ones in ltx_ui.blocks(several):
            with nullcontext() if large else gr.Row():
                for one in ones:
                    self.controls[one.control.name] = component(one)

    def _show(self) -> None:
        """What is shown, on the right."""
        with gr.Tabs(selected="plan") as self.tabs:
            with gr.Tab("Before you run", id="plan"):
                self.plan = gr.HTML(elem_id="ltx_plan")
            with gr.Tab("Video", id="video"):
                self.state = gr.HTML(elem_id="ltx_state")
                self.preview = gr.Image(label="Preview", visible=False, interactive=False, elem_id="ltx_preview")
                with gr.Row():
                    self.video = gr.Video(
                        label="Video", interactive=False, elem_id="ltx_video", autoplay=True, loop=True
                    )
                    self.other = gr.Video(
                        label="With the self-refiner",
                        interactive=False,
                        visible=False,
                        elem_id="ltx_other",
                        autoplay=True,
                    )
                self.maps = gr.Gallery(label="Where the model was uncertain", visible=False, elem_id="ltx_maps")
                with gr.Row():
                    self.again = gr.Button("Use these settings", interactive=False, elem_id="ltx_again")
                    self.same = gr.Button("Same seed", interactive=False, elem_id="ltx_same")
                self.done = gr.HTML(elem_id="ltx_done")
            with gr.Tab("Earlier videos", id="earlier") as self.earlier:
                self.gallery = gr.Gallery(
                    label="Newest first; choose one to see its settings", columns=3, elem_id="ltx_gallery"
                )
                self.chosen = gr.HTML()
            with gr.Tab("Settings of a file", id="restore"):
                self.file = gr.File(label="Drop an mp4 that was made here", file_types=[".mp4"], elem_id="ltx_restore")
                self.told = gr.HTML(elem_id="ltx_told")
        self.job = gr.State("")  # the id of the job that this page shows
        self.made = gr.State("")  # the path of its video

    @property
    def _form(self) -> list[Any]:
        return [self.model, self.prompt, self.negative, self.fps, *self.controls.values()]

    def form(self, values: Sequence[Any]) -> Form:
        """The values of `_form` as a form."""
        model, prompt, negative, fps, *rest = values
        named = dict(zip(self.controls, rest, strict=True))
        return Form(model, prompt or "", negative or "", float(fps or 0), named)

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        live: dict[str, Any] = {**quiet, "queue": False, "trigger_mode": "always_last"}
        planned = [self.plan, self.controls["self_refine_plan"]]
        inputs = [one for one in self._form if one is not self.model]
        gr.on([one.change for one in inputs], self._planned, self._form, planned, **live)
        chosen = [self.about, self.preset, self.seconds, self.fps, *self.groups.values(), *self.controls.values()]
        change = self.model.input(self._changed, self.model, chosen, **live)
        change.then(self._planned, self._form, planned, **live)
        self.preset.input(
            self._sized, [self.model, self.preset], [self.controls["width"], self.controls["height"]], **live
        )
        frames = self.controls["frames"]
        frames.input(lambda count, fps: round(count / (fps or 1), 2), [frames, self.fps], self.seconds, **live)
        length = partial(gr.on, fn=_frames, inputs=[self.model, self.seconds, self.fps], outputs=frames, **live)
        length([self.seconds.input, self.fps.input])
        shown = [
            *(self.tabs, self.state, self.preview, self.video, self.other, self.maps, self.done),
            *(self.generate, self.both, self.cancel, self.pause, self.again, self.same, self.job, self.made),
        ]
        self.generate.click(partial(self._run, self.desk.start), self._form, shown, **quiet)
        self.both.click(partial(self._run, self.desk.start_both), self._form, shown, **quiet)
        self.blocks.load(self._planned, self._form, planned, **live)
        self.blocks.load(self._resumed, None, shown, **quiet)
        self.blocks.load(None, js=_KEYS)
        self.cancel.click(self._cancelled, self.job, None, queue=False, **quiet)
        self.pause.click(self._paused, self.pause, self.pause, queue=False, **quiet)
        restored = [self.told, self.model, self.prompt, self.negative, *chosen]
        self.file.upload(self._restored, self.file, restored, **quiet)
        self.again.click(self._restored, self.made, restored, **quiet)
        self.same.click(self._seed, self.made, self.controls["seed"], **quiet)
        self.earlier.select(self.desk.earlier, None, self.gallery, **quiet)
        self.gallery.select(self._look, None, self.chosen, **quiet)

    def _changed(self, model: str) -> list[Any]:
        """Everything as another variant has it."""
        caps = self.desk.rows[model]
        seconds = round(caps.default_frames / caps.default_fps, 2)
        return [
            self.desk.about(caps),
            gr.update(choices=list(ltx_ui.presets(caps)), value=None),
            seconds,
            caps.default_fps,
            *self._groups(caps),
            *(gr.update(visible=one.applies, value=one.value) for one in ltx_ui.shown(caps)),
        ]

    def _groups(self, caps: Caps) -> list[Any]:
        seen = ltx_ui.sections(caps)
        return [gr.update(visible=seen[section]) for section in self.groups]

    def _planned(self, *values: Any) -> tuple[str, Any]:
        shown, wrong = self.desk.planned(self.form(values))
        control = ltx_ui.CONTROLS[list(self.controls).index("self_refine_plan")]
        return shown, gr.update(info=wrong or control.help)

    def _sized(self, model: str, name: str | None) -> tuple[Any, Any]:
        width, height = ltx_ui.presets(self.desk.rows[model]).get(name or "", (gr.skip(), gr.skip()))
        return width, height

    def _run(self, start: Callable[[Form], Job], *values: Any) -> Iterator[list[Any]]:
        try:
            job = start(self.form(values))
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
        seen: Any = None
        while job.running and not self.desk.jobs.closing:
            picture = gr.skip()
            if job.preview is not None and job.preview is not seen:
                seen = job.preview
                picture = gr.update(value=seen, visible=True)
            yield self._shown(state=self.desk.running(job), preview=picture, tab="video", running=True, job=job.id)
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
    ) -> list[Any]:
        """The outputs of a job's events; what is None stays as it is."""
        kept = [gr.skip() if one is None else one for one in (preview, video, other, maps, "" if running else done)]
        buttons = [gr.update(interactive=not running)] * 2 + [gr.update(interactive=running)] * 2
        after = [gr.update(interactive=bool(made))] * 2
        tabs = gr.skip() if tab is None else gr.update(selected=tab)
        return [tabs, state, *kept[:4], kept[4], *buttons, *after, job, made]

    def _cancelled(self, job: str) -> None:
        shown = self.desk.jobs.get(job) or self.desk.jobs.running
        if shown is not None:
            self.desk.jobs.cancel(shown)

    def _paused(self, label: str) -> str:
        self.desk.jobs.host.pause(label == "Pause")
        return "Go on" if label == "Pause" else "Pause"

    def _restored(self, path: str | None) -> list[Any]:
        count = 7 + len(self.groups) + len(self.controls)
        if not path:
            return [gr.skip()] * (count + 1)
        try:
            form, caps = self.desk.restored(Path(path))
        except LTXError as error:
            return [panel.error_html(in_words(str(error))), *[gr.skip()] * count]
        applies = {one.control.name: one.applies for one in ltx_ui.shown(caps)}
        frames = form.values["frames"] or caps.default_frames
        return [
            panel.words_html(f"the settings of {Path(path).name} are in the form now"),
            form.model,
            form.prompt,
            form.negative,
            self.desk.about(caps),
            gr.update(choices=list(ltx_ui.presets(caps)), value=None),
            round(frames / form.fps, 2),
            form.fps,
            *self._groups(caps),
            *(gr.update(visible=applies[name], value=form.values[name]) for name in self.controls),
        ]

    def _seed(self, path: str) -> Any:
        """The seed of the last video into its field."""
        return self.desk.restored(Path(path))[0].values["seed"] if path else gr.skip()

    def _look(self, event: gr.SelectData) -> str:
        _, caption = self.desk.earlier()[event.index]
        return panel.words_html(caption)


def _frames(model: str, seconds: float | None, fps: float | None) -> int:
    return get_frames(round((seconds or 0) * (fps or 24)) + 1)


def component(one: ltx_ui.Shown) -> Any:
    """A control as gradio has it."""
    control = one.control
    low, high, step = control.span or (0, 1, 1)
    kinds: dict[str, tuple[Any, Update]] = {
        "slider": (gr.Slider, {"minimum": low, "maximum": high, "step": step}),
        "number": (gr.Number, {"precision": 0}),
        "checkbox": (gr.Checkbox, {}),
        "choice": (gr.Dropdown, {"choices": [(name or "none", name) for name in control.choices]}),
        "image": (gr.Image, {"type": "filepath", "height": 220}),
        "files": (gr.File, {"file_count": "multiple", "file_types": ["image"]}),
        "video": (gr.Video, {"height": 220}),
        "text": (gr.Textbox, {"max_lines": 1}),
        "lines": (gr.Textbox, {"lines": 2}),
    }
    kind, given = kinds[control.kind]
    label = control.label.removeprefix("LTX ")
    label = label[0].upper() + label[1:]
    if control.kind not in ("image", "files", "video"):
        given |= {"info": control.help, "min_width": 200}
    return kind(label=label, value=one.value, visible=one.applies, elem_id=f"ltx_{control.name}", **given)
