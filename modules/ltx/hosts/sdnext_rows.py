"""SD.Next's rows of LTX models: which we add, and what each is loaded and called with in the UI's own code.

Rows that are not of LTX get the UI's own answers, unchanged.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

from modules.ltx.hosts import machine, places
from modules.ltx.hosts.sdnext import ENGINE, ui
from modules.ltx.library_features import in_dtype
from modules.ltx.ltx_capabilities import Caps, all_caps, effective
from modules.ltx.ltx_util import get_bucket, get_frames
from modules.video_models.ltx_models import CONDITION_09

_HEADING = "─────── LTX-Nano and more models of the LTX extension ───────"
_OURS = Path(__file__).resolve().parents[2]


def caps_of(name: str) -> Caps | None:
    """The variant of a row by its exact name; rows for other folders are named `LABEL in FOLDER`."""
    label = name.split(" in ", 1)[0]
    return {caps.label: caps for caps in all_caps()}.get(label)


def _rows(models_def: Any) -> dict[str, Any]:
    """The UI's rows of LTX models by their label, ours among them."""
    return {row.name: row for row in models_def.models.setdefault(ENGINE, [])}


def _class_name(kind: Any) -> str:
    """A row names its class until the UI first loads it; from then on it holds the class."""
    return kind if isinstance(kind, str) else getattr(kind, "__name__", "")


def add_rows(models_def: Any) -> list[Any]:
    """Add the variants that this UI does not list but can run, under a heading after its own; return these rows."""
    known, lacks = _rows(models_def), machine.lacks()
    new = [caps for caps in all_caps() if caps.label not in known and not effective(caps, lacks).unavailable]
    made = [_new_row(models_def, name=_HEADING)] if new else []
    made += [_row(models_def, caps) for caps in new]
    models_def.models[ENGINE].extend(made)
    return made


def _row(models_def: Any, caps: Caps) -> Any:
    """Its classes are those of the UI's own rows of that pipeline: the UI quantizes what a row names a class of."""
    alike = [row for row in _rows(models_def).values() if _class_name(row.repo_cls) == caps.pipeline]
    # Named, the text encoder would be the UI's shared one, which not every variant has; its class is a generation's.
    kin = [row for row in alike if "text_encoder" in caps.shared_parts and _generation(row) == caps.generation]
    return _new_row(
        models_def,
        name=caps.label,
        repo=caps.source,
        repo_cls=caps.pipeline,
        dit_cls=next((getattr(row, "dit_cls", None) for row in alike), None),
        te_cls=next((getattr(row, "te_cls", None) for row in kin), None),
    )


def _generation(row: Any) -> str:
    caps = caps_of(row.name)
    return caps.generation if caps else ""


def _new_row(models_def: Any, **wanted: Any) -> Any:
    """A row with the fields that this UI's rows have. One that must be given and is unknown here: as in its first."""
    kind, first = models_def.Model, next(iter(_rows(models_def).values()), None)
    fields = [one for one in dataclasses.fields(kind) if one.init]
    given = {one.name: wanted[one.name] for one in fields if one.name in wanted}
    for one in fields:
        needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if needed and one.name not in given:
            given[one.name] = getattr(first, one.name, None)
    return kind(**given)


def row_to_load(caps: Caps, local: str | None) -> Any:
    """A copy of the UI's row of the variant, because the UI writes into the row that it loads; where it names another
    repo than we do, that one. For another source than the variant's own, a row of that source. `local` is the folder
    of `caps.source`, where it needs no download."""
    models_def = ui("video_models.models_def")
    known, source = _rows(models_def).get(caps.label), local or caps.source
    own = next((one.source for one in all_caps() if one.label == caps.label), None)
    if known is not None and (caps.source == own or known.repo in (caps.source, source)):
        return copy(known)
    row = _row(models_def, caps) if known is None else copy(known)
    row.repo, row.repo_cls = source, caps.pipeline
    for name in ("te_cls", "te", "te_revision", "dit", "dit_revision", "repo_revision"):
        setattr(row, name, None)  # all of it is in the one folder
    row.name = caps.label if known is None else f"{caps.label} in {source}"
    return row


def remove_rows(models_def: Any, made: Sequence[Any]) -> None:
    """Takes `add_rows`' rows out again."""
    for row in made:
        models_def.models[ENGINE].remove(row)


@cache
def _original() -> Any:
    """The UI's own video_overrides, which ours stands before."""
    for folder in ui("video_models").__path__:
        file = Path(folder) / "video_overrides.py"
        if file.is_file() and _OURS not in file.resolve().parents:
            spec = importlib.util.spec_from_file_location("ltx_host_video_overrides", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise FileNotFoundError("the web UI's own video_overrides.py is gone")


def load_override(selected: Any, load_args: Mapping[str, Any]) -> dict[str, Any]:
    """Components that a row is not to be loaded with as diffusers would: shared ones, one in its own precision."""
    caps = caps_of(selected.name)
    if caps is None:
        return dict(_original().load_override(selected, **load_args))
    import diffusers
    import torch

    if selected.repo.startswith(places.NANO):  # built when it is first wanted
        selected.repo = str(places.Places(places.cache_folder()).local(selected.repo))
    where = {"cache_dir": ui("shared").opts.hfcache_dir, **load_args}
    made: dict[str, Any] = {}
    if caps.vae_dtype is not None:
        kind, dtype = diffusers.AutoencoderKLLTXVideo, getattr(torch, caps.vae_dtype)
        made["vae"] = kind.from_pretrained(selected.repo, subfolder="vae", **in_dtype(kind, dtype), **where)
    if caps.transformer != "transformer" and not _names_transformer(selected, caps):
        kind = diffusers.LTX2VideoTransformer3DModel
        loading, quantizing = ui("model_quant").get_dit_args({}, module="Model", device_map=True)
        made["transformer"] = kind.from_pretrained(
            selected.repo, subfolder=caps.transformer, **loading, **quantizing, **where
        )
    connectors = caps.shared_parts.get("connectors") if selected.repo == caps.source and _shares() else None
    if connectors:
        from diffusers.pipelines.ltx2 import LTX2TextConnectors

        named = in_dtype(LTX2TextConnectors, ui("devices").dtype)
        made["connectors"] = LTX2TextConnectors.from_pretrained(connectors, subfolder="connectors", **named, **where)
    return made


def _names_transformer(row: Any, caps: Caps) -> bool:
    """Whether the row is the UI's own and says where its transformer is: in a repo or a folder of its own."""
    folder = getattr(row, "dit_folder", None) or "transformer"
    other_repo = row.name == caps.label and row.repo != caps.source and not Path(row.repo).is_dir()
    return bool(getattr(row, "dit", None)) or folder != "transformer" or other_repo


def _shares() -> bool:
    """Whether the UI shares text encoders between models; older ones call the option te_shared_t5."""
    opts = ui("shared").opts
    return bool(getattr(opts, "te_shared_te", getattr(opts, "te_shared_t5", False)))


def set_overrides(p: Any, selected: Any) -> None:
    """In the UI's generic video tab: sizes and frames that the model takes. The seed is kept, whatever the class."""
    caps = caps_of(selected.name)
    if caps is None:
        _original().set_overrides(p, selected)
        return
    p.width, p.height = get_bucket(p.width, caps.grid), get_bucket(p.height, caps.grid)
    p.frames = get_frames(p.frames, caps.frame_ratio)
    p.task_args.update(width=p.width, height=p.height, num_frames=p.frames)
    if caps.is_i2v and caps.pipeline == CONDITION_09:
        p.task_args["strength"] = p.denoising_strength  # of the picture
