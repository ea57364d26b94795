"""Model folders and hub repos as they are found on disk: what they are, how large, where cached.

Reads configs and file sizes only; never weights. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Facts
from modules.ltx.plan import LoraPlan

_REPO = re.compile(r"[\w.-]+/[\w.-]+\Z")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def is_folder_name(source: str) -> bool:
    """Whether `source` is written as a path rather than as a name: ./x, ../x, ~/x, /x, C:\\x, x/."""
    return bool(re.match(r"(\.{0,2}[/\\]|~|[A-Za-z]:[/\\])", source)) or source.endswith(("/", "\\"))


def folder_of(source: str) -> Path | None:
    """The folder that `source` names, if it names one. A folder written as a path must exist."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return path.resolve()
    if is_folder_name(source):
        raise RequestError(f"model folder {source!r} does not exist; give a folder that holds a model_index.json.")
    return None


def probe(source: str, *, offline: bool) -> Facts | None:
    """Facts of a folder, or of a hub repo (cached, or fetched when online); None for anything else."""
    folder = folder_of(source)
    if folder is not None:
        return facts_of(folder)
    if not _REPO.match(source):
        return None
    return facts_of(_fetch_configs(source, offline=offline))


def facts_of(folder: Path) -> Facts:
    """The pipeline class and the configs that tell variants apart. Raises RequestError if it is no diffusers folder."""
    index = _json(folder / "model_index.json")
    if index is None:
        raise RequestError(f"{folder}: no readable model_index.json; give a diffusers folder or a label of `models`.")
    transformer, vae = (_json(folder / part / "config.json") or {} for part in ("transformer", "vae"))
    return Facts(pipeline=str(index.get("_class_name", "")), transformer=transformer, vae=vae)


def named(folder: Path) -> list[str]:
    """The components that a model folder's model_index.json names."""
    index = _json(folder / "model_index.json") or {}
    return [name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None]


def weight_bytes(folder: Path) -> dict[str, int]:
    """Bytes of safetensors in each component's subfolder."""
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir()]
    sizes = {part.name: sum(f.stat().st_size for f in part.glob("*.safetensors")) for part in parts}
    return {name: size for name, size in sizes.items() if size}


def refuse_pickles(folder: Path) -> None:
    """A component that has only pickled weights is refused: loading a pickle runs its code."""
    for part in (p for p in folder.iterdir() if p.is_dir()):
        if any(f.suffix in _PICKLES for f in part.iterdir()) and not any(part.glob("*.safetensors")):
            raise RequestError(f"{part}: its weights are pickled; only safetensors are read. Convert them first.")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _fetch_configs(repo: str, *, offline: bool) -> Path:
    """The snapshot folder of a hub repo with its configs in it."""
    return snapshot(repo, ["model_index.json", "*/config.json"], offline=offline)


def snapshot(repo: str, patterns: list[str], *, offline: bool) -> Path:
    """Files of a hub repo, from the cache or the network. Raises RequestError when it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=offline))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RequestError(unreachable(repo, error, offline=offline)) from error


def listing(repo: str) -> list[str]:
    """The names of a hub repo's files. Raises RequestError when it cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return list(HfApi().list_repo_files(repo))
    except (HfHubHTTPError, OSError) as error:
        raise RequestError(unreachable(repo, error, offline=False)) from error


def lora_file(plan: LoraPlan, *, offline: bool) -> tuple[str, dict[str, Any]]:
    """Where LoRA weights are, as `load_lora_weights` takes them: a folder, and the file's name in it.

    Raises RequestError for a file or folder that is missing, or that holds no safetensors.
    """
    path = Path(plan.repo).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise RequestError(f"--lora {plan.repo}: only .safetensors files are read; pickles would run code.")
        return str(path.parent), {"weight_name": path.name}
    if not path.is_dir():
        if is_folder_name(plan.repo) or not _REPO.match(plan.repo):
            raise RequestError(f"--lora {plan.repo}: no such file or folder; give a .safetensors file or a hub repo.")
        path = snapshot(plan.repo, [plan.file or "*.safetensors"], offline=offline)
    found = [path / plan.file] if plan.file else sorted(path.glob("*.safetensors"))
    if len(found) != 1 or not found[0].is_file():
        names = ", ".join(f.name for f in found) or "none"
        raise RequestError(f"--lora {plan.repo}: it must hold one .safetensors file, it holds: {names}. Name the file.")
    return str(found[0].parent), {"weight_name": found[0].name}


def unreachable(repo: str, error: BaseException, *, offline: bool) -> str:
    """Why a hub repo cannot be had, and what to do, in one sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{repo}: gated or private; accept its licence on its page, then run `hf auth login`, and try again."
    if status == 404:
        return f"{repo}: no such repo on the hub; check its name with `models`."
    if offline:
        return f"{repo}: not downloaded yet and offline mode is on; go online once, or give a local folder to --model."
    return f"{repo}: cannot be reached ({type(error).__name__}); check the network, or give a local folder to --model."
