"""Models from the hub: which of a repo's files a variant loads, and getting just those.

diffusers' own rule (whatever model_index.json names) takes too much and too little: a second, unsharded copy of the
same weights, encoders that are on disk already from another variant, and not the transformer of LTX 2.5 Dev, which
has a folder of its own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from modules.ltx.errors import RequestError
from modules.ltx.hosts import folders
from modules.ltx.ltx_capabilities import Caps

UPSAMPLER = "latent_upsampler"  # the subfolder in every repo that has one
ENHANCER, READER, DECODER = "prompt_enhancer", "processor", "diffusion_decoder"  # what only some jobs need
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".gguf", ".h5")
_INDEX = ".safetensors.index.json"


def needed(files: Iterable[str], parts: Collection[str]) -> list[str]:
    """Of a repo's `files`, those that are loaded of the component folders `parts`, and model_index.json."""
    listed = sorted(files)
    inside = [name for name in listed if PurePosixPath(name).parts[0] in parts and "/" in name]
    return [*(name for name in listed if name == "model_index.json"), *loadable(inside)]


def loadable(files: Iterable[str]) -> list[str]:
    """Of `files` the ones a component is loaded from.

    Only safetensors; where weights are there in shards, not the whole file beside them (OzzyGT/LTX-2.3 has 6 GB of
    connectors twice); no half-precision twin of a file.
    """
    inside = list(files)
    sharded = {name.removesuffix(_INDEX) + ".safetensors" for name in inside if name.endswith(_INDEX)}
    plain = set(inside)

    def wanted(name: str) -> bool:
        if not name.endswith(_WEIGHTS):
            return True
        twin = name.replace(".fp16.", ".")
        return name.endswith(".safetensors") and name not in sharded and (twin == name or twin not in plain)

    return list(filter(wanted, inside))


def parts_of(folder: Path, caps: Caps, borrowed: Collection[str]) -> list[str]:
    """The component folders of a repo that a variant loads from it."""
    left = {*borrowed, ENHANCER, READER}
    return [caps.transformer if name == "transformer" else name for name in folders.named(folder) if name not in left]


def cached(caps: Caps, caches: Iterable[Path]) -> bool:
    """Whether a hub cache has the variant's transformer, its largest part: every file that its index names.

    A look at names: a link to a file that is missing does not count, what is inside the files is not read.
    """
    name = f"models--{caps.source.replace('/', '--')}"
    folders_of = (cache / name / "snapshots" for cache in caches)
    return any(_whole(part) for folder in folders_of for part in folder.glob(f"*/{caps.transformer}"))


def _whole(part: Path) -> bool:
    indices = list(part.glob(f"*{_INDEX}"))
    for index in indices:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        if all((part / str(shard)).is_file() for shard in shards):
            return True
    return not indices and any(path.is_file() for path in part.glob("*.safetensors"))


def download(caps: Caps, *, offline: bool, borrowed: Collection[str] = ()) -> Path:
    """The snapshot folder of the variant's repo, with all that it loads from there.

    Raises RequestError where the repo, or a part of it in offline mode, cannot be had.
    """
    folder = folders.snapshot(caps.source, ["model_index.json"], offline=offline)
    return _fetch(caps.source, parts_of(folder, caps, borrowed), offline=offline)


def part(repo: str, name: str, *, offline: bool) -> Path:
    """The snapshot folder of a repo with one component in it."""
    folders.snapshot(repo, ["model_index.json"], offline=offline)
    return _fetch(repo, [name], offline=offline)


def whole(repo: str, *, offline: bool) -> Path:
    """The snapshot folder of a repo that is one component, and has its files at the top."""
    if offline:
        return folders.snapshot(repo, ["*"], offline=True)
    return folders.snapshot(repo, loadable(name for name in folders.listing(repo) if "/" not in name), offline=False)


def upsampler(repo: str, *, offline: bool) -> Path:
    """The snapshot folder of a repo with its latent upsampler in it."""
    folder = folders.snapshot(repo, [f"{UPSAMPLER}/*"], offline=offline)
    if not (folder / UPSAMPLER).is_dir():
        missing = "is not downloaded yet and offline mode is on; go online once" if offline else "is not in this repo"
        raise RequestError(f"{repo}: its {UPSAMPLER} {missing}; without it there is no second stage (--refine).")
    return folder


def _fetch(repo: str, parts: Collection[str], *, offline: bool) -> Path:
    if offline:
        folder = folders.snapshot(repo, ["*"], offline=True)
        missing = [name for name in parts if not (folder / name).is_dir()]
        if missing:
            raise RequestError(
                f"{repo}: {', '.join(missing)} not downloaded yet and offline mode is on; go online once, or give a"
                " local folder to --model."
            )
        return folder
    return folders.snapshot(repo, needed(folders.listing(repo), parts), offline=False)
