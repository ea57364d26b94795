"""Between the browser's JSON and the core: values to a Request, plans and variants to JSON, its words.

Knows what a page or a program may ask for, which is less than the command line: models of the catalogue only,
uploaded media by id, LoRAs by the names the server lists, no path of any kind. Deliberately knows nothing of HTTP,
jobs or how anything is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.ltx.cli_show import extras, guidance_words, takes
from modules.ltx.errors import RequestError
from modules.ltx.front import resolve
from modules.ltx.front import variants as rows_here
from modules.ltx.host import Host
from modules.ltx.ltx_capabilities import Caps, all_caps
from modules.ltx.ltx_controls import FILES
from modules.ltx.media import Encoding
from modules.ltx.media_codecs import CODECS
from modules.ltx.plan import Plan
from modules.ltx.recipe import memory_gb
from modules.ltx.request import OPTIONS, Option, Request
from modules.ltx.uploads import Uploads

# How a file is written: fields of `media.Encoding`, as a program may give them.
OUTPUT = {
    option.name: option
    for option in (
        Option("codec", "choice", FILES["codec"], "output.codec", choices=tuple(CODECS)),
        Option("crf", "int", "quality on the codec's own scale, 0 is best", "output.crf", 0, 51),
        Option("png_frames", "bool", FILES["png_frames"], "output.png_frames"),
        Option("thumbnail", "bool", FILES["thumbnail"], "output.thumbnail"),
    )
}

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


def request_of(values: Mapping[str, object], uploads: Uploads, loras: Path | None = None) -> Request:
    """The checked Request of what a page or a program sent. Media are named by the ids of their uploads, LoRAs by the
    names of files in the folder `loras`; no path, no repo and no address is taken. Raises RequestError."""
    if values.get("variant"):
        raise RequestError("variant: folders and repos are for the command line; name a model of the list.")
    _check_model(values.get("model"))
    named = {name: value for name, value in values.items() if name not in ("images", "loras", "prefix", "variant")}
    images = [_medium(item, uploads, "image", {"frame", "strength"}) for item in _list(values, "images")]
    weights = [_lora(item, loras) for item in _list(values, "loras")]
    prefix = values.get("prefix")
    begun = None if prefix is None else _medium(prefix, uploads, "video", {"frames", "skip", "strength"})
    return Request.parse({**named, "images": images, "loras": weights, "prefix": begun})


def encoding_of(values: object) -> Encoding:
    """How a file is to be written, of what a program sent. Raises RequestError."""
    if not isinstance(values, Mapping) or not set(values) <= set(OUTPUT):
        raise RequestError(f"output: it is an object of {', '.join(OUTPUT)}; leave out what is to be as usual.")
    given = {name: option.parse(values.get(name)) for name, option in OUTPUT.items()}
    return Encoding(**{name: value for name, value in given.items() if value is not None})


def _check_model(model: object) -> None:
    """Only what the catalogue lists: a folder or a repo would let a page choose what is read or downloaded."""
    known = {name for caps in all_caps() for name in (caps.id, caps.label)} | {"nano"}
    if model is not None and (not isinstance(model, str) or model not in known):
        raise RequestError(f"model {str(model)[:80]!r}: not in the list of variants; name one by its id or its label.")


def _list(values: Mapping[str, object], name: str) -> list[object]:
    items = values.get(name) or ()
    if not isinstance(items, (list, tuple)):
        raise RequestError(f"{name}: not valid; it takes a list of objects.")
    return list(items)


def _medium(item: object, uploads: Uploads, kind: str, more: set[str]) -> dict[str, object]:
    if not isinstance(item, Mapping) or not set(item) <= {"id", *more}:
        known = ", ".join(("id", *sorted(more)))
        raise RequestError(f"{kind}s: each is {{{known}}}; upload the {kind} first, a path is not taken.")
    return {**{key: item[key] for key in more if key in item}, "path": str(uploads.path_of(item.get("id"), kind))}


def _lora(item: object, folder: Path | None) -> dict[str, object]:
    if not isinstance(item, Mapping) or not set(item) <= {"name", "strength", "stage2"}:
        raise RequestError("loras: each is {name, strength, stage2}; a path is not taken.")
    known = lora_names(folder)
    name = item.get("name")
    if not isinstance(name, str) or name not in known or folder is None:
        there = f"of {', '.join(known[:20])}" if known else "there is none: start the server with --loras FOLDER"
        raise RequestError(f"loras {str(name)[:80]!r}: not in the server's folder; {there}.")
    return {**{key: item[key] for key in ("strength", "stage2") if key in item}, "source": str(folder / name)}


def lora_names(folder: Path | None) -> list[str]:
    """The files of the folder that a server lends LoRAs from."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())


def request_json(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked (`Request.to_json`), as it can be asked again: ids and names for paths, the seed as text."""
    shown: dict[str, Any] = {
        **asked,
        "images": [_by_id(at) for at in asked.get("images", ())],
        "loras": [{**at, "name": Path(at["source"]).name} for at in asked.get("loras", ())],
    }
    for at in shown["loras"]:
        del at["source"]
    if asked.get("prefix"):
        shown["prefix"] = _by_id(asked["prefix"])
    if asked.get("seed") is not None:
        shown["seed"] = str(asked["seed"])  # JavaScript's numbers end at 53 bits, seeds at 63
    return {name: value for name, value in shown.items() if value not in ([], None)}


def without_paths(sentence: str, asked: Mapping[str, Any]) -> str:
    """A sentence about a request, with ids and names in place of its files."""
    media = [at["path"] for at in (*asked.get("images", ()), *filter(None, [asked.get("prefix")]))]
    for path in media:
        sentence = sentence.replace(path, Path(path).stem)
    for at in asked.get("loras", ()):
        sentence = sentence.replace(at["source"], Path(at["source"]).name)
    return sentence


def _by_id(at: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": Path(at["path"]).stem, **{name: value for name, value in at.items() if name != "path"}}


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as the command line prints it, with image ids for paths and a few words to show."""
    made = plan.to_json()
    made["images"] = [_by_id(at) for at in made["images"]]
    made["prefix"] = None if made["prefix"] is None else _by_id(made["prefix"])
    for stage in made["stages"]:
        stage["loras"] = [{**one, "repo": Path(one["repo"]).name} for one in stage["loras"]]
    made["notes"] = [without_paths(in_words(note), plan.request.to_json()) for note in plan.notes]
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


def on_this_machine(caps: Caps, caches: Iterable[Path] = ()) -> bool:
    """Whether the model's weights need no download: in the hub's cache, or in one of `caches`; see `hub.cached`."""
    if _is_nano(caps) or Path(caps.source).is_dir():
        return True
    from huggingface_hub.constants import HF_HUB_CACHE

    from modules.ltx.hosts import hub

    return hub.cached(caps, [Path(HF_HUB_CACHE), *caches])
