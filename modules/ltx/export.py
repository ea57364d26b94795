"""What a host may add to the written video: frames between the decoded ones, and the frames as a safetensors file.

Both work on the stream of decoded frames: no more than one chunk of it is in memory. Knows neither codecs nor hosts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # RGB, (n, H, W, 3)
_MOST = 32  # frames that one call interpolates to, as floats on the device: 0.3 GB at 1216x704


@dataclass(frozen=True)
class Interpolation:
    """`factor`: frames of the file per decoded frame, 2 or more. `between` takes n+1 frames and returns the
    n * (factor - 1) frames between them, in order."""

    factor: int
    between: Callable[[Frames], Frames]

    def filled(self, chunks: Iterable[Frames]) -> Iterator[Frames]:
        """The chunks with the frames between. Frame k becomes frame k * factor, so at `factor` times the frame rate
        every frame keeps its time and the clip its duration; the last frame is repeated."""
        last: Frames | None = None
        pairs = max(_MOST // self.factor, 1)
        for chunk in chunks:
            row = chunk if last is None else np.concatenate([last, chunk])
            for start in range(0, len(row) - 1, pairs):
                yield self._between(row[start : start + pairs + 1])
            last = row[-1:].copy()
        if last is not None:
            yield np.repeat(last, self.factor, axis=0)

    def _between(self, row: Frames) -> Frames:
        """All of n+1 frames but the last, each with those after it."""
        made = self.between(row).reshape(len(row) - 1, self.factor - 1, *row.shape[1:])
        return np.concatenate([row[:-1, None], made], axis=1).reshape(-1, *row.shape[1:])


@dataclass(frozen=True)
class Export:
    """`tensors`: the metadata of a safetensors file with the frames beside the video; None: no such file."""

    interpolation: Interpolation | None = None
    tensors: Mapping[str, str] | None = None

    @property
    def factor(self) -> int:
        """Frames of the file per decoded frame."""
        return 1 if self.interpolation is None else self.interpolation.factor

    def frames(self, chunks: Iterable[Frames]) -> Iterable[Frames]:
        """The frames of the file, from the decoded ones."""
        return chunks if self.interpolation is None else self.interpolation.filled(chunks)


VIDEO_ALONE = Export()


class FrameTensor:
    """A safetensors file with one tensor, `frames`, uint8 (T, H, W, 3), written as the frames come.

    Its header, which names T, comes first in the file: room is kept for it, and it is written last.
    """

    def __init__(self, path: Path, size: tuple[int, int], metadata: Mapping[str, str]) -> None:
        """`size` is (W, H); `metadata` gets frames, width and height besides."""
        self._size, self._metadata, self._count = size, dict(metadata), 0
        self._room = -(-len(self._header(10**9)) // 8) * 8  # safetensors pads to 8 bytes
        self._file = path.open("wb")
        self._file.seek(8 + self._room)

    def add(self, image: Frames) -> None:
        """One frame, (H, W, 3)."""
        self._file.write(np.ascontiguousarray(image).data)
        self._count += 1

    def finish(self) -> None:
        """The header; the file is complete after this."""
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + self._header(self._count).ljust(self._room))
        self._file.close()

    def close(self) -> None:
        """Let go of a file that is thrown away, or complete."""
        self._file.close()

    def _header(self, count: int) -> bytes:
        width, height = self._size
        sizes = {"frames": str(count), "width": str(width), "height": str(height)}
        tensor = {"dtype": "U8", "shape": [count, height, width, 3], "data_offsets": [0, count * height * width * 3]}
        return json.dumps({"__metadata__": self._metadata | sizes, "frames": tensor}).encode()
