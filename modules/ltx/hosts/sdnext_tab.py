"""SD.Next's LTX tab: the controls of `ltx_ui` as gradio 3.43 components, and what its Generate button does."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.ltx import front, ltx_ui, panel
from modules.ltx.errors import Cancelled, LTXError, RequestError
from modules.ltx.hosts import sdnext_settings
from modules.ltx.hosts.sdnext import ENGINE, SDNextHost, resident, ui
from modules.ltx.hosts.sdnext_rows import caps_of
from modules.ltx.ltx_capabilities import Caps, caps_for
from modules.ltx.media import Encoding
from modules.ltx.media_codecs import KNOWN_AS
from modules.ltx.request import Request
from modules.ltx.serve_request import in_words

_OPEN = ("Size", "Input media", "Stages")
_NETWORK = re.compile(r"<lora:([^:>]+)(?::([^:>]+))?[^>]*>")


def create(*theirs: Any) -> None:
    """Build the tab into the page that is being built; where that fails, the UI's own tab, with a line in the log.

    An exception here would end the whole UI.
    """
    gradio: Any = __import__("gradio")
    block = gradio.context.Context.block
    before = len(block.children) if block is not None else 0
    try:
        _build(gradio, theirs)
    except Exception as error:
        ui("logger").log.error(f"LTX video: the tab could not be built ({error!r}); this is SD.Next's own")
        if block is not None:
            del block.children[before:]
        fall_back = resident().fall_back
        if fall_back is not None:
            fall_back()
        ui("ltx.ltx_ui").create_ui(*theirs)


def _build(gr: Any, theirs: Sequence[Any]) -> None:
    prompt, negative, styles, _overrides, *output = theirs
    rows = [row.name for row in ui("video_models.models_def").models.get(ENGINE, [])]
    chosen = default_row(rows)
    caps = caps_of(chosen) or caps_for("nano")[0]
    made: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    with gr.Row():
        with gr.Column(variant="compact", elem_id="ltx_settings", elem_classes=["settings-column"], scale=1):
            generate = gr.Button("Generate", elem_id="ltx_generate_btn", variant="primary", visible=False)
            with gr.Row():
                model = gr.Dropdown(label="LTX model", choices=rows, value=chosen, elem_id="ltx_model")
            told = gr.HTML(value=panel.about_html(caps, True), elem_id="ltx_about")
            visible = ltx_ui.sections(caps)
            for section in ltx_ui.SECTIONS:
                ident = f"ltx_{section.lower().replace(' ', '_').replace('-', '_')}_accordion"
                group = gr.Accordion(label=section, open=section in _OPEN, elem_id=ident, visible=visible[section])
                groups[section] = group
                with group:
                    _fill(gr, [one for one in _shown(caps) if one.control.section == section], made)
        with gr.Column(elem_id="ltx-output-column", scale=2):
            video = gr.Video(label="Output", show_label=False, elem_id="ltx_output_video", height=512)
            text = gr.HTML("", elem_id="ltx_generation_info", show_label=False)
            plan = gr.HTML("", elem_id="ltx_plan", show_label=False)
            file, again, seed, said = _restoring(gr)

    def change(name: str) -> list[Any]:
        row = caps_of(name or "")
        if row is None:
            return [gr.update() for _ in range(1 + len(groups) + len(made))]
        seen = ltx_ui.sections(row)
        updates = [
            gr.update(value=panel.about_html(row, True)),
            *(gr.update(visible=seen[section]) for section in groups),
        ]
        return updates + [
            gr.update(visible=one.visible, interactive=one.applies, value=one.value, **_why(one)) for one in _shown(row)
        ]

    asked = [model, prompt, negative, styles, *output, *made.values()]
    plans: dict[str, Any] = {"fn": planned, "inputs": asked, "outputs": [plan], "show_progress": "hidden"}
    changed = model.change(
        fn=change, inputs=[model], outputs=[told, *groups.values(), *made.values()], show_progress="hidden"
    )
    changed.then(**plans)
    for one in (prompt, output[0], *made.values()):
        # A change of model changes every control, but nobody put anything into them.
        (one.input if hasattr(one, "input") else one.change)(queue=False, **plans)

    def restore(given: Any) -> list[Any]:
        """What a video was made with, into the form; first what is said of it."""
        try:
            request, row, sentence = settings(given, rows)
        except LTXError as error:
            return [gr.update(value=panel.error_html(str(error))), *[gr.update()] * (4 + len(groups) + len(made))]
        values, updates = ltx_ui.values_of(request, row), change(row.label)
        for update, one in zip(updates[-len(made) :], _shown(row), strict=True):
            update["value"] = values[one.control.name]
        words = [gr.update(value=text) for text in (row.label, request.prompt, request.negative or "")]
        return [gr.update(value=panel.words_html(sentence)), *words, *updates]

    filled = [said, model, prompt, negative, told, *groups.values(), *made.values()]
    for event, source in ((file.upload, file), (again.click, video)):
        event(fn=restore, inputs=[source], outputs=filled, show_progress="hidden").then(**plans)
    seed.click(fn=seed_of, inputs=[video], outputs=[made["seed"]], show_progress="hidden")
    task, state = gr.Textbox(visible=False, value=""), gr.Textbox(visible=False, value="")
    generate.click(
        fn=run,
        _js="submit_ltx",
        inputs=[task, state, *asked],
        outputs=[video, text],
        show_progress="hidden",
    )


def _restoring(gr: Any) -> tuple[Any, Any, Any, Any]:
    """What fills the form with the settings of a video."""
    with gr.Accordion(label="Settings of a video", open=False, elem_id="ltx_restore_accordion"):
        file = gr.File(label="LTX video that was made here", file_types=[".mp4"], elem_id="ltx_restore")
        with gr.Row():
            again = gr.Button("Use the last video's settings", elem_id="ltx_again")
            seed = gr.Button("Use its seed", elem_id="ltx_same")
        said = gr.HTML("", elem_id="ltx_told", show_label=False)
    return file, again, seed, said


def _shown(caps: Caps) -> list[ltx_ui.Shown]:
    """The controls of the variant, starting with what the UI's settings say."""
    return [
        replace(one, value=sdnext_settings.start_of(one.control.name, one.value)) if one.applies else one
        for one in ltx_ui.shown(caps)
    ]


def default_row(rows: Sequence[str]) -> str:
    """The variant of the setting, else the small built-in one, which needs no download, else the first of LTX."""
    known = [name for name in rows if caps_of(name) is not None]
    tried = (sdnext_settings.variant(), caps_for("nano")[0].label)
    return next((name for name in tried if name in known), known[0] if known else (rows[0] if rows else "None"))


def _fill(gr: Any, several: Sequence[ltx_ui.Shown], made: dict[str, Any]) -> None:
    """Controls in their order: small ones beside one another, pictures and videos below one another."""
    for large, ones in ltx_ui.blocks(several):
        with nullcontext() if large else gr.Row():
            for one in ones:
                made[one.control.name] = _component(gr, one)


def _component(gr: Any, one: ltx_ui.Shown) -> Any:
    control = one.control
    low, high, step = control.span or (0, 1, 1)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "slider": (gr.Slider, {"minimum": low, "maximum": high, "step": step, "value": one.value}),
        "number": (gr.Number, {"value": one.value, "precision": 0}),
        "checkbox": (gr.Checkbox, {"value": bool(one.value)}),
        "choice": (gr.Dropdown, {"choices": list(control.choices), "value": one.value}),
        "image": (gr.Image, {"type": "pil", "image_mode": "RGB", "height": 256}),
        "files": (gr.Files, {"interactive": True}),
        "video": (gr.Video, {"source": "upload", "height": 256}),
        "text": (gr.Textbox, {"value": one.value or "", "max_lines": 1}),
        "lines": (gr.Textbox, {"value": one.value or "", "lines": 2}),
    }
    kind, given = kinds[control.kind]
    shown = {"visible": one.visible, "interactive": one.applies, **_why(one)}
    return kind(label=control.label, elem_id=f"ltx_{control.name}", **{**given, **shown})


def _why(one: ltx_ui.Shown) -> dict[str, str]:
    """What stands at a control that does not apply; those of media have no place for words."""
    return {} if one.control.kind in ("image", "files", "video") else {"info": one.why}


def settings(given: Any, rows: Sequence[str]) -> tuple[Request, Caps, str]:
    """The request in an mp4 of ours, its row in the UI, and a sentence. Raises RequestError where there is none."""
    if not given:
        raise RequestError("there is no video yet: make one, or drop an mp4 that was made here.")
    known = [row for name in rows if (row := caps_of(name))]
    return front.restored(Path(getattr(given, "name", given)), known)


def seed_of(given: Any) -> Any:
    """The seed of a video of ours; -1 where there is none."""
    try:
        seed = front.settings_of_file(Path(str(given)))[0].seed if given else None
    except LTXError:
        seed = None
    return -1 if seed is None else seed


def planned(model: str, *values: Any) -> str:
    """What would be made, or why it cannot be."""
    try:
        request, _ = _asked(model, values, Output(*values[4:12]), None)
        return panel.plan_html(front.sketch(request, SDNextHost()))
    except LTXError as error:
        return panel.error_html(str(error))


@dataclass(frozen=True)
class Output:
    """What the UI's Output tab says, in its order but for the frame rate."""

    interpolate: float
    codec: str
    container: str
    options: str
    video: bool
    frames: bool
    safetensors: bool
    thumbnail: bool

    def not_followed(self) -> str:
        """A sentence on what of it has no effect here, or nothing."""
        told = {
            f"codec {self.codec} (it is H.264)": self.codec not in KNOWN_AS,
            f"format {self.container} (it is mp4)": self.container != "mp4",
            "interpolation": bool(self.interpolate),
            "safetensors": self.safetensors,
        }
        names = [name for name, chosen in told.items() if chosen]
        return f"of the Output tab is not followed: {', '.join(names)}" if names else ""


def run(task: str, _state: str, model: str, *values: Any) -> Iterator[tuple[str | None, str]]:
    """The Generate button: what to show in the player and below it, as the job goes on."""
    host = SDNextHost(task)
    try:
        with host.queued(), tempfile.TemporaryDirectory(prefix="ltx-") as folder:
            yield None, "LTX: waiting"
            output = Output(*values[4:12])
            request, encoding = _asked(model, values, output, Path(folder))
            plan = front.settle(request, host)
            yield None, html.escape(f"LTX: {in_words(plan.notes[0])}")
            from modules.ltx.ltx_process import run as run_plan

            state = run_plan(plan, host, encoding=encoding)
    except Cancelled as stopped:
        yield None, html.escape(f"LTX: {stopped}")
    except LTXError as error:
        yield None, f"<div class='error'>LTX: {html.escape(in_words(str(error)))}</div>"
    except Exception as error:
        ui("errors").display(error, "LTX")
        yield (
            None,
            f"<div class='error'>LTX: {html.escape(type(error).__name__)}: {html.escape(str(error)[:300])}</div>",
        )
    else:
        assert state.media is not None
        yield str(state.media.path), panel.result_html(state, list(filter(None, [output.not_followed()])))


def _asked(model: str, values: Sequence[Any], output: Output, folder: Path | None) -> tuple[Request, Encoding]:
    """The request of the tab's values; pictures that have no file get one in `folder`."""
    caps = caps_of(model or "")
    if caps is None:
        raise RequestError("no model is selected: choose one of the list; lines between them are headings.")
    (prompt, negative, styles, fps), controls = values[:4], values[12:]
    if output.codec == "none" or not output.video:
        raise RequestError("nothing would be saved: choose a video codec on the Output tab, and to save the video.")
    prompt, negative = _styled(prompt or "", negative or "", styles)
    words, loras = networks(prompt)
    named = dict(zip((control.name for control in ltx_ui.CONTROLS), controls, strict=True))
    if named.get("seed") is not None and int(named["seed"]) < 0:
        named["seed"] = None
    asked = ltx_ui.Asked(model, words, networks(negative)[0], float(fps), _paths(folder), loras)
    quality = sdnext_settings.crf(output.options or "")
    codec = KNOWN_AS.get(output.codec, "h264")
    encoding = Encoding(codec, quality, png_frames=bool(output.frames), thumbnail=bool(output.thumbnail))
    return Request.parse(ltx_ui.request_values(caps, asked, named) | sdnext_settings.memory()), encoding


def _styled(prompt: str, negative: str, styles: Any) -> tuple[str, str]:
    known = ui("shared").prompt_styles
    chosen = list(styles or [])
    return known.apply_styles_to_prompt(prompt, chosen), known.apply_negative_styles_to_prompt(negative, chosen)


def networks(prompt: str) -> tuple[str, list[dict[str, object]]]:
    """The prompt without its <lora:NAME:STRENGTH>, and those as LoRAs of the request: they act in both stages."""
    found: list[dict[str, object]] = []
    for name, strength in _NETWORK.findall(prompt):
        try:
            found.append({"source": _file_of(name), "strength": float(strength or 1.0)})
        except ValueError as error:
            raise RequestError(f"<lora:{name}:{strength}>: its strength is no number; write it as 0.8.") from error
    return _NETWORK.sub("", prompt).strip(), found


def _file_of(name: str) -> str:
    known = ui("lora.lora_load").available_networks
    if name not in known:
        raise RequestError(f"<lora:{name}>: the web UI lists no such network; refresh its networks, or check the name.")
    return str(known[name].filename)


def _paths(folder: Path | None) -> Any:
    """The file of a media value: a PIL image is saved, where there is a folder; an upload has a path or a `.name`."""

    def path(name: str, value: Any) -> str | None:
        if value is None or value == "":
            return None
        if hasattr(value, "save"):
            file = Path(folder or "") / f"{name}.png"
            if folder is not None:
                value.save(file)
            return str(file)
        return str(getattr(value, "name", value))

    return path
