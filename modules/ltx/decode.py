"""Latents to frames and sound, a tile at a time, so that no more than one tile is ever held as float.

Tiles overlap in time and are aligned by what a causal video VAE means: latent 0 is pixel frame 0,
latent k > 0 is pixel frames r(k-1)+1 .. rk. A tile that starts at latent s > 0 decodes its first
latent as one warm-up frame, which is dropped; the frames it shares with the tile before are
cross-faded. A clip that fits into one tile is decoded in one piece, exactly as diffusers does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from modules.ltx import borrow
from modules.ltx.finite import finite
from modules.ltx.media import Sound
from modules.ltx.plan import DecodePlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CHUNK = 8  # frames turned to bytes at a time: the conversion needs several copies of them as float


def tiles(latents: int, plan: DecodePlan, ratio: int) -> list[tuple[int, int]]:
    """Latent ranges [start, end) of the tiles of a clip of `latents` latent frames."""
    if 2 * plan.overlap_frames > plan.tile_frames:
        raise ValueError(f"tiles of {plan.tile_frames} frames cannot share {plan.overlap_frames}, more than half")
    size = plan.tile_frames // ratio + 1
    stride = (plan.tile_frames - plan.overlap_frames) // ratio
    ranges = [(0, min(size, latents))]
    while ranges[-1][1] < latents:
        start = ranges[-1][0] + stride
        ranges.append((start, min(start + size, latents)))
    return ranges


def decode_tiles(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, plan: DecodePlan, ratio: int
) -> Iterator[torch.Tensor]:
    """Pixels (batch, 3, frames, height, width) in runs of consecutive frames, blended where tiles meet.

    `decode` turns a run of m latent frames into ratio*(m-1)+1 pixel frames.
    """
    ranges = tiles(latents.shape[2], plan, ratio)
    tail: torch.Tensor | None = None
    for number, (start, end) in enumerate(ranges):
        pixels = decode(latents[:, :, start:end])
        if tail is not None:
            seen = tail.shape[2]
            yield _crossfade(tail, pixels[:, :, 1 : seen + 1])
            pixels = pixels[:, :, seen + 1 :]
        if number == len(ranges) - 1:
            yield pixels
            return
        shared = ratio * (end - 1 - ranges[number + 1][0])
        yield pixels[:, :, :-shared]
        tail = pixels[:, :, -shared:].clone()  # a view would keep the whole tile alive
        del pixels  # not beside the next tile


def _crossfade(tail: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The frames of `pixels` fading in over `tail`, the same frames as the tile before saw them."""
    shared = tail.shape[2]
    weight = torch.arange(1, shared + 1, device=pixels.device, dtype=pixels.dtype) / (shared + 1)
    return torch.lerp(tail, pixels, weight.view(1, 1, -1, 1, 1))


def frames(
    pipe: Any,
    latents: torch.Tensor,
    plan: DecodePlan,
    *,
    device: Any,
    generator: torch.Generator,
    before_tile: Callable[[], None],
    poll: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """The clip as chunks (n, height, width, 3) of uint8 RGB. `latents` as the VAE takes them, batch 1.

    `before_tile` comes before each run of frames; `poll` before each tile in space, of which the VAE makes many of one
    run, and may raise to cancel.
    """
    vae = pipe.vae
    latents, timestep = _noised(latents, plan, generator)
    temb = None if timestep is None else timestep.to(device, vae.dtype)

    def decode(tile: torch.Tensor) -> torch.Tensor:
        before_tile()
        # Borrowed a tile at a time: a generator that is dropped half-way gives nothing back by itself.
        with torch.no_grad(), borrow.tiling(vae, plan), borrow.forward_hook(vae.decoder, poll):
            pixels: torch.Tensor = vae.decode(tile.to(device, vae.dtype), temb, return_dict=False)[0]
        return finite(pixels.float(), "decode", "pixels")

    for pixels in decode_tiles(decode, latents, plan, vae.temporal_compression_ratio):
        yield from _chunks(pixels)
        del pixels  # a view of the whole tile, and the next one is decoded before the loop lets go of it


def diffused(
    model: Any, latents: torch.Tensor, *, generator: torch.Generator, poll: Callable[[], None]
) -> Iterator[NDArray[np.uint8]]:
    """The same from the diffusion decoder: all at once, in tiles of its own, before the first chunk comes.

    Its first three stages must see the whole clip, so it cannot stream as the VAE does.
    """
    with torch.no_grad(), borrow.forward_hook(model.decoder.conv_in_x_t, poll):  # once a tile
        pixels = model.decode(latents.to(model.device, model.dtype), generator=generator, return_dict=False)[0]
    return _chunks(finite(pixels, "decode", "pixels"))


def _chunks(pixels: torch.Tensor) -> Iterator[NDArray[np.uint8]]:
    """Pixels (1, 3, frames, height, width) as bytes, CHUNK frames at a time."""
    for first in range(0, pixels.shape[2], CHUNK):
        yield to_uint8(pixels[:, :, first : first + CHUNK].float())


def _noised(
    latents: torch.Tensor, plan: DecodePlan, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """0.9.1 and later decode from a slightly noised latent, told the noise level (LTXPipeline.__call__)."""
    if plan.timestep is None or plan.noise_scale is None:
        return latents, None
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    return (1 - plan.noise_scale) * latents + plan.noise_scale * noise, torch.tensor([plan.timestep])


def to_uint8(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """(1, 3, frames, height, width) in [-1, 1] to (frames, height, width, 3) uint8."""
    scaled = pixels[0].mul(0.5).add(0.5).clamp(0, 1).mul(255).round()
    frames: NDArray[np.uint8] = scaled.permute(1, 2, 3, 0).to(torch.uint8).cpu().numpy()
    return frames


def sound(pipe: Any, latents: torch.Tensor, *, device: Any, poll: Callable[[], None] = lambda: None) -> Sound:
    """Sound latents (1, channels, length, mel bins) to a waveform at the vocoder's own sample rate. `poll` comes before
    each of the two models and may raise to cancel."""
    poll()
    with torch.no_grad(), borrow.forward_hook(pipe.vocoder, poll):
        mel = pipe.audio_vae.decode(latents.to(device, pipe.audio_vae.dtype), return_dict=False)[0]
        waveform = finite(pipe.vocoder(mel), "decode", "sound samples")
    return Sound(waveform[0].float().cpu().numpy(), int(pipe.vocoder.config.output_sampling_rate))
