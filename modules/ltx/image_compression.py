"""The H.264 compression that the 2.x models expect of a given image.

LTX-2 was trained on frames of compressed videos, so Lightricks compresses each given image once before the VAE encodes
it (ltx_pipelines `media_io.preprocess`). diffusers does the same inside the call from release 0.40 on; older ones, and
the commit that SD.Next pins, do not. Here it is done before the call, so that every release gets the same image.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any


def compressed(image: Any, crf: int) -> Any:
    """A PIL image encoded as one H.264 frame at `crf` and decoded again, in RGB; itself where `crf` is 0.

    Width and height are cut to even numbers, which H.264 needs. The encoder's settings are upstream's: libx264,
    preset veryfast, 4:2:0.
    """
    if crf == 0:
        return image
    import av
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image.convert("RGB"))
    pixels = np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = pixels.shape[:2]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        frame = next(container.decode(container.streams.video[0]))
        return Image.fromarray(frame.to_ndarray(format="rgb24"))
