"""What may go beside and between the frames of a video: interpolation, and the frames as safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from modules.ltx.errors import LTXError, RequestError
from modules.ltx.export import Export, Frames, Interpolation
from modules.ltx.media import read_metadata, write_video
from modules.ltx.media_files import withdraw
from modules.ltx.media_in import Sound
from tests.media_kit import FAST, moving


def middle(factor: int) -> Interpolation:
    """Frames between on a straight line; it remembers nothing, so chunks must bring what they need."""

    def between(row: Frames) -> Frames:
        shares = [n / factor for n in range(1, factor)]
        pairs = zip(row[:-1].astype(float), row[1:].astype(float), strict=True)
        made = np.stack([a + (b - a) * share for a, b in pairs for share in shares])
        return np.asarray(made.round(), np.uint8)

    return Interpolation(factor, between)


def clip(count: int) -> Frames:
    return np.stack([np.full((32, 32, 3), 12 * n, np.uint8) for n in range(count)])


@pytest.mark.parametrize("sizes", [(13,), (1,) * 13, (5, 8), (12, 1), (1, 12)])
@pytest.mark.parametrize("factor", [2, 3])
def test_each_frame_keeps_its_time_however_the_chunks_fall(sizes: tuple[int, ...], factor: int) -> None:
    frames = clip(13)
    chunks = iter(np.split(frames, np.cumsum(sizes)[:-1]))
    made = np.concatenate(list(Export(middle(factor)).frames(chunks)))
    assert len(made) == 13 * factor
    assert (made[::factor] == frames).all()
    levels = made[:, 0, 0, 0].astype(int)
    assert (levels[: 12 * factor] == [12 * n // factor for n in range(12 * factor)]).all()
    assert (levels[12 * factor :] == 144).all()  # nothing comes after the last: it is held


def test_frames_are_interpolated_as_they_come() -> None:
    read = 0

    def chunks() -> Iterator[Frames]:
        nonlocal read
        for frame in clip(20):
            read += 1
            yield frame[None]

    made = iter(middle(2).filled(chunks()))
    assert len(next(made)) == 2
    assert read == 2


def test_a_clip_of_one_frame_is_held() -> None:
    assert len(np.concatenate(list(middle(4).filled([clip(1)])))) == 4


def test_the_frames_stand_beside_the_video_as_a_tensor(tmp_path: Path) -> None:
    frames = clip(9)
    sound = Sound(np.zeros((2, 4000), np.float32), 8000)
    written = write_video(
        tmp_path / "a.mp4",
        Export(middle(2)).frames(iter(np.split(frames, 3))),
        fps=48,
        sound=sound,
        metadata={},
        encoding=FAST,
        tensors={"format": "video", "options": "crf:16, é"},
    )
    assert (written.frames, written.fps, written.duration) == (18, 48, 0.375)
    assert written.tensors == tmp_path / "a.safetensors"
    with safe_open(str(written.tensors), "np") as file:
        assert list(file.keys()) == ["frames"]
        tensor = file.get_tensor("frames")
        assert file.metadata() == {
            "format": "video",
            "options": "crf:16, é",
            "frames": "18",
            "width": "32",
            "height": "32",
        }
    assert tensor.dtype == np.uint8
    assert tensor.shape == (18, 32, 32, 3)
    assert (tensor[::2] == frames).all()
    assert read_metadata(written.path) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.safetensors"]


def test_where_the_video_fails_no_tensor_stands(tmp_path: Path) -> None:
    def broken() -> Iterator[Frames]:
        yield from moving(2)
        raise LTXError("enough")

    with pytest.raises(LTXError, match="enough"):
        write_video(
            tmp_path / "a.mp4", broken(), fps=24, sound=None, metadata={}, encoding=FAST, tensors={"format": "video"}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_is_not_replaced_and_is_withdrawn_with_its_video(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    with pytest.raises(RequestError, match=r"a\.safetensors is already there"):
        write_video(tmp_path / "a.mp4", moving(1), fps=24, sound=None, metadata={}, encoding=FAST, tensors={})
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"
    withdraw(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
