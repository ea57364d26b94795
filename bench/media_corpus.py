"""Small files of every format that is taken in, and ways to damage them: what `bench.media_fuzz` asks with.

All is drawn by a `random.Random` that is given, so that an input is told by its number. Does not know who reads it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from modules.ltx.media import Encoding, Sound, write_video

# (container, its name's suffix, codec, pixel format)
VIDEOS = (
    *(
        ("mp4", "mp4", "libx264", "yuv420p"),
        ("mov", "mov", "mjpeg", "yuvj420p"),
        ("mov", "mov", "prores_ks", "yuv422p10"),
    ),
    *(
        ("webm", "webm", "libvpx-vp9", "yuv420p"),
        ("matroska", "mkv", "ffv1", "yuv444p"),
        ("avi", "avi", "mpeg4", "yuv420p"),
    ),
    ("mpegts", "ts", "libx264", "yuv420p"),
)
SOUNDS = (
    *(("wav", "wav", "pcm_s16le"), ("flac", "flac", "flac"), ("ogg", "ogg", "libopus"), ("mp3", "mp3", "libmp3lame")),
    *(("mp4", "m4a", "aac"), ("webm", "webm", "libopus"), ("mov", "mov", "pcm_s16le")),
)
# What sizes, counts and offsets are set to where a program might believe them.
BOUNDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Original:
    """A whole file: `kind` is image, video or audio."""

    name: str
    kind: str
    data: bytes


def originals() -> list[Original]:
    """One small file of each format, made on the spot."""
    return [*_images(), *_videos(), *_sounds()]


def _images() -> Iterator[Original]:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    picture = Image.blend(Image.fromarray(noise), Image.radial_gradient("L").resize((32, 24)).convert("RGB"), 0.7)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("plain.png", picture, {}),
        ("palette.png", picture.convert("P"), {"transparency": 3}),
        ("deep.png", Image.fromarray(noise[..., 0].astype(np.uint16) * 257), {}),
        ("turned.jpg", picture, {"exif": exif}),
        ("progressive.jpg", picture.convert("CMYK"), {"progressive": True}),
        ("lossy.webp", picture, {}),
        ("moving.webp", picture, {"save_all": True, "append_images": [picture.rotate(90)], "lossless": True}),
        ("moving.gif", picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
        ("plain.bmp", picture, {}),
        ("plain.tif", picture.convert("RGBA"), {}),
        *((f"{how}.tif", picture, {"compression": how}) for how in ("tiff_lzw", "tiff_deflate", "jpeg")),
        ("fax.tif", picture.convert("1"), {"compression": "group4"}),
    ]
    for name, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, {"tif": "TIFF", "jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        yield Original(name, "image", buffer.getvalue())


def _videos() -> Iterator[Original]:
    for container, suffix, codec, layout in VIDEOS:
        yield Original(f"{codec}.{suffix}", "video", _video(container, codec, layout))


def _video(container: str, codec: str, layout: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        if codec == "libx264":
            stream.options = {"preset": "ultrafast"}
        for number in range(5):
            y, x = np.mgrid[:48, :64]
            picture = np.stack([(x * 4 + 9 * number) % 256, y * 5 % 256, (x * y) % 256], -1).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=layout)))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _sounds() -> Iterator[Original]:
    wave = (8000 * np.sin(np.arange(2 * 960 * 6) / 9)).astype(np.int16).reshape(1, -1)
    for container, suffix, codec in SOUNDS:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as file:
            stream: Any = file.add_stream(codec, rate=48000, layout="stereo")
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            for part in av.AudioResampler(stream.format, "stereo", 48000, stream.frame_size or 960).resample(frame):
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        yield Original(f"{codec}.{suffix}", "audio", buffer.getvalue())


def of_this_program(path: Any) -> Original:
    """A video as this program writes it, with metadata, written to `path` on the way."""
    frames = iter([np.random.default_rng(1).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)])
    sound = Sound(np.zeros((1, 4800), np.float32), 48000)
    settings = Encoding(preset="ultrafast", thumbnail=False)
    write_video(path, frames, fps=24, sound=sound, metadata={"request": {"prompt": "é" * 50}}, encoding=settings)
    return Original("ours.mp4", "video", path.read_bytes())


def damaged(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """`data` with one to six damages; `other` is another file that a piece may come from. Half of all PNGs get right
    checksums again, since a reader looks no further where they are wrong."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        chance.choice(_DAMAGES)(made, chance, other)
        if not made:
            return bytes(made)
    return _with_checksums(bytes(made)) if made[:4] == b"\x89PNG" and chance.random() < 0.5 else bytes(made)


def _place(made: bytearray, chance: random.Random) -> int:
    """Somewhere in the file, half of the time in its head, where what matters stands."""
    return chance.randrange(min(len(made), 200) if chance.random() < 0.5 else len(made))


def _flip(made: bytearray, chance: random.Random, other: bytes) -> None:
    made[_place(made, chance)] ^= 1 << chance.randrange(8)


def _number(made: bytearray, chance: random.Random, other: bytes) -> None:
    size, order = chance.choice(((1, ">B"), (2, ">H"), (2, "<H"), (4, ">I"), (4, "<I")))
    at = _place(made, chance)
    made[at : at + size] = struct.pack(order, chance.choice(BOUNDS) & (1 << 8 * size) - 1)


def _cut(made: bytearray, chance: random.Random, other: bytes) -> None:
    del made[_place(made, chance) :]


def _remove(made: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(made, chance)
    del made[at : at + chance.choice((1, 2, 4, 16, 100))]


def _again(made: bytearray, chance: random.Random, other: bytes) -> None:
    at, size = _place(made, chance), chance.choice((4, 16, 100, 1000))
    made[at:at] = made[at : at + size] * chance.choice((1, 2, 50))


def _random(made: bytearray, chance: random.Random, other: bytes) -> None:
    at, size = _place(made, chance), chance.choice((1, 4, 32))
    made[at : at + size] = chance.randbytes(size)


def _splice(made: bytearray, chance: random.Random, other: bytes) -> None:
    made[_place(made, chance) :] = other[chance.randrange(max(len(other), 1)) :]


def _swap(made: bytearray, chance: random.Random, other: bytes) -> None:
    one, two, size = _place(made, chance), _place(made, chance), chance.choice((1, 4, 8, 64))
    first, second = made[one : one + size], made[two : two + size]
    made[one : one + size] = second
    made[two : two + size] = first


_DAMAGES = (_flip, _flip, _number, _number, _number, _cut, _remove, _again, _random, _splice, _swap)


def _with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, as far as there are chunks."""
    made, at = bytearray(data), 8
    while at + 12 <= len(made):
        (size,) = struct.unpack(">I", made[at : at + 4])
        end = at + 8 + size
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)
