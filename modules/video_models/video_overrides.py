"""What a variant needs said to diffusers, at load time and at call time, because the default is wrong.

Every argument here is explicit on purpose: diffusers' own defaults run four-way guidance where none
is wanted, STG on a block that 2.0 does not use, and 121 frames of sound for a clip of any length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.ltx.image_compression import compressed
from modules.ltx.library_features import IMAGE_CRF, has
from modules.ltx.ltx_capabilities import Caps, Guidance
from modules.ltx.ltx_util import get_conditions
from modules.ltx.plan import Plan, StagePlan
from modules.video_models.ltx_models import CONDITION, CONDITION_09, I2V, I2V_09

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Latents that a stage starts from, as the stage before left them; None starts from noise."""

    video: Tensor | None = None
    audio: Tensor | None = None


@dataclass(frozen=True)
class Given:
    """What a stage must show, cropped to its aspect ratio: those of `plan.images`, and the frames it begins with."""

    images: tuple[Image, ...] = ()
    prefix: tuple[Image, ...] = ()


def scheduler_overrides(caps: Caps) -> dict[str, Any]:
    """Changes to the loaded scheduler's config. 0.9 repos publish dynamic shift on and mean off."""
    return {"use_dynamic_shifting": False} if caps.forced_no_dynamic_shift else {}


def load_override(selected: Any, **load_args: Any) -> dict[str, Any]:
    """SD.Next asks this for components to load a row with: for LTX rows ours, for all others its own answer."""
    from modules.ltx.hosts import sdnext_rows

    return sdnext_rows.load_override(selected, load_args)


def set_overrides(p: Any, selected: Any) -> None:
    """SD.Next's generic video tab asks this to adjust a call: for LTX rows ours, for all others its own."""
    from modules.ltx.hosts import sdnext_rows

    sdnext_rows.set_overrides(p, selected)


def call_args(plan: Plan, stage: StagePlan, given: Given, start: Start | None = None) -> dict[str, Any]:
    """Keywords of one pipeline call, without embeddings, generator and callbacks."""
    start = start or Start()
    return {
        "width": stage.width,
        "height": stage.height,
        "num_frames": stage.frames,
        "frame_rate": plan.fps,
        "num_inference_steps": len(stage.scheduler.skipped) + len(stage.sigmas),
        "max_sequence_length": plan.caps.max_sequence_length,
        "output_type": "latent",
        "return_dict": False,
        **_guidance_args(plan.caps, stage),
        **_image_args(plan, stage, given),
        **_start_args(plan.caps, stage, start),
    }


def _guidance_args(caps: Caps, stage: StagePlan) -> dict[str, Any]:
    guidance = stage.guidance or Guidance()
    if not caps.supports_stg:
        return {"guidance_scale": guidance.guidance_scale, "guidance_rescale": guidance.guidance_rescale}
    scales = {name: value for name, value in vars(guidance).items() if name != "stg_blocks"}
    for name in ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale"):
        scales[f"audio_{name}"] = _said(scales[f"audio_{name}"], scales[name])
    return {
        **scales,
        "spatio_temporal_guidance_blocks": list(guidance.stg_blocks) or None,
        "use_cross_timestep": stage.use_cross_timestep,
        "noise_scale": stage.noise_scale,
    }


def _said(audio: float, video: float) -> float:
    """An audio scale of 0 in a form that survives diffusers' `audio_scale or scale`."""
    return 1e-30 if audio == 0.0 and video != 0.0 else audio


def _image_args(plan: Plan, stage: StagePlan, given: Given) -> dict[str, Any]:
    given = _compressed(given, plan.caps)
    images = given.images
    if stage.pipeline in (CONDITION, CONDITION_09):
        placed: list[Any] = [(image, at.frame, at.strength) for image, at in zip(images, plan.images, strict=True)]
        if plan.prefix is not None:
            placed.insert(0, (list(given.prefix), 0, plan.prefix.strength))
        conditions = get_conditions(plan.caps.family, placed, frames=stage.frames)
        noise = {"image_cond_noise_scale": plan.image_cond_noise_scale or 0.0} if stage.pipeline == CONDITION_09 else {}
        return {"conditions": conditions or None, **noise}
    if stage.pipeline == I2V:
        return {"image": images[0], **({"image_crf": 0} if has(IMAGE_CRF) else {})}
    return {"image": images[0]} if stage.pipeline == I2V_09 else {}


def _compressed(given: Given, caps: Caps) -> Given:
    """Single images as 2.x was trained to see them; frames of a video have been compressed, so they stay."""
    if caps.family == "0.9":
        return given
    images, prefix = given.images, given.prefix
    single = (*images, *prefix) if len(prefix) == 1 else images
    done = tuple(compressed(image, caps.image_crf) for image in single)
    return Given(done[: len(images)], done[len(images) :] or prefix)


def _start_args(caps: Caps, stage: StagePlan, start: Start) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if start.video is not None:
        args["latents"] = start.video
        if stage.denoise_strength is not None:
            args["denoise_strength"] = stage.denoise_strength
    if start.audio is not None and caps.supports_audio:
        args["audio_latents"] = start.audio
    return args
