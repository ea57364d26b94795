"""NaN and infinity are caught where a phase hands something on, because an encoder would write them as a black or gray
clip without a word."""

from __future__ import annotations

import torch

from modules.ltx.errors import NotFinite

_HELPS = {
    "decode": "try --dtype float32, and another seed if that does not help",
    "": "try --dtype float32, or a lower LoRA or guidance scale",
}


def finite(tensor: torch.Tensor, phase: str, name: str) -> torch.Tensor:
    """`tensor`, which may be empty. Raises NotFinite where it holds NaN or infinity. Takes no memory of its size:
    the least and the most of a tensor are NaN where one of its numbers is."""
    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        help = _HELPS.get(phase, _HELPS[""])
        raise NotFinite(f"{phase}: the {name} are not finite (NaN or infinity); {help}", phase=phase, tensor=name)
    return tensor
