"""Every variant x {one stage, refine, upsample, both} x what it is given, against rules written out here by hand.

The numbers stand here a second time, from Lightricks' constants and not from this project's rows; sigmas are computed
by other formulas; and what a pipeline would be called with must be what its class takes.
"""

from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from PIL import Image

from modules.ltx.image_compression import compressed
from modules.ltx.ltx_capabilities import Caps, all_caps
from modules.ltx.plan import Plan, StagePlan, plan
from modules.ltx.request import Request
from modules.video_models.video_overrides import Given, Start, call_args

pytestmark = pytest.mark.library

EIGHT = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
THREE = (0.909375, 0.725, 0.421875)
NONE = (1.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Rule:
    """What recipes say of one generation's Dev or Distilled. Guidance: cfg, stg, modality, rescale."""

    steps: int
    video: tuple[float, ...] = NONE
    sound: tuple[float, ...] = NONE
    block: int | None = None
    cross: bool = False
    lora: str | None = None
    upsampler: str | None = None
    delivered: str = "stage2"  # whose sound two stages deliver
    crf: int = 33
    sampler: str = "euler"
    second: tuple[float, ...] = THREE
    length: tuple[int, float] = (121, 24.0)
    decode: tuple[float, float] | None = None


FOUR, SOUND = (3.0, 1.0, 3.0, 0.7), (7.0, 1.0, 3.0, 0.7)
UP20, UP25 = "Lightricks/LTX-2", "Lightricks/LTX-2.5-Diffusers"
UP23 = "CalamitousFelicitousness/LTX-2.3-Spatial-Upsampler-x2-1.1-Diffusers"
UP09 = "a-r-r-o-w/LTX-Video-0.9.7-Latent-Spatial-Upsampler-diffusers"
LORA = "CalamitousFelicitousness/LTX-{}-distilled-lora-384-Diffusers"
CFG3 = (3.0, 0.0, 1.0, 0.0)
OLD: dict[str, Any] = {"length": (161, 25.0)}
DECODED: dict[str, Any] = OLD | {"decode": (0.05, 0.025)}
# What denoise_strength 0.4 leaves of ten steps.
TAIL = tuple(float(sigma) for sigma in linear_quadratic_schedule(10)[6:])

RULES = {
    ("2.0", False): Rule(30, FOUR, SOUND, 29, False, LORA.format("2.0"), UP20, "stage1"),
    ("2.0", True): Rule(8, upsampler=UP20),
    ("2.3", False): Rule(30, FOUR, SOUND, 28, True, LORA.format("2.3"), UP23, "stage1"),
    ("2.3", True): Rule(8, cross=True, upsampler=UP23),
    ("2.5", False): Rule(30, FOUR, SOUND, 28, True, "Lightricks/LTX-2.5", UP25, "stage1", crf=18),
    ("2.5", True): Rule(8, cross=True, upsampler=UP25, crf=18, sampler="euler_ancestral"),
    ("0.9.0", False): Rule(50, CFG3, **OLD),
    ("0.9.1", False): Rule(50, CFG3, **DECODED),
    ("0.9.5", False): Rule(50, CFG3, **DECODED),
    ("0.9.6", False): Rule(50, CFG3, **DECODED),
    ("0.9.6", True): Rule(8, **DECODED),
    ("0.9.7", False): Rule(50, CFG3, upsampler=UP09, second=TAIL, **DECODED),
    ("0.9.8", True): Rule(8, upsampler=UP09, **DECODED),
}
PUBLISHED = [caps for caps in all_caps() if not caps.source.startswith("nano:")]
GIVEN: dict[str, list[dict[str, object]]] = {
    "text": [],
    "image": [{"path": "first.png"}],
    "conditions": [{"path": "first.png"}, {"path": "last.png", "frame": -1, "strength": 0.8}],
}


def takes(caps: Caps, given: str) -> bool:
    """Whether the class of a variant takes what it is given: T2V text, I2V one image, Condition anything."""
    if caps.pipeline.endswith("ConditionPipeline"):
        return given != "text" or caps.mode != "I2V"
    return given == ("image" if "ImageToVideo" in caps.pipeline else "text")


def two_stage(caps: Caps) -> bool:
    return RULES[caps.generation, caps.is_distilled].upsampler is not None


CASES = [
    pytest.param(caps, refine, ratio, given, id=f"{caps.id}-{'refine' if refine else 'one'}-{ratio or 'x1'}-{given}")
    for caps, (refine, ratio), given in itertools.product(
        PUBLISHED, itertools.product((False, True), (None, 2.0)), GIVEN
    )
    if takes(caps, given) and (two_stage(caps) or not (refine or ratio))
]


def made(caps: Caps, refine: bool, ratio: float | None, given: str) -> Plan:
    asked = {"prompt": "x", "refine": refine, "upsample": ratio, "images": GIVEN[given]}
    return plan(Request.parse(asked), caps)


def dev_sigmas(stage: StagePlan, steps: int) -> list[float]:
    """LTX2's schedule by its own words: a shift by tokens, then stretched so that it ends at 0.1."""
    tokens = ((stage.frames - 1) // 8 + 1) * (stage.height // 32) * (stage.width // 32)
    m = 0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024)
    raw = [math.exp(m) / (math.exp(m) + 1 / (1 - i / steps) - 1) for i in range(steps)]
    stretch = (1 - raw[-1]) / 0.9
    return [1 - (1 - sigma) / stretch for sigma in raw]


def first_sigmas(caps: Caps, rule: Rule, stage: StagePlan) -> list[float]:
    if caps.is_distilled:
        return list(EIGHT)
    if caps.family == "2.x":
        return dev_sigmas(stage, rule.steps)
    if caps.generation in ("0.9.0", "0.9.1"):
        stretch = (1 - 1 / rule.steps) / 0.9
        return [1 - (i / rule.steps) / stretch for i in range(rule.steps)]
    return [float(sigma) for sigma in linear_quadratic_schedule(rule.steps)]


@pytest.mark.parametrize(("caps", "refine", "ratio", "given"), CASES)
def test_a_plan_is_its_recipe(caps: Caps, refine: bool, ratio: float | None, given: str) -> None:
    rule, settled = RULES[caps.generation, caps.is_distilled], made(caps, refine, ratio, given)
    doubled = refine or ratio is not None
    names = ["stage1", *(["upsample"] if doubled else []), *(["stage2"] if refine else [])]
    assert [stage.name for stage in settled.stages] == names
    size = (1536, 1024) if ratio else (768, 512)
    assert (settled.width, settled.height) == size
    assert (settled.frames, settled.fps) == rule.length
    first = settled.stages[0]
    assert (first.width, first.height) == ((size[0] // 2, size[1] // 2) if doubled else size)
    assert first.pipeline == caps.pipeline
    assert list(first.sigmas) == pytest.approx(first_sigmas(caps, rule, first), abs=6e-5)
    assert first.scheduler.sampler == rule.sampler
    assert first.lora is None
    assert_guided(first, rule.video, rule.sound, rule.block)
    assert settled.audio_from == ((rule.delivered if refine else "stage1") if caps.family == "2.x" else None)
    assert (settled.decode.timestep, settled.decode.noise_scale) == (rule.decode or (None, None))
    if doubled:
        assert settled.stages[1].upsampler == rule.upsampler
        assert settled.stages[1].upsample_passes == 1
    if refine:
        assert_second(settled.stages[-1], caps, rule)
    assert settled.evaluations == sum(len(stage.sigmas) for stage in settled.stages)


def assert_second(stage: StagePlan, caps: Caps, rule: Rule) -> None:
    """Stage 2: identity guidance, its own sigmas, the distilled LoRA for Dev, the Condition class for images."""
    assert_guided(stage, NONE, NONE, None)
    assert list(stage.sigmas) == pytest.approx(rule.second, abs=6e-5)
    assert stage.scheduler.sampler == "euler"
    assert (stage.lora.repo, stage.lora.strength) == (rule.lora, 1.0) if stage.lora else rule.lora is None
    if caps.family == "2.x":
        assert stage.pipeline == ("LTX2Pipeline" if caps.mode == "T2V" else "LTX2ConditionPipeline")
        assert (stage.noise_scale, stage.denoise_strength) == (0.909375, None)
    else:
        assert stage.pipeline == "LTXConditionPipeline"
        assert stage.denoise_strength == (0.375 if caps.is_distilled else 0.4)


def assert_guided(stage: StagePlan, video: tuple[float, ...], sound: tuple[float, ...], block: int | None) -> None:
    g = stage.guidance
    assert g is not None
    assert (g.guidance_scale, g.stg_scale, g.modality_scale, g.guidance_rescale) == video
    assert (g.audio_guidance_scale, g.audio_stg_scale, g.audio_modality_scale, g.audio_guidance_rescale) == sound
    assert g.stg_blocks == (() if block is None else (block,))
    assert stage.streams == 1 + (video[0] > 1) + (video[1] > 0) + (video[2] > 1)


@pytest.mark.parametrize(("caps", "refine", "ratio", "given"), CASES)
def test_a_class_takes_what_it_is_called_with(caps: Caps, refine: bool, ratio: float | None, given: str) -> None:
    rule, settled = RULES[caps.generation, caps.is_distilled], made(caps, refine, ratio, given)
    picture = Image.effect_noise((64, 64), 64).convert("RGB")
    shown = Given(tuple(picture for _ in settled.images))
    for stage in settled.stages:
        if not stage.sigmas:
            continue
        later = stage.name == "stage2"
        start = Start("video", "sound") if later else Start()  # type: ignore[arg-type]
        args = call_args(settled, stage, shown, start)
        signature = inspect.signature(getattr(diffusers, stage.pipeline).__call__).parameters
        assert set(args) <= set(signature)
        assert (args["width"], args["height"], args["num_frames"]) == (stage.width, stage.height, stage.frames)
        if caps.family == "2.x":
            scales = {name for name in signature if name.endswith(("_scale", "_rescale")) and "decode" not in name}
            assert scales <= set(args), "every scale is said"
            assert args["use_cross_timestep"] == rule.cross
            assert args["noise_scale"] == (0.909375 if later else 1.0)
            assert ("audio_latents" in args) == later
        else:
            assert ("denoise_strength" in args) == later
        assert ("latents" in args) == later
        told = args["conditions"] or () if "conditions" in args else ()
        assert len(told) == (len(settled.images) if "conditions" in signature else 0)
        assert ("image" in args) == ("ImageToVideo" in stage.pipeline)
        if caps.family == "2.x":
            shown_as = [one.frames for one in told] + [args[name] for name in ("image",) if name in args]
            assert all(image.tobytes() == compressed(picture, rule.crf).tobytes() for image in shown_as)
            assert all(getattr(one, "crf", 0) == 0 for one in told), "never twice"
            assert args.get("image_crf", 0) == 0


def test_every_published_variant_is_in_the_table() -> None:
    assert {case.values[0].id for case in CASES} == {caps.id for caps in PUBLISHED}  # type: ignore[union-attr]
    assert len(PUBLISHED) == 38
