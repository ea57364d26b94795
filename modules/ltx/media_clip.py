"""Reads frames of a video file that a user gives, to begin a clip with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
from PIL import Image

from modules.ltx.errors import RequestError
from modules.ltx.media_in import MAX_PIXELS, require_file
from modules.ltx.request import Prefix


def load_clip(prefix: Prefix) -> tuple[Image.Image, ...]:
    """`prefix.frames` RGB frames of the file, the first `prefix.skip` left out.

    Raises RequestError for a file that is no video, is damaged before they end, or has too few.
    """
    path = Path(prefix.path)
    require_file(path, "a video", "give a video file")
    try:
        with av.open(str(path)) as container:
            frames = tuple(islice(_frames(path, container), prefix.skip, prefix.skip + prefix.frames))
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


def _frames(path: Path, container: av.container.InputContainer) -> Iterator[Image.Image]:
    if not container.streams.video:
        raise RequestError(f"{path} has no picture; give a video file.")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise RequestError(f"{path} has more than {MAX_PIXELS // 1_000_000} megapixels a frame; give a smaller video.")
    for frame in container.decode(stream):
        yield frame.to_image()  # type: ignore[no-untyped-call]
