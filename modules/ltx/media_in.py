"""Takes in what a video is made from, checked: images and mp4 settings from files, frames and sound.

Knows raster formats, the box layout of mp4 files and the JSON in their comment tag (its text is made
here as well, so that both directions stand side by side), and what frames, sound and frame rate must
be like. Deliberately does not know: what the metadata means, how to encode or decode video (no codec
is opened here, so a hostile file reaches none), or how images are resized for a model.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from modules.ltx.errors import LTXError, RequestError

MAX_PIXELS = 50_000_000
MAX_METADATA_BYTES = 16 << 20
# What AAC can carry; other rates would have to be resampled, which is the engine's business.
SOUND_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LOWEST_FPS, HIGHEST_FPS = 1.0, 240.0
# A fixed list, because Pillow would otherwise also try EPS (which starts Ghostscript), WMF and others.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

# What Pillow's decoders raise on damaged data, by experiment: each format has its own habits.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
# Bytes between a box's header and the first box inside it (version and flags; type and locale).
_PREFIX = {b"meta": 4, b"data": 8}
# This program's files have four boxes at the top; the bound keeps a crafted file from looping for long.
_MAX_BOXES = 64


@dataclass(frozen=True, eq=False)
class Sound:
    """`waveform`: float32 (channels, samples), 1 or 2 channels, nominally in [-1, 1]. `rate`: Hz."""

    waveform: NDArray[np.float32]
    rate: int


def load_image(path: Path) -> Image.Image:
    """The image at `path`, upright (EXIF orientation applied), mode RGB, size as stored.

    Transparent parts are laid on black, 16-bit gray is scaled to 8 bits, of an animation the first
    frame is taken. Colour profiles are ignored. Raises RequestError for anything that is not a whole
    BMP, GIF, JPEG, PNG, TIFF or WebP of at most 50 megapixels.
    """
    require_file(path, "an image", "give a PNG, JPEG or WebP file")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _require_modest(path, image.size)
            return _rgb(ImageOps.exif_transpose(image))
    except MemoryError as error:  # a piece of the file says that it has gigabytes
        raise RequestError(
            f"{path} asks for more memory than there is; give a smaller image, or save it anew."
        ) from error
    except _BOMB as error:
        raise RequestError(_too_large(path)) from error
    except _DAMAGED as error:
        raise RequestError(
            f"{path} cannot be read as an image: it is damaged, cut short or not one of "
            f"{', '.join(IMAGE_FORMATS)}; give a PNG, JPEG or WebP file."
        ) from error


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata mapping stored in the mp4 at `path` by `media.write_video`.

    Raises RequestError where the file is missing, no mp4, cut short, or holds no such metadata.
    """
    advice = "give an mp4 that this program wrote"
    require_file(path, "a video", advice)
    try:
        with path.open("rb") as file:
            top_level_boxes(file)
            text = _descend(file, _COMMENT)
        return _mapping(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise RequestError(f"No settings can be read from {path} ({reason}); {advice}.") from error


def metadata_text(metadata: Mapping[str, object]) -> str:
    """What `read_metadata` reads: `metadata` as JSON, its texts readable as they are in any tool.

    Raises RequestError for what JSON cannot hold, and above 16 MiB.
    """
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"The metadata is no JSON ({error}); give texts, numbers and lists.") from error
    text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # UTF-8 has none of these
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise RequestError(f"The metadata is over {MAX_METADATA_BYTES >> 20} MiB; shorten its texts.")
    return text


def frame_rate(fps: float) -> Fraction:
    """`fps` as the exact fraction it stands for: 24, 25/2, and 24000/1001 for 23.976.

    Raises RequestError outside 1 .. 240.
    """
    if not LOWEST_FPS <= fps <= HIGHEST_FPS:  # NaN too
        raise RequestError(f"fps is {fps}; give {LOWEST_FPS:g} to {HIGHEST_FPS:g}.")
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(ntsc - Fraction(float(fps))) <= ntsc / 200_000:  # 23.976 is off by 1e-6; 24 by 1e-3
        return ntsc
    return Fraction(float(fps)).limit_denominator(10_000)


def checked_images(
    chunks: Iterable[NDArray[np.uint8]],
) -> tuple[tuple[int, int], Iterator[NDArray[np.uint8]]]:
    """(W, H), and each (H, W, 3) image of each (n, H, W, 3) chunk as it comes; nothing keeps them alive.

    Raises RequestError for an odd width or height, LTXError for no frames or frames of another shape.
    """
    images = _images(chunks)
    first = next(images, None)
    if first is None:
        raise LTXError("There are no frames to write.")
    return (first.shape[1], first.shape[0]), chain([first], images)


def _images(chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    size: tuple[int, ...] | None = None
    for chunk in chunks:
        if chunk.dtype != np.uint8 or chunk.ndim != 4 or chunk.shape[3] != 3 or 0 in chunk.shape:
            raise LTXError(f"Frames came as {chunk.dtype} {chunk.shape}, not as uint8 (n, H, W, 3).")
        size = size or chunk.shape[1:3]
        if chunk.shape[1:3] != size:
            raise LTXError(f"Frames changed size from {size} to {chunk.shape[1:3]} (H, W) within one video.")
        if size[0] % 2 or size[1] % 2:
            raise RequestError(f"Frames are {size[1]}x{size[0]}; H.264 needs an even width and height.")
        yield from chunk


def require_sound(sound: Sound | None) -> None:
    """Raises LTXError for NaN samples or another shape, RequestError for a rate that AAC has not."""
    if sound is None:
        return
    wave = sound.waveform
    if wave.dtype != np.float32 or wave.ndim != 2 or wave.shape[0] not in (1, 2):
        raise LTXError(f"Sound came as {wave.dtype} {wave.shape}, not as float32 (1 or 2, samples).")
    if np.isnan(wave).any():
        raise LTXError("The sound holds NaN samples; the sound decoder failed.")
    require_one_of("The sound's rate in Hz", sound.rate, SOUND_RATES)


def require_one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises RequestError, listing what is allowed."""
    if value not in allowed:
        raise RequestError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}.")


def top_level_boxes(file: BinaryIO) -> list[bytes]:
    """The kinds of an mp4's top-level boxes, in order; they end exactly where the file does.

    Raises ValueError for a file that is no mp4, is cut short, or has no index (`moov`).
    """
    kinds: list[bytes] = []
    for kind, _, _ in _boxes(file, 0, file.seek(0, 2)):
        kinds.append(kind)
        if kinds[0] != b"ftyp" or len(kinds) > _MAX_BOXES:
            raise ValueError("not an mp4 of this program")
    if b"moov" not in kinds:
        raise ValueError("not a complete mp4")
    return kinds


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of content, end) of each mp4 box between the file offsets `start` and `end`."""
    while start < end:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            raise ValueError("the file is cut short")
        length, kind = struct.unpack(">I4s", header[:8])
        body = 8
        if length == 1 and len(header) == 16:  # the length did not fit into 32 bits
            (length,) = struct.unpack(">Q", header[8:])
            body = 16
        if length == 0:  # up to the end of what holds it
            length = end - start
        if start == 0 and kind != b"ftyp":
            raise ValueError("not an mp4")
        if length < body or start + length > end:
            raise ValueError("the file is cut short")
        yield kind, start + body, start + length
        start += length


def _descend(file: BinaryIO, path: tuple[bytes, ...]) -> bytes:
    """The content of the box reached by taking, level by level, the first box of each named kind."""
    start, end = 0, file.seek(0, 2)
    for wanted in path:
        found = next(((s, e) for kind, s, e in _boxes(file, start, end) if kind == wanted), None)
        if found is None:
            raise ValueError("it has no comment tag")
        start, end = found[0] + _PREFIX.get(wanted, 0), found[1]
    if not 0 <= end - start <= MAX_METADATA_BYTES:
        raise ValueError("its comment tag is damaged")
    file.seek(start)
    return file.read(end - start)


def _mapping(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise ValueError("its comment is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("its comment is not a JSON object")
    return value


def require_file(path: Path, what: str, advice: str) -> None:
    """Refuses, in words, what open() would refuse by number, and pipes and devices, where it would wait."""
    if not path.exists():
        raise RequestError(f"{path} does not exist; {advice}.")
    if not path.is_file():
        raise RequestError(f"{path} is not a file; {advice}.")
    if path.stat().st_size == 0:
        raise RequestError(f"{path} is empty, not {what}; {advice}.")


def _require_modest(path: Path, size: tuple[int, int]) -> None:
    """`size` comes from the header; no pixel has been decoded yet."""
    if size[0] * size[1] > MAX_PIXELS:
        raise RequestError(_too_large(path))


def _too_large(path: Path) -> str:
    return f"{path} has more than {MAX_PIXELS // 1_000_000} megapixels; give a smaller image."


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32 bits a pixel: nothing says which value is white
        raise ValueError(f"mode {image.mode} has no defined white")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "black"), over).convert("RGB")
    return image.convert("RGB")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
