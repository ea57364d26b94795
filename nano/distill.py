"""Trains what needs few steps: the Distilled transformer, and the stage-2 LoRA for Dev.

Distilled learns Dev's guided velocity (classifier-free guidance at 3) at the published sigmas, so that eight
steps without guidance do what thirty with it did. Both learn stage 2: from upsampled latents, noised to the
three stage-2 sigmas, straight to the latents of the true clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS
from nano import pool
from nano.pool import Pool
from nano.transformer import LARGE, SMALL, SOUND_WEIGHT, Dev, Half, draw_mode, draw_sigma, make_batch, new_transformer
from nano.upsampler import unpack

GUIDANCE = 3.0
LORA_RANK = 32
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
_TOKENS = 64 * 24


class Stage2:
    """Batches of stage 2: upsampled latents of scenes whose large latents are known."""

    def __init__(self, small: Pool, large: Pool, upsampler: Any, statistics: tuple[Tensor, Tensor]) -> None:
        self.small, self.large, self.upsampler = small, large, upsampler.eval()
        self.mean, self.deviation = (value.view(1, 1, -1) for value in statistics)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[dict[str, Tensor], Tensor, list[str]]:
        """The columns of the large clips, their upsampled small ones, and prompts."""
        from nano import prompts

        rows = rng.integers(0, len(self.large.columns["index"]), count)
        said = [prompts.varied(pool.scene(int(self.large.columns["index"][row])), rng) for row in rows]
        small = self.small.columns["video"][rows]
        small = small + 0.1 * float(rng.random()) * torch.randn_like(small)
        with torch.no_grad():
            raised = self.upsampler(unpack(small * self.deviation + self.mean, self.small.kind.grid))
        raised = (pool.pack(raised) - self.mean) / self.deviation
        return {name: column[rows] for name, column in self.large.columns.items()}, raised, said


def refine_loss(task: Any, stage2: Stage2, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Errors of picture and sound: from a state built on upsampled latents to the true ones.

    The state leans on the upsampled latents at the first sigma and on the true ones at the last, as it does
    along a run that goes well.
    """
    count = max(2, _TOKENS // math.prod(LARGE.grid))
    columns, raised, said = stage2.draw(rng, count)
    steps = list(STAGE2_SIGMAS)
    which = int(rng.integers(len(steps)))
    sigma = torch.full((count,), steps[which])
    mode = "first" if rng.random() < 0.3 else "text"
    batch, _, hiss = make_batch(columns, LARGE, sigma, mode)
    lean = (1.0, 0.5, 0.15)[which]
    shifted = batch.video + batch.free[..., None] * (1 - steps[which]) * lean * (raised - columns["video"])
    velocity = (shifted - columns["video"]) / steps[which]
    moved = type(batch)(shifted, batch.sound, sigma, batch.free, batch.grid)
    video, heard = moved.forward(task.half, task.embed(said))
    return batch.error(video, velocity), (heard.float() - hiss).square().mean()


class Distilled(Dev):
    name = "distilled"
    lr = 1e-3

    def __init__(
        self, pools: Path, weights: Mapping[str, Mapping[str, Tensor]], stage2: Stage2, steps: int = 1200
    ) -> None:
        super().__init__(pools, steps)
        self.transformer.load_state_dict(weights["transformer"])
        self.connectors.load_state_dict(weights["connectors"])
        self.connectors.requires_grad_(False)
        teacher = new_transformer()
        teacher.load_state_dict(weights["transformer"])
        self.teacher = Half(teacher.requires_grad_(False))
        self.stage2 = stage2

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"transformer": self.transformer}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if rng.random() < 0.25:
            seen, heard = refine_loss(self, self.stage2, rng)
            return seen + SOUND_WEIGHT * heard, {"stage2": float(seen.detach())}
        kind, columns, said = self.draw(rng, _TOKENS)
        count = len(said)
        listed = torch.tensor(rng.choice(DISTILLED_SIGMAS, count), dtype=torch.float32)
        sigma = torch.where(torch.from_numpy(rng.random(count) < 0.75), listed, draw_sigma(rng, count))
        batch, _, _ = make_batch(columns, kind, sigma, draw_mode(rng))
        with torch.no_grad():
            text, empty = self.embed(said), self.embed([""])
            empty = {key: value.expand(count, *value.shape[1:]) for key, value in empty.items()}
            guided = [
                (without + GUIDANCE * (told - without)).float()
                for told, without in zip(
                    batch.forward(self.teacher, text), batch.forward(self.teacher, empty), strict=True
                )
            ]
        video, heard = batch.forward(self.half, text)
        seen = batch.error(video, guided[0])
        sound_error = (heard.float() - guided[1]).square().mean()
        return seen + SOUND_WEIGHT * sound_error, {"video": float(seen.detach()), "sound": float(sound_error.detach())}


class Lora(Dev):
    """A LoRA on the frozen Dev transformer, for stage 2 only."""

    name = "lora"
    lr = 2e-3

    def __init__(
        self, pools: Path, weights: Mapping[str, Mapping[str, Tensor]], stage2: Stage2, steps: int = 900
    ) -> None:
        from peft import LoraConfig

        super().__init__(pools, steps, kinds=(SMALL, LARGE))
        self.transformer.load_state_dict(weights["transformer"])
        self.connectors.load_state_dict(weights["connectors"])
        self.transformer.requires_grad_(False)
        self.connectors.requires_grad_(False)
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=list(LORA_LAYERS))
        self.transformer.add_adapter(config)
        self.stage2 = stage2

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"transformer": self.transformer}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        seen, heard = refine_loss(self, self.stage2, rng)
        return seen + SOUND_WEIGHT * heard, {"stage2": float(seen.detach()), "sound": float(heard.detach())}
