"""What the values of the tab ask for: the request, how its file is written, and what stands in the plan panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.ltx import front, ltx_ui, panel
from modules.ltx.errors import LTXError, RequestError
from modules.ltx.hosts import sdnext_settings
from modules.ltx.hosts.sdnext import SDNextHost, ui
from modules.ltx.hosts.sdnext_form import values_by_name
from modules.ltx.hosts.sdnext_output import Output
from modules.ltx.hosts.sdnext_prompts import expanded, networks
from modules.ltx.hosts.sdnext_rows import caps_of
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_util import random_seed
from modules.ltx.plan import Plan
from modules.ltx.recipe import memory_gb
from modules.ltx.request import Request
from modules.ltx.serve_request import on_this_machine

_WORDS, _OUTPUT = 3, 9  # how many values are prompts and styles, and how many the Output tab's


@dataclass(frozen=True)
class Asked:
    """The tab's values, read once."""

    request: Request
    output: Output


def read(model: str, values: Sequence[Any], folder: Path | None = None) -> Asked:
    """What the tab's values ask for; images without a file get one in `folder`. With it a random seed is drawn, before
    the words that are drawn by it. Raises RequestError."""
    caps = known(model)
    prompt, negative, styles = values[:_WORDS]
    output = Output(*values[_WORDS : _WORDS + _OUTPUT])
    output.check()
    controls = values_by_name(values[_WORDS + _OUTPUT :])
    seed = controls.get("seed")
    if seed is None or int(seed) < 0:
        seed = None if folder is None else random_seed()
    controls["seed"] = seed
    prompt, negative = expanded(prompt or "", negative or "", styles, int(seed or 0))
    words, loras = networks(prompt)
    asked = ltx_ui.Asked(model, words, networks(negative)[0], float(output.fps), _paths(folder), loras)
    return Asked(Request.parse(ltx_ui.request_values(caps, asked, controls) | sdnext_settings.memory()), output)


def known(model: str) -> Caps:
    """The variant of a row of the list. Raises RequestError for a heading."""
    caps = caps_of(model or "")
    if caps is None:
        raise RequestError("no model is selected: choose one from the list; the lines between them are headings.")
    return caps


def planned(model: Any, *values: Any) -> str:
    """What would be made, or why it cannot be."""
    try:
        asked = read(model, values)
        plan = front.sketch(asked.request, SDNextHost())
    except LTXError as error:
        return panel.error_html(str(error))
    plan = replace(plan, notes=(*plan.notes, *asked.output.notes(plan.frames)))
    return panel.plan_html(plan, panel.Around(missing_gb(plan.caps)))


def here(caps: Caps) -> bool:
    """Whether the variant's weights need no download, by the web UI's own folder and the hub's."""
    return on_this_machine(caps, [Path(str(getattr(ui("shared").opts, "hfcache_dir", "") or "."))])


def missing_gb(caps: Caps) -> float:
    """GB to download before the variant runs; 0 where nothing is missing."""
    return 0.0 if here(caps) else memory_gb(caps)["weights"]


def announced(plan: Plan) -> str:
    """The plan's headline, and the download that comes first."""
    missing = missing_gb(plan.caps)
    return f"{plan.notes[0]}" + (f"; {missing:.3g} GB are downloaded first" if missing else "")


def restored(given: Any, rows: Sequence[str]) -> tuple[Request, Caps, str]:
    """The request in an mp4 of ours, its row in the UI, and a sentence. Raises RequestError where there is none."""
    if not given:
        raise RequestError(
            "there is no video yet: make one, or choose an mp4 that was made here under 'Settings of a file'."
        )
    listed = [row for name in rows if (row := caps_of(name))]
    return front.restored(Path(getattr(given, "name", given)), listed)


def seed_of(given: Any) -> Any:
    """The seed of a video of ours; -1 where there is none."""
    try:
        seed = front.settings_of_file(Path(str(given)))[0].seed if given else None
    except LTXError:
        seed = None
    return -1 if seed is None else seed


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
