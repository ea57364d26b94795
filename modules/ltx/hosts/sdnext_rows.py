"""SD.Next's rows of LTX models: which we add, and what each is loaded and called with in the UI's own code.

Rows that are not of LTX get the UI's own answers, unchanged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
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


def add_rows(models_def: Any) -> list[Any]:
    """The variants that this UI does not list but can run, behind a heading behind its own rows; all that was added."""
    rows = models_def.models.setdefault(ENGINE, [])
    there = {row.name for row in rows}
    lacks = machine.lacks()
    new = [caps for caps in all_caps() if caps.label not in there and not effective(caps, lacks).unavailable]
    made = [models_def.Model(name=_HEADING)] if new else []
    made += [_row(models_def, caps) for caps in new]
    rows.extend(made)
    return made


def _row(models_def: Any, caps: Caps) -> Any:
    """Its classes are those of the UI's own rows of that pipeline: the UI quantizes what a row names a class of."""
    rows = models_def.models[ENGINE]
    like = next((row for row in rows if row.repo_cls == caps.pipeline), None)
    row = models_def.Model(name=caps.label, repo=caps.source, repo_cls=caps.pipeline)
    if like is not None:
        row.dit_cls = like.dit_cls
        # Named, the text encoder would be the UI's shared one, which is not everybody's.
        row.te_cls = like.te_cls if "text_encoder" in caps.shared_parts else None
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
    if caps.transformer != "transformer":
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
