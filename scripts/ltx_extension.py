"""SD.Next runs this file at its start: it puts our `modules/ltx` and `modules/video_models` before the UI's own.

The UI finds `ltx_ui`, `ltx_process`, `video_overrides` by name when it builds its pages, later; all its other files
stay as they are. If anything that is used is missing, nothing is changed, one line in the log says what, and the UI
keeps its own LTX tab.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modules.ltx", "modules.video_models")
# What hosts/sdnext.py uses of the UI, by module; a UI without one of these is one that it does not know.
USED = {
    "call_queue": ("get_lock",),
    "devices": ("device", "dtype", "inference_context", "torch_gc"),
    "logger": ("log",),
    "model_quant": ("get_dit_args",),
    "processing": ("StableDiffusionProcessingVideo", "create_infotext", "process_images"),
    "progress": ("add_task_to_queue", "finish_task", "start_task"),
    "options": ("OptionInfo",),
    "script_callbacks": (
        "on_after_process",
        "on_before_process",
        "on_ui_settings",
        "remove_callbacks_for_function",
    ),
    "sd_samplers": ("list_samplers",),
    "sd_samplers_diffusers": (
        "DiffusionSampler",
        "FlowMatchEulerDiscreteScheduler",
        "config",
        "samplers_data_diffusers",
    ),
    "sd_models": ("apply_balanced_offload", "move_model"),
    "shared": ("opts", "state"),
    "styles": ("apply_curly_braces_to_prompt", "apply_wildcards_to_prompt"),
    "ui_components": ("ToolButton",),
    "video_models.models_def": ("Model", "models"),
    "video_models.video_load": ("load_model",),
    "video_models.video_save": ("get_video_filename",),
}
SHARED = {  # of shared.state and shared.opts
    "state": ("begin", "end", "interrupt", "outputs", "skip"),
    "opts": ("add_option", "data", "data_labels", "filename", "same_type", "save_atomic"),
}


class Refused(Exception):
    """Why this UI is left alone; the message is a part of a sentence."""


def ours(package: str) -> str:
    return str(ROOT.joinpath(*package.split(".")))


def check_early() -> None:
    """Raise Refused if the UI has read one of the files already that ours stand before."""
    for package in PACKAGES:
        folder = Path(ours(package))
        for file in folder.glob("*.py"):
            module = sys.modules.get(f"{package}.{file.stem}")
            where = getattr(module, "__file__", None)
            if module is not None and file.stem != "__init__" and (where is None or Path(where).parent != folder):
                raise Refused(f"{package}.{file.stem} was loaded before it")


def mount() -> None:
    """Our folders first in the packages' search paths. Harmless to do twice."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        if ours(package) not in path:
            path.insert(0, ours(package))
    importlib.invalidate_caches()


def unmount() -> None:
    """The packages as the UI has them, nothing of ours left to be found in them, and the UI's files with their own."""
    gone: dict[int, str] = {}
    for package in PACKAGES:
        parent = sys.modules.get(package)
        if parent is None:
            continue
        while ours(package) in parent.__path__:
            parent.__path__.remove(ours(package))
        for name, module in list(sys.modules.items()):
            # `hosts` is a folder without an __init__.py: it has a path, but no file.
            where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
            if name.startswith(f"{package}.") and where.startswith(str(ROOT)):
                gone[id(sys.modules.pop(name))] = name
                if name.count(".") == 2 and vars(parent).get(name.rsplit(".", 1)[1]) is module:
                    delattr(parent, name.rsplit(".", 1)[1])
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):  # video_load has read video_overrides by now: ours
        for key, value in list(vars(module).items()) if name.startswith("modules.") else ():
            if id(value) in gone:
                setattr(module, key, importlib.import_module(gone[id(value)]))


def check_host() -> None:
    """Raise Refused for a UI that lacks something that is used."""
    for name, attributes in USED.items():
        module = importlib.import_module(f"modules.{name}")
        for attribute in attributes:
            if not hasattr(module, attribute):
                raise Refused(f"modules.{name} has no {attribute}")
    shared = importlib.import_module("modules.shared")
    for name, attributes in SHARED.items():
        for attribute in attributes:
            if not hasattr(getattr(shared, name), attribute):
                raise Refused(f"modules.shared.{name} has no {attribute}")


def install(log: logging.Logger) -> bool:
    """Mount and register everything, or leave the UI as it was and log why. Whether it is there."""
    try:
        check_early()
        mount()
        check_host()
        registration: Any = importlib.import_module("modules.ltx.hosts.sdnext_entry")
        registration.register(fall_back=unmount)
    except Exception as error:  # whatever it is, the UI must start
        unmount()
        reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        log.error(f"LTX video: not installed, {reason}; SD.Next's own LTX tab stays")
        return False
    log.info(f"LTX video: installed from {ROOT}")
    report(log)
    return True


def report(log: logging.Logger) -> None:
    """Log which libraries were found, and what is missing in them."""
    machine: Any = importlib.import_module("modules.ltx.hosts.machine")
    found = ", ".join(f"{name} {version}" for name, version in machine.versions("peft", "accelerate", "gradio").items())
    log.info(f"LTX video: found {found}")
    for line in importlib.import_module("modules.ltx.library_features").report():
        log.info(f"LTX video: {line}")


if "modules.script_callbacks" in sys.modules:  # not when a test reads this file without a UI
    install(importlib.import_module("modules.logger").log)
