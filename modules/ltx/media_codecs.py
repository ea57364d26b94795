"""The video codecs that a file may be written with, and what each encoder must be told to write the same bytes again.

Knows FFmpeg's encoders and their options; not what is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Encoder = Literal["libx264", "libx265", "libsvtav1"]

# Fixed, so the same frames give the same file on every machine; each thread also holds frames back.
THREADS = 3


@dataclass(frozen=True)
class Codec:
    """`encoder`: FFmpeg's name; `crf`: its quality where nobody names one; `options`: of (crf, preset); `tag`: what the
    mp4 calls it, where FFmpeg's own choice does not play everywhere."""

    encoder: Encoder
    crf: int
    options: Callable[[int, str], dict[str, str]]
    tag: str = ""


def _x264(crf: int, preset: str) -> dict[str, str]:
    # x264's assembly for macroblock trees reads memory it has not set: about one in fifty files of 64x64
    # frames came out with other bytes from the same input, none in 450 without it.
    return {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}


def _x265(crf: int, preset: str) -> dict[str, str]:
    # How many frames are encoded at once decides what they are predicted from, so it is not left to the machine.
    fixed = f"frame-threads=1:pools={THREADS}:log-level=error"
    return {"crf": str(crf), "preset": preset, "x265-params": fixed}


def _svt(crf: int, _preset: str) -> dict[str, str]:
    return {"crf": str(crf), "preset": "6", "svtav1-params": f"lp={THREADS}"}


CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", 18, _x264),
    "hevc": Codec("libx265", 20, _x265, tag="hvc1"),  # Apple's players know it by this name alone
    "av1": Codec("libsvtav1", 24, _svt),
}
# What other programs call them.
KNOWN_AS: Mapping[str, str] = {
    **{name: name for name in CODECS},
    **{codec.encoder: name for name, codec in CODECS.items()},
    "libaom-av1": "av1",
}
