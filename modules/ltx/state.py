"""What crosses a stage boundary, and what a run tells while it goes. Frozen; moved on with `replace`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Embeds:
    """Prompt embeddings and masks, parked on the CPU; negative ones only where guidance needs them."""

    prompt: Tensor
    prompt_mask: Tensor
    negative: Tensor | None = None
    negative_mask: Tensor | None = None


@dataclass(frozen=True)
class Timing:
    """Wall time of one phase, in seconds, and the most memory that was held in it, in bytes (None: nobody knows)."""

    phase: str
    seconds: float
    peak: int | None = None


@dataclass(frozen=True)
class State:
    """A job between two stages.

    video_latents: (batch, channels, latent frames, latent height, latent width), float32, CPU; normalised
    where the row says so (0.9), as the VAE takes them otherwise (2.x).
    audio_latents: (batch, channels, length, mel bins), float32, CPU, of the latest stage;
    delivered_audio: those of the stage whose sound is written.
    path: of the video to be written; the host's own name is known when the model is loaded.
    """

    plan: Plan
    seed: int
    images: tuple[Image, ...] = ()
    prefix: tuple[Image, ...] = ()  # frames that the clip begins with
    embeds: Embeds | None = None
    video_latents: Tensor | None = None
    audio_latents: Tensor | None = None
    delivered_audio: Tensor | None = None
    done: int = 0  # evaluations so far
    notes: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = ()
    refined: tuple[Refinement, ...] = ()
    path: Path | None = None
    media: Media | None = None


@dataclass(frozen=True)
class Refinement:
    """What the self-refiner did in one stage: its report as JSON values, and the picture where one was asked for."""

    stage: str
    rows: list[dict[str, Any]]
    picture: Image | None = None


@dataclass(frozen=True)
class Media:
    """The finished files and the digests (sha256) of the latents they were decoded from."""

    path: Path
    thumbnail: Path | None
    frames_folder: Path | None
    maps: tuple[Path, ...]
    width: int
    height: int
    frames: int
    fps: float
    sample_rate: int | None
    video_latents_sha256: str
    audio_latents_sha256: str | None
    tensors: Path | None = None  # the frames as safetensors, where a host asked for them

    def to_json(self) -> dict[str, Any]:
        """JSON values; paths as text."""
        told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items() if k != "tensors" or v}
        return {**told, "maps": [str(path) for path in self.maps]}


@dataclass(frozen=True)
class Event:
    """One thing that happened. `step` of `of` inside the phase; evaluations over the whole job."""

    phase: str
    step: int = 0
    of: int = 0
    evaluations: int = 0
    planned: int = 0
    message: str = ""
    run: int = 1  # which pass of the step, of how many: the self-refiner repeats steps
    runs: int = 1
    preview: Tensor | None = None  # (channels, height, width): the middle latent frame of the running stage
