"""The Host protocol: all that the flow needs from whatever it runs in.

Two hosts implement it: the embedded one (`hosts/embedded.py`) and SD.Next. The flow never asks which. `Keep` is what a
job may bring along besides: a place where it finds itself again (`kept.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from modules.ltx.denoise import DenoiseCallback
from modules.ltx.embeddings import Embeddings
from modules.ltx.ltx_capabilities import Caps, Facts
from modules.ltx.plan import LoraPlan, Plan
from modules.ltx.state import Event, Media, State


class Host(Protocol):
    """What a host does for a job. Whatever a method lends is returned when its `with` ends."""

    def lock(self) -> AbstractContextManager[None]:
        """One job at a time."""

    def lacks(self) -> Mapping[str, str]:
        """What this machine cannot do, and why, for `ltx_capabilities.effective`."""

    def probe(self, source: str) -> Facts | None:
        """What a folder or repo says about itself; None if there is no such thing.

        Raises RequestError for a folder that is missing or is no diffusers folder, and for a repo that
        cannot be reached.
        """

    def pipeline(self, caps: Caps, class_name: str) -> AbstractContextManager[Any]:
        """The resident pipeline of a variant, as an instance of `class_name`, sharing all components."""

    def enhancer(self, caps: Caps) -> AbstractContextManager[Any]:
        """A pipeline whose `enhance_prompt` works, read for as long as it is borrowed.

        Raises RequestError where the model has no prompt enhancer, or it cannot be had.
        """

    def decoder(self, caps: Caps, shape: Sequence[int]) -> AbstractContextManager[Any]:
        """The diffusion decoder for latents of `shape`, read for as long as it is borrowed.

        Raises RequestError, its text the reason, where it cannot be had or cannot decode them here.
        """

    def upsampler(self, caps: Caps, source: str) -> AbstractContextManager[Any]:
        """The latent upsampler that belongs to the variant's VAE."""

    def weights(self, lora: LoraPlan) -> tuple[str, dict[str, Any]]:
        """Where LoRA weights are: the first argument and the keywords of `load_lora_weights`.

        Raises RequestError when there are none.
        """

    def base_pass(self, pipe: Any, args: Mapping[str, Any], plan: Plan) -> Any:
        """Run the base pass (stage 1) of `plan`. The host may add what it adds to every generation."""

    def device(self, pipe: Any) -> Any:
        """Where a lent pipeline computes, wherever its weights wait. A pipeline would look through all its modules."""

    def denoise_callback(self) -> DenoiseCallback | None:
        """The registered self-refiner; None where the extension is missing. Costs no torch."""

    def room(self, caps: Caps) -> int:
        """How many numbers, as the variant's VAE has them, decoding may hold: a third of all memory of the device."""

    def embeddings(self, encoder: Any) -> Embeddings:
        """What was encoded by this text encoder before."""

    def relieve(self, caps: Caps) -> str:
        """Hold less of the model on the device until the job ends; what was done, in words; empty where nothing can be.

        Pipelines that were borrowed before are not to be used any more.
        """

    def peak(self) -> int | None:
        """The most bytes held since it was last asked; None where nobody knows."""

    def free(self, phase: str) -> None:
        """Release memory after `phase`. "tile" comes often within decoding; "relief" comes after something failed,
        mostly for want of memory, when the error may have left frames that hold tensors."""

    def poll(self) -> None:
        """Called at least once a forward: raises Cancelled after a cancel, waits while paused."""

    def emit(self, event: Event) -> None:
        """Show progress. Must not raise."""

    def output_path(self, plan: Plan) -> Path:
        """A fresh name for the video, ending in .mp4. Raises RequestError if none can be written."""

    def machine(self) -> Mapping[str, object]:
        """Device, dtype, offload and versions, for the metadata."""

    def infotext(self, plan: Plan) -> str:
        """The generation's settings as other programs of the host's kind write them; empty where it has no such."""

    def delivered(self, media: Media) -> None:
        """The job's files are finished: list them where the host lists what it made."""


class Keep(Protocol):
    """Where one job keeps what it has, so that a run of the same plan goes on there."""

    def named(self, path: Path) -> None:
        """The video will stand under this name; told before anything does."""

    def load(self, state: State, host: Host) -> tuple[State, str | None]:
        """`state`, as it is behind loading the model, moved on to what is kept, and the last phase that is finished."""

    def save(self, phase: str, state: State) -> None:
        """The state behind `phase`. Raises HostError where it cannot be kept."""
