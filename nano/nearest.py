"""All clips that a prompt can mean, and which of them a model is about to make.

From pure noise several clips are possible, of the two lanes at least, and the mean of what is possible has a ghost in
the other lane: a model of eight steps that is to answer with the mean never gets rid of it. One that is to answer with
the clip nearest to its own answer decides at once, and the noise decides for which. Ordinary flow matching learns from
clips and noise paired by chance; this pairs them by the model itself, as rectified flow does (Liu et al. 2022,
arXiv 2209.03003), with the true clip in place of the one that the model came to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nano import pool, world
from nano.pool import Kind
from nano.prompts import OTHER

_CHANCES = (len(world.SIZES), len(world.BACKGROUNDS), 2)


class Meant:
    """The latents of every scene of one size, by what a prompt says of it."""

    def __init__(self, pools: Path, kind: Kind) -> None:
        every = pool.read(pools, replace(kind, every=True))
        self.combinations = [scene.combination for scene in world.every()[:: math.prod(_CHANCES)]]
        self.columns = {  # (combinations, chances, tokens, channels)
            name: every.columns[name].reshape(len(self.combinations), -1, *every.columns[name].shape[1:])
            for name in ("video", "sound")
        }

    def nearest(self, made: Tensor, scenes: Sequence[world.Scene], said: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Picture (batch, tokens, channels) and sound (batch, length, channels) of that clip of all which a prompt
        leaves open whose picture differs least from `made`. Silence is not looked at: see `Scene.silent`."""
        rows = torch.tensor([self.combinations.index(scene.combination) for scene in scenes])
        video = self.columns["video"][rows]
        far = (video - made[:, None]).square().mean((2, 3))
        meant = torch.stack([possible(scene, words) for scene, words in zip(scenes, said, strict=True)])
        chosen = far.masked_fill(~meant, torch.inf).argmin(1)
        every = torch.arange(len(rows))
        return video[every, chosen], self.columns["sound"][rows, chosen]


def possible(scene: world.Scene, said: str) -> Tensor:
    """Which sizes, backgrounds and lanes `said` leaves open, as a flat row of yes and no in the order of
    `world.every`: the scene's own where it is said, all where not."""
    words = set(said.replace(",", " ").lower().split())
    open_to = torch.ones(_CHANCES, dtype=torch.bool)
    for axis, (values, own) in enumerate(((world.SIZES, scene.size), (world.BACKGROUNDS, scene.background))):
        if words & {own, OTHER.get(own, own)}:
            others = [index for index, value in enumerate(values) if value != own]
            open_to.index_fill_(axis, torch.tensor(others), False)
    return open_to.flatten()
