"""Weights made smaller while they are loaded: SDNQ, optimum-quanto, or float8 storage.

A component is read, made smaller, and only then the next one is read, so that no more than one of them is ever in
memory at full size. Does not know pipelines; which parts a folder has it reads from its model_index.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.library_features import in_dtype

# Bytes a weight, of bfloat16's two: int4 has scales and keeps some layers, as the published SDNQ repos do.
SHARE: Mapping[str, float] = MappingProxyType(
    {"sdnq-int8": 0.52, "sdnq-int4": 0.3, "quanto-int8": 0.52, "quanto-int4": 0.3, "fp8": 0.52}
)
KINDS = tuple(SHARE)
PARTS = ("transformer", "text_encoder", "vae")
DEFAULT_PARTS = ("transformer", "text_encoder")  # the VAE is small, and its errors are seen in every pixel

LORA_WHY_NOT = (
    "diffusers keeps a LoRA on float8 layers in float8 too, which loses it; take --quantize sdnq-int8 or quanto-int8"
)


def check(kind: str | None, parts: Sequence[str]) -> None:
    """Raise RequestError for a kind or a part that does not exist, or do not go together."""
    if kind is not None and kind not in KINDS:
        raise RequestError(f"--quantize {kind}: not known; it takes one of: {', '.join(KINDS)}.")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise RequestError(f"--quantize-parts {','.join(parts)}: it takes some of: {', '.join(PARTS)}.")
    if kind is not None and kind.startswith("quanto") and "vae" in parts:
        raise RequestError(
            "--quantize-parts vae: optimum-quanto has no 3-D convolutions, as a VAE is made of; take sdnq-int8 or fp8."
        )


def lacks(kind: str | None) -> dict[str, str]:
    """What a choice rules out, keyed as `ltx_capabilities.effective` reads it."""
    if kind is None:
        return {}
    twice = "its weights are quantized already; leave --quantize out"
    slow = "quantized weights are unpacked by code that it would break out of; leave --speed fast or --quantize out"
    return {"sdnq-int4": twice, "compile": slow, **({"lora": LORA_WHY_NOT} if kind == "fp8" else {})}


def smaller(sizes: Mapping[str, int], kind: str | None, parts: Sequence[str]) -> dict[str, int]:
    """Bytes of each component once it is quantized, from those on disk."""
    share = 1.0 if kind is None else SHARE[kind]
    return {name: round(size * share) if name in parts else size for name, size in sizes.items()}


def components(
    folder: Path, kind: str | None, parts: Sequence[str], dtype: Any, subfolders: Mapping[str, str]
) -> dict[str, Any]:
    """The folder's `parts`, quantized, by name. `subfolders`: where a part is if not where its name says."""
    if kind is None:
        return {}
    there = [part for part in parts if part in _index(folder)]
    return {part: component(folder, part, subfolders.get(part, part), kind, dtype) for part in there}


def component(folder: Path, part: str, subfolder: str, kind: str | None, dtype: Any) -> Any:
    """One component of a folder, quantized where a kind is named."""
    loaded = class_of(*_index(folder)[part])
    model = loaded.from_pretrained(
        folder, subfolder=subfolder, use_safetensors=True, local_files_only=True, **in_dtype(loaded, dtype)
    )
    return model.eval() if kind is None else quantized(model.eval(), kind, dtype)


def _index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return found


def class_of(library: str, name: str) -> Any:
    """A component's class by the two words of a model_index.json. Raises StopIteration for one that is not known."""
    import diffusers
    import transformers
    from diffusers.pipelines import ltx, ltx2

    homes = (transformers,) if library == "transformers" else (diffusers, ltx2, ltx)
    return next(getattr(home, name) for home in homes if hasattr(home, name))


def quantized(model: Any, kind: str, dtype: Any) -> Any:
    """`model` with its weights stored as `kind` says and computed with in `dtype`."""
    if kind.startswith("sdnq"):
        from sdnq import sdnq_post_load_quant

        # uint4 is what "4-bit" means to SDNQ: a range with a zero point, not a symmetric one.
        weights = "int8" if kind == "sdnq-int8" else "uint4"
        return sdnq_post_load_quant(model, weights_dtype=weights, quant_conv=True, torch_dtype=dtype)
    if kind.startswith("quanto"):
        from optimum import quanto

        quanto.quantize(model, weights=quanto.qint8 if kind == "quanto-int8" else quanto.qint4)
        quanto.freeze(model)
        return model
    import torch
    from diffusers.hooks import apply_layerwise_casting

    # T5 asks its "wo" for its dtype and casts to it, and its embedding ("shared") is what all else computes with.
    skipped = ("norm", "embed", "shared", r"\.wo$", "scale_shift_table", "proj_in", "proj_out", "lm_head")
    apply_layerwise_casting(model, torch.float8_e4m3fn, dtype, skip_modules_pattern=skipped)
    return model
