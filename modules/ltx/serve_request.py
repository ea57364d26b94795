"""Between the browser's JSON and the core: values to a Request, plans and variants to JSON, its words.

Knows what the page may ask for, which is less than the command line: models of the catalogue only,
uploaded images by id, no LoRA, no path of any kind. Deliberately knows nothing of HTTP, jobs or how
anything is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules.ltx.cli_show import extras, guidance_words, takes
from modules.ltx.errors import RequestError
from modules.ltx.front import resolve
from modules.ltx.front import variants as rows_here
from modules.ltx.host import Host
from modules.ltx.ltx_capabilities import Caps, all_caps
from modules.ltx.plan import Plan
from modules.ltx.recipe import memory_gb
from modules.ltx.request import OPTIONS, Request

PathOf = Callable[[object], Path]

# What the core's sentences say to somebody at a command line, for somebody at a page.
_PHRASES = (
    ("add --image FILE", "add an image"),
    (" (`models --json` tells)", ""),
    (", or give a local folder to --model", ""),
    ("or try --offload", "or start the server with --offload"),
    ("(--negative replaces it)", "(yours replaces it)"),
)
_CALLED = {"refine": "two stages"}  # other flags are called what they are, without their dashes
_FILES = (
    "image",
    "last-image",
    "image-at",
    "gallery",
    "condition-strength",
    "prefix",
    "prefix-frames",
    "prefix-skip",
    "lora",
)
_NAMES = sorted((*(o.flag[2:] for o in OPTIONS), *_FILES), key=len, reverse=True)
_FLAG = re.compile(rf"--({'|'.join(_NAMES)})(?![\w-])")


def in_words(sentence: str) -> str:
    """A sentence of the core without the flags of the command line, on one line."""
    for theirs, ours in _PHRASES:
        sentence = sentence.replace(theirs, ours)
    sentence = _FLAG.sub(lambda found: _CALLED.get(found[1], found[1].replace("-", " ")), sentence)
    return " ".join(sentence.split())


def request_of(values: Mapping[str, object], path_of: PathOf) -> Request:
    """The checked Request of the page's values; `path_of` finds an uploaded image by its id."""
    for name, why in (("loras", "LoRA files"), ("variant", "folders and repos"), ("prefix", "videos to begin with")):
        if values.get(name):
            raise RequestError(f"{name}: {why} are for the command line; the page takes none.")
    _check_model(values.get("model"))
    images = values.get("images") or ()
    if not isinstance(images, (list, tuple)):
        raise RequestError("images: not valid; it takes a list of objects.")
    named = {name: value for name, value in values.items() if name not in ("images", "loras", "variant", "prefix")}
    return Request.parse({**named, "images": [_image(item, path_of) for item in images]})


def _check_model(model: object) -> None:
    """Only what the catalogue lists: a folder or a repo would let a page choose what is read or downloaded."""
    known = {name for caps in all_caps() for name in (caps.id, caps.label)} | {"nano"}
    if model is not None and (not isinstance(model, str) or model not in known):
        raise RequestError(f"model {str(model)[:80]!r}: not in the list of variants; name one by its id or its label.")


def _image(item: object, path_of: PathOf) -> dict[str, object]:
    if not isinstance(item, Mapping) or not set(item) <= {"id", "frame", "strength"}:
        raise RequestError("images: each is {id, frame, strength}; upload the image first, a path is not taken.")
    return {**{key: item[key] for key in ("frame", "strength") if key in item}, "path": str(path_of(item.get("id")))}


def request_json(request: Request) -> dict[str, Any]:
    """What was asked, as the page can ask it again: image ids for paths."""
    asked = request.to_json() | {"images": [_image_json(at) for at in request.to_json().get("images", ())]}
    if request.seed is not None:
        asked["seed"] = str(request.seed)  # JavaScript's numbers end at 53 bits, seeds at 63
    return asked


def _image_json(at: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": Path(at["path"]).name, "frame": at["frame"], "strength": at["strength"]}


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as the command line prints it, with image ids for paths and a few words to show."""
    made = plan.to_json()
    made["images"] = [_image_json(at) for at in made["images"]]
    made["notes"] = [in_words(note) for note in plan.notes]
    made["table"] = [
        {
            "stage": stage.name,
            "size": f"{stage.width}×{stage.height}",
            "steps": len(stage.sigmas),
            "evaluations": stage.evaluations,
            "guidance": guidance_words(stage),
            "with": extras(stage),
        }
        for stage in plan.stages
    ]
    return {**made, "on_this_machine": on_this_machine(plan.caps)}


def variants_json(host: Host) -> dict[str, Any]:
    """Every variant as the form needs it, and the one to start with: the built-in tiny model."""
    default, _ = resolve(Request(), host)
    return {"default": default.id, "variants": [_variant(caps) for caps in rows_here(host)]}


def _variant(caps: Caps) -> dict[str, Any]:
    guidance = caps.guidance
    return {
        "id": caps.id,
        "label": caps.label,
        "mode": caps.mode,
        "generation": f"LTX-Nano {caps.generation}" if _is_nano(caps) else f"LTX-Video {caps.generation}",
        "ready": not caps.unavailable,
        "why": "; ".join(caps.unavailable),
        "takes": takes(caps),
        "sound": caps.supports_audio,
        "two_stages": caps.supports_two_stage_refine,
        "two_stages_why": caps.upsampler_why_not,
        "stg": caps.supports_stg,
        "grid": caps.grid,
        "memory": memory_gb(caps),
        "on_this_machine": on_this_machine(caps),
        "defaults": {
            "width": caps.default_width,
            "height": caps.default_height,
            "frames": caps.default_frames,
            "fps": caps.default_fps,
            "steps": caps.default_steps,
            "stage2_steps": caps.stage2_steps,
            "guidance_scale": guidance.guidance_scale,
            "stg_scale": guidance.stg_scale,
            "modality_scale": guidance.modality_scale,
            "guidance_rescale": guidance.guidance_rescale,
        },
    }


def _is_nano(caps: Caps) -> bool:
    return caps.source.startswith("nano:")


def on_this_machine(caps: Caps) -> bool:
    """Whether weights of the model are in the hub's cache. A look at file names: a broken download passes."""
    if _is_nano(caps) or Path(caps.source).is_dir():
        return True
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = Path(HF_HUB_CACHE) / f"models--{caps.source.replace('/', '--')}" / "snapshots"
    return any(repo.glob("*/transformer*/*.safetensors"))
