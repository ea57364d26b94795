"""All clips that a prompt can mean, and which of them a model is about to make.

From pure noise several clips are possible, of the two lanes at least, and the mean of what is possible has a ghost in
the other lane: a model of eight steps that is to answer with the mean never gets rid of it. One that is to answer with
the clip nearest to its own answer decides at once, and the noise decides for which. Ordinary flow matching learns from
clips and noise paired by chance; this pairs them by the model itself, as rectified flow does (Liu et al. 2022,
arXiv 2209.03003), with the true clip in place of the one that the model came to.

Left alone, that makes the lane which is nearest a little more often the only one: 9 of 10 clips were in it. So a lane
that is taken too often gets a price, as busy experts do (Wang et al. 2024, arXiv 2408.15664).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nano import pool, world
from nano.pool import Kind
from nano.prompts import OTHER

_CHANCES = (len(world.SIZES), len(world.BACKGROUNDS), 2)
# What one clip adds to its lane's price, in mean squared difference of latents. To Dev, from pure noise, one lane is
# nearer than the other by 0 to 0.03 in the mean and 0.02 to 0.05 by chance, depending on the motion.
_PRICE = 0.002


@dataclass(frozen=True)
class Nearest:
    """Picture (batch, tokens, channels), sound (batch, length, channels) and lane, 0 or 1, of the clips to aim at."""

    video: Tensor
    sound: Tensor
    lane: Tensor


class Meant:
    """The latents of every scene of one size, by what a prompt says of it."""

    def __init__(self, pools: Path, kind: Kind) -> None:
        every = pool.read(pools, replace(kind, every=True))
        self.combinations = [scene.combination for scene in world.every()[:: math.prod(_CHANCES)]]
        self.columns = {  # (combinations, chances, tokens, channels)
            name: every.columns[name].reshape(len(self.combinations), -1, *every.columns[name].shape[1:])
            for name in ("video", "sound")
        }

    def nearest(
        self, made: Tensor, scenes: Sequence[world.Scene], said: Sequence[str], price: Tensor | None = None
    ) -> Nearest:
        """That clip of all which a prompt leaves open whose picture differs least from `made`; `price` (batch,) is what
        the second lane costs on top. Silence is not looked at: see `Scene.silent`."""
        rows = torch.tensor([self.combinations.index(scene.combination) for scene in scenes])
        video = self.columns["video"][rows]
        far = (video - made[:, None]).square().mean((2, 3))
        if price is not None:
            far[:, 1::2] += price[:, None]
        meant = torch.stack([possible(scene, words) for scene, words in zip(scenes, said, strict=True)])
        chosen = far.masked_fill(~meant, torch.inf).argmin(1)
        return Nearest(video[torch.arange(len(rows)), chosen], self.columns["sound"][rows, chosen], chosen % 2)


class Lanes(torch.nn.Module):
    """What the second lane costs, for each motion: more, the more often it was taken. A module, to be kept in
    checkpoints."""

    price: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("price", torch.zeros(len(world.MOTIONS)))

    def of(self, scenes: Sequence[world.Scene]) -> Tensor:
        return self.price[[world.MOTIONS.index(scene.motion) for scene in scenes]]

    def count(self, scenes: Sequence[world.Scene], lane: Tensor) -> None:
        """Clips that took these lanes. Bounces have but one."""
        for scene, taken in zip(scenes, lane.tolist(), strict=True):
            if scene.motion != "bouncing":
                self.price[world.MOTIONS.index(scene.motion)] += _PRICE if taken else -_PRICE


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
