"""The uncertainty map: for each refined step, a small frame per latent frame, bright where passes disagreed.

A token's colour says at which further pass it became certain: dark at the first, brighter the later, and the
brightest never.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .session import Refined

CELL, GAP, CAPTION = 96, 4, 18
_INK, _PAPER = (235, 235, 235), (30, 30, 36)
# Dark violet to yellow: ordered in brightness, so it reads in gray and for the colour blind.
_RAMP = np.array([(24, 15, 61), (115, 31, 110), (206, 66, 71), (246, 136, 33), (252, 240, 160)], np.float64)


def heat(settled: Tensor, planned: int) -> np.ndarray:
    """When tokens became certain (0: never) as 0 (at the first further pass) to 1 (never)."""
    late = settled.numpy().astype(np.float64)
    last = max(1, planned - 1)
    value: np.ndarray = np.where(late == 0, 1.0, (late - 1) / last)
    return value


def colours(value: np.ndarray) -> np.ndarray:
    """0..1 to RGB bytes along the ramp."""
    at = value.clip(0, 1) * (len(_RAMP) - 1)
    low = np.minimum(at.astype(int), len(_RAMP) - 2)
    mixed = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (at - low)[..., None]
    rgb: np.ndarray = mixed.round().astype(np.uint8)
    return rgb


def sheet(report: Sequence[Refined], frames: int, rows: int, columns: int) -> Image.Image | None:
    """A row a refined step, a cell a latent frame; None where no map was kept.

    Tokens that a pipeline appends behind the clip's own (keyframes) are left out; where the first frame is given
    and not made (image to video), its cell is dark.
    """
    kept = [row for row in report if "video" in row.settled]
    if not kept:
        return None
    scale = max(1, CELL // max(rows, columns))
    wide, high = columns * scale + GAP, rows * scale + GAP
    page = Image.new("RGB", (max(frames * wide + GAP, 260), len(kept) * (high + CAPTION) + GAP), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, row in enumerate(kept):
        top = number * (high + CAPTION) + GAP
        share = row.shares["video"][-1] if row.shares.get("video") else 0.0
        said = f"step {row.step}, sigma {row.sigma:.3f}: {row.used} of {row.planned} passes, {share:.0%} certain"
        draw.text((GAP, top), said, fill=_INK, font=font)
        for frame, cell in enumerate(_grid(heat(row.settled["video"], row.planned), frames, rows, columns)):
            tile = Image.fromarray(colours(cell)).resize((columns * scale, rows * scale), Image.Resampling.NEAREST)
            page.paste(tile, (GAP + frame * wide, top + CAPTION - GAP // 2))
    return page


def _grid(value: np.ndarray, frames: int, rows: int, columns: int) -> np.ndarray:
    """(frames, rows, columns) from tokens, packed or not, in that order."""
    flat = value.reshape(-1)
    missing = frames * rows * columns - flat.size
    if missing > 0:  # the given first frame
        flat = np.concatenate([np.zeros(missing), flat])
    grid: np.ndarray = flat[: frames * rows * columns].reshape(frames, rows, columns)
    return grid
