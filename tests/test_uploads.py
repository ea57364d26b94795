"""Media that are taken in: what comes out is ours, what is wrong leaves nothing, ids are no paths."""

from __future__ import annotations

import io
import os
import struct
import time
import wave
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from modules.ltx import uploads
from modules.ltx.errors import RequestError
from modules.ltx.media_clip import load_clip
from modules.ltx.media_in import load_image
from modules.ltx.request import Prefix
from modules.ltx.uploads import Medium, TooLarge, TooSlow, Uploads, kind_of
from tests.media_kit import moving, write


@pytest.fixture
def media(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "media")


def add(media: Uploads, data: bytes, kind: str = "image", piece: int = 1 << 16) -> Medium:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    return anyio.run(media.add, chunks(), kind)


def png(size: tuple[int, int] = (120, 80)) -> bytes:
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("place", "at home")
    Image.radial_gradient("L").resize(size).convert("RGB").save(buffer, "PNG", pnginfo=text, icc_profile=b"profile")
    return buffer.getvalue()


def huge(side: int = 20_000) -> bytes:
    """A PNG of a few hundred bytes that says it has 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def video(tmp_path: Path, count: int = 20) -> Path:
    write(tmp_path / "clip.mp4", moving(count))
    return tmp_path / "clip.mp4"


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(bytes(24000))
    return buffer.getvalue()


def left(media: Uploads) -> list[str]:
    return sorted(path.name for path in media.folder.iterdir()) if media.folder.is_dir() else []


def test_an_image_keeps_its_pixels_and_nothing_else(media: Uploads, tmp_path: Path) -> None:
    kept = add(media, png())
    path = media.path_of(kept.id, "image")
    (tmp_path / "sent.png").write_bytes(png())
    assert kept.to_json() == {"id": kept.id, "kind": "image", "width": 120, "height": 80}
    assert load_image(path).tobytes() == load_image(tmp_path / "sent.png").tobytes()
    assert b"at home" not in path.read_bytes()
    with Image.open(path) as image:
        assert image.info == {}
    assert left(media) == [path.name]


def test_a_video_keeps_its_frames(media: Uploads, tmp_path: Path) -> None:
    sent = video(tmp_path)
    kept = add(media, sent.read_bytes(), "video")
    assert (kept.width, kept.height, kept.frames) == (64, 64, 20)
    frames = [load_clip(Prefix(str(path), 20)) for path in (sent, media.path_of(kept.id, "video"))]
    for before, after in zip(*frames, strict=True):
        assert np.array_equal(np.asarray(before), np.asarray(after))
    assert left(media) == [f"{kept.id}.mp4"]


def test_a_sound_keeps_its_length(media: Uploads) -> None:
    kept = add(media, sound(), "audio")
    with wave.open(str(media.path_of(kept.id, "audio"))) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(0.5, abs=0.01)
    assert kept.seconds == pytest.approx(0.5, abs=0.01)


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "image"),
    "text": (b"not an image", "image"),
    "cut short": (png()[:60], "image"),
    "SVG": (SVG, "image"),
    "400 megapixels": (huge(), "image"),
    "no video": (png(), "video"),
    "a playlist": (PLAYLIST, "video"),
    "a box and nothing in it": (b"\0\0\0\x10ftypisom\0\0\0\0", "video"),
    "a sound for a video": (sound(), "video"),
    "an image for a sound": (png(), "audio"),
    "a sound cut in its head": (sound()[:20], "audio"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_nothing_stays(media: Uploads, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        add(media, *WRONG[name])
    assert str(media.folder) not in str(caught.value)
    assert left(media) == []


@pytest.mark.parametrize("rate", [1, 1_073_789_824])
def test_a_sound_of_an_absurd_rate_is_refused_and_costs_no_time(media: Uploads, rate: int) -> None:
    data = bytearray(sound())
    data[24:28] = struct.pack("<I", rate)
    began = time.process_time()
    with pytest.raises(RequestError, match=f"4000 to 384000 Hz, not {rate}; save it with 48000"):
        add(media, bytes(data), "audio")
    assert time.process_time() - began < 1
    assert left(media) == []


def test_a_video_larger_than_may_be_kept_is_refused(
    media: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WRITTEN", 100)
    with pytest.raises(RequestError, match="without loss"):
        add(media, video(tmp_path).read_bytes(), "video")
    assert left(media) == []


def test_a_video_cut_short_is_refused(media: Uploads, tmp_path: Path) -> None:
    data = video(tmp_path).read_bytes()
    for end in (40, len(data) // 2):
        with pytest.raises(RequestError):
            add(media, data[:end], "video")
    assert left(media) == []


def test_a_long_video_is_refused(media: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "FRAMES", 5)
    with pytest.raises(RequestError, match="5 frames"):
        add(media, video(tmp_path).read_bytes(), "video")
    assert left(media) == []


def test_too_many_bytes_are_not_even_received(media: Uploads) -> None:
    received: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            received.append(1 << 20)
            yield bytes(1 << 20)

    with pytest.raises(TooLarge, match="50 MB"):
        anyio.run(media.add, endless(), "image")
    assert sum(received) < 52 * uploads.MEGABYTE
    assert left(media) == []


def test_one_that_stops_sending_is_given_up(media: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield png()[:30]
        await anyio.sleep(60)

    began = time.monotonic()
    with pytest.raises(TooSlow, match="send an image again"):
        anyio.run(media.add, slow(), "image")
    assert time.monotonic() - began < 10
    assert left(media) == []


def test_one_that_breaks_off_leaves_nothing(media: Uploads) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield png()[:30]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        anyio.run(media.add, broken(), "image")
    assert left(media) == []


@pytest.mark.parametrize(
    "name", ["", "x", "../x", "/etc/passwd", "\\\\host\\share", "C:\\x", "0" * 31, "G" * 32, None, 5]
)
def test_only_ids_are_looked_up(media: Uploads, name: object) -> None:
    with pytest.raises(RequestError, match="upload it"):
        media.path_of(name, "image")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_not_followed(media: Uploads, tmp_path: Path) -> None:
    kept = add(media, png())
    link = media.folder / f"{'0' * 32}.png"
    link.symlink_to(media.folder / f"{kept.id}.png")
    with pytest.raises(RequestError):
        media.path_of("0" * 32, "image")
    with pytest.raises(RequestError):  # of another kind
        media.path_of(kept.id, "video")


def test_files_of_this_machine_are_taken_in_once(media: Uploads, picture: Path, tmp_path: Path) -> None:
    taken = media.take(picture, "image")
    assert load_image(taken).tobytes() == load_image(picture).tobytes()
    assert media.take(taken, "image") == taken
    with pytest.raises(RequestError, match="missing.png"):
        media.take(tmp_path / "missing.png", "image")


def test_what_no_job_names_goes_after_a_day(media: Uploads) -> None:
    used, unused, new = (add(media, png((8, 8))) for _ in range(3))
    for one in (used, unused):
        os.utime(media.path_of(one.id, "image"), (0, 0))
    assert media.forget({used.id}) == 1
    assert left(media) == sorted([f"{used.id}.png", f"{new.id}.png"])


def test_types_are_a_list() -> None:
    assert kind_of("image/PNG; x=y") == "image"
    calls: list[Callable[[], str]] = [
        lambda: kind_of("image/svg+xml"),
        lambda: kind_of("text/html"),
        lambda: kind_of(""),
    ]
    for call in calls:
        with pytest.raises(RequestError, match="not taken"):
            call()
