"""LoRA files against the model they are for, by their headers: before anything of them is loaded.

Knows how layers are named in such files; reads no numbers and imports no torch. Loading is `borrow.adapters`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.ltx import headers
from modules.ltx.errors import RequestError
from modules.ltx.headers import Tensor

_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
# diffusers' own names, and those of the original code, whose layers inside blocks mostly have the same ones.
_PART = re.compile(r"(?:transformer|diffusion_model)\.(?P<layer>.+)\.lora_(?P<side>A|B|down|up)\.weight\Z")


def check(file: Path, blocks: int) -> None:
    """Raise RequestError for a file that holds no LoRA, or one of a model with more than `blocks` transformer blocks,
    HostError for a damaged one."""
    tensors = headers.read(file)
    if not any(".lora_" in name for name in tensors):
        raise RequestError(refused(file, "none of its tensors is a LoRA's"))
    highest = max((int(found[1]) for name in tensors if (found := _BLOCK.search(name))), default=0)
    if highest >= blocks:
        raise RequestError(refused(file, f"it is for block {highest}, and this model has blocks 0 to {blocks - 1}"))


def check_layers(file: Path, transformer: Any) -> None:
    """Raise RequestError for a LoRA whose layers have other widths than those of `transformer`."""
    layers = dict(transformer.named_modules())
    for layer, size, side, wanted in _sizes(headers.read(file), layers):
        if size != wanted:
            raise RequestError(refused(file, f"{layer} has {wanted} {side} here, and {size} there"))


def _sizes(tensors: Mapping[str, Tensor], layers: Mapping[str, Any]) -> Iterator[tuple[str, int, str, int]]:
    """(layer, its width in the file, which side, its width in the model) of all layers that the model has."""
    for name, tensor in tensors.items():
        part = _PART.match(name)
        layer: Any = None if part is None else layers.get(part["layer"])
        if part is None or len(tensor.shape) != 2 or not hasattr(layer, "in_features"):
            continue
        if part["side"] in ("A", "down"):
            yield part["layer"], tensor.shape[1], "inputs", layer.in_features
        else:
            yield part["layer"], tensor.shape[0], "outputs", layer.out_features


def refused(file: Path, how: str) -> str:
    """The sentence about a LoRA that cannot be used."""
    return f"LoRA {file}: not one of this model ({how}); take one of its generation."
