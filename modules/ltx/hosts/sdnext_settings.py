"""The section `LTX Video` of SD.Next's settings: what is in it, and what the tab and the sampler take from it."""

from __future__ import annotations

import re
from typing import Any

from modules.ltx.denoise import RefinerPlan
from modules.ltx.hosts.sdnext import ENGINE, ui
from modules.ltx.hosts.sdnext_rows import caps_of
from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.request import BY_NAME

_SECTION = ("ltx", "LTX Video")
NAMES = (
    "ltx_default_variant",
    "ltx_tab_self_refine",
    "ltx_tab_audio",
    "ltx_output_crf",
    "ltx_memory",
    "ltx_refiner_mode",
    "ltx_refiner_plan",
    "ltx_refiner_threshold",
    "ltx_refiner_certain",
)
SAMPLER = "Euler FlowMatch Self-Refine"
_BY_MEMORY = "tiles by the memory at hand"
_MEMORY: dict[str, dict[str, int]] = {
    _BY_MEMORY: {},
    "tiles of 512 pixels and 48 frames": {"tile_size": 512, "tile_frames": 48},
    "tiles of 256 pixels and 24 frames": {"tile_size": 256, "tile_frames": 24},
}
# What the tab's controls of these names start with.
_STARTS = {"self_refine": "ltx_tab_self_refine", "audio": "ltx_tab_audio"}


def add() -> None:
    """Declare the section. A saved value that an option does not take is reported, and the default is used."""
    opts, info = ui("shared").opts, ui("options").OptionInfo
    for name, (default, label, component, arguments) in _declared().items():
        option = info(default, label, component, arguments, section=_SECTION)
        opts.add_option(name, option)
        value = opts.data.get(name, default)
        if not (opts.same_type(default, value) and option.validate(name, value)):
            ui("logger").log.error(f"LTX video: setting {name}={value!r} is not valid; the default is {default!r}")
            opts.data.pop(name, None)


def remove() -> None:
    """Remove the section; the values are those of `sdnext_kept`."""
    labels = ui("shared").opts.data_labels
    for name in [name for name, info in labels.items() if info.section == _SECTION]:
        del labels[name]


def _declared() -> dict[str, tuple[Any, str, Any, dict[str, Any]]]:
    """Default, label, component and its arguments, by name."""
    gr: Any = __import__("gradio")
    rows = [row.name for row in ui("video_models.models_def").models.get(ENGINE, []) if caps_of(row.name)]
    share, per_cent = {"minimum": 0.0, "maximum": 1.0, "step": 0.01}, {"minimum": 0.0, "maximum": 100.0, "step": 0.1}
    modes, start = list(BY_NAME["self_refine"].choices), caps_for("nano")[0].label
    crf = "Quality of videos where the Output tab's options name no crf (0 is best, 51 smallest)"
    return {
        "ltx_default_variant": (start, "Variant that the LTX tab starts with", gr.Dropdown, {"choices": rows}),
        "ltx_tab_self_refine": ("off", "Self-refiner that the tab starts with", gr.Radio, {"choices": modes}),
        "ltx_tab_audio": (True, "The tab starts with sound on", gr.Checkbox, {}),
        "ltx_output_crf": (18, crf, gr.Slider, {"minimum": 0, "maximum": 51, "step": 1}),
        "ltx_memory": (_BY_MEMORY, "Decoding", gr.Dropdown, {"choices": list(_MEMORY)}),
        "ltx_refiner_mode": ("p1", f"{SAMPLER}: norm", gr.Radio, {"choices": modes[1:]}),
        "ltx_refiner_plan": ("2-6:2", f"{SAMPLER}: plan (steps:passes, as 2-6:2)", gr.Textbox, {}),
        "ltx_refiner_threshold": (0.1, f"{SAMPLER}: predictions nearer than this agree", gr.Slider, share),
        "ltx_refiner_certain": (99.9, f"{SAMPLER}: per cent that must agree to end a step early", gr.Slider, per_cent),
    }


def _of(name: str, otherwise: Any) -> Any:
    """An option's value; before the UI has read its settings, `otherwise`."""
    value = getattr(ui("shared").opts, name, None)
    return otherwise if value is None else value


def variant() -> str:
    """The label of the variant that the tab starts with."""
    return str(_of("ltx_default_variant", ""))


def start_of(name: str, otherwise: Any) -> Any:
    """What the tab's control `name` starts with."""
    return _of(_STARTS[name], otherwise) if name in _STARTS else otherwise


def memory() -> dict[str, int]:
    """What the memory choice adds to a request."""
    return _MEMORY.get(str(_of("ltx_memory", _BY_MEMORY)), {})


def crf(options: str) -> int:
    """The quality that the Output tab's options name, as `crf:16`, else the setting's."""
    found = re.search(r"crf[:=](\d+)", options)
    return int(found[1] if found else _of("ltx_output_crf", 18))


def refiner() -> tuple[RefinerPlan, str]:
    """The self-refiner of the sampler entry, and its plan's text."""
    text = str(_of("ltx_refiner_plan", "2-6:2"))
    certain = float(_of("ltx_refiner_certain", 99.9)) / 100
    norm, threshold = str(_of("ltx_refiner_mode", "p1")), float(_of("ltx_refiner_threshold", 0.1))
    return RefinerPlan(norm, text, threshold, certain), text
