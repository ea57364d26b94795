"""Every choice of a plan: sizes, schedules, guidance, stages, sound, notes, refusals."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps, all_caps, caps_for
from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS, shifted_sigmas
from modules.ltx.plan import Plan, StagePlan, plan
from modules.ltx.request import Request

GUIDANCE_KEYS = (
    *("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale", "audio_guidance_scale"),
    *("audio_stg_scale", "audio_modality_scale", "audio_guidance_rescale", "stg_blocks"),
)
STAGE_KEYS = (
    *("name", "width", "height", "frames", "sigmas", "guidance", "lora", "noise_scale", "use_cross_timestep"),
    *("passes", "evaluations"),
)
FOUR_WAY = (3.0, 1.0, 3.0, 0.7, 7.0, 1.0, 3.0, 0.7)
NO_GUIDANCE = (1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, ())
FIRST: dict[str, object] = {"path": "first.png"}
LAST: dict[str, object] = {"path": "last.png", "frame": -1}


def make(model: str, **options: object) -> Plan:
    caps, notes = caps_for(model)
    return plan(Request.parse({"prompt": "x", **options}), caps, notes)


def scales(stage: StagePlan) -> tuple[Any, ...]:
    assert stage.guidance is not None
    return tuple(getattr(stage.guidance, key) for key in GUIDANCE_KEYS)


def media_for(caps: Caps) -> list[dict[str, object]]:
    return [FIRST] if caps.is_i2v else []


def test_two_stages_of_the_22b_dev() -> None:
    made = make("LTXVideo 2.3 22B T2V", refine=True)
    first, up, second = made.stages
    assert [s.name for s in made.stages] == ["stage1", "upsample", "stage2"]
    assert (first.width, first.height, first.frames) == (384, 256, 121)
    assert first.sigmas == shifted_sigmas(30, 0.95 + 1.1 * (1536 - 1024) / 3072)
    assert len(first.sigmas) == first.evaluations == 30
    assert scales(first) == (*FOUR_WAY, (28,))
    assert (up.width, up.height, up.upsample_passes, up.evaluations) == (768, 512, 1, 0)
    assert second.sigmas == STAGE2_SIGMAS
    assert scales(second) == NO_GUIDANCE
    assert second.lora is not None
    assert (second.lora.repo, second.lora.strength) == (
        "CalamitousFelicitousness/LTX-2.3-distilled-lora-384-Diffusers",
        1.0,
    )
    assert second.noise_scale == 0.909375
    assert first.lora is None
    assert made.audio_from == "stage1"
    assert made.evaluations == 33
    assert made.notes[0].startswith("you get 768x512, 121 frames, 5.04 s at 24 fps, with sound")


def test_json_keys_are_the_contract() -> None:
    made = json.loads(json.dumps(make("LTXVideo 2.3 22B T2V", refine=True).to_json()))
    assert {"model", "stages", "audio_from", "evaluations", "notes"} <= set(made)
    assert made["model"] == "LTXVideo 2.3 22B T2V"
    for stage in made["stages"]:
        assert set(STAGE_KEYS) <= set(stage)
    for stage in (made["stages"][0], made["stages"][2]):
        assert set(stage["guidance"]) == set(GUIDANCE_KEYS)


def test_dynamic_shift_off_takes_the_4096_anchor_and_says_so() -> None:
    off = make("2.3-dev-t2v", refine=True, dynamic_shift=False)
    assert off.stages[0].sigmas == shifted_sigmas(30, 2.05)
    assert any("4096-token anchor" in note for note in off.notes)
    on = make("2.3-dev-t2v", refine=True)
    assert any("1536 tokens" in note for note in on.notes)
    assert on.stages[0].sigmas != off.stages[0].sigmas


def test_a_sampler_shift_replaces_the_token_count() -> None:
    assert make("2.3-dev-t2v", sampler_shift=1.5).stages[0].sigmas == shifted_sigmas(30, 1.5)
    assert make("2.3-dev-t2v", sampler_shift=-1).stages == make("2.3-dev-t2v").stages


def test_condition_keyframes_do_not_count_as_tokens() -> None:
    with_images = make("2.3-dev-condition", images=[FIRST, LAST])
    assert with_images.stages[0].sigmas == make("2.3-dev-condition").stages[0].sigmas


@pytest.mark.parametrize("caps", all_caps(), ids=lambda c: c.id)
@pytest.mark.parametrize(("refine", "upsample"), itertools.product([False, True], [None, 2.0]))
def test_every_variant_one_and_two_stages(caps: Caps, refine: bool, upsample: float | None) -> None:
    request = Request.parse({"prompt": "x", "refine": refine, "upsample": upsample, "images": media_for(caps)})
    unsupported = (refine and not caps.supports_two_stage_refine) or (upsample and not caps.supports_upsample)
    if unsupported:
        with pytest.raises(RequestError, match="proved for the VAE"):
            plan(request, caps)
        return
    made = plan(request, caps)
    _check_sizes(made, caps, refine, upsample)
    _check_stages(made, caps, refine)


def _check_sizes(made: Plan, caps: Caps, refine: bool, upsample: float | None) -> None:
    first, last = made.stages[0], made.stages[-1]
    factor = 2 if refine or upsample else 1
    assert (last.width, last.height) == (made.width, made.height) == (first.width * factor, first.height * factor)
    if upsample:
        assert (first.width, first.height) == (caps.default_width, caps.default_height)
    else:
        assert (made.width, made.height) == (caps.default_width, caps.default_height)
    assert all(stage.frames == made.frames and stage.frames % 8 == 1 for stage in made.stages)
    assert all(side % 32 == 0 for stage in made.stages for side in (stage.width, stage.height))


def _check_stages(made: Plan, caps: Caps, refine: bool) -> None:
    first, last = made.stages[0], made.stages[-1]
    expected = (*FOUR_WAY, caps.stg_default_blocks) if caps.family == "2.x" else (3.0, *NO_GUIDANCE[1:])
    assert scales(first) == (NO_GUIDANCE if caps.is_distilled else expected)
    assert first.pipeline == caps.pipeline
    assert first.use_cross_timestep == caps.use_cross_timestep
    assert len(first.sigmas) == caps.default_steps
    if caps.is_distilled:
        assert first.sigmas == pytest.approx(DISTILLED_SIGMAS, abs=5e-5)
    if refine:
        assert scales(last) == NO_GUIDANCE
        assert (last.lora is not None) == (caps.family == "2.x" and not caps.is_distilled)
        assert last.noise_scale == last.sigmas[0]
        assert last.pipeline.endswith("ConditionPipeline") == (caps.mode != "T2V" or caps.family == "0.9")
        if caps.family == "2.x" or caps.is_distilled:
            assert last.sigmas == pytest.approx(STAGE2_SIGMAS, abs=5e-5)
    sound = caps.family == "2.x"
    assert made.audio_from == (("stage2" if refine and caps.is_distilled else "stage1") if sound else None)
    assert made.evaluations == sum(len(stage.sigmas) for stage in made.stages)


@pytest.mark.parametrize(
    ("asked", "result", "base"),
    [
        ((770, 513), (768, 512), (384, 256)),
        ((800, 600), (768, 576), (384, 288)),
        ((40, 50), (64, 64), (32, 32)),
    ],
)
def test_refine_alone_sizes_are_the_result_in_64s(
    asked: tuple[int, int], result: tuple[int, int], base: tuple[int, int]
) -> None:
    made = make("2.3-dev-t2v", refine=True, width=asked[0], height=asked[1])
    assert (made.width, made.height) == result
    assert (made.stages[0].width, made.stages[0].height) == base
    assert any(f"{asked[0]}x{asked[1]} asked, {result[0]}x{result[1]} used" in note for note in made.notes)


@pytest.mark.parametrize(
    ("ratio", "result", "passes", "resized"),
    [
        (2, (1536, 1024), 1, False),
        (1.5, (1152, 768), 1, True),
        (4, (3072, 2048), 2, False),
        (3, (2304, 1536), 2, True),
    ],
)
def test_upsample_ratio_multiplies_the_base(ratio: float, result: tuple[int, int], passes: int, resized: bool) -> None:
    made = make("2.3-dev-t2v", upsample=ratio, refine=True)
    assert (made.width, made.height) == result
    assert (made.stages[0].width, made.stages[0].height) == (768, 512)
    assert made.stages[1].upsample_passes == passes
    assert any("resized" in note for note in made.notes) == resized


def test_an_upsample_of_one_changes_nothing_but_says_so() -> None:
    made = make("2.3-dev-t2v", upsample=1)
    assert made.stages == make("2.3-dev-t2v").stages
    assert "upsample 1.0 changes nothing" in made.notes


def test_zero_nine_refines_by_denoise_strength() -> None:
    second = make("0.9.7-dev", refine=True).stages[-1]
    assert (second.denoise_strength, len(second.sigmas), len(second.scheduler.skipped)) == (0.4, 4, 6)
    eight = make("0.9.8-distilled", refine=True).stages[-1]
    assert eight.sigmas == pytest.approx(STAGE2_SIGMAS, abs=5e-5)
    with pytest.raises(RequestError, match="leaves none to run"):
        make("0.9.7-dev", refine=True, refine_strength=0.05, stage2_steps=4)


def test_other_step_counts_interpolate_the_trained_sigmas_and_say_so() -> None:
    made = make("2.3-distilled-t2v", steps=12, refine=True, stage2_steps=5)
    assert len(made.stages[0].sigmas) == 12
    assert (made.stages[-1].sigmas[0], len(made.stages[-1].sigmas)) == (0.909375, 5)
    assert sum("interpolated" in note for note in made.notes) == 2


def test_guidance_overrides_reach_stage_1_alone() -> None:
    made = make("2.3-dev-t2v", refine=True, guidance_scale=5, audio_stg_scale=0, stg_blocks="3,7", guidance_rescale=0)
    assert scales(made.stages[0]) == (5.0, 1.0, 3.0, 0.0, 7.0, 0.0, 3.0, 0.7, (3, 7))
    assert scales(made.stages[-1]) == NO_GUIDANCE


def test_stg_on_distilled_takes_the_generations_block() -> None:
    assert scales(make("2.3-distilled-t2v", stg_scale=1).stages[0])[-1] == (28,)


@pytest.mark.parametrize("blocks", ["48", "28,99"])
def test_blocks_that_do_not_exist_are_refused(blocks: str) -> None:
    with pytest.raises(RequestError, match="blocks 0 to 47.*28"):
        make("2.3-dev-t2v", stg_blocks=blocks)


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("2.3-dev-t2v", {"images": [FIRST]}, "text alone"),
    ("2.3-dev-i2v", {}, "add --image"),
    ("2.3-dev-i2v", {"images": [FIRST, LAST]}, "Condition"),
    ("2.3-dev-i2v", {"images": [{"path": "a", "strength": 0.5}]}, "--condition-strength.*Condition"),
    ("0.9.1-i2v", {}, "add --image"),
    ("2.3-dev-condition", {"images": [{"path": "a", "frame": 121}]}, "frames 0 to 120"),
    ("2.3-dev-condition", {"images": [FIRST, {"path": "b", "frame": 0}]}, "one latent frame"),
    ("2.3-dev-condition", {"images": [FIRST, LAST], "frames": 1}, "one latent frame"),
    ("0.9.5-t2v", {"stg_scale": 1}, "does not have it"),
    ("0.9.5-t2v", {"audio_guidance_scale": 7}, "does not have it"),
    ("0.9.5-t2v", {"dynamic_shift": True}, "does not have it"),
    ("2.3-distilled-t2v", {"sampler_shift": 2}, "does not have it"),
    ("2.3-dev-t2v", {"decode_timestep": 0.05}, "does not have it"),
    ("0.9.1-t2v", {"image_cond_noise_scale": 0.1}, "does not have it"),
    ("2.3-dev-t2v", {"upsample": 1.01}, "is 768x512 again.*give 1.06 or more"),
    ("2.3-dev-t2v", {"stage2_steps": 4}, "belongs to --refine"),
    ("2.3-dev-t2v", {"refine": True, "refine_strength": 0.5}, "belongs to --refine of 0.9.7"),
]


@pytest.mark.parametrize(("model", "options", "sentence"), REFUSED)
def test_what_a_variant_cannot_do_is_refused(model: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        make(model, **options)


def test_a_variant_that_cannot_run_here_is_refused_with_the_reason() -> None:
    from dataclasses import replace

    caps = replace(caps_for("2.5-dev-t2v")[0], unavailable=("needs diffusers >= 0.42",))
    with pytest.raises(RequestError, match="needs diffusers >= 0.42"):
        plan(Request(), caps)


def test_notes_say_what_was_adjusted() -> None:
    notes = " | ".join(make("2.3-dev-t2v", prompt=" ", frames=100, audio=False).notes)
    assert "frames: 100 asked, 97 made" in notes
    assert "the prompt is empty" in notes
    assert "without sound" in notes
    assert "reads its first 1024 tokens" in " ".join(make("2.3-dev-t2v", prompt="word " * 20000).notes)
    assert "the negative prompt is not used" in " ".join(make("2.3-distilled-t2v", negative="bad").notes)


def test_the_negative_prompt_is_needed_where_either_modality_is_guided() -> None:
    assert make("2.3-distilled-t2v", audio_guidance_scale=4).needs_negative
    assert not make("2.3-distilled-t2v").needs_negative


def test_the_negative_prompt_is_the_familys_and_25_opens_it() -> None:
    """Lightricks' text of 2.0 is diffusers' own constant; since 2.5 it has five faults more in front."""
    from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

    from modules.ltx.stages import negative_prompt

    for model in ("2.0-dev-t2v", "2.3-dev-i2v"):
        images = [FIRST] if model.endswith("i2v") else []
        assert negative_prompt(make(model, images=images)) == DEFAULT_NEGATIVE_PROMPT
    opened = negative_prompt(make("2.5-dev-t2v"))
    assert opened.startswith("has_subtitles, has_blurbox, ")
    assert opened.endswith(f"speech_ending_short, {DEFAULT_NEGATIVE_PROMPT}")
    assert negative_prompt(make("2.5-dev-t2v", negative="fog")) == "fog"
    assert negative_prompt(make("2.5-distilled-t2v")) == ""
    assert negative_prompt(make("0.9.6-t2v")).startswith("worst quality")


def test_the_same_request_gives_the_same_plan() -> None:
    assert make("2.0-dev-t2v", refine=True, seed=3) == make("2.0-dev-t2v", refine=True, seed=3)


@settings(max_examples=200, deadline=None)
@given(
    caps=st.sampled_from(all_caps()),
    width=st.integers(32, 4096),
    height=st.integers(32, 4096),
    frames=st.integers(1, 2401),
    steps=st.integers(1, 200),
    refine=st.booleans(),
    upsample=st.none() | st.floats(1, 4),
)
def test_any_size_plans_to_something_that_can_run(
    caps: Caps, width: int, height: int, frames: int, steps: int, refine: bool, upsample: float | None
) -> None:
    refine = refine and caps.supports_two_stage_refine
    upsample = upsample if caps.supports_upsample and (upsample or 2) >= 2 else None  # below it may round to nothing
    options = {"width": width, "height": height, "frames": frames, "steps": steps, "refine": refine}
    made = plan(Request.parse({**options, "upsample": upsample, "images": media_for(caps)}), caps)
    for stage in made.stages:
        assert stage.width % 32 == stage.height % 32 == 0 < min(stage.width, stage.height)
        assert all(math.isfinite(s) and 0 < s <= 1 for s in stage.sigmas)
        assert all(a > b for a, b in itertools.pairwise(stage.sigmas))
