"""Trains the video VAE: single frames first, then crops of clips and whole clips in turn.

The loss is L1 with the foreground weighted up; plain reconstruction sits on a background-only plateau.
Latents are held near mean 0 and deviation 1 and get a little noise before they are decoded, so that the
decoder forgives what a sampler gets slightly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts
from nano import world

# (frames, side in pixels, clips a step and worker): pictures first, then these in turn. The small crops show
# most of the object for the work, the large ones the frame's edges and what surrounds a crop.
_PICTURES = (1, 64, 32)
_CLIPS = ((9, 64, 8), (9, 128, 2), (17, 64, 4), (9, 256, 1), (9, 64, 8), (17, 128, 1), (1, 256, 4))
_PICTURE_STEPS = 1900
_LATENT_NOISE = 0.05
_LATENT_WEIGHT = 0.02


def new_vae() -> Any:
    """The VAE with fresh weights."""
    part = nano_parts.spec("2.3")["vae"]
    with nano_parts.seeded(part.seed):
        vae = nano_parts.component_class(part.kind)(**part.config)
    return vae.train()


class VideoVae:
    name = "vae"
    lr = 1.5e-3

    def __init__(self, steps: int = 13400) -> None:
        self.steps = steps
        self.vae = new_vae()
        self.vae.to(memory_format=torch.channels_last_3d)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        frames, side, count = _PICTURES if step < _PICTURE_STEPS else _CLIPS[step % len(_CLIPS)]
        drawn = [crop(rng, frames, side) for _ in range(count)]
        clip = torch.stack([torch.from_numpy(pixels) for pixels, _ in drawn])
        weight = torch.stack([torch.from_numpy(w) for _, w in drawn])
        clip = clip.to(memory_format=torch.channels_last_3d)
        with torch.autocast(clip.device.type, torch.bfloat16):  # twice as fast, here as on a GPU
            latents = self.vae.encode(clip).latent_dist.mode().float()
            noisy = latents + _LATENT_NOISE * torch.randn_like(latents)
            decoded = self.vae.decode(noisy).sample.float()
        error = (decoded - clip).abs()
        off = error.mean(1, keepdim=True)
        picture = (off * weight).mean()
        flat = latents.transpose(0, 1).flatten(1)
        scale = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean() + 0.1 * (flat.abs() - 4).relu().mean()
        figures = {
            "l1": float(error.detach().mean()),
            "object": float((off.detach() * (weight > 2)).sum() / (weight > 2).sum().clamp(min=1)),
            "std": float(flat.detach().std()),
        }
        return picture + _LATENT_WEIGHT * scale, figures


def crop(rng: np.random.Generator, frames: int, side: int) -> tuple[world.Floats, world.Floats]:
    """A random cut of a random clip: (3, frames, side, side) in -1..1, and the weight of each pixel (1, ...).

    Three quarters are cut around the object, the rest anywhere; half of the bounces are cut at the floor.
    """
    scene = world.draw_scene(rng, held_out=None)
    long = int(rng.choice((25, 49)))
    size = max(side, int(rng.choice((128, 128, 128, 192, 256, 256))))
    first = int(rng.integers(0, long - frames + 1)) if rng.random() < 0.7 else 0
    x, y = world.path(scene, long)[first + frames // 2] * size
    if rng.random() < 0.75:
        reach = side / 2 + 0.3 * world.RADIUS[scene.size] * size
        x, y = x + rng.uniform(-1, 1) * reach, y + rng.uniform(-1, 1) * reach
    else:
        x, y = rng.uniform(0, size, 2)
    left, top = (int(np.clip(round(v - side / 2), 0, size - side)) for v in (x, y))
    pixels = world.render(scene, long, width=size, height=size, window=(first, frames, top, side, left, side))
    ground = np.array(world.RGB[scene.background], np.float32)
    there = np.abs(pixels - ground).max(-1) > 0.02
    near = there.any(0, keepdims=True)  # where it was or will be: a ghost there costs as much
    # Outlines tell a small square from a ball, and are few: pixels that differ from one two away.
    edge = np.zeros_like(there)
    for axis in (1, 2):
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(2, None), slice(None, -2)
        differs = there[tuple(ahead)] != there[tuple(behind)]
        edge[tuple(ahead)] |= differs
        edge[tuple(behind)] |= differs
    weight = 1.0 + 4.0 * there + 2.0 * near + 8.0 * edge
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)) * 2 - 1, weight.astype(np.float32)[None]
