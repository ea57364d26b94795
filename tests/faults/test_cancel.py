"""A cancel, in every phase, costs no more than the work at hand: counted in forwards, tiles and frames, not in seconds.

It comes while a unit of work is being done, from outside, as from another thread. What is begun from then on is
counted, in all threads: the encoder has one of its own, which may be at a frame, and has others waiting.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modules.ltx.errors import Cancelled
from modules.ltx.front import settle
from modules.ltx.ltx_process import run
from modules.ltx.media import AHEAD, Encoding, Sound, write_video
from modules.ltx.request import Request
from tests.faults.conftest import Undisturbed
from tests.faults.kit import PLAIN, Place
from tests.faults.seams import Call, Wire, wired

pytestmark = pytest.mark.library

# Units of work: what may take long by itself.
WORK = {
    *("prompt encode", "connectors", "denoise", "upsample", "decode a tile", "decode sound", "vocoder"),
    *("encode a frame", "encode sound", "frame's pictures", "LoRA: load_lora_weights"),
}


class Cancelling(Wire):
    """Cancels the job of `host` in the middle of one call."""

    def __init__(self, host: Any, at: Call) -> None:
        super().__init__()
        self._host, self._cancel_at = host, at
        self.cancelled = 0  # how many calls had begun then

    def _made(self, made: Call, call: Callable[[], Any]) -> Any:
        if made != self._cancel_at:
            return call()
        self._host.cancel()
        self.cancelled = len(self.calls)
        return call()


def begun_after(place: Place, job: Callable[[], object], at: Call) -> list[Call]:
    """Units of work that a run begins once it is cancelled, in the middle of `at`."""
    wire = Cancelling(place.host, at)
    with wired(wire, place.host), pytest.raises(Cancelled):
        job()
    assert wire.cancelled
    return [call for call in wire.calls[wire.cancelled :] if call.seam in WORK]


def middle_of_each(place: Place, job: Callable[[], object]) -> list[Call]:
    wire = Wire()
    with wired(wire, place.host):
        job()
    seams = dict.fromkeys(call.seam for call in wire.calls if call.seam in WORK)
    found = [[call for call in wire.calls if call.seam == seam] for seam in seams]
    return [calls[len(calls) // 2] for calls in found]


# The connectors belong to the encoder: pipelines run them before they ask the transformer for the first time.
INSIDE_ONE_CALL = {"prompt encode": {"connectors"}, "LoRA: load_lora_weights": {"connectors"}}


# How often a frame calls each of its parts at the most: 24 a second are 2000 samples each, in blocks of 1024.
OF_A_FRAME = {"frame's pictures": 1, "encode a frame": 1, "encode sound": 2}


def test_up_to_the_latents_nothing_is_begun_after_a_cancel(place: Place, undisturbed: Undisturbed) -> None:
    calls = middle_of_each(place, place.sampled)
    assert {call.seam for call in calls} >= {"prompt encode", "denoise", "upsample"}
    for at in calls:
        after = begun_after(place, place.sampled, at)
        assert len(after) <= (at.seam in INSIDE_ONE_CALL), (at, after)
        assert {call.seam for call in after} <= INSIDE_ONE_CALL.get(at.seam, set())
    assert place.sampled() == undisturbed.latents


def test_while_it_is_decoded_and_written_the_encoder_ends_the_one_frame_it_is_at(
    place: Place, undisturbed: Undisturbed
) -> None:
    def job() -> str:
        return place.job(keep=undisturbed.kept)

    calls = middle_of_each(place, job)
    assert {call.seam for call in calls} >= {"decode a tile", "decode sound", "vocoder", "encode a frame"}
    for at in calls:
        after = begun_after(place, job, at)
        assert Counter(call.seam for call in after) <= Counter(OF_A_FRAME), (at, after)
    assert job() == undisturbed.video


@contextmanager
def spatial(place: Place) -> Iterator[list[tuple[int, ...]]]:
    """Cancels in the first tile in space; the shapes of all that were begun."""
    seen: list[tuple[int, ...]] = []

    def first(_: Any, args: tuple[Any, ...]) -> None:
        seen.append(tuple(args[0].shape))
        place.host.cancel()

    handle = place.pipes()[0].vae.decoder.register_forward_pre_hook(first)
    try:
        yield seen
    finally:
        handle.remove()


def test_between_tiles_in_space(place: Place, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Four of them make one run of frames, which the VAE decodes in one call."""
    asked = {**PLAIN, "width": 192, "height": 192, "frames": 9, "tile_size": 128}
    plan = settle(Request.parse(asked), place.host)
    run(plan, place.host, until="sample")
    with spatial(place) as tiles, pytest.raises(Cancelled):
        run(plan, place.host, path=tmp_path / "video.mp4")
    assert len(tiles) == 1
    assert not list(tmp_path.iterdir())


def test_of_the_frames_that_wait_for_the_encoder_none_is_begun(tmp_path: Path) -> None:
    """The encoder is held at the third until as many wait as may; there the cancel comes."""
    frames = np.zeros((AHEAD, 32, 32, 3), np.uint8)
    given, cancelled = threading.Event(), threading.Event()
    begun = 0

    def poll() -> None:
        nonlocal begun
        if cancelled.is_set():
            raise Cancelled("cancelled")
        begun += 1
        if begun == 3:
            assert given.wait(10)
            cancelled.set()

    def fed() -> Iterator[NDArray[np.uint8]]:
        yield frames
        given.set()

    with pytest.raises(Cancelled):
        write_video(tmp_path / "v.mp4", fed(), fps=24, sound=None, metadata={}, poll=poll)
    assert begun == 3
    assert not list(tmp_path.iterdir())


def test_among_the_frames_that_an_encoder_held_back(tmp_path: Path) -> None:
    """x264 looks ahead; what it held back is encoded when the last frame has come."""
    frames = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    sound = Sound(np.zeros((1, 120_000), np.float32), 48_000)
    polls = 0

    def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == len(frames) + 2:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        write_video(tmp_path / "v.mp4", [frames], fps=24, sound=sound, metadata={}, encoding=Encoding(), poll=poll)
    assert polls == len(frames) + 2
    assert not list(tmp_path.iterdir())
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    write_video(tmp_path / "v.mp4", [frames], fps=24, sound=sound, metadata={}, encoding=Encoding(), poll=count)
    assert done >= len(frames) + 5  # or there was nothing to be stopped in
