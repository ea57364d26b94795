"""Small clips as Dev makes them from words alone, guided: what stage 2 is given, with the faults it is to mend.

A pool like the others, but of what a model makes; row k is scene k as its plain prompt says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    from rich.progress import track
    from safetensors.torch import save_file

    file = pools / MADE.name / f"{count}-{rank}-{workers}.safetensors"
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    small, maker = pool.read(pools, SMALL), Maker(dev)
    rows = np.arange(rank, count, workers)
    shares = [share.tolist() for share in np.split(rows, range(_TOGETHER, len(rows), _TOGETHER))]
    parts = [maker(small, share) for share in track(shares, "made", disable=rank != 0)]
    columns = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    new = file.with_suffix(".new")
    save_file({**columns, "index": small.columns["index"][rows]}, new)
    new.replace(file)


class Maker:
    """Dev as stage 1 runs it, with classifier-free guidance alone."""

    def __init__(self, dev: Mapping[str, Mapping[str, Tensor]]) -> None:
        transformer, connectors = new_transformer(), new_connectors()
        transformer.load_state_dict(dev["transformer"])
        connectors.load_state_dict(dev["connectors"])
        self.transformer, self.connectors, self.text = Half(transformer.eval()), Half(connectors.eval()), Text()

    @torch.no_grad()
    def __call__(self, small: Pool, rows: Sequence[int]) -> dict[str, Tensor]:
        """Normalised tokens of picture and sound for the prompts of these rows. The first of them seeds the noise."""
        columns = {name: column[rows] for name, column in small.columns.items()}
        said = [prompts.plain(pool.scene(int(index))) for index in columns["index"]]
        text, empty = (embedded(words, self.text, self.connectors) for words in (said, [""] * len(said)))
        with nano_parts.seeded(f"made {rows[0]}"):
            noise, _, _ = make_batch(columns, SMALL, torch.ones(len(said)), "text")
        levels = (*shifted_sigmas(_STEPS, shift_for_tokens(columns["video"].shape[1])), 0.0)
        at = travelled(self.transformer, noise, text, levels, empty)
        return {"video": at.video, "sound": at.sound}
