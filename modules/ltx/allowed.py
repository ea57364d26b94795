"""What a variant does not allow: every option it lacks, and pictures its class cannot take, is refused in a sentence.

An option that a variant does not have is never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modules.ltx import recipe
from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_util import get_frames, latent_index
from modules.ltx.request import ImageAt, Prefix, Request

if TYPE_CHECKING:
    from modules.ltx.plan import StagePlan


def refuse_unsupported(request: Request, caps: Caps) -> None:
    """Raises RequestError for the first option that `caps` does not have."""
    asked = {name for name, value in request.to_json().items() if value not in (False, None)}
    gates = {
        "enhance_prompt": caps.supports_prompt_enhancer,
        "decoder": caps.supports_diffusion_decoder or request.decoder == "vae",
        "decode_timestep": caps.supports_decode_timestep,
        "image_cond_noise_scale": caps.supports_image_cond_noise_scale,
        "dynamic_shift": caps.supports_dynamic_shift,
        "sampler_shift": caps.supports_sampler_shift or (request.sampler_shift or 0) < 0,
        "stage2_steps": request.refine,
        "refine_strength": request.refine and caps.stage2_schedule == "denoise-strength",
        **dict.fromkeys(recipe.FOUR_WAY_OPTIONS, caps.supports_stg),
    }
    for name, supported in gates.items():
        if name in asked and not supported:
            raise RequestError(f"--{name.replace('_', '-')}: {caps.label} does not have it; {_instead(name)}.")
    if request.sampler and request.sampler not in caps.samplers:
        raise RequestError(
            f"--sampler {request.sampler}: {caps.label} runs {', '.join(caps.samplers)}; take one of those."
        )
    if request.refine and not caps.supports_two_stage_refine:
        raise RequestError(f"--refine: {caps.label} has no second stage: {caps.upsampler_why_not}; leave it out.")
    if (request.upsample or 1.0) > 1.0 and not caps.supports_upsample:
        raise RequestError(f"--upsample: {caps.label} has no upsampler: {caps.upsampler_why_not}; leave it out.")


def refuse_loras(stages: Sequence[StagePlan], caps: Caps) -> None:
    """Raises RequestError where a stage needs a LoRA, the user's or the recipe's own, and none can be used."""
    for stage in stages if caps.lora_why_not else ():
        if stage.loras:
            raise RequestError(f"--lora: {caps.lora_why_not}.")
        if stage.lora:
            raise RequestError(
                f"{stage.name} of {caps.label} runs with a LoRA ({stage.lora.repo}): {caps.lora_why_not}."
            )


def _instead(name: str) -> str:
    if name in ("stage2_steps", "refine_strength"):
        return "it belongs to --refine" if name == "stage2_steps" else "it belongs to --refine of 0.9.7 and later 0.9"
    return "leave it out, or take a variant that has it (`models --json` tells)"


def images(request: Request, caps: Caps, frames: int, prefix: Prefix | None) -> tuple[ImageAt, ...]:
    """The images of the request at settled frames, checked against what the variant's class takes."""
    images = _spread(request.images, frames)
    if images and not caps.supports_input_media:
        raise RequestError(f"--image: {caps.label} makes video from text alone; take its I2V or Condition variant.")
    if caps.is_i2v and prefix is None and not any(image.frame == 0 for image in images):
        raise RequestError(f"{caps.label} starts from an image and none was given; add --image FILE or take T2V.")
    if caps.supports_multi_condition:
        return _placed(images, frames, 0 if prefix is None else prefix.frames)
    for image in images:
        if image.frame != 0 or len(images) > 1:
            raise RequestError(f"--last-image: {caps.label} takes one first image; take the Condition variant.")
        if image.strength != 1.0:
            raise RequestError(f"--condition-strength: {caps.label} holds its image fully; take the Condition variant.")
    return images


def _spread(images: tuple[ImageAt, ...], frames: int) -> tuple[ImageAt, ...]:
    """Images without a frame of their own, evenly from the first frame to the last."""
    free = sum(image.frame is None for image in images)
    places = iter([round(number * (frames - 1) / max(free - 1, 1)) for number in range(free)])
    return tuple(replace(image, frame=next(places)) if image.frame is None else image for image in images)


def _placed(images: tuple[ImageAt, ...], frames: int, held: int) -> tuple[ImageAt, ...]:
    """Images of a Condition class: each inside the clip, none on the latent frame of another or of the prefix, which
    holds the first `held` frames."""
    taken: dict[int, int] = {}
    for image in images:
        frame = image.frame or 0
        if frame >= frames:
            raise RequestError(f"image at frame {frame}: the clip has frames 0 to {frames - 1}; -1 is the last.")
        index = latent_index(frame, frames)
        if index in taken:
            where = f"frames {taken[index]} and {frame}"
            raise RequestError(f"two images ({where}) fall on one latent frame; set them 8 frames apart or more.")
        if held and index <= latent_index(held - 1, frames):
            raise RequestError(f"image at frame {frame}: --prefix holds the first {held} frames; place it behind them.")
        taken[index] = frame
    return images


def prefix(request: Request, caps: Caps, frames: int) -> tuple[Prefix | None, list[str]]:
    """The video to begin with, its length one that the VAE can hold, and what was adjusted."""
    asked = request.prefix
    if asked is None:
        return None, []
    if not caps.supports_multi_condition:
        raise RequestError(f"--prefix: {caps.label} takes no video to begin with; take a Condition variant.")
    held = get_frames(asked.frames, caps.frame_ratio)
    if held >= frames:
        raise RequestError(
            f"--prefix-frames {asked.frames}: the clip has {frames} frames, and some must be left to make; give fewer,"
            " or a longer clip (--frames)."
        )
    notes = [f"prefix: the first {held} frames are those of {asked.path} from its frame {asked.skip} on"]
    if held != asked.frames:
        notes.append(f"prefix: {asked.frames} frames asked, {held} held: 8k+1 fill whole latent frames")
    if caps.supports_audio:
        notes.append("prefix: its sound is not used; sound is made for the whole clip")
    return replace(asked, frames=held), notes
