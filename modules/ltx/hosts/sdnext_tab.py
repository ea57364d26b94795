"""SD.Next's LTX tab: its layout in gradio 3.43, the events between its parts, and what its buttons do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modules.ltx import front, ltx_ui, panel
from modules.ltx.errors import Cancelled, LTXError, RequestError
from modules.ltx.hosts import sdnext_asked, sdnext_form
from modules.ltx.hosts.sdnext import SDNextHost, resident, ui
from modules.ltx.hosts.sdnext_asked import planned, seed_of
from modules.ltx.hosts.sdnext_rows import caps_of
from modules.ltx.ltx_capabilities import caps_for

# Shown by the page itself, before the server answers: the last message is no answer to this click. While a job of this
# page is at work, gradio drops a second click.
_SENT = f"""() => document.querySelector("#ltx_generation_info .working")
    ? {json.dumps(panel.working_html("LTX: a job of this page is still running; click again when it has ended"))}
    : {json.dumps(panel.working_html("LTX: sent, waiting for the server"))}"""


_QUIET: dict[str, Any] = {"show_progress": "hidden"}
_NOW: dict[str, Any] = {**_QUIET, "queue": False}  # quick answers do not stand in line with jobs
# A model's name is longer than the column of some themes is wide; it stands whole in the line below it.
_CSS = """
#ltx_model input{text-overflow:ellipsis}
#ltx_settings .block:not(:has(.block)):has(:is(input,textarea):disabled){opacity:.55}
"""


def create(*theirs: Any) -> None:
    """Build the tab into the page that is being built; where that fails, the UI's own tab, with a line in the log.

    An exception here would end the whole UI.
    """
    gradio: Any = __import__("gradio")
    block = gradio.context.Context.block
    before = len(block.children) if block is not None else 0
    try:
        _Tab(gradio, theirs)
    except Exception as error:
        ui("logger").log.error(f"LTX video: the tab could not be built ({error!r}); this is SD.Next's own")
        if block is not None:
            del block.children[before:]
        fall_back = resident().fall_back
        if fall_back is not None:
            fall_back()
        ui("ltx.ltx_ui").create_ui(*theirs)


class _Tab:
    """The components, and the events between them."""

    def __init__(self, gr: Any, theirs: Sequence[Any]) -> None:
        self.gr = gr
        self.prompt, self.negative, self.styles, _overrides, *self.output = theirs
        around = gr.context.Context.block
        self.rows = sdnext_form.model_rows()
        chosen = sdnext_form.default_row(self.rows)
        self.caps = caps_of(chosen) or caps_for("nano")[0]
        self.made: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        with gr.Row():
            with gr.Column(variant="compact", elem_id="ltx_settings", elem_classes=["settings-column"], scale=1):
                self._ask(chosen)
            with gr.Column(elem_id="ltx-output-column", scale=2):
                self._show()
        swap, random = self.made.pop("swap"), self.made.pop("random")
        self.inputs = [self.model, self.prompt, self.negative, self.styles, *self.output, *self.made.values()]
        self.plans: dict[str, Any] = {"fn": planned, "inputs": self.inputs, "outputs": [self.plan], **_NOW}
        self.plan.value = planned(*[getattr(one, "value", None) for one in self.inputs])
        size = [self.made["width"], self.made["height"]]
        swap.click(fn=sdnext_form.swapped, inputs=size, outputs=size, **_NOW).then(**self.plans)
        random.click(fn=sdnext_form.any_seed, inputs=[], outputs=[self.made["seed"]], **_NOW).then(**self.plans)
        self._plans(around)
        self._restores()
        self._jobs()

    def _ask(self, chosen: str) -> None:
        """What can be asked, on the left."""
        gr, caps, visible = self.gr, self.caps, ltx_ui.sections(self.caps)
        gr.HTML(f"<style>{panel.CSS}{_CSS}</style>", elem_id="ltx_style", visible=False)
        self.generate = gr.Button("Generate", elem_id="ltx_generate_btn", variant="primary", visible=False)
        with gr.Row(elem_id="ltx_model_row"):
            listed = sdnext_form.grouped(self.rows)
            self.model = gr.Dropdown(label="LTX model", choices=listed, value=chosen, elem_id="ltx_model")
            self.loads = sdnext_form.tool(gr, "loading", "video_model_load_ltx")
        self.about = gr.HTML(value=panel.about_html(caps, sdnext_asked.here(caps)), elem_id="ltx_about")
        for section in ltx_ui.SECTIONS:
            ident = f"ltx_{section.lower().replace(' ', '_').replace('-', '_')}_accordion"
            opened = section in sdnext_form.OPEN
            group = gr.Accordion(label=section, open=opened, elem_id=ident, visible=visible[section])
            self.groups[section] = group
            with group:
                if section == "Input media":
                    self.media = gr.HTML(value=sdnext_form.media_help(caps), elem_id="ltx_media_help")
                sdnext_form.section(gr, section, caps, self.made)

    def _show(self) -> None:
        """What is shown, on the right."""
        gr = self.gr
        # Not a place to drop a video: that would be taken for the last one that was made.
        playing = {"show_label": False, "height": 384, "interactive": False}
        self.video = gr.Video(label="Output", elem_id="ltx_output_video", **playing)
        with gr.Row(elem_id="ltx_last_video"):
            self.again = gr.Button("Use the last video's settings", elem_id="ltx_again", size="sm")
            self.same = gr.Button("Use its seed", elem_id="ltx_same", size="sm")
        self.told = gr.HTML("", elem_id="ltx_told", show_label=False)
        self.text = gr.HTML("", elem_id="ltx_generation_info", show_label=False)
        self.plan = gr.HTML("", elem_id="ltx_plan", show_label=False)
        with gr.Accordion(label="Settings of a file", open=False, elem_id="ltx_restore_accordion"):
            label = "Drop an mp4 that was made here: its settings fill the form"
            self.file = gr.File(label=label, file_types=[".mp4"], elem_id="ltx_restore")

    def _plans(self, around: Any) -> None:
        """The plan follows every value; another model brings its own."""
        changed = self.model.change(fn=self.change, inputs=[self.model], outputs=self.changed, **_NOW)
        changed.then(**self.plans)
        for one in (self.prompt, self.negative, *self.output, *self.made.values()):
            # A change of model changes every control, but nobody put anything into them.
            (one.input if hasattr(one, "input") else one.change)(**self.plans)
        if hasattr(around, "select"):
            # The UI puts saved values into the form after it was built, and the prompt belongs to other tabs, too.
            around.select(**self.plans)
        dependent = [self.made[one.control.name] for one in ltx_ui.dependent(self.caps, {})]
        inputs = [self.model, *self.made.values()]
        for name in ltx_ui.DECIDING:
            self.made[name].change(fn=self.regard, inputs=inputs, outputs=dependent, **_NOW)

    def _restores(self) -> None:
        """What fills the form: a file, the last video."""
        filled = [self.told, self.model, self.prompt, self.negative, *self.changed]
        for event, source in ((self.file.upload, self.file), (self.again.click, self.video)):
            event(fn=self.restore, inputs=[source], outputs=filled, **_NOW).then(**self.plans)
        same = self.same.click(fn=seed_of, inputs=[self.video], outputs=[self.made["seed"]], **_NOW)
        same.then(**self.plans)

    def _jobs(self) -> None:
        gr = self.gr
        self.loads.click(fn=load, inputs=[self.model], outputs=[self.text], **_QUIET)
        task, state = gr.Textbox(visible=False, value=""), gr.Textbox(visible=False, value="")
        self.generate.click(fn=None, _js=_SENT, inputs=[], outputs=[self.text])
        inputs = [task, state, *self.inputs]
        self.generate.click(fn=run, _js="submit_ltx", inputs=inputs, outputs=[self.video, self.text], **_QUIET)

    @property
    def changed(self) -> list[Any]:
        """What another model changes, in the order of `change`."""
        return [self.about, self.media, *self.groups.values(), *self.made.values()]

    def change(self, name: str) -> list[Any]:
        """Everything as another variant has it."""
        gr, row = self.gr, caps_of(name or "")
        if row is None:
            return [gr.update() for _ in self.changed]
        seen = ltx_ui.sections(row)
        return [
            gr.update(value=panel.about_html(row, sdnext_asked.here(row))),
            gr.update(value=sdnext_form.media_help(row)),
            *(gr.update(visible=seen[section]) for section in self.groups),
            *(sdnext_form.update(gr, one, value=one.value) for one in sdnext_form.shown(row)),
        ]

    def restore(self, given: Any) -> list[Any]:
        """What a video was made with, into the form; first what is said of it."""
        gr = self.gr
        try:
            request, row, sentence = sdnext_asked.restored(given, self.rows)
        except LTXError as error:
            return [gr.update(value=panel.error_html(str(error))), *[gr.update()] * (3 + len(self.changed))]
        values, updates = ltx_ui.values_of(request, row), self.change(row.label)
        for n, one in enumerate(sdnext_form.shown(row, values), len(updates) - len(self.made)):
            updates[n] = sdnext_form.update(gr, one, value=values[one.control.name])
        words = [gr.update(value=text) for text in (row.label, request.prompt, request.negative or "")]
        return [gr.update(value=panel.words_html(sentence)), *words, *updates]

    def regard(self, name: str, *values: Any) -> list[Any]:
        """The controls that have no effect beside the others greyed, with the reason."""
        return list(sdnext_form.regarded(self.gr, caps_of(name or "") or self.caps, values))


def run(task: str, _state: str, model: str, *values: Any) -> Iterator[tuple[str | None, str]]:
    """The Generate button: what to show in the player and below it, as the job goes on."""
    host = SDNextHost(task)
    try:
        with host.queued(), tempfile.TemporaryDirectory(prefix="ltx-") as folder:
            yield None, panel.working_html(f"LTX: {_waiting()}")
            asked = sdnext_asked.read(model, values, Path(folder))
            plan = front.settle(asked.request, host)
            export = asked.output.export()
            yield None, panel.working_html(f"LTX: {sdnext_asked.announced(plan)}")
            from modules.ltx.ltx_process import run as run_plan

            state = run_plan(plan, host, encoding=asked.output.encoding, export=export)
    except Cancelled as stopped:
        yield None, panel.words_html(f"LTX: {stopped}")
    except LTXError as error:
        yield None, panel.error_html(f"LTX: {error}")
    except Exception as error:
        ui("errors").display(error, "LTX")
        yield None, panel.error_html(f"LTX: {type(error).__name__}: {str(error)[:300]}")
    else:
        assert state.media is not None
        yield str(state.media.path), panel.result_html(state, asked.output.notes(plan.frames))


def load(model: str) -> Iterator[str]:
    """The button beside the model: what to show, while the web UI loads it."""
    host = SDNextHost()
    try:
        caps = sdnext_asked.known(model)
        missing = sdnext_asked.missing_gb(caps)
        first = f"; {missing:.3g} GB are downloaded first" if missing else ""
        yield panel.words_html(f"LTX: loading {caps.label}{first}; {_waiting()}")
        row = next(row for row in front.variants(host) if row.id == caps.id)
        if row.unavailable:
            raise RequestError(f"{row.label}: cannot run here: {'; '.join(row.unavailable)}.")
        with host.lock(), host.pipeline(row, row.pipeline):
            pass
    except Cancelled as stopped:
        yield panel.words_html(f"LTX: {stopped}")
    except LTXError as error:
        yield panel.error_html(f"LTX: {error}")
    except Exception as error:
        ui("errors").display(error, "LTX")
        yield panel.error_html(f"LTX: {type(error).__name__}: {str(error)[:300]}")
    else:
        yield panel.words_html(f"LTX: {caps.label} is loaded")


def _waiting() -> str:
    """Whether a job can begin at once."""
    locked = getattr(ui("call_queue").get_lock(), "locked", bool)
    return "waiting for another job to end" if locked() else "starting"
