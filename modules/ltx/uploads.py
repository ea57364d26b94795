"""Takes media in for jobs: bounded while they are received and while they are decoded, and written anew.

What is kept is a PNG, an mp4 or a WAV that this program wrote, under a random id, without anything else that was in the
file that came. Knows formats and limits; deliberately knows no HTTP and no jobs: who asks gets an id and gives it back.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import av
from av.audio.resampler import AudioResampler
from PIL import Image

from modules.ltx.errors import HostError, LTXError, RequestError
from modules.ltx.media_clip import picture_stream
from modules.ltx.media_in import load_image, require_file
from modules.ltx.request import MAX_FRAMES, MAX_SIDE

MEGABYTE = 1_000_000
MOST_BYTES: Mapping[str, int] = {"image": 50 * MEGABYTE, "video": 500 * MEGABYTE, "audio": 100 * MEGABYTE}
SUFFIXES: Mapping[str, str] = {"image": ".png", "video": ".mp4", "audio": ".wav"}
TYPES: Mapping[str, str] = {
    **dict.fromkeys(("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"), "image"),
    **dict.fromkeys(("video/mp4", "video/quicktime", "video/webm", "video/x-matroska"), "video"),
    **dict.fromkeys(("audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp4", "audio/flac", "audio/ogg"), "audio"),
}
SECONDS = 600  # of a video or a sound
LOWEST_RATE, HIGHEST_RATE = 4000, 384_000  # Hz
FRAMES = 4 * MAX_FRAMES  # of a video: the longest clip, and as much again to skip before it
WRITTEN = 8_000 * MEGABYTE  # of a video as it is kept, without loss: a small file may hold what takes much more
PATIENCE = 300.0  # seconds that writing one anew may take
IDLE = 30.0  # seconds without a byte after which an upload is given up
UNUSED = 24 * 3600.0  # seconds for which media that no job names are kept
_ID = re.compile("[0-9a-f]{32}")
# FFmpeg's readers by how a file begins. Named, because trying all of them would also try playlists, which name files.
_READERS: tuple[tuple[int, bytes, str], ...] = (
    *((4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"), (8, b"WAVE", "wav"), (0, b"fLaC", "flac")),
    *((0, b"OggS", "ogg"), (0, b"ID3", "mp3"), (0, b"\xff\xfb", "mp3"), (0, b"\xff\xf3", "mp3")),
)
_PLANAR = ("yuv420p", "yuv422p", "yuv444p")  # what H.264 keeps as it is


class TooLarge(RequestError):
    """More bytes than may be sent."""


class TooSlow(RequestError):
    """Nothing came for a while."""


@dataclass(frozen=True)
class Medium:
    """What is known of a file that was taken in. Sizes in pixels; frames of a video; seconds of video and sound."""

    id: str
    kind: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


class Uploads:
    """The media of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._decoding = threading.Lock()  # one at a time: a picture of 50 megapixels takes 150 MB

    def path_of(self, name: object, kind: str) -> Path:
        """The file of an id. Raises RequestError for whatever is not the id of a file here."""
        if isinstance(name, str) and _ID.fullmatch(name):
            path = self.folder / f"{name}{SUFFIXES[kind]}"
            inside = path.is_file() and not path.is_symlink() and path.resolve().parent == self.folder.resolve()
            if inside:
                return path
        shown = name if isinstance(name, str) and _ID.fullmatch(name) else "that"
        raise RequestError(f"{kind}: {shown} is not the id of {_a(kind)} on the server; upload it, and give its id.")

    async def add(self, chunks: AsyncIterator[bytes], kind: str) -> Medium:
        """Receive, check and write anew. Nothing stays of what is refused, broken off, or too slow.

        Raises TooLarge, TooSlow, RequestError, HostError.
        """
        with self._received(kind) as came:
            await _store(came, chunks, kind)
            return await anyio.to_thread.run_sync(self._anew, came, kind, f"the {kind}")

    def take(self, path: Path, kind: str) -> Path:
        """A file of this machine, taken in as an upload would be; where it is now."""
        if path.parent == self.folder:
            return path
        require_file(path, _a(kind), "give another")
        with self._received(kind) as came:
            with _host_errors(self.folder):
                shutil.copyfile(path, came)
            return self.folder / f"{self._anew(came, kind, str(path)).id}{SUFFIXES[kind]}"

    def forget(self, used: Collection[str]) -> int:
        """Remove what no job names and nobody has touched for a day; how many went. `used` are ids."""
        gone = 0
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
            with suppress(OSError):
                if path.stem not in used and time.time() - path.stat().st_mtime > UNUSED:
                    path.unlink()
                    gone += 1
        return gone

    @contextmanager
    def _received(self, kind: str) -> Iterator[Path]:
        with _host_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        came = self.folder / f"{secrets.token_hex(16)}.{kind}.part"
        try:
            yield came
        finally:
            came.unlink(missing_ok=True)

    def _anew(self, came: Path, kind: str, called: str) -> Medium:
        """What came, decoded within limits and written by us; `called`: what to say in place of our name for it."""
        name = secrets.token_hex(16)
        target = self.folder / f"{name}{SUFFIXES[kind]}"
        write = {"image": _image, "video": _video, "audio": _audio}[kind]
        with ExitStack() as undo, self._decoding:
            new = target.with_suffix(f".{kind}.new")
            undo.callback(new.unlink, missing_ok=True)
            try:
                known = write(came, new)
            except RequestError as error:
                raise RequestError(str(error).replace(str(came), called)) from error
            except (av.error.FFmpegError, ValueError, IndexError) as error:
                reason = str(error).partition("\n")[0].replace(str(came), called)
                raise RequestError(f"{called} cannot be read ({reason}); is it whole?") from error
            with _host_errors(self.folder):
                new.replace(target)
        return Medium(name, kind, **known)


def kind_of(content_type: str) -> str:
    """image, video or audio. Raises RequestError for any other type."""
    kind = TYPES.get(content_type.partition(";")[0].strip().lower())
    if kind is None:
        raise RequestError(f"content type {content_type[:80]!r}: not taken; send one of {', '.join(TYPES)}.")
    return kind


def _a(kind: str) -> str:
    return {"image": "an image", "video": "a video", "audio": "a sound"}[kind]


async def _store(path: Path, chunks: AsyncIterator[bytes], kind: str) -> None:
    size, most = 0, MOST_BYTES[kind]
    with _host_errors(path.parent), path.open("xb") as file:
        while True:
            chunk = None
            with anyio.move_on_after(IDLE) as waited:
                chunk = await anext(chunks, None)
            if waited.cancelled_caught:
                raise TooSlow(f"nothing came for {IDLE:g} seconds; send {_a(kind)} again.")
            if chunk is None:
                break
            size += len(chunk)
            if size > most:
                raise TooLarge(f"{_a(kind)} may have {most // MEGABYTE} MB; make it smaller.")
            file.write(chunk)
    if not size:
        raise RequestError(f"the {kind} is empty; send its bytes.")


def _image(came: Path, new: Path) -> dict[str, Any]:
    image = load_image(came)
    bare = Image.frombytes(image.mode, image.size, image.tobytes())  # without profiles and other luggage
    with _host_errors(new.parent):
        bare.save(new, "PNG", compress_level=1)
    return {"width": image.width, "height": image.height}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        head = file.read(16)
    reader = next((name for at, magic, name in _READERS if head[at : at + len(magic)] == magic), None)
    if reader is None:
        raise ValueError("it is of no known format")
    with av.open(str(path), format=reader, options={"protocol_whitelist": "file"}) as container:
        yield container


def _video(came: Path, new: Path) -> dict[str, Any]:
    """Its pictures without loss; its sound is dropped."""
    end = time.monotonic() + PATIENCE
    with _opened(came) as source:
        stream = picture_stream(source, MAX_SIDE * MAX_SIDE)
        _require_modest(stream.width, stream.height)
        rate = min(max(Fraction(stream.average_rate or 24), Fraction(1)), Fraction(240))
        count, written, size = 0, 0, (stream.width, stream.height)
        with av.open(str(new), "w", format="mp4") as target:
            out: Any = None
            for frame in source.decode(stream):
                _require_modest(frame.width, frame.height)
                if count >= FRAMES or count / rate > SECONDS:
                    raise RequestError(f"a video may have {FRAMES} frames and {SECONDS} seconds; cut it.")
                if time.monotonic() > end:
                    raise RequestError(f"the video takes over {PATIENCE:g} seconds to read; give a smaller one.")
                layout = frame.format.name if frame.format.name in _PLANAR else "yuv444p"
                if out is None:
                    size, kept = (frame.width, frame.height), layout
                    out = _lossless(target, size, rate, layout, frame)
                plain = frame.reformat(*size, kept) if (frame.width, frame.height, layout) != (*size, kept) else frame
                plain = plain.reformat(format=kept) if plain.format.name != kept else plain
                plain.pts, plain.time_base = count, 1 / rate
                packets = out.encode(plain)
                written += sum(packet.size for packet in packets)
                if written > WRITTEN:
                    raise RequestError(f"the video takes over {WRITTEN // MEGABYTE} MB without loss; cut it.")
                target.mux(packets)
                count += 1
            if out is None:
                raise ValueError("it has no frames")
            target.mux(out.encode(None))
    return {"width": size[0], "height": size[1], "frames": count, "seconds": float(count / rate)}


def _lossless(target: Any, size: tuple[int, int], rate: Fraction, layout: str, like: Any) -> Any:
    """A stream of H.264 that keeps every value, and says of its colours what `like` says."""
    out = target.add_stream("libx264", rate=rate, options={"qp": "0", "preset": "veryfast"})
    out.width, out.height, out.pix_fmt = *size, layout
    out.codec_context.time_base = 1 / rate
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        with suppress(AttributeError, ValueError):
            setattr(out.codec_context, name, int(getattr(like, name)))
    return out


def _require_modest(width: int, height: int) -> None:
    if width * height > MAX_SIDE * MAX_SIDE:
        raise RequestError(f"a video may have {MAX_SIDE}x{MAX_SIDE} pixels a frame; make it smaller.")


def _audio(came: Path, new: Path) -> dict[str, Any]:
    rate, count = 48000, 0
    with _opened(came) as source, av.open(str(new), "w", format="wav") as target:
        stream = next(iter(source.streams.audio), None)
        if stream is None:
            raise ValueError("it has no sound")
        out = target.add_stream("pcm_s16le", rate=rate, layout="stereo")
        even = AudioResampler("s16", "stereo", rate)
        for frame in source.decode(stream):
            _require_rate(frame.sample_rate)
            for part in even.resample(frame):
                count += part.samples
                if count > SECONDS * rate:
                    raise RequestError(f"a sound may have {SECONDS} seconds; cut it.")
                target.mux(out.encode(part))
        target.mux(out.encode(None))
    if not count:
        raise ValueError("it has no sound")
    return {"seconds": count / rate}


def _require_rate(rate: int) -> None:
    """Before it is resampled: filters are as long as the rate is high, a gigahertz takes minutes and gigabytes."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise RequestError(f"a sound may have {LOWEST_RATE} to {HIGHEST_RATE} Hz, not {rate}; save it with 48000.")


@contextmanager
def _host_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, LTXError):
            raise
        raise HostError(f"{folder}: the file cannot be stored ({error.strerror}); is the disk full?") from error
