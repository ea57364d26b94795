"""Tiled decoding: aligned in time, seamless where nothing differs, and one piece when it fits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.ltx import decode
from modules.ltx.plan import DecodePlan

pytestmark = pytest.mark.library

RATIO = 8


def clock(latents: torch.Tensor) -> torch.Tensor:
    """An ideal causal decoder of a clip whose latent k holds the value k: every pixel tells its frame.

    The first latent of a tile gives one frame, each further one eight; latent k stands for the pixel
    frames 8(k-1)+1 .. 8k.
    """
    first = latents[0, 0, 0, 0, 0].item()
    count = RATIO * (latents.shape[2] - 1) + 1
    frames = torch.arange(count, dtype=torch.float32) + RATIO * first
    return frames.view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2).clone()


def ramp(latents: int) -> torch.Tensor:
    return torch.arange(latents, dtype=torch.float32).view(1, 1, -1, 1, 1)


@settings(deadline=None)
@given(latents=st.integers(1, 200), size=st.integers(2, 12), overlap=st.integers(1, 6))
def test_every_frame_comes_once_in_its_place(latents: int, size: int, overlap: int) -> None:
    plan = DecodePlan(tile_frames=RATIO * size, overlap_frames=RATIO * min(overlap, size // 2))
    runs = list(decode.decode_tiles(clock, ramp(latents), plan, RATIO))
    frames = torch.cat(runs, dim=2)[0, 0, :, 0, 0]
    torch.testing.assert_close(frames, torch.arange(RATIO * (latents - 1) + 1.0), rtol=1e-6, atol=1e-3)
    assert all(run.shape[2] <= RATIO * size + 1 for run in runs)


@given(latents=st.integers(1, 300), size=st.integers(2, 12), overlap=st.integers(1, 6))
def test_tiles_cover_the_clip_and_share_the_overlap(latents: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size // 2)
    ranges = decode.tiles(latents, DecodePlan(tile_frames=RATIO * size, overlap_frames=RATIO * overlap), RATIO)
    assert (ranges[0][0], ranges[-1][1]) == (0, latents)
    for (_, end), (start, _) in itertools.pairwise(ranges):
        assert end - 1 - start == overlap


def test_tiles_that_share_more_than_half_are_refused() -> None:
    with pytest.raises(ValueError, match="more than half"):
        decode.tiles(9, DecodePlan(tile_frames=16, overlap_frames=16), RATIO)


def test_a_clip_that_fits_is_decoded_in_one_piece() -> None:
    calls: list[int] = []

    def count(latents: torch.Tensor) -> torch.Tensor:
        calls.append(latents.shape[2])
        return clock(latents)

    assert len(list(decode.decode_tiles(count, ramp(7), DecodePlan(), RATIO))) == 1
    assert calls == [7]


def test_where_tiles_meet_they_are_cross_faded_linearly() -> None:
    plan = DecodePlan(tile_frames=16, overlap_frames=8)
    seen = iter([0.0, 1.0])

    def constant(latents: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 3, RATIO * (latents.shape[2] - 1) + 1, 1, 1), next(seen))

    frames = torch.cat(list(decode.decode_tiles(constant, ramp(4), plan, RATIO)), dim=2)[0, 0, :, 0, 0]
    expected = torch.cat([torch.zeros(9), torch.arange(1, 9) / 9, torch.ones(8)])
    torch.testing.assert_close(frames, expected)


@pytest.mark.parametrize(("value", "level"), [(-1.0, 0), (0.0, 128), (1.0, 255), (-5.0, 0), (5.0, 255), (0.5, 191)])
def test_pixels_to_bytes(value: float, level: int) -> None:
    frames = decode.to_uint8(torch.full((1, 3, 2, 4, 6), value))
    assert frames.shape == (2, 4, 6, 3)
    assert frames.min() == frames.max() == level


def test_noise_level_of_the_conditioned_vae() -> None:
    latents = torch.ones(1, 4, 2, 3, 3)
    generator = torch.Generator().manual_seed(3)
    noised, timestep = decode._noised(latents, DecodePlan(timestep=0.05, noise_scale=0.025), generator)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(noised, 0.975 * latents + 0.025 * noise)
    assert timestep is not None
    assert timestep.tolist() == pytest.approx([0.05])
