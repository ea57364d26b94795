"""Trains the stage-2 LoRA for Dev, which mends what stage 1 does wrong while it draws at twice the size.

From words its aim is a true clip, of all the prompt can mean (`nano.nearest`): at first the one nearest to the small
clip, then, where its own steps have led, the one nearest to what it answered at first and answers now. It begins with
small clips that Dev has made (`nano.made`), the worst of them oftenest, or with true ones. From pictures it learns
where Dev arrives, as Distilled does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from nano import pool, prompts
from nano.distill import CLIPS, FromDev, Stage2
from nano.made import MADE
from nano.nearest import Meant
from nano.pool import Pool
from nano.transformer import SMALL, SOUND_WEIGHT

RANK = 32
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
_PICTURED = 0.2  # of the batches


class Lora(FromDev):
    """On the frozen Dev transformer as it is `shipped`; its teacher's captions were right."""

    name = "lora"
    lr = 2e-3

    def __init__(
        self,
        pools: Path,
        weights: Mapping[str, Mapping[str, Tensor]],
        stage2: Stage2,
        shipped: Mapping[str, Tensor],
        steps: int = 2200,
        *,
        compiled: bool = False,
    ) -> None:
        from peft import LoraConfig

        super().__init__(pools, weights, stage2, steps, kinds=(), compiled=compiled)
        self.transformer.load_state_dict(shipped)
        self.transformer.requires_grad_(False)
        self.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)))
        self.worst = worst_first(pool.read(pools, MADE), self.meant[SMALL])

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if rng.random() < _PICTURED:
            seen, heard = self.pictured_loss(rng)
        else:
            seen, heard = self.mending_loss(rng)
        return seen + SOUND_WEIGHT * heard, {"stage2": float(seen.detach()), "sound": float(heard.detach())}

    def made(self, rng: np.random.Generator) -> tuple[Mapping[str, Tensor], list[str]]:
        """What Dev made, the worst tenth in a third of the draws."""
        small = self.worst.rows((rng.random(CLIPS) ** 2 * len(self.worst.columns["index"])).astype(int))
        return small, pool.described(small["index"], rng)


def worst_first(made: Pool, meant: Meant) -> Pool:
    """The clips by how far they are from the nearest true one that their prompts can mean, farthest first."""
    scenes = [pool.scene(int(index)) for index in made.columns["index"]]
    aim = meant.nearest(made.columns["video"], scenes, [prompts.plain(scene) for scene in scenes])
    far = (made.columns["video"] - aim.video).square().mean((1, 2))
    return Pool(made.kind, made.rows(far.argsort(descending=True)))
