"""All clips that a prompt can mean, and which of them a model is about to make.

From pure noise several clips are possible, of the two lanes at least, and the mean of what is possible has a ghost in
the other lane: a model of eight steps that is to answer with the mean never gets rid of it. One that is to answer with
the clip nearest to its own answer decides at once, and the noise decides for which. Ordinary flow matching learns from
clips and noise paired by chance; this pairs them by the model itself, as rectified flow does (Liu et al. 2022,
arXiv 2209.03003), with the true clip in place of the one that the model came to.

Left alone, that makes the lane which is nearest a little more often the only one: 9 of 10 clips were in it. So half of
the clips go to each: those to the second that are nearer to it than half of the latest were, as tokens are shared out
among experts (Lewis et al. 2021, arXiv 2103.16716).
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
# The clips of a motion by whose middle a lane is chosen: six batches of small ones, in which a model changes little.
_LATEST = 32


@dataclass(frozen=True)
class Nearest:
    """Picture (batch, tokens, channels) and sound (batch, length, channels) of the clips to aim at."""

    video: Tensor
    sound: Tensor


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
        self, made: Tensor, scenes: Sequence[world.Scene], said: Sequence[str], lanes: Lanes | None = None
    ) -> Nearest:
        """That clip of all which a prompt leaves open whose picture differs least from `made`, or does in the lane that
        `lanes` say. Silence is not looked at: see `Scene.silent`."""
        rows = torch.tensor([self.combinations.index(scene.combination) for scene in scenes])
        video = self.columns["video"][rows]
        meant = torch.stack([possible(scene, words) for scene, words in zip(scenes, said, strict=True)])
        far = (video - made[:, None]).square().mean((2, 3)).masked_fill(~meant, torch.inf)
        if lanes:
            first, second = far[:, ::2].amin(1), far[:, 1::2].amin(1)
            far[:, 1::2] -= lanes.middle(scenes, second - first)[:, None]
        chosen = far.argmin(1)
        return Nearest(video[torch.arange(len(rows)), chosen], self.columns["sound"][rows, chosen])


class Lanes(torch.nn.Module):
    """By how much more the second lane was off than the first, for the latest clips of each motion. A module, to be
    kept in checkpoints."""

    gaps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gaps", torch.full((len(world.MOTIONS), _LATEST), torch.nan))

    def middle(self, scenes: Sequence[world.Scene], gaps: Tensor) -> Tensor:
        """What half of the latest are below, for each of these clips, which are now the latest: (batch,)."""
        motions = [world.MOTIONS.index(scene.motion) for scene in scenes]
        for motion, gap in zip(motions, gaps, strict=True):
            self.gaps[motion] = torch.cat([self.gaps[motion, 1:], gap[None]])
        return self.gaps.nanquantile(0.5, dim=1)[motions]


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
