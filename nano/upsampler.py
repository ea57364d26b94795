"""Trains the 2x latent upsampler on pairs: the same scene encoded at 128 and at 256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts
from nano import pool
from nano.transformer import LARGE_ANYWHERE, SMALL_ANYWHERE

_BATCH = 12
_INPUT_NOISE = 0.05  # sampled latents are not as clean as encoded ones


def new_upsampler() -> Any:
    part = nano_parts.upsampler("2.3")
    with nano_parts.seeded(part.seed):
        model = nano_parts.component_class(part.kind)(**part.config)
    return model.train()


def unpack(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(batch, tokens, channels) to (batch, channels, frames, rows, columns)."""
    return torch.unflatten(tokens.transpose(1, 2), 2, grid)


class Upsampler:
    """The model works on latents as the VAE makes them, so `statistics` (mean, deviation) undo the pools'."""

    name = "upsampler"
    lr = 2e-3

    def __init__(self, pools: Path, statistics: tuple[Tensor, Tensor], steps: int = 1500) -> None:
        self.steps = steps
        self.model = new_upsampler()
        self.small, self.large = pool.read(pools, SMALL_ANYWHERE), pool.read(pools, LARGE_ANYWHERE)
        self.mean, self.deviation = (value.view(1, 1, -1) for value in statistics)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"upsampler": self.model}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        rows = rng.integers(0, len(self.large.columns["index"]), _BATCH)
        small, large = (
            unpack(side.columns["video"][rows] * self.deviation + self.mean, side.kind.grid)
            for side in (self.small, self.large)
        )
        made = self.model(small + _INPUT_NOISE * torch.randn_like(small))
        error = (made - large).square().mean()
        return (made - large).abs().mean() + error, {"mse": float(error.detach())}
