"""Small clips as Dev makes them from words alone, guided: what stage 2 is given, with the faults it is to mend.

A pool like the others, but of what a model makes; row k is scene k as its plain prompt says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts
from modules.ltx.ltx_util import shift_for_tokens, shifted_sigmas
from nano import pool, prompts
from nano.half import Half
from nano.pool import Pool
from nano.transformer import SMALL, Text, embedded, make_batch, new_connectors, new_transformer, travelled

MADE = replace(SMALL, made=True)
COUNT = 1600
# A user takes thirty; eight lose shapes as often, in a quarter of the time: 91 / 84 per cent of 64 clips were right.
_STEPS = 8
_TOGETHER = 64  # clips


def make(
    pools: Path, dev: Mapping[str, Mapping[str, Tensor]], count: int = COUNT, *, rank: int = 0, workers: int = 1
) -> None:
    """This worker's share of the pool, unless it is there. `dev`: weights of the transformer and the connectors."""
    maker = Maker(pool.read(pools, SMALL), dev)
    file = f"{count}-{rank}-{workers}.safetensors"
    pool.fill(pools, MADE, range(rank, count, workers), maker, file=file, together=_TOGETHER)


class Maker:
    """Dev as stage 1 runs it, with classifier-free guidance alone."""

    def __init__(self, small: Pool, dev: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.small = small
        transformer, connectors = new_transformer(), new_connectors()
        transformer.load_state_dict(dev["transformer"])
        connectors.load_state_dict(dev["connectors"])
        self.transformer, self.connectors, self.text = Half(transformer.eval()), Half(connectors.eval()), Text()

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Normalised tokens of picture and sound for the prompts of these rows. The first of them seeds the noise."""
        columns = self.small.rows(list(rows))
        said = [prompts.plain(pool.scene(int(index))) for index in columns["index"]]
        text, empty = (embedded(words, self.text, self.connectors) for words in (said, [""] * len(said)))
        with nano_parts.seeded(f"made {rows[0]}"):
            noise, _, _ = make_batch(columns, SMALL, torch.ones(len(said)), "text")
        levels = (*shifted_sigmas(_STEPS, shift_for_tokens(columns["video"].shape[1])), 0.0)
        at = travelled(self.transformer, noise, text, levels, empty)
        return {"video": at.video, "sound": at.sound}
