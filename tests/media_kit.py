"""Clips and tones to write, and ways to read a file back with PyAV, for the media tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from modules.ltx.errors import RequestError
from modules.ltx.media import (
    Encoding,
    Sound,
    Written,
    write_video,
)

ROOT = Path(__file__).resolve().parents[1]
FAST = Encoding(preset="ultrafast", thumbnail=False)
ALL_PARTS = Encoding(preset="ultrafast", png_frames=True, thumbnail=True)
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

Frames = NDArray[np.uint8]
Wave = NDArray[np.float32]


def moving(count: int, *, size: tuple[int, int] = (64, 64), chunk: int = 8) -> Iterator[Frames]:
    """A gradient that moves one pixel a frame, in chunks of (up to) `chunk` frames of (W, H) `size`."""
    y, x = np.mgrid[: size[1], : size[0]]
    for start in range(0, count, chunk):
        index = np.arange(start, min(start + chunk, count))[:, None, None]
        planes = np.broadcast_arrays((x + index) % 256, y * 2 % 256 + 0 * index, 128 + 0 * index + 0 * x)
        yield np.stack(planes, axis=-1).astype(np.uint8)


def solid(colour: tuple[int, int, int], count: int = 3) -> Iterator[Frames]:
    yield np.full((count, 64, 64, 3), colour, np.uint8)


def tone(seconds: float, rate: int, *, channels: int = 1, hz: float = 440.0) -> Sound:
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return Sound(np.tile(wave.astype(np.float32), (channels, 1)), rate)


def write(
    path: Path,
    frames: Iterator[Frames],
    *,
    fps: float = 24,
    sound: Sound | None = None,
    encoding: Encoding = FAST,
    on_frame: Callable[[int], None] | None = None,
) -> Written:
    return write_video(path, frames, fps=fps, sound=sound, metadata={}, encoding=encoding, on_frame=on_frame)


def seconds(ticks: int | None, time_base: Fraction | None) -> Fraction:
    assert ticks is not None
    assert time_base is not None
    return ticks * time_base


def decoded_sound(path: Path) -> Wave:
    """(channels, samples), the first sample at the time 0 of the file's time line."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        frames = list(file.decode(stream))
        wave = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).astype(np.float32)
        start = round(seconds(frames[0].pts, frames[0].time_base) * stream.rate)
    return np.pad(wave, ((0, 0), (start, 0))) if start >= 0 else wave[:, -start:]


def decoded_frames(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def rgb(frame: av.VideoFrame) -> NDArray[np.int64]:
    """(H, W, 3), by what the file's colour tags say; spelled out, since not every PyAV looks at them."""
    assert (frame.colorspace, frame.color_range) == (1, 1)
    full = frame.reformat(
        format="rgb24",
        src_colorspace="ITU709",
        dst_colorspace="ITU709",
        src_color_range="MPEG",
        dst_color_range="JPEG",
    )
    return np.asarray(full.to_ndarray(), np.int64)


def durations(path: Path) -> dict[str, Fraction]:
    """Seconds of each stream as its header records them, by kind."""
    with av.open(str(path)) as file:
        return {stream.type: seconds(stream.duration, stream.time_base) for stream in file.streams}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Runs `code` in a process of its own, which can be killed, limited and measured."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def output(code: str, *arguments: object) -> str:
    process = python(code, *arguments)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return text.strip()


def refusal(call: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        call(path)
    message = str(caught.value)
    assert path.name in message
    assert message.endswith(".")
    assert "\n" not in message
    return message
