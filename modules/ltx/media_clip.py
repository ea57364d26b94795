"""Reads frames of a video file that a user gives, to begin a clip with.

Knows which formats are opened and how much is held at most; does not know what becomes of the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
from PIL import Image

from modules.ltx.errors import RequestError
from modules.ltx.media_in import MAX_PIXELS, require_file
from modules.ltx.request import Prefix

# FFmpeg's readers that may be tried. Left out are above all playlists: they name other files, which would be read too.
READERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")
MOST_BYTES = 8 << 30  # of frames held at a time, as RGB


def load_clip(prefix: Prefix) -> tuple[Image.Image, ...]:
    """`prefix.frames` RGB frames of the file, the first `prefix.skip` left out.

    Raises RequestError for a file that is no video, is damaged before they end, has too few, or too large ones.
    """
    path = Path(prefix.path)
    require_file(path, "a video", "give a video file")
    try:
        with av.open(str(path), options={"format_whitelist": ",".join(READERS)}) as container:
            frames = tuple(islice(_frames(path, container, prefix), prefix.skip, prefix.skip + prefix.frames))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(f"{path} cannot be read as a video ({reason}); give a video file.") from error
    if len(frames) < prefix.frames:
        there = prefix.skip + len(frames) if frames else "fewer"
        raise RequestError(
            f"{path}: {prefix.frames} frames from frame {prefix.skip} on were asked, and it has {there} in all; ask for"
            " fewer (--prefix-frames, --prefix-skip)."
        )
    return frames


def picture_stream(container: av.container.InputContainer, most: int) -> Any:
    """The first stream of pictures, its codec held to `most` pixels a frame, which headers inside it may exceed.

    Raises ValueError where there is none that can be decoded.
    """
    stream = next(iter(container.streams.video), None)
    if stream is None:
        raise ValueError("it has no picture")
    if stream.codec_context is None:
        raise ValueError("its pictures are of no known codec")
    stream.codec_context.options = {"max_pixels": str(most)}
    return stream


def _frames(path: Path, container: av.container.InputContainer, prefix: Prefix) -> Iterator[Image.Image]:
    stream = picture_stream(container, MAX_PIXELS)
    pixels = stream.width * stream.height
    if pixels > MAX_PIXELS:
        raise RequestError(f"{path} has more than {MAX_PIXELS // 1_000_000} megapixels a frame; give a smaller video.")
    if 3 * pixels * prefix.frames > MOST_BYTES:
        size, most = f"{prefix.frames} frames of {stream.width}x{stream.height}", f"{MOST_BYTES >> 30} GiB"
        raise RequestError(
            f"{path}: {size} take over {most}; ask for fewer (--prefix-frames), or give a smaller video."
        )
    for frame in container.decode(stream):
        yield frame.to_image()
