"""What the extension registers with SD.Next at its start: rows of models, settings, the self-refiner as a sampler,
and, when its server is there, the API.

Called once by scripts/ltx_extension.py. Nothing here reads weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from modules.ltx.hosts import sdnext_api, sdnext_kept, sdnext_samplers, sdnext_settings
from modules.ltx.hosts.sdnext import resident, ui
from modules.ltx.hosts.sdnext_rows import add_rows, remove_rows


def register(fall_back: Callable[[], None]) -> None:
    """All of it or, on any error, nothing. `fall_back` takes our folders out of the UI's packages again; should the tab
    fail to be built, it is called behind everything that is undone here."""
    models, callbacks = ui("video_models.models_def"), ui("script_callbacks")
    with ExitStack() as undo:
        undo.callback(remove_rows, models, add_rows(models))
        undo.enter_context(sdnext_kept.kept_apart(sdnext_settings.NAMES))
        undo.callback(callbacks.remove_callbacks_for_function, sdnext_settings.add)
        undo.callback(sdnext_settings.remove)
        callbacks.on_ui_settings(sdnext_settings.add)
        undo.callback(sdnext_samplers.remove_sampler)
        if sdnext_samplers.add_sampler():
            for listen, heard in (
                (callbacks.on_before_process, sdnext_samplers.before_process),
                (callbacks.on_after_process, sdnext_samplers.after_process),
            ):
                undo.callback(callbacks.remove_callbacks_for_function, heard)
                listen(heard)
        undo.callback(callbacks.remove_callbacks_for_function, sdnext_api.started)
        callbacks.on_app_started(sdnext_api.started)
        kept = undo.pop_all()

    def taken_out() -> None:
        kept.close()
        fall_back()

    resident().fall_back = taken_out
