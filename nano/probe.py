"""`python -m nano.probe`: from which noise level on a Dev checkpoint loses what it is to draw, and what mends it.

Rendered clips of 256x256 are encoded, noised to a level and denoised from there by Dev under classifier-free guidance;
what comes out is judged. A level of 1 is pure noise. `--odds`: the model is told of so many times the odds of noise,
s / (1 - s), as there are, and the step is made for what there is. `--ancestral`: all noise is drawn anew at each step.
Guidance by skipped blocks and between the modalities is left out; it changed nothing here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.ltx_util import shift_for_tokens, shifted_sigmas
from nano import evaluate, judge, pool, prompts, weights
from nano.half import Half
from nano.loop import averaged_weights
from nano.transformer import LARGE, Batch, Text, embedded, make_batch, new_connectors, new_transformer

STEPS = 30


@dataclass(frozen=True)
class Way:
    """How a clip is denoised: from which level, told how much noise, with fresh noise or without."""

    level: float
    odds: float = 1.0
    ancestral: bool = False


class Probe:
    """A Dev checkpoint and clips to noise: half of them of combinations that are never trained."""

    def __init__(self, folder: Path, clips: int, seed: int = 7) -> None:
        self.scenes = evaluate.scenes(clips, seed=seed)
        self.vae, audio_vae = weights.vaes(folder)
        drawn = [pool.clip(scene, LARGE) for scene in self.scenes]
        parts = [pool.encode(self.vae, audio_vae, clip[None], mel[None]) for clip, mel in drawn]
        self.columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        transformer, connectors = new_transformer(), new_connectors()
        transformer.load_state_dict(averaged_weights(folder, "dev", "transformer"))
        connectors.load_state_dict(averaged_weights(folder, "dev", "connectors"))
        self.model, self.connectors, self.text = Half(transformer.eval()), Half(connectors.eval()), Text()

    @torch.no_grad()
    def rows(self, way: Way) -> list[dict[str, bool]]:
        """The judge's verdict on each clip."""
        torch.manual_seed(1)
        start, _, _ = make_batch(self.columns, LARGE, torch.full((len(self.scenes),), way.level), "text")
        told, empty = (
            embedded(words, self.text, self.connectors)
            for words in ([prompts.plain(scene) for scene in self.scenes], [""] * len(self.scenes))
        )
        at, sigmas = start, [*shifted_sigmas(STEPS, shift_for_tokens(start.video.shape[1])), 0.0]
        for sigma, following in itertools.pairwise(sigma * way.level for sigma in sigmas):
            x0 = self._clean(at, sigma, way.odds, told, empty)
            at = replace(
                at,
                video=_stepped(at.video, x0[0], sigma, following, way.ancestral),
                sound=_stepped(at.sound, x0[1], sigma, following, way.ancestral),
            )
        looked = [judge.look(self._frames(video)) for video in at.video]
        return [judge.verdict(seen, scene) for seen, scene in zip(looked, self.scenes, strict=True)]

    def _clean(
        self, at: Batch, sigma: float, odds: float, told: dict[str, Tensor], empty: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What the guided model takes picture and sound for, told of `odds` times the odds of noise."""
        if sigma < 1.0:
            ratio = odds * sigma / (1 - sigma)
            known = ratio / (1 + ratio)
            shrunk = (1 - known) / (1 - sigma)
        else:
            known, shrunk = sigma, 1.0
        seen = replace(at, video=at.video * shrunk, sound=at.sound * shrunk, sigma=torch.full((len(at.video),), known))
        guided = seen.guided(self.model, told, empty)
        return seen.video - known * guided[0], seen.sound - known * guided[1]

    def _frames(self, tokens: Tensor) -> Any:
        latents = tokens.T.reshape(1, -1, *LARGE.grid)
        mean, deviation = (value.view(1, -1, 1, 1, 1) for value in (self.vae.latents_mean, self.vae.latents_std))
        pixels = self.vae.decode(latents * deviation + mean).sample[0].permute(1, 2, 3, 0)
        return pixels.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _stepped(x: Tensor, x0: Tensor, sigma: float, following: float, ancestral: bool) -> Tensor:
    """One Euler step; with `ancestral` all noise that can be is drawn anew (eta 1)."""
    if not ancestral or following == 0:
        return x0 + following / sigma * (x - x0)
    down = following**2 / sigma
    scale = (1 - following) / (1 - down)
    up = math.sqrt(following**2 - (down * scale) ** 2)
    return scale * (x0 + down / sigma * (x - x0)) + up * torch.randn_like(x)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nano.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".training"), help="checkpoints (.training)")
    parser.add_argument("--clips", type=int, default=32, help="clips (32)")
    parser.add_argument("--levels", default="1", help="noise levels to begin from, as 1,0.95 (1)")
    parser.add_argument("--odds", default="1", help="times the odds of noise that the model is told, as 1,1.1 (1)")
    parser.add_argument("--ancestral", action="store_true", help="draw noise anew at each step")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)
    probe, told = Probe(asked.folder, asked.clips), []
    for level, odds in itertools.product(*(map(float, text.split(",")) for text in (asked.levels, asked.odds))):
        rows = probe.rows(Way(level, odds, asked.ancestral))
        right = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
        sides = [float(np.mean([all(row.values()) for row in rows[side::2]])) for side in (0, 1)]
        told.append({"level": level, "odds": odds, **right, "all_trained": sides[0], "all_new": sides[1]})
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in right.items())
        print(
            f"from {level:g}, odds x{odds:g}: all {100 * sides[0]:.0f} / {100 * sides[1]:.0f} %; {shares}", flush=True
        )
    print(json.dumps({"clips": asked.clips, "ancestral": asked.ancestral, "ways": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
