"""The noise of a pass, drawn from its own name, so that nothing else a job draws is moved by it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def draw(like: Tensor, seed: int, key: tuple[object, ...]) -> Tensor:
    """Standard normal noise of `like`'s shape, float32, on its device; sample i is keyed by seed + i and `key`.

    Drawn on the CPU: the same on every device. Two samples of a batch get what two jobs of their seeds get.
    """
    samples = []
    for index in range(len(like)):
        name = ":".join(map(str, ("self-refiner", seed + index, *key)))
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
        samples.append(torch.randn(like.shape[1:], generator=generator, dtype=torch.float32))
    return torch.stack(samples).to(like.device)
