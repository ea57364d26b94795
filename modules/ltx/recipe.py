"""The parts a plan is put together from: sizes, sigma schedules, guidance, memory. Pure, no torch.

Each function answers one question about one request and one row. Constants and their sources are in
`ltx_util.py` (formulas) and `ltx_capabilities.py` (rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from modules.ltx.capability_rows import HQ, HQ_LORA, HQ_STEPS
from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps, Guidance
from modules.ltx.ltx_util import (
    DISTILLED_SIGMAS,
    MAX_SHIFT,
    MAX_TOKENS,
    STAGE2_SIGMAS,
    get_bucket,
    linear_quadratic_sigmas,
    linear_sigmas,
    resample_sigmas,
    shift_for_tokens,
    shifted_sigmas,
    token_count,
)
from modules.ltx.request import Lora, Request

EULER, RES_2S = "euler", "res_2s"

# What only a variant with four-way guidance has.
FOUR_WAY_OPTIONS = (
    "stg_scale",
    "modality_scale",
    "audio_guidance_scale",
    "audio_stg_scale",
    "audio_modality_scale",
    "audio_guidance_rescale",
    "stg_blocks",
)


@dataclass(frozen=True)
class Sizes:
    """The result's size and the base pass's, in pixels, and how many 2x upsamples lie between."""

    width: int
    height: int
    base_width: int
    base_height: int
    upsample_passes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """A stage's sigmas (without the final 0), where they came from, and what to tell the user."""

    sigmas: tuple[float, ...]
    source: str
    notes: tuple[str, ...] = ()
    shift: float | None = None
    skipped: tuple[float, ...] = ()
    denoise_strength: float | None = None


def sizes(request: Request, caps: Caps) -> Sizes:
    """What is made at which size.

    Refine alone: width x height are the result, stage 1 runs at half of it. Upsample: they are the
    base, and the result is `ratio` times that. Neither: one size.
    """
    width, height = request.width or caps.default_width, request.height or caps.default_height
    ratio = request.upsample or 1.0
    if ratio > 1.0:
        return _upsampled(width, height, ratio, caps.grid)
    notes = ["upsample 1.0 changes nothing"] if request.upsample == 1.0 else []
    grid = caps.grid * 2 if request.refine else caps.grid
    got = get_bucket(width, grid), get_bucket(height, grid)
    notes += _size_notes((width, height), got, grid)
    base = (got[0] // 2, got[1] // 2) if request.refine else got
    return Sizes(*got, *base, upsample_passes=1 if request.refine else 0, notes=tuple(notes))


def _upsampled(width: int, height: int, ratio: float, grid: int) -> Sizes:
    base = get_bucket(width, grid), get_bucket(height, grid)
    got = get_bucket(round(base[0] * ratio), grid), get_bucket(round(base[1] * ratio), grid)
    if got == base:
        least = 1 + grid / min(base)
        raise RequestError(
            f"--upsample {ratio:g} of {base[0]}x{base[1]} is {got[0]}x{got[1]} again, since sides are multiples of"
            f" {grid}; give {least:.3g} or more, or leave it out."
        )
    passes = math.ceil(math.log2(ratio) - 1e-9)
    notes = _size_notes((width, height), base, grid)
    notes.append(f"upsample {ratio:g}: {base[0]}x{base[1]} is the base, {got[0]}x{got[1]} the result")
    exact = (base[0] * 2**passes, base[1] * 2**passes)
    if passes > 1:
        notes.append(f"the upsampler knows 2x only: it runs {passes} times")
    if exact != got:
        notes.append(f"its {exact[0]}x{exact[1]} latents are then resized to {got[0]}x{got[1]}")
    return Sizes(*got, *base, upsample_passes=passes, notes=tuple(notes))


def _size_notes(asked: tuple[int, int], got: tuple[int, int], grid: int) -> list[str]:
    if asked == got:
        return []
    return [f"size: {asked[0]}x{asked[1]} asked, {got[0]}x{got[1]} used: sides are multiples of {grid}"]


@dataclass(frozen=True)
class Solver:
    """Which solver runs each stage, and how strongly the recipe's own LoRA acts there."""

    stage1: str
    stage2: str = EULER
    lora_stage1: float = 0.0
    lora_stage2: float = 1.0
    notes: tuple[str, ...] = ()


def solver(request: Request, caps: Caps) -> Solver:
    """The request's sampler or the row's own. Stage 2 runs Euler, but for res_2s, which runs both stages."""
    chosen = request.sampler or caps.default_sampler
    if chosen != RES_2S:
        return Solver(chosen)
    if caps.is_distilled:
        return Solver(RES_2S, RES_2S, notes=("res_2s on a distilled model is no published recipe",))
    note = "res_2s runs Lightricks' HQ recipe: no STG, guidance rescaled by 0.45 (video) and 1.0 (sound)"
    if not request.refine:
        return Solver(RES_2S, notes=(f"{note}; its LoRA belongs to two stages (--refine)",))
    first, second = HQ_LORA
    return Solver(RES_2S, RES_2S, first, second, (f"{note}, the LoRA at {first} in stage 1 and {second} in stage 2",))


def more_evaluations(sampler: str, steps: int) -> int:
    """Evaluations of `steps` steps beyond one each: Heun's last step is Euler's, res_2s ends with one of its own."""
    if not steps:
        return 0
    return {"heun": steps - 1, RES_2S: steps + 1}.get(sampler, 0)


def step_of(sampler: str, evaluation: int, steps: int) -> int:
    """The step that evaluation number `evaluation` of a stage belongs to, both from 0."""
    return min(evaluation // (2 if sampler in ("heun", RES_2S) else 1), steps - 1)


def is_hq(request: Request, caps: Caps) -> bool:
    """Whether the HQ recipe's numbers are the defaults: res_2s on a Dev variant."""
    return (request.sampler or caps.default_sampler) == RES_2S and not caps.is_distilled


def base_schedule(request: Request, caps: Caps, width: int, height: int, frames: int) -> Schedule:
    """The sigmas of stage 1, by the row's kind of schedule."""
    steps = request.steps or (HQ_STEPS if is_hq(request, caps) else caps.default_steps)
    if caps.schedule == "token-count":
        return _token_schedule(request, caps, steps, token_count(width, height, frames))
    if caps.schedule == "distilled":
        notes = () if steps == len(DISTILLED_SIGMAS) else (_interpolated("the distilled model", steps, 8),)
        return Schedule(resample_sigmas(DISTILLED_SIGMAS, steps), "distilled", notes)
    sigmas = linear_quadratic_sigmas(steps) if caps.schedule == "linear-quadratic" else linear_sigmas(steps)
    return Schedule(sigmas, caps.schedule)


def _token_schedule(request: Request, caps: Caps, steps: int, tokens: int) -> Schedule:
    """The Dev schedule of 2.x: shifted by the token count, by upstream's anchor, or by the user."""
    if request.sampler_shift is not None and request.sampler_shift >= 0:
        m, source = request.sampler_shift, "sampler-shift"
        why = f"m = {m:g}, given by --sampler-shift"
    elif caps.default_dynamic_shift if request.dynamic_shift is None else request.dynamic_shift:
        m, source = shift_for_tokens(tokens), "token-count"
        why = f"m = {m:.4f} for the stage's {tokens} tokens (dynamic shift on, as diffusers does)"
    else:
        m, source = MAX_SHIFT, "anchor-4096"
        why = f"m = {m:g}, the {MAX_TOKENS}-token anchor of Lightricks' pipelines (dynamic shift off)"
    return Schedule(shifted_sigmas(steps, m), source, (f"sigma schedule: {why}",), shift=m)


def stage2_schedule(request: Request, caps: Caps) -> Schedule:
    """The sigmas of stage 2: the published three, or the tail that denoise_strength leaves of a 0.9 list."""
    steps = request.stage2_steps or caps.stage2_steps
    if caps.stage2_schedule == "stage2":
        notes = () if steps == len(STAGE2_SIGMAS) else (_interpolated("stage 2", steps, 3),)
        return Schedule(resample_sigmas(STAGE2_SIGMAS, steps), "stage2", notes)
    strength = caps.refine_strength if request.refine_strength is None else request.refine_strength
    full = linear_quadratic_sigmas(steps)
    run = min(int(steps * strength), steps)  # as LTXConditionPipeline.get_timesteps counts
    if run < 1:
        raise RequestError(
            f"--refine-strength {strength:g} of {steps} steps leaves none to run; raise it or --stage2-steps."
        )
    note = f"stage 2 runs the last {run} of {steps} steps (refine strength {strength:g})"
    return Schedule(
        full[steps - run :],
        "linear-quadratic",
        (note,),
        skipped=full[: steps - run],
        denoise_strength=strength,
    )


def _interpolated(what: str, steps: int, published: int) -> str:
    return f"{what} was trained on {published} published sigmas; {steps} are interpolated along them"


def base_guidance(request: Request, caps: Caps) -> Guidance:
    """The row's guidance with the user's overrides; blocks only where STG is on, and only ones that exist."""
    given = {f.name: getattr(request, f.name) for f in fields(Guidance) if f.name != "stg_blocks"}
    own = HQ if is_hq(request, caps) else caps.guidance
    guidance = replace(own, **{name: value for name, value in given.items() if value is not None})
    if guidance.stg_scale <= 0 and guidance.audio_stg_scale <= 0:
        return replace(guidance, stg_blocks=())
    blocks = request.stg_blocks if request.stg_blocks is not None else caps.stg_default_blocks
    _check_blocks(blocks, caps)
    return replace(guidance, stg_blocks=tuple(blocks))


def _check_blocks(blocks: Sequence[int], caps: Caps) -> None:
    # A block that does not exist raises nothing in diffusers and costs a whole pass.
    missing = [b for b in blocks if b >= caps.num_blocks]
    if missing or not blocks:
        asked = ",".join(map(str, blocks)) or "none"
        raise RequestError(
            f"--stg-blocks {asked}: {caps.label} has blocks 0 to {caps.num_blocks - 1}; its own choice is"
            f" {','.join(map(str, caps.stg_default_blocks))}."
        )


def guidance_notes(request: Request, guidance: Guidance) -> list[str]:
    if request.stg_blocks is not None and not guidance.stg_blocks:
        return ["--stg-blocks is not used: STG is off for video and sound"]
    return []


def strengths(loras: Sequence[Lora]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The user's LoRAs of stage 1 and of stage 2, as (source, strength); one of strength 0 is not loaded there."""
    first = [(lora.source, lora.strength) for lora in loras]
    second = [(lora.source, lora.strength if lora.stage2 is None else lora.stage2) for lora in loras]
    return [one for one in first if one[1]], [one for one in second if one[1]]


def memory_gb(caps: Caps) -> dict[str, float]:
    """Weights in GB: what must be resident at once without offload, and the largest single part.

    bf16 counts two bytes a parameter; SDNQ int4 about 0.6 (4 bits and their scales). Activations are
    not in it: they are measured, not estimated.
    """
    per_bf16 = 0.3 if caps.quantization == "sdnq-int4" else 1.0
    transformer, text = caps.transformer_gb * per_bf16, caps.text_encoder_gb * per_bf16
    return {"weights": round(transformer + text, 2), "largest_part": round(max(transformer, text), 2)}
