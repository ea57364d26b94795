"""LTX-Nano: models of the real diffusers and transformers classes, small enough to build in seconds.

Knows which tiny models exist and keeps each as an ordinary folder in a cache the caller names. Such a
folder loads with `from_pretrained` like any downloaded one and runs on a CPU. 2.3 is trained and shipped
with the project (docs/nano.md); 2.0 and 0.9 are random, the same on every build, and show noise.
Does not know the shapes (nano_parts), the text side (nano_text), real models, or when to use which.

Listing names imports neither torch nor diffusers; neither does `ensure` when the folder is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from modules.ltx.errors import HostError, RequestError
from modules.ltx.hosts import nano_parts, nano_text

NAMES: tuple[str, ...] = (
    "0.9",
    "2.0-dev",
    "2.0-distilled",
    "2.3-dev",
    "2.3-distilled",
    "0.9-upsampler",
    "2.0-upsampler",
    "2.3-upsampler",
    "2.0-lora",
    "2.3-lora",
)

# Part of every folder's fingerprint. Raise it when code changes the weights without changing a config.
_VERSION = 1

# Written last, into the finished folder: every file and its size. A folder without it, or that disagrees
# with it, is half made.
_MANIFEST = "nano.json"

LORA_FILE = "pytorch_lora_weights.safetensors"
_LORA_RANK = 4
_LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def ensure(name: str, cache: Path) -> Path:
    """The folder of `name` inside `cache`, built first when it is missing or incomplete.

    The folder appears under its name only when finished, so a crash or a second process building the
    same model never shows half a folder; of two builders the first one's folder stays. Two threads of one
    process must not build at once: torch has a single CPU generator for all of them.
    """
    if name not in NAMES:
        raise RequestError(f"There is no LTX-Nano {name!r}. Choose one of: {', '.join(NAMES)}.")
    try:
        target = cache / f"ltx-nano-{name}-{_fingerprint(name)}"  # reads the shipped weights
        if _complete(target):
            return target
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".ltx-nano-", dir=cache) as staging:
            _build(name, Path(staging) / "new")
            _move_into_place(Path(staging), target)
    except OSError as error:
        raise HostError(f"Could not build LTX-Nano {name} in {cache}: {error}") from error
    return target


def _fingerprint(name: str) -> str:
    """Eight hex digits of everything that shapes the folder, so that a change builds a new one."""
    generation, _, rest = name.partition("-")
    parts = nano_parts.spec(generation, rest)
    parts["latent_upsampler"] = nano_parts.upsampler(generation)
    described = {key: dataclasses.asdict(part) for key, part in parts.items()}
    files = {part.trained for part in parts.values()} | ({"lora"} if rest == "lora" else set())
    shipped = sorted(files & set(nano_parts.TRAINED)) if generation == "2.3" else []
    digests = [nano_parts.digest(file) for file in shipped]
    text = [nano_text.WORDS, nano_text.READING, nano_text.MAX_TOKENS]
    facts = [_VERSION, name, described, text, _LORA_RANK, _LORA_LAYERS, digests]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / _MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def _move_into_place(staging: Path, target: Path) -> None:
    """Rename the finished folder to `target`, unless another process was faster with the same bytes.

    A rename never replaces a folder that has files in it, so it is tried before anything is moved: a folder that
    another process has just finished, and reads from now on, must not be away for a moment. A broken one is.
    """
    try:
        os.replace(staging / "new", target)
        return
    except OSError:
        if _complete(target):
            return
    with contextlib.suppress(FileNotFoundError):
        os.replace(target, staging / "broken")
    try:
        os.replace(staging / "new", target)
    except OSError:
        if not _complete(target):
            raise


def _build(name: str, folder: Path) -> None:
    generation, _, rest = name.partition("-")
    if rest == "upsampler":
        _upsample_pipeline(generation).save_pretrained(folder)
    elif rest == "lora":
        _write_lora(generation, folder)
    else:
        _pipeline(generation, rest).save_pretrained(folder)
    _write_manifest(folder)


def _pipeline(generation: str, variant: str) -> Any:
    import diffusers

    components = {key: nano_parts.build(part) for key, part in nano_parts.spec(generation, variant).items()}
    if generation == "0.9":
        return diffusers.LTXPipeline(**components, tokenizer=nano_text.t5_tokenizer())
    tokenizer = nano_text.worldly_tokenizer() if generation == "2.3" else nano_text.gemma_tokenizer()
    return diffusers.LTX2Pipeline(**components, tokenizer=tokenizer)


def _upsample_pipeline(generation: str) -> Any:
    """With the generation's own VAE, as the real folders have it; it normalises around the upsampler."""
    import diffusers

    vae = nano_parts.build(nano_parts.spec(generation)["vae"])
    model = nano_parts.build(nano_parts.upsampler(generation))
    if generation == "0.9":
        return diffusers.LTXLatentUpsamplePipeline(vae=vae, latent_upsampler=model)
    return diffusers.LTX2LatentUpsamplePipeline(vae=vae, latent_upsampler=model)


def _write_lora(generation: str, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    known = generation == "2.3" and "lora" in nano_parts.TRAINED
    weights = nano_parts.trained("lora") if known else _lora_weights(generation)
    save_file(weights, folder / LORA_FILE, metadata={"format": "pt"})


def _lora_weights(generation: str) -> dict[str, Any]:
    """Down and up matrices for every attention projection, both nonzero (a fresh LoRA's up matrix is zero).

    The sizes come from a transformer on the meta device, which has shapes but no numbers.
    """
    import torch

    part = nano_parts.spec(generation)["transformer"]
    with torch.device("meta"):
        transformer = nano_parts.component_class(part.kind)(**part.config)
    weights: dict[str, Any] = {}
    with nano_parts.seeded(f"{generation}/lora"):
        for path, module in transformer.named_modules():
            if path.endswith(_LORA_LAYERS):
                key = f"transformer.{path}"
                down = torch.randn(_LORA_RANK, module.in_features) / module.in_features**0.5
                weights[f"{key}.lora_A.weight"] = down
                weights[f"{key}.lora_B.weight"] = torch.randn(module.out_features, _LORA_RANK) * 0.1
    return weights
