"""How large the tiles are that latents are decoded in: as the user says, else as large as the device allows. Pure.

Larger tiles have fewer seams. What counts is how much memory the device *has*, not how much is free now, so that a
repeated video is decoded in the same tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modules.ltx.plan import DecodePlan
    from modules.ltx.request import Request

# Numbers that the decoder holds at its peak, for each pixel of each frame of a tile: 43 (2.x) and 50 (0.9) of the
# published configs, `python -m bench.decode_memory`; half as much again for what convolutions take to work in.
PEAK = 75
GRID = 32


@dataclass(frozen=True)
class Tiles:
    """Size and frames of a tile, and how much of either neighbours share, in pixels and frames."""

    size: int
    frames: int
    shared: int = 64
    shared_frames: int = 16


# Largest first; the third is diffusers' size, and Lightricks' (with 64 frames).
LADDER = (
    Tiles(1024, 48),
    Tiles(768, 48),
    Tiles(512, 48),
    Tiles(384, 32, shared_frames=8),
    Tiles(256, 24, shared_frames=8),
)


def asked(decode: DecodePlan, request: Request) -> tuple[DecodePlan, list[str]]:
    """`decode` with the tiles that the user chose, each part of them that was chosen, and what was adjusted."""
    if request.tile_size is None and request.tile_frames is None:
        return decode, []
    size = (request.tile_size or decode.tile_size) // GRID * GRID
    frames = (request.tile_frames or decode.tile_frames) // 8 * 8
    made = replace(
        decode,
        tile_size=size,
        overlap_size=min(64, size // 2 // GRID * GRID),
        tile_frames=frames,
        overlap_frames=min(16, frames // 2 // 8 * 8),
        tiles_given=True,
    )
    told = [("size", request.tile_size, size), ("frames", request.tile_frames, frames)]
    return made, [
        f"tile {what}: {wish} asked, {got} taken: whole latents" for what, wish, got in told if wish not in (None, got)
    ]


def settled(decode: DecodePlan, clip: Sequence[int], room: int) -> DecodePlan:
    """`decode` with the largest tiles of a `clip` (width, height, frames) of which `room` numbers hold the peak."""
    if decode.tiles_given:
        return decode
    chosen = next((tiles for tiles in LADDER if peak(tiles, clip) <= room), LADDER[-1])
    return replace(
        decode,
        tile_size=chosen.size,
        tile_frames=chosen.frames,
        overlap_size=chosen.shared,
        overlap_frames=chosen.shared_frames,
    )


def peak(tiles: Tiles, clip: Sequence[int]) -> int:
    """Numbers held at the peak of decoding one tile of a clip (width, height, frames)."""
    width, height, frames = clip
    return PEAK * min(width, tiles.size) * min(height, tiles.size) * min(frames, tiles.frames + 1)
