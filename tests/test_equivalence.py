"""Our flow against the bare diffusers calls that it stands for: the same bits, for every class.

The bare calls are written out here by hand, with diffusers' own scheduler given the same sigmas and
no shift. Wherever they differ, one of the two has another recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

from modules.ltx import stages
from modules.ltx.hosts import nano
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_util import seed_for
from modules.ltx.media_in import load_image
from modules.ltx.plan import Plan
from modules.ltx.state import State
from tests.guidance_kit import GUIDED as FOUR_WAY
from tests.guidance_kit import UNGUIDED as IDENTITY
from tests.library_kit import condition, first_image

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
PROMPT = "a red ball moving right"
SIZE = {
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "frame_rate": 24.0,
    "prompt": PROMPT,
    "max_sequence_length": 64,
}


def ours(plan: Plan, host: EmbeddedHost) -> State:
    """The stages of a plan, without decoding."""
    state = State(plan, seed=1, images=tuple(load_image(Path(image.path)) for image in plan.images))
    for _, stage in stages.ordered(plan):
        state = stage(state, host)
    return state


def bare(class_name: str, model: str, cache: Path) -> Any:
    """A pipeline as anybody would load it, but with no shift in its scheduler."""
    pipe = getattr(diffusers, class_name).from_pretrained(nano.ensure(model, cache))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(1, purpose))


def sigmas_of(plan: Plan, number: int = 0) -> list[float]:
    stage = plan.stages[number]
    return [*stage.scheduler.skipped, *stage.sigmas]


def cropped(picture: Path) -> Image.Image:
    """The 120x80 picture at the aspect ratio of a square clip."""
    return load_image(picture).crop((20, 0, 100, 80))


@pytest.mark.short
@pytest.mark.parametrize(
    ("model", "weights", "guidance", "cross"),
    [
        ("nano-2.3-dev-t2v", "2.3-dev", FOUR_WAY, True),
        ("nano-2.0-dev-t2v", "2.0-dev", FOUR_WAY, False),
        ("nano-2.3-distilled-t2v", "2.3-distilled", IDENTITY, True),
    ],
)
def test_text_to_video_2x(
    host: EmbeddedHost,
    cache: Path,
    planned: Planned,
    model: str,
    weights: str,
    guidance: dict[str, Any],
    cross: bool,
) -> None:
    plan = planned(model)
    state = ours(plan, host)
    pipe = bare("LTX2Pipeline", weights, cache)
    video, audio = pipe(
        **SIZE,
        **guidance,
        sigmas=sigmas_of(plan),
        use_cross_timestep=cross,
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )
    assert state.video_latents is not None
    assert state.audio_latents is not None
    assert torch.equal(state.video_latents, video)
    assert torch.equal(state.audio_latents, audio)


@pytest.mark.short
def test_image_to_video_2x(host: EmbeddedHost, cache: Path, planned: Planned, picture: Path) -> None:
    plan = planned("nano-2.3-dev-i2v", images=[{"path": str(picture)}])
    state = ours(plan, host)
    pipe = bare("LTX2ImageToVideoPipeline", "2.3-dev", cache)
    video, audio = pipe(
        **SIZE,
        **FOUR_WAY,
        **first_image(cropped(picture), 33),
        use_cross_timestep=True,
        sigmas=sigmas_of(plan),
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )
    assert torch.equal(_video(state), video)
    assert state.audio_latents is not None
    assert torch.equal(state.audio_latents, audio)


@pytest.mark.short
def test_two_stages_with_first_and_last_image_2x(
    host: EmbeddedHost, cache: Path, planned: Planned, picture: Path
) -> None:
    """The whole canonical recipe: stage 1 at half size, 2x, stage 2 with the LoRA and the sound of stage 1."""
    images = [{"path": str(picture)}, {"path": str(picture), "frame": -1, "strength": 0.5}]
    plan = planned("nano-2.3-dev-condition", refine=True, width=128, height=128, images=images)
    state = ours(plan, host)
    pipe = bare("LTX2ConditionPipeline", "2.3-dev", cache)
    conditions = [
        condition(cropped(picture), 0, 1.0, 33),
        condition(cropped(picture), 1, 0.5, 33),
    ]
    video, audio = pipe(
        **SIZE,
        **FOUR_WAY,
        conditions=conditions,
        use_cross_timestep=True,
        sigmas=sigmas_of(plan),
        noise_scale=1.0,
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )
    upsampler = diffusers.pipelines.ltx2.latent_upsampler.LTX2LatentUpsamplerModel.from_pretrained(
        nano.ensure("2.3-upsampler", cache), subfolder="latent_upsampler"
    )
    up = diffusers.LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)
    bigger = up(latents=video, latents_normalized=False, output_type="latent", return_dict=False)[0]
    pipe.load_lora_weights(str(nano.ensure("2.3-lora", cache)), adapter_name="stage2")
    pipe.set_adapters("stage2", 1.0)
    refined, _ = pipe(
        **(SIZE | {"width": 128, "height": 128}),
        **IDENTITY,
        conditions=conditions,
        use_cross_timestep=True,
        latents=bigger,
        audio_latents=audio,
        sigmas=[0.909375, 0.725, 0.421875],
        noise_scale=0.909375,
        generator=generator("stage2"),
        output_type="latent",
        return_dict=False,
    )
    assert torch.equal(_video(state), refined)
    assert state.delivered_audio is not None
    assert torch.equal(state.delivered_audio, audio)


@pytest.mark.short
@pytest.mark.parametrize("model", ["nano-0.9-t2v", "nano-0.9-i2v"])
def test_plain_classes_of_0_9(host: EmbeddedHost, cache: Path, planned: Planned, picture: Path, model: str) -> None:
    images = [{"path": str(picture)}] if model.endswith("i2v") else []
    plan = planned(model, images=images)
    state = ours(plan, host)
    pipe = bare(plan.caps.pipeline, "0.9", cache)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)  # linspace, stretched: the plan's list
    packed = pipe(
        **SIZE,
        **({"image": cropped(picture)} if images else {}),
        num_inference_steps=2,
        negative_prompt="",
        guidance_scale=3.0,
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )[0]
    unpacked = pipe._unpack_latents(packed, 2, 2, 2, 1, 1)
    torch.testing.assert_close(_video(state), unpacked, rtol=1e-5, atol=1e-5)


@pytest.mark.short
def test_two_stages_of_0_9(host: EmbeddedHost, cache: Path, planned: Planned, picture: Path) -> None:
    images = [{"path": str(picture)}]
    plan = planned("nano-0.9-condition", refine=True, width=128, height=128, images=images, stage2_steps=5)
    state = ours(plan, host)
    pipe = bare("LTXConditionPipeline", "0.9", cache)
    common = {
        "conditions": [LTXVideoCondition(image=cropped(picture))],
        "image_cond_noise_scale": 0.15,
        "output_type": "latent",
        "return_dict": False,
    }
    first = pipe(
        **SIZE,
        **common,
        num_inference_steps=2,
        negative_prompt="",
        guidance_scale=3.0,
        generator=generator("stage1"),
    )[0]
    upsampler = diffusers.pipelines.ltx.modeling_latent_upsampler.LTXLatentUpsamplerModel.from_pretrained(
        nano.ensure("0.9-upsampler", cache), subfolder="latent_upsampler"
    )
    up = diffusers.LTXLatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)
    bigger = up(latents=first, output_type="latent", return_dict=False)[0]
    second = pipe(
        **(SIZE | {"width": 128, "height": 128}),
        **common,
        latents=bigger,
        denoise_strength=0.4,
        num_inference_steps=5,
        guidance_scale=1.0,
        generator=generator("stage2"),
    )[0]
    torch.testing.assert_close(_video(state), second, rtol=1e-5, atol=1e-5)


@pytest.mark.short
def test_decoding_is_what_the_pipeline_decodes(host: EmbeddedHost, cache: Path, planned: Planned) -> None:
    """Frames and sound of a clip that fits one tile: the same bytes as the pipeline's own."""
    from modules.ltx import decode

    plan = planned("nano-2.3-distilled-t2v")
    state = ours(plan, host)
    pipe = bare("LTX2Pipeline", "2.3-distilled", cache)
    frames, waveform = pipe(
        **SIZE,
        **IDENTITY,
        sigmas=sigmas_of(plan),
        generator=generator("stage1"),
        output_type="np",
        return_dict=False,
    )
    assert state.delivered_audio is not None
    with host.pipeline(plan.caps, plan.caps.pipeline) as resident:
        chunks = decode.frames(
            resident, _video(state), plan.decode, device="cpu", generator=torch.Generator(), before_tile=lambda: None
        )
        made = np.concatenate(list(chunks))
        sound = decode.sound(resident, state.delivered_audio, device="cpu")
    assert np.array_equal(made, (frames[0] * 255).round().astype(np.uint8))
    assert np.array_equal(sound.waveform, waveform[0].float().numpy())
    assert sound.rate == 16000


def _video(state: State) -> torch.Tensor:
    assert state.video_latents is not None
    return state.video_latents
