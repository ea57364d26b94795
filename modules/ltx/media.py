"""Turns decoded frames and sound into one mp4 on disk, all of it or nothing.

Knows AAC, the mp4 container, colour tags and the comment tag that carries the settings; the codecs of
pictures are in `media_codecs.py`. Deliberately does not know: where frames come from (no torch here),
what the metadata means, how output files are named, or how many frames there will be; frames are
encoded as they arrive and never collected. How files get their names on disk is in `media_files.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import ThreadType
from av.container import OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL.Image import Image

from modules.ltx.ahead import ahead, standing_back
from modules.ltx.errors import HostError, RequestError
from modules.ltx.export import FrameTensor
from modules.ltx.media_codecs import CODECS, THREADS
from modules.ltx.media_files import Outputs
from modules.ltx.media_in import (
    Sound,
    checked_images,
    frame_rate,
    metadata_text,
    read_metadata,
    require_one_of,
    require_sound,
)

__all__ = ["Encoding", "Sound", "Written", "frame_rate", "read_metadata", "write_video"]

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
PIXEL_FORMATS = ("yuv420p", "yuv444p")

AHEAD = 32  # frames that wait for the encoder: bytes, a quarter of what the floats of as many are

_BT709 = 1  # the value of ITU-T H.273 for primaries, transfer and matrix alike
_LIMITED_RANGE = 1
_AAC_SAMPLES = 1024
_AAC_MAX_BITS_PER_SAMPLE = 6  # 6144 bits for 1024 samples of a channel; asking for more is only clamped


@dataclass(frozen=True)
class Encoding:
    """How to write. `crf`: 0 (lossless) .. 51 (worst), on the codec's own scale; None: a good one of the codec.
    `audio_bitrate`: bits per second, all channels.

    `png_frames` also keeps every frame as a PNG; `thumbnail` the first as a small JPEG. Raises
    RequestError for a value outside these.
    """

    codec: str = "h264"
    crf: int | None = None
    preset: str = "medium"
    pix_fmt: str = "yuv420p"
    audio_bitrate: int = 192_000
    png_frames: bool = False
    thumbnail: bool = True

    def __post_init__(self) -> None:
        require_one_of("codec", self.codec, CODECS)
        require_one_of("preset", self.preset, PRESETS)
        require_one_of("pix_fmt", self.pix_fmt, PIXEL_FORMATS)
        if self.crf is not None and not 0 <= self.crf <= 51:
            raise RequestError(f"crf is {self.crf}; give 0 (lossless) to 51 (worst).")
        if self.audio_bitrate < 8000:
            raise RequestError(f"audio_bitrate is {self.audio_bitrate}; give 8000 bits per second or more.")


@dataclass(frozen=True)
class Written:
    """What stands on disk now. `duration` in seconds is frames / fps; `sample_rate` None: no sound."""

    path: Path
    thumbnail: Path | None
    frames_dir: Path | None
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    sample_rate: int | None
    pictures: tuple[Path, ...] = ()
    tensors: Path | None = None


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: float,
    sound: Sound | None,
    metadata: Mapping[str, object],
    encoding: Encoding = Encoding(),
    on_frame: Callable[[int], None] | None = None,
    poll: Callable[[], None] = lambda: None,
    pictures: Mapping[str, Image] | None = None,
    waiting: int = AHEAD,
    tensors: Mapping[str, str] | None = None,
) -> Written:
    """Encodes `frames` to the mp4 at `path`, replacing an mp4 of that name, and says what was written.

    `frames` yields uint8 RGB chunks (n, H, W, 3), n >= 1, all of one even H and W. `sound` is cut, or
    padded with silence, to the length of the frames. `metadata` must be JSON-serialisable.
    Encoding goes on while `frames` makes the next ones, at most `waiting` behind them: where frames come a tile at a
    time, a tile, or the next one has to wait for the encoder.
    `on_frame(count)` runs for each encoded frame, where `frames` runs, and may raise to cancel. So may `poll`,
    which runs in front of each frame in the encoder's own thread, or that would go on with what it was given; and after
    each of the frames that an encoder held back to look ahead (x264: ten). Beside the video go `<stem>.jpg` and the
    folder `<stem>-frames`, where `encoding` asks for them, `pictures` as `<stem>-<name>.png`, and with `tensors`, its
    metadata, the frames as `<stem>.safetensors`.

    Whatever is raised, by `frames` and `on_frame` too, leaves nothing new behind. Raises RequestError
    for values that cannot be written, HostError where disk or PyAV build fail, LTXError for frames or
    sound that no decoder should have produced.
    """
    rate, tags = frame_rate(fps), _tags(metadata)
    require_sound(sound)
    require_codec(encoding)
    if not path.parent.is_dir():
        raise HostError(f"The folder {path.parent} does not exist; create it or choose another.")
    with _host_errors(path.parent):
        beside = {"png_frames": encoding.png_frames, "thumbnail": encoding.thumbnail, "tensors": tensors is not None}
        outputs = Outputs(path, **beside, pictures=pictures or ())
    size, images = checked_images(frames)
    with ExitStack() as stack:
        stack.callback(outputs.discard)
        with _host_errors(path.parent):
            container = stack.enter_context(_open(outputs.temp(path)))
            # The encoder's own threads must not take the cores that the next frames are made on.
            movie = standing_back(lambda: _Movie(container, size, rate, sound=sound, tags=tags, encoding=encoding))
            tensor = None
            if tensors is not None and outputs.tensors is not None:
                tensor = FrameTensor(outputs.temp(outputs.tensors), size, tensors)
                stack.callback(tensor.close)

        def add(image: NDArray[np.uint8]) -> None:
            poll()
            with _host_errors(path.parent):
                outputs.add(image, movie.frames)
                movie.add(image)
                if tensor is not None:
                    tensor.add(image)

        with ahead(add, most=waiting, on_done=on_frame) as feed:
            for image in images:
                feed(image)
        with _host_errors(path.parent):
            movie.finish(poll)
            for name, picture in (pictures or {}).items():
                outputs.add_picture(name, picture)
            if tensor is not None:
                tensor.finish()
            outputs.publish()
    return Written(
        path=path,
        thumbnail=outputs.thumbnail,
        frames_dir=outputs.frames_dir,
        frames=movie.frames,
        fps=float(rate),
        width=size[0],
        height=size[1],
        duration=float(movie.frames / rate),
        sample_rate=None if sound is None else sound.rate,
        pictures=tuple(outputs.pictures.values()),
        tensors=outputs.tensors,
    )


def require_codec(encoding: Encoding) -> None:
    """Raises HostError where this PyAV cannot write it; better known before there are frames."""
    require_encoder(CODECS[encoding.codec].encoder)


def require_encoder(name: str) -> None:
    """Raises HostError where this PyAV has no encoder of FFmpeg's `name`, such as "libx264"."""
    try:
        av.Codec(name, "w")
    except ValueError as error:
        raise HostError(
            f"The installed PyAV {av.__version__} has no {name} encoder; install PyAV from its PyPI wheel."
        ) from error


class _Movie:
    """One mp4 being encoded. Sound follows the pictures, so neither has to wait in memory for the other."""

    def __init__(
        self,
        container: OutputContainer,
        size: tuple[int, int],
        rate: Fraction,
        *,
        sound: Sound | None,
        tags: Mapping[str, str],
        encoding: Encoding,
    ) -> None:
        self.frames = 0
        self._rate, self._pix_fmt = rate, encoding.pix_fmt
        self._colours = VideoReformatter()  # one for all frames: a frame's own builds its tables anew
        self._container = container
        self._video = _video_stream(container, size, rate, encoding)
        self._track = None if sound is None else _SoundTrack(container, sound, encoding.audio_bitrate)
        container.metadata.update(tags)
        # The header is written here, with both streams in it: a stream added after the first packet
        # would be left out of the file without a word.
        container.start_encoding()

    def add(self, image: NDArray[np.uint8]) -> None:
        frame = self._colours.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format=self._pix_fmt,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        self._container.mux(self._video.encode(frame))
        self.frames += 1
        if self._track is not None:
            self._container.mux(list(self._track.whole_blocks(self.frames / self._rate)))

    def finish(self, poll: Callable[[], None] = lambda: None) -> None:
        """Writes what the encoders still hold, then the index; the file is complete after this."""
        if self._track is not None:
            self._container.mux(list(self._track.rest(self.frames / self._rate)))
        for packet in self._video.codec_context.encode_lazy(None):
            packet.stream = self._video  # as `encode` of a stream does, which would not stop on the way
            self._container.mux(packet)
            poll()
        self._container.close()


class _SoundTrack:
    """Cuts a waveform into AAC blocks, silence where it has ended.

    Blocks are given the encoder ready for use (size, planar float, rate, time stamp), because what
    PyAV does with others has changed from release to release.
    """

    def __init__(self, container: OutputContainer, sound: Sound, bitrate: int) -> None:
        channels = sound.waveform.shape[0]
        self._layout = "mono" if channels == 1 else "stereo"
        self._sound, self._done = sound, 0
        self._stream: AudioStream = container.add_stream("aac", rate=sound.rate, layout=self._layout)
        self._stream.bit_rate = min(bitrate, _AAC_MAX_BITS_PER_SAMPLE * sound.rate * channels)
        self._stream.codec_context.time_base = Fraction(1, sound.rate)

    def whole_blocks(self, seconds: Fraction) -> Iterator[Packet[AudioStream]]:
        """Whatever fits completely into the first `seconds`; AAC takes a short block only as its last."""
        while self._done + _AAC_SAMPLES <= seconds * self._sound.rate:
            yield from self._encode(_AAC_SAMPLES)

    def rest(self, seconds: Fraction) -> Iterator[Packet[AudioStream]]:
        """All that is missing up to `seconds`, to the sample; the muxer then records just that length."""
        yield from self.whole_blocks(seconds)
        left = round(seconds * self._sound.rate) - self._done
        if left > 0:
            yield from self._encode(left)
        yield from self._stream.encode(None)

    def _encode(self, samples: int) -> list[Packet[AudioStream]]:
        heard = self._sound.waveform[:, self._done : self._done + samples]
        block = np.zeros((heard.shape[0], samples), np.float32)
        block[:, : heard.shape[1]] = np.clip(heard, -1.0, 1.0)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base = self._sound.rate, Fraction(1, self._sound.rate)
        frame.pts = self._done
        self._done += samples
        return self._stream.encode(frame)


def _video_stream(container: OutputContainer, size: tuple[int, int], rate: Fraction, encoding: Encoding) -> VideoStream:
    codec = CODECS[encoding.codec]
    os.environ.setdefault("SVT_LOG", "1")  # errors alone; SVT-AV1 takes this from nowhere else
    options = codec.options(codec.crf if encoding.crf is None else encoding.crf, encoding.preset)
    stream = container.add_stream(codec.encoder, rate=rate, options=options, bit_rate=0)
    stream.width, stream.height = size
    stream.pix_fmt = encoding.pix_fmt
    context = stream.codec_context
    context.time_base = 1 / rate
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    context.thread_count, context.thread_type = THREADS, ThreadType.AUTO
    if codec.tag:
        context.codec_tag = codec.tag
    return stream


@contextmanager
def _open(path: Path) -> Iterator[OutputContainer]:
    """An mp4 for writing; absolute, because FFmpeg would take `a:b.mp4` for a protocol."""
    container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
    try:
        yield container
    finally:  # does nothing after finish(); before it the file is thrown away, so only letting go counts
        with suppress(OSError, av.FFmpegError):
            container.close()


@contextmanager
def _host_errors(folder: Path) -> Iterator[None]:
    """Around this module's own work only: errors of `frames` and `on_frame` pass as they are."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"The video cannot be written in {folder} ({error.strerror or error}); "
            "check its space and permissions, or choose another folder."
        ) from error
    except av.FFmpegError as error:
        raise HostError(f"The encoder failed on a video for {folder} ({error}); try another size.") from error


def _tags(metadata: Mapping[str, object]) -> dict[str, str]:
    """All of `metadata` as JSON in the tag that every tool shows, its title and an infotext in tags of their own."""
    tags = {"comment": metadata_text(metadata)}
    if isinstance(title := metadata.get("title"), str) and title:
        tags["title"] = title.encode(errors="replace").decode()
    if isinstance(told := metadata.get("infotext"), str) and told:
        tags["description"] = told.encode(errors="replace").decode()
    return tags
