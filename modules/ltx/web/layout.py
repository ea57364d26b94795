"""The web app's page without its events: which component stands where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import gradio as gr

from modules.ltx import ltx_ui
from modules.ltx.ltx_capabilities import Caps, caps_for
from modules.ltx.web.components import component
from modules.ltx.web.desk import Desk
from modules.ltx.web.line import Drafts, Queue

_OPEN = ("Size", "Input media", "Stages", "Self-refiner")


class Layout:
    """The components, by what they are for."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.controls: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        caps = caps_for("nano")[0]
        self.live = [one.control.name for one in ltx_ui.dependent(caps, {})]
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                self._ask(caps)
            with gr.Column(scale=6, min_width=340):
                self._show()

    def _ask(self, caps: Caps) -> None:
        """What can be asked, on the left."""
        models, info = self.desk.models(), "type to search"
        self.model = gr.Dropdown(models, value=caps.id, label="Model", info=info, elem_id="ltx_model", filterable=True)
        self.about = gr.HTML(self.desk.about(caps), elem_classes=["ltx-about"])
        self._words()
        with gr.Row():
            small: dict[str, Any] = {"min_width": 90, "size": "md"}
            self.generate = gr.Button("Generate", variant="primary", elem_id="ltx_generate", **small)
            self.add = gr.Button("Queue it", elem_id="ltx_add", **small)
            self.both = gr.Button("Compare", elem_id="ltx_both", **small)
            self.pause = gr.Button("Pause", interactive=False, elem_id="ltx_pause", **small)
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="ltx_cancel", **small)
        visible = ltx_ui.sections(caps)
        for section in ltx_ui.SECTIONS:
            with gr.Accordion(section, open=section in _OPEN, visible=visible[section]) as group:
                self.groups[section] = group
                if section == "Size":
                    self._sizes(caps)
                _fill((one for one in ltx_ui.shown(caps) if one.control.section == section), self.controls)
        with gr.Accordion("Output", open=False):
            _fill(ltx_ui.outputs(caps), self.outputs)

    def _words(self) -> None:
        example, styles = "a small red ball moving right on black", list(self.desk.styles())
        self.prompt = gr.Textbox(label="Prompt", lines=3, placeholder=example, elem_id="ltx_prompt")
        self.negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="ltx_negative")
        self.styles = gr.Dropdown(
            styles, value=[], multiselect=True, label="Styles", visible=bool(styles), elem_id="ltx_styles"
        )

    def _sizes(self, caps: Caps) -> None:
        with gr.Row():
            self.preset = gr.Dropdown(
                list(ltx_ui.presets(caps)), value=None, label="Size by shape", elem_id="ltx_preset"
            )
            seconds = round(caps.default_frames / caps.default_fps, 2)
            self.seconds = gr.Number(seconds, label="Seconds", minimum=0.04, step=0.1, elem_id="ltx_seconds")
            self.fps = gr.Number(caps.default_fps, label="Frames a second", minimum=1, maximum=120, elem_id="ltx_fps")

    def _show(self) -> None:
        """What is shown, on the right."""
        with gr.Tabs(selected="plan") as self.tabs:
            with gr.Tab("Before you run", id="plan"):
                self.plan = gr.HTML(elem_id="ltx_plan")
                self.help = gr.Button(visible=False, variant="primary", elem_id="ltx_help")
            with gr.Tab("Video", id="video"):
                self._result()
            self.queue, self.drafts = Queue(self.desk), Drafts(self.desk)
            with gr.Tab("Earlier videos", id="earlier") as self.earlier:
                told = "Newest first; choose one to see its settings"
                self.gallery = gr.Gallery(label=told, columns=3, elem_id="ltx_gallery")
                with gr.Row():
                    self.use = gr.Button("Use its settings", interactive=False, elem_id="ltx_use")
                    self.folder = gr.Button("Open folder", elem_id="ltx_folder")
                self.chosen = gr.HTML(elem_id="ltx_chosen")
            with gr.Tab("Settings of a file", id="restore"):
                self.file = gr.File(label="Drop an mp4 that was made here", file_types=[".mp4"], elem_id="ltx_restore")
                self.told = gr.HTML(elem_id="ltx_told")
        self.job = gr.State("")  # the id of the job that this page shows
        self.made = gr.State("")  # the path of its video
        self.picked = gr.State("")  # the path of the earlier one that was chosen
        self.advice, self.rescue = gr.State(None), gr.State(None)  # what the two buttons that help would do

    def _result(self) -> None:
        self.state = gr.HTML(elem_id="ltx_state")
        self.preview = gr.Image(label="Preview", visible=False, interactive=False, elem_id="ltx_preview")
        with gr.Row():
            playing: dict[str, Any] = {"interactive": False, "autoplay": True, "loop": True, "min_width": 160}
            self.video = gr.Video(label="Video", elem_id="ltx_video", **playing)
            self.other = gr.Video(label="With the self-refiner", visible=False, elem_id="ltx_other", **playing)
        self.maps = gr.Gallery(label="Where the model was uncertain", visible=False, elem_id="ltx_maps")
        with gr.Row():
            self.again = gr.Button("Use these settings", interactive=False, elem_id="ltx_again")
            self.same = gr.Button("Use its seed", interactive=False, elem_id="ltx_same")
        self.done = gr.HTML(elem_id="ltx_done")
        self.save = gr.Button(visible=False, variant="primary", elem_id="ltx_save")

    @property
    def shown(self) -> list[Any]:
        """What the events of a job change, in the order of `Page._shown`."""
        return [
            *(self.tabs, self.state, self.preview, self.video, self.other, self.maps, self.done, self.save),
            *(self.generate, self.both, self.cancel, self.pause, self.again, self.same),
            *(self.job, self.made, self.rescue),
        ]

    @property
    def planned(self) -> list[Any]:
        """What a plan changes, in the order of `Page._planned`."""
        return [self.plan, *(self.controls[name] for name in self.live), self.help, self.advice]

    @property
    def form(self) -> list[Any]:
        """What makes up a form, in the order of `Page.read`."""
        words = [self.model, self.prompt, self.negative, self.styles, self.fps]
        return [*words, *self.controls.values(), *self.outputs.values()]

    @property
    def filled(self) -> list[Any]:
        """What another model or other settings change, in the order of `Page.fill`."""
        about = [self.about, self.preset, self.seconds, self.fps]
        return [*about, *self.groups.values(), *self.controls.values()]


def _fill(several: Iterable[ltx_ui.Shown], made: dict[str, Any]) -> None:
    """Controls in their order: small ones beside one another, large ones below one another."""
    for large, ones in ltx_ui.blocks(several):
        with nullcontext() if large else gr.Row():
            for one in ones:
                made[one.control.name] = component(one)


def named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values by the names of their components."""
    return dict(zip(names, values, strict=True))
