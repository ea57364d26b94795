"""Decode tiles: by the device's memory, or as the user says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.ltx import decode, tiles
from modules.ltx.errors import RequestError
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_process import run
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import DecodePlan, Plan
from modules.ltx.request import Request

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
GIB = 2**30


def room(total: float, bytes_each: int = 2) -> int:
    """Numbers in a third of a device of `total` GiB."""
    return int(total * GIB) // (3 * bytes_each)


@pytest.mark.parametrize(
    ("total", "size"),
    [(80, 1024), (48, 1024), (24, 1024), (20, 768), (16, 768), (12, 512), (8, 512), (4, 384), (2, 256), (0.1, 256)],
)
def test_larger_devices_take_larger_tiles(total: float, size: int) -> None:
    chosen = tiles.settled(DecodePlan(), (1536, 1024, 121), room(total))
    assert chosen.tile_size == size
    assert chosen.tile_frames == {384: 32, 256: 24}.get(size, 48)


def test_a_clip_that_fits_is_never_cut() -> None:
    assert tiles.settled(DecodePlan(), (768, 512, 25), room(8)).tile_size >= 768
    assert tiles.settled(DecodePlan(), (768, 512, 121), room(8)).tile_size == 512


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 200), st.integers(0, 10**11))
def test_tiles_fit_and_the_next_larger_ones_do_not(columns: int, rows: int, eights: int, free: int) -> None:
    clip = (columns * 32, rows * 32, eights * 8 + 1)
    chosen = tiles.settled(DecodePlan(), clip, free)
    place = [step.size for step in tiles.LADDER].index(chosen.tile_size)
    assert tiles.peak(tiles.LADDER[place], clip) <= free or place == len(tiles.LADDER) - 1
    assert all(tiles.peak(larger, clip) > free for larger in tiles.LADDER[:place])
    ranges = decode.tiles(eights + 1, chosen, 8)  # raises where neighbours share more than half
    assert ranges[0][0] == 0
    assert ranges[-1][1] == eights + 1
    assert 0 < chosen.overlap_size < chosen.tile_size


@given(st.integers(128, 4096), st.integers(16, 1024))
def test_what_the_user_says_is_taken_as_whole_latents(size: int, frames: int) -> None:
    given_plan, notes = tiles.asked(DecodePlan(), Request(tile_size=size, tile_frames=frames))
    assert given_plan.tile_size % 32 == given_plan.tile_frames % 8 == 0
    assert given_plan.overlap_size % 32 == given_plan.overlap_frames % 8 == 0
    assert 0 < given_plan.overlap_size <= given_plan.tile_size // 2
    assert 0 < given_plan.overlap_frames <= given_plan.tile_frames // 2
    assert len(notes) == (size % 32 > 0) + (frames % 8 > 0)
    assert tiles.settled(given_plan, (4096, 4096, 121), 1) == given_plan


def test_nonsense_is_refused() -> None:
    with pytest.raises(RequestError, match="--tile-size 64: out of range; it takes a whole number from 128 to 4096"):
        Request.parse({"tile_size": 64})


def test_a_run_is_cut_as_the_machine_has_room(
    host: EmbeddedHost, planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("nano-2.3-distilled-t2v", width=288, height=128, frames=33)

    def made(name: str, of: Plan = plan) -> tuple[str, dict[str, object]]:
        state = run(of, host, path=tmp_path / name)
        assert state.media is not None
        told = read_metadata(state.media.path)["plan"]
        assert isinstance(told, dict)
        return state.media.video_latents_sha256, told["decode"]

    whole = made("whole.mp4")
    monkeypatch.setattr(host, "room", lambda caps: 0)
    small = made("small.mp4")
    assert whole[0] == small[0]  # only decoding differs
    assert (small[1]["tile_size"], small[1]["tile_frames"]) == (256, 24)
    assert whole[1]["tile_size"] == 1024
    assert (tmp_path / "whole.mp4").read_bytes() != (tmp_path / "small.mp4").read_bytes()
    asked = made("asked.mp4", planned("nano-2.3-distilled-t2v", width=288, height=128, frames=33, tile_size=160))
    assert (asked[1]["tile_size"], asked[1]["tile_frames"], asked[1]["tiles_given"]) == (160, 48, True)


def test_the_room_is_a_third_of_the_machine(host: EmbeddedHost, planned: Planned) -> None:
    import psutil

    caps = planned("nano-2.3-distilled-t2v").caps
    with host.pipeline(caps, caps.pipeline) as pipe:
        assert pipe.vae.dtype == torch.float32
        assert host.room(caps) == psutil.virtual_memory().total // 12
