"""What a clip looks like while it is made: a latent frame as a picture, by a linear map from channels to colours.

The map is fitted to the VAE at hand, once a model, on charts of plain colours; no constants of any model are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_FIELDS, _SIDE, _CELL = 3, 256, 32  # charts of many colours; the side of all and the VAE's cell in pixels
_RIDGE = 1e-2  # keeps the fit tame where a VAE has more channels than the charts have cells of their own


@dataclass(frozen=True)
class Colours:
    """A linear map from a normalised latent's channels to red, green and blue in 0..1. weights: (channels + 1, 3)."""

    weights: Tensor

    def picture(self, frame: Tensor, side: int = 512) -> Image.Image:
        """`frame` (channels, height, width) as a picture with a longer side of `side` pixels."""
        channels, height, width = frame.shape
        flat = frame.detach().float().cpu().reshape(channels, -1).T
        rgb = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1) @ self.weights
        pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).reshape(height, width, 3).numpy()
        scale = side / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@torch.no_grad()
def fit(vae: Any, device: Any = None) -> Colours:
    """The map of a video VAE with `latents_mean` and `latents_std`. `device`: where it computes, if not where it is."""
    charts = _charts()
    # A latent frame of a clip stands for several frames, and looks unlike the first, which stands for one.
    pixels = torch.from_numpy(charts).permute(0, 3, 1, 2)[:, :, None].expand(-1, -1, 9, -1, -1) * 2 - 1
    where = vae.device if device is None else device
    encoded = [vae.encode(chart[None].to(where, vae.dtype)).latent_dist.mode().float().cpu() for chart in pixels]
    latents = torch.cat(encoded)[:, :, -1]
    mean, deviation = (value.float().cpu().view(1, -1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    flat = ((latents - mean) / deviation).permute(0, 2, 3, 1).flatten(0, 2)
    known = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
    rows, columns = latents.shape[-2:]
    cells = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(charts).permute(0, 3, 1, 2), (rows, columns))
    wanted = cells.permute(0, 2, 3, 1).flatten(0, 2)
    gram = known.T @ known + _RIDGE * len(known) * torch.eye(known.shape[1])
    return Colours(torch.linalg.solve(gram, known.T @ wanted))


def _charts() -> Any:
    """(charts, side, side, 3) in 0..1: plain grounds and fields of colours, a wide object in front of each."""
    rng = np.random.default_rng(0)
    grounds = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)] * 2
    plain = np.broadcast_to(np.array(grounds, np.float32)[:, None, None], (len(grounds), _SIDE, _SIDE, 3))
    coloured = rng.random((_FIELDS, 4, 4, 3), dtype=np.float32).repeat(_SIDE // 4, 1).repeat(_SIDE // 4, 2)
    charts = np.concatenate([plain, coloured])
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    for chart in charts:
        middle, radius = rng.integers(_CELL * 2, _SIDE - _CELL * 2, 2), rng.integers(_CELL, _CELL * 2)
        chart[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2] = rng.random(3)
    return charts


def middle_frame(latents: Tensor, grid: tuple[int, int, int], *, extra_in_front: bool) -> Tensor:
    """The middle latent frame (channels, height, width) of the first clip of a batch.

    `latents`: (batch, tokens, channels) of a `grid` of frames, height and width, or unpacked (batch, channels, frames,
    height, width). Condition pipelines add the tokens of pictures, LTX-2's behind the clip's and 0.9's in front.
    """
    if latents.ndim == 5:
        return latents[0, :, latents.shape[2] // 2]
    frames, height, width = grid
    count = frames * height * width
    own = latents[0, -count:] if extra_in_front else latents[0, :count]
    return own.T.reshape(-1, frames, height, width)[:, frames // 2]
