"""What a variant does not allow: every option it lacks, and pictures its class cannot take, is refused in a sentence.

An option that a variant does not have is never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modules.ltx import recipe
from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_util import latent_index
from modules.ltx.request import ImageAt, Request

if TYPE_CHECKING:
    from modules.ltx.plan import StagePlan


def refuse_unsupported(request: Request, caps: Caps) -> None:
    """Raises RequestError for the first option that `caps` does not have."""
    asked = {name for name, value in request.to_json().items() if value not in (False, None)}
    gates = {
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


def images(request: Request, caps: Caps, frames: int) -> tuple[ImageAt, ...]:
    """The images of the request, checked against what the variant's class takes."""
    images = request.images
    if images and not caps.supports_input_media:
        raise RequestError(f"--image: {caps.label} makes video from text alone; take its I2V or Condition variant.")
    if caps.is_i2v and not any(image.frame == 0 for image in images):
        raise RequestError(f"{caps.label} starts from an image and none was given; add --image FILE or take T2V.")
    if caps.supports_multi_condition:
        return _placed(images, frames)
    for image in images:
        if image.frame != 0 or len(images) > 1:
            raise RequestError(f"--last-image: {caps.label} takes one first image; take the Condition variant.")
        if image.strength != 1.0:
            raise RequestError(f"--condition-strength: {caps.label} holds its image fully; take the Condition variant.")
    return images


def _placed(images: tuple[ImageAt, ...], frames: int) -> tuple[ImageAt, ...]:
    """Images of a Condition class: each inside the clip, none on the latent frame of another."""
    taken: dict[int, int] = {}
    for image in images:
        if image.frame >= frames:
            raise RequestError(f"image at frame {image.frame}: the clip has frames 0 to {frames - 1}; -1 is the last.")
        index = latent_index(image.frame, frames)
        if index in taken:
            where = f"frames {taken[index]} and {image.frame}"
            raise RequestError(f"two images ({where}) fall on one latent frame; set them 8 frames apart or more.")
        taken[index] = image.frame
    return images
