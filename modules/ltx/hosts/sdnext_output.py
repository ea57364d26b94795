"""The web UI's Output tab: what of it is followed, and how; frame interpolation is the web UI's own."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.ltx.errors import RequestError
from modules.ltx.export import Export, Frames, Interpolation
from modules.ltx.hosts import sdnext_settings
from modules.ltx.hosts.sdnext import ui
from modules.ltx.media import PIXEL_FORMATS, PRESETS, Encoding, frame_rate
from modules.ltx.media_codecs import KNOWN_AS

_CODECS = "H.264, H.265 and AV1"
_FOLLOWED = {"preset": PRESETS, "pix_fmt": PIXEL_FORMATS}  # of the video options, besides crf


@dataclass(frozen=True)
class Output:
    """The values of the Output tab, in its order. `interpolate`: how many frames to add after each."""

    fps: float
    interpolate: float
    codec: str
    container: str
    options: str
    video: bool
    frames: bool
    safetensors: bool
    thumbnail: bool

    def check(self) -> None:
        """Raise RequestError for what cannot be written."""
        if self.codec == "none" or not self.video:
            raise RequestError(
                "nothing would be saved: on the Output tab, choose a video codec and switch on 'Video save video'."
            )
        try:
            frame_rate(float(self.fps) * self.factor)
        except RequestError as error:
            if self.factor == 1:
                raise
            raise RequestError(
                f"interpolation {self.interpolate:g} at {self.fps:g} fps makes {self.fps * self.factor:g} frames per"
                " second, more than a video can have (240); lower one of the two on the Output tab."
            ) from error

    @property
    def factor(self) -> int:
        """Frames of the file per frame of the model."""
        return int(self.interpolate or 0) + 1

    @property
    def encoding(self) -> Encoding:
        """How the file is written."""
        given = self._options()
        named: dict[str, Any] = {name: given[name] for name, known in _FOLLOWED.items() if given.get(name) in known}
        return Encoding(
            codec=KNOWN_AS.get(self.codec, "h264"),
            crf=sdnext_settings.crf(self.options or ""),
            png_frames=bool(self.frames),
            thumbnail=bool(self.thumbnail),
            **named,
        )

    def notes(self, frames: int) -> list[str]:
        """What the Output tab does to a clip of so many frames, and what of it is not followed."""
        made = []
        if self.factor > 1:
            rate = self.fps * self.factor
            made.append(f"interpolation: {frames * self.factor} frames at {rate:g} fps, the duration stays the same")
        ignored = self._ignored()
        if ignored:
            made.append(f"Output tab: {'; '.join(ignored)}")
        return made

    def _ignored(self) -> list[str]:
        """Clauses on what is asked for and not done."""
        said = []
        if self.codec not in KNOWN_AS:
            said.append(f"codec {self.codec} is not available here ({_CODECS} are), the file is H.264")
        if (self.container or "").lower() != "mp4":
            said.append(f"format {self.container} is not available here, the file is mp4")
        more = [
            name for name, value in self._options().items() if name != "crf" and value not in _FOLLOWED.get(name, ())
        ]
        if more:
            said.append(f"video options {', '.join(more)} are not used (crf, preset and pix_fmt are)")
        return said

    def _options(self) -> dict[str, str]:
        """The video options, written as crf:16,preset=slow."""
        pairs = (part.replace("=", ":", 1).partition(":") for part in (self.options or "").split(","))
        return {name.strip(): value.strip() for name, found, value in pairs if found}

    def export(self) -> Export:
        """What goes between and beside the frames. Raises RequestError where interpolation cannot be had."""
        interpolation = Interpolation(self.factor, _between(self.factor)) if self.factor > 1 else None
        return Export(interpolation, self._tensors() if self.safetensors else None)

    def _tensors(self) -> dict[str, str]:
        """The metadata that the web UI writes into its safetensors files."""
        rate = {"fps": f"{self.fps * self.factor:g}", "interpolate": f"{self.factor - 1}"}
        return {"format": "video", "codec": self.encoding.codec, "options": self.options or "", "ext": "mp4", **rate}


def _between(factor: int) -> Any:
    """The web UI's RIFE as `Interpolation.between`, loaded now: better known before there are frames."""
    import torch

    rife = ui("rife")
    if rife.model is None:
        try:
            rife.load()
        except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
            rife.model = None  # it may be there with weights that were not read
            raise RequestError(
                f"interpolation: the web UI's RIFE model cannot be loaded ({error}); set interpolation on the Output"
                " tab to 0, or put flownet_v4.25.pkl into the folder models/RIFE."
            ) from error

    def between(row: Frames) -> Frames:
        with ui("devices").inference_context():
            given = torch.from_numpy(row).permute(0, 3, 1, 2).float() / 255
            made = rife.interpolate_nchw(given, count=factor)
            # factor frames per given one, ending with it; those of the first have nothing before them
            added = torch.cat([one for n, one in enumerate(made[factor:], 1) if n % factor])
            pixels = (added.float().clamp(0, 1) * 255).round().to(torch.uint8)
            return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    return between
