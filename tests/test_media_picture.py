"""Pictures: order, colours, tags, frame rates and sizes, read back from real files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modules.ltx.errors import LTXError, RequestError
from modules.ltx.media import (
    Encoding,
    Written,
    frame_rate,
)
from modules.ltx.media_in import top_level_boxes
from tests.media_kit import (
    ALL_PARTS,
    Frames,
    decoded_frames,
    durations,
    moving,
    names,
    rgb,
    solid,
    tone,
    write,
)


def test_what_is_said_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    counts: list[int] = []
    written = write(path, moving(10, size=(96, 64)), fps=25, sound=tone(1, 16000), on_frame=counts.append)
    assert written == Written(path, None, None, 10, 25.0, 96, 64, 0.4, 16000)
    assert counts == list(range(1, 11))
    assert names(tmp_path) == ["clip.mp4"]
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == (
            "h264",
            "yuv420p",
            "aac",
        )
        assert (video.width, video.height, video.frames) == (96, 64, 10)
    frames = decoded_frames(path)
    assert len(frames) == 10
    assert frames[0].pts == 0


@pytest.mark.parametrize(("codec", "tag", "crf"), [("h264", "avc1", 4), ("hevc", "hvc1", 8), ("av1", "av01", 8)])
def test_every_codec_writes_the_same_file_twice_and_the_frames_come_back(
    tmp_path: Path, codec: str, tag: str, crf: int
) -> None:
    for name in ("one.mp4", "two.mp4"):
        encoding = Encoding(codec=codec, crf=crf, thumbnail=False)
        write(tmp_path / name, moving(17, size=(96, 64)), sound=tone(0.5, 16000), encoding=encoding)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    sent = np.concatenate(list(moving(17, size=(96, 64)))).astype(int)
    got = np.stack([rgb(frame) for frame in decoded_frames(tmp_path / "one.mp4")])
    off = [np.abs(got[5] - frame).mean() for frame in sent]
    assert off[5] < min(off[2], off[8], 3)
    with av.open(str(tmp_path / "one.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.codec_tag, context.colorspace, context.color_range) == (tag, 1, 1)


def test_frames_come_back_in_order_and_alike(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", moving(30, chunk=7), encoding=Encoding(crf=4, thumbnail=False))
    sent = np.concatenate(list(moving(30))).astype(int)
    got = np.stack([rgb(frame) for frame in decoded_frames(tmp_path / "clip.mp4")])
    assert got.shape == sent.shape
    assert np.abs(got - sent).mean() < 4


def test_index_stands_before_the_frames(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", moving(5))
    with (tmp_path / "clip.mp4").open("rb") as file:
        boxes = top_level_boxes(file)
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int], pix_fmt: str) -> None:
    write(tmp_path / "clip.mp4", solid(colour), encoding=Encoding(pix_fmt=pix_fmt, thumbnail=False))
    back = rgb(decoded_frames(tmp_path / "clip.mp4")[1])
    assert np.abs(back - colour).max() <= 4


def test_colours_are_tagged_bt709_limited(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", solid((255, 0, 0)))
    with av.open(str(tmp_path / "clip.mp4")) as file:
        context = file.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
    assert tags == (1, 1, 1, 1)
    luma, blue, red = (int(np.asarray(p)[0]) for p in decoded_frames(tmp_path / "clip.mp4")[0].planes)
    # ITU-R BT.709 red in limited range, by hand: 16 + 219 * 0.2126 and 128 + 224 * (-0.1146, 0.5)
    assert np.abs(np.subtract((luma, blue, red), (62.6, 102.3, 240))).max() <= 2


def test_contiguity_does_not_matter(tmp_path: Path) -> None:
    mirrored = (chunk[:, :, ::-1] for chunk in moving(3))
    write(tmp_path / "clip.mp4", mirrored, encoding=ALL_PARTS)
    first = np.asarray(Image.open(tmp_path / "clip-frames" / "00000.png"))
    np.testing.assert_array_equal(first, next(moving(1))[0, :, ::-1])


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (24, Fraction(24)),
        (25, Fraction(25)),
        (12.5, Fraction(25, 2)),
        (50, Fraction(50)),
        (23.976, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (23.5, Fraction(47, 2)),
    ],
)
def test_frame_rate_is_the_one_meant(tmp_path: Path, fps: float, exact: Fraction) -> None:
    assert frame_rate(fps) == exact
    written = write(tmp_path / "clip.mp4", moving(12), fps=fps)
    assert written.fps == float(exact)
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert file.streams.video[0].average_rate == exact
    assert durations(tmp_path / "clip.mp4")["video"] == 12 / exact


@given(st.floats(1, 240))
def test_frame_rate_is_close_and_stable(fps: float) -> None:
    rate = frame_rate(fps)
    assert abs(float(rate) - fps) <= 5e-6 * fps + 5e-5
    assert frame_rate(float(rate)) == rate


@pytest.mark.parametrize("fps", [0, -1, 0.5, 241, float("nan"), float("inf")])
def test_impossible_frame_rates_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(RequestError, match="fps"):
        write(tmp_path / "clip.mp4", moving(1), fps=fps)
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [(65, 64), (64, 65)])
def test_odd_sizes_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="even"):
        write(tmp_path / "clip.mp4", moving(1, size=size))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [np.zeros((1, 64, 64, 3), np.float32)],
        [np.zeros((64, 64, 3), np.uint8)],
        [np.zeros((1, 64, 64, 4), np.uint8)],
        [np.zeros((0, 64, 64, 3), np.uint8)],
        [np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 32, 64, 3), np.uint8)],
    ],
)
def test_frames_that_are_none_fail_without_a_trace(tmp_path: Path, chunks: list[Frames]) -> None:
    with pytest.raises(LTXError, match=r"[Ff]rames"):
        write(tmp_path / "clip.mp4", iter(chunks), encoding=ALL_PARTS)
    assert names(tmp_path) == []
