"""The tab's form as gradio 3.43 components: the list of models, the controls of `ltx_controls`, and the small buttons
that the web UI's own LTX tab has beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from modules.ltx import ltx_ui, panel
from modules.ltx.hosts import places, sdnext_settings
from modules.ltx.hosts.sdnext import ENGINE, ui
from modules.ltx.hosts.sdnext_rows import caps_of
from modules.ltx.ltx_capabilities import Caps, caps_for

OPEN = ("Size", "Input media", "Stages")
_NANO = "LTX-Nano: small test models, nothing to download"
_WORDLESS = ("image", "files", "video")  # gradio has no place for words at these


def model_rows() -> list[str]:
    """The names of the rows that are variants of ours, in the web UI's order."""
    rows = ui("video_models.models_def").models.get(ENGINE, [])
    return [row.name for row in rows if caps_of(row.name) is not None]


def grouped(rows: Sequence[str]) -> list[str]:
    """The list of models: under headings, those that need no download first, then by generation, newest first."""
    groups: dict[str, list[str]] = {}
    for name in rows:
        caps = caps_of(name)
        assert caps is not None
        heading = _NANO if caps.source.startswith(places.NANO) else f"LTX {caps.generation}"
        groups.setdefault(heading, []).append(name)
    order = sorted(groups, key=lambda heading: (heading == _NANO, heading), reverse=True)
    return [name for heading in order for name in (f"─── {heading} ───", *groups[heading])]


def default_row(rows: Sequence[str]) -> str:
    """The variant of the setting, else the small built-in one, which needs no download, else the first."""
    tried = (sdnext_settings.variant(), caps_for("nano")[0].label, *rows)
    return next((name for name in tried if name in rows), "None")


def shown(caps: Caps, values: Any = None) -> list[ltx_ui.Shown]:
    """The controls of the variant, starting with what the UI's settings say."""
    started = [
        replace(one, value=sdnext_settings.start_of(one.control.name, one.value)) if one.applies else one
        for one in ltx_ui.shown(caps)
    ]
    own = {one.control.name: one.value for one in started}
    beside = ltx_ui.shown(caps, own | dict(values or {}))
    return [replace(one, value=own[one.control.name]) for one in beside]


def update(gr: Any, one: ltx_ui.Shown, **more: Any) -> Any:
    """The control as another variant, or other values beside it, have it."""
    return gr.update(visible=one.visible, interactive=one.live, **_words(one), **more)


def section(gr: Any, name: str, caps: Caps, made: dict[str, Any]) -> None:
    """The controls of a section, in their order, below one another: the column is narrow, and each has its words."""
    for one in shown(caps):
        if one.control.section == name:
            with gr.Row() if one.control.name == "seed" else nullcontext():
                made[one.control.name] = _component(gr, one)
                if one.control.name == "seed":
                    made["random"] = tool(gr, "random", "ltx_seed_random")
            if one.control.name == "height":
                with gr.Row():
                    _shapes(gr)
                    made["swap"] = tool(gr, "switch", "ltx_res_btn_swap")


def _component(gr: Any, one: ltx_ui.Shown) -> Any:
    control = one.control
    low, high, step = control.span or (0, 1, 1)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "slider": (gr.Slider, {"minimum": low, "maximum": high, "step": step, "value": one.value}),
        "number": (gr.Number, {"value": one.value, "precision": 0}),
        "checkbox": (gr.Checkbox, {"value": bool(one.value)}),
        "choice": (gr.Dropdown, {"choices": list(control.choices), "value": one.value}),
        "image": (gr.Image, {"type": "pil", "image_mode": "RGB", "height": 256}),
        "files": (gr.Files, {}),
        "video": (gr.Video, {"source": "upload", "height": 256}),
        "text": (gr.Textbox, {"value": one.value or "", "max_lines": 1}),
        "lines": (gr.Textbox, {"value": one.value or "", "lines": 2}),
    }
    kind, given = kinds[control.kind]
    shown_as = {"visible": one.visible, "interactive": one.live, **_words(one)}
    return kind(label=control.label, elem_id=f"ltx_{control.name}", **given, **shown_as)


def _words(one: ltx_ui.Shown) -> dict[str, str]:
    """The explanation at the control; those of media stand together, see `media_help`."""
    return {} if one.control.kind in _WORDLESS else {"info": one.words}


def media_help(caps: Caps) -> str:
    """What the media of the variant are for."""
    ones = [one for one in ltx_ui.shown(caps) if one.control.kind in _WORDLESS and one.applies]
    return panel.help_html([(one.control.label.removeprefix("LTX "), f"{one.about}.") for one in ones])


def _shapes(gr: Any) -> None:
    """The web UI's list of aspect ratios; its page links it to the sliders of width and height."""
    ratios = [ratio.strip() for ratio in str(getattr(ui("shared").opts, "aspect_ratios", "")).split(",")]
    shapes = {"choices": ["AR", *filter(None, ratios)], "value": "AR", "show_label": False, "interactive": True}
    gr.Dropdown(elem_id="ltx_ar", elem_classes=["ar-dropdown"], **shapes)


def tool(gr: Any, symbol: str, elem_id: str) -> Any:
    """A small button with one of the web UI's symbols."""
    return ui("ui_components").ToolButton(value=getattr(ui("ui_symbols"), symbol), elem_id=elem_id)


def swapped(width: Any, height: Any) -> tuple[Any, Any]:
    """Portrait for landscape."""
    return height, width


def any_seed() -> int:
    """What stands for a random seed."""
    return -1


def values_by_name(values: Sequence[Any]) -> dict[str, Any]:
    """The controls' values by their names."""
    return dict(zip((control.name for control in ltx_ui.CONTROLS), values, strict=True))


def regarded(gr: Any, caps: Caps, values: Sequence[Any]) -> Iterator[Any]:
    """Updates of the controls that may have no effect beside the others, in the order of `ltx_ui.dependent`."""
    for one in ltx_ui.dependent(caps, values_by_name(values)):
        yield gr.update(interactive=one.live, info=one.words)
