"""What the extension registers with SD.Next at its start: rows of models, settings, the self-refiner as a sampler.

Called once by scripts/ltx_extension.py. Nothing here reads weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules.ltx.hosts import sdnext_samplers
from modules.ltx.hosts.sdnext import ENGINE, resident, ui
from modules.ltx.hosts.sdnext_rows import add_rows, caps_of
from modules.ltx.ltx_capabilities import caps_for


def register(fall_back: Callable[[], None]) -> None:
    """`fall_back` takes our folders out of the UI's packages again, should the tab fail to be built."""
    resident().fall_back = fall_back
    add_rows(ui("video_models.models_def"))
    callbacks = ui("script_callbacks")
    callbacks.on_ui_settings(add_settings)
    if sdnext_samplers.add_sampler():
        callbacks.on_before_process(sdnext_samplers.before_process)
        callbacks.on_after_process(sdnext_samplers.after_process)


def add_settings() -> None:
    """The section `LTX Video` of the UI's settings."""
    gr: Any = __import__("gradio")
    opts, info = ui("shared").opts, ui("options").OptionInfo
    rows = [row.name for row in ui("video_models.models_def").models.get(ENGINE, []) if caps_of(row.name)]
    start = caps_for("nano")[0].label
    modes = ["p1", "p2", "p2-wan2gp"]
    declared: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
        "ltx_default_variant": (start, "Variant that the LTX tab starts with", gr.Dropdown, {"choices": rows}),
        "ltx_refiner_mode": ("p1", f"{sdnext_samplers.NAME}: norm", gr.Radio, {"choices": modes}),
        "ltx_refiner_plan": ("2-6:2", f"{sdnext_samplers.NAME}: plan (steps:passes, as 2-6:2)", gr.Textbox, {}),
        "ltx_refiner_threshold": (
            0.1,
            f"{sdnext_samplers.NAME}: predictions nearer than this agree",
            gr.Slider,
            {"minimum": 0.0, "maximum": 1.0, "step": 0.01},
        ),
        "ltx_refiner_certain": (
            99.9,
            f"{sdnext_samplers.NAME}: per cent that must agree to end a step early",
            gr.Slider,
            {"minimum": 0.0, "maximum": 100.0, "step": 0.1},
        ),
    }
    for name, (default, label, component, arguments) in declared.items():
        opts.add_option(name, info(default, label, component, arguments, section=("ltx", "LTX Video")))
