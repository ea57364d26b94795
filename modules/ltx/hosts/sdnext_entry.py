"""What the extension registers with SD.Next at its start: rows of models and the self-refiner.

Called once by scripts/ltx_extension.py. Nothing here reads weights.
"""

from __future__ import annotations

from collections.abc import Callable

from modules.ltx.hosts.sdnext import resident, ui
from modules.ltx.hosts.sdnext_rows import add_rows


def register(fall_back: Callable[[], None]) -> None:
    """`fall_back` takes our folders out of the UI's packages again, should the tab fail to be built."""
    resident().fall_back = fall_back
    add_rows(ui("video_models.models_def"))
