"""What a stage is told about speed and memory: predictions a forward, the cache between evaluations, compiling. Pure.

Says what a request asks for, refuses what does not go together, and counts: forwards of the transformer, and the
numbers that one of them holds. Knows neither torch nor how any of it is done, which is in `guided.py`, `caching.py` and
`compiling.py`; what it is worth is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modules.ltx.errors import RequestError
from modules.ltx.request import BATCHES, CACHES, SPEEDS, Request
from modules.video_models.ltx_models import T2V, T2V_09

if TYPE_CHECKING:
    from modules.ltx.ltx_capabilities import Caps
    from modules.ltx.plan import StagePlan

AUTO, ONE, TWO, ALL = BATCHES
OFF, GUIDANCE, TAYLOR = CACHES
SAFE, FAST = SPEEDS

KEPT = 2  # evaluations that share one guidance, or one forward: each second one is answered by the cache
FIRST = 5  # evaluations that TaylorSeer computes before it begins

# Numbers that a forward holds at its peak, for each token and each channel of the transformer's width, a sample of the
# batch: where all tokens have one level of noise, and where each has its own. Of the published configs at 1024 and more
# tokens with as long a prompt: `python -m bench.guidance --memory`.
HELD = {"2.x": (26, 49), "0.9": (21, 34)}


@dataclass(frozen=True)
class Speed:
    """Of one stage. `batch`: predictions of a step that one forward makes (auto: two, as the pipelines do, or one where
    the device cannot hold two); `cache`: what answers instead of the transformer; `compiled`: its blocks are."""

    batch: str = AUTO
    cache: str = OFF
    compiled: bool = False


UNTOUCHED = Speed()


def settled(request: Request, caps: Caps, stages: tuple[StagePlan, ...]) -> tuple[tuple[StagePlan, ...], list[str]]:
    """The stages with what the request asks for, each as far as it has to do with it, and notes. Raises RequestError
    for what does not go together."""
    batch, cache = request.guided_batch or AUTO, request.cache or OFF
    compiled = request.speed == FAST
    if compiled:
        _refuse_compiling(request, caps)
    refuse(request, caps, stages[0])
    made = tuple(
        replace(stage, speed=Speed(_batch(batch, request, stage), cache if stage is stages[0] else OFF, compiled))
        if stage.sigmas
        else stage
        for stage in stages
    )
    return made, [*_notes(batch, made[0])]


def _refuse_compiling(request: Request, caps: Caps) -> None:
    """Raises RequestError where blocks cannot be compiled, or would be anew at every step."""
    if caps.compile_why_not or caps.quantization != "none":
        why = caps.compile_why_not or "its weights are unpacked by code that compiling would break out of"
        raise RequestError(f"--speed {FAST}: {caps.label} cannot be compiled here: {why}.")
    for flag, value, hooked in (("guided-batch", request.guided_batch, ALL), ("cache", request.cache, TAYLOR)):
        if value == hooked:
            raise RequestError(
                f"--speed {FAST}: --{flag} {value} changes blocks from inside, which would be compiled again and again;"
                " leave one of the two out."
            )


def refuse(request: Request, caps: Caps, first: StagePlan) -> None:
    """Raises RequestError for a cache that stage 1, `first`, cannot have."""
    cache = request.cache or OFF
    if cache == OFF:
        return
    if request.self_refine not in (None, "off"):
        raise RequestError(
            f"--cache {cache}: the self-refiner predicts steps again, which a cache would answer from before; leave one"
            " of the two out, or take --self-refine-guidance reuse."
        )
    if first.scheduler.sampler in ("heun", "res_2s"):
        raise RequestError(
            f"--cache {cache}: {first.scheduler.sampler} has two evaluations a step; take a sampler of one, as euler."
        )
    if first.streams == 1:
        raise RequestError(
            f"--cache {cache}: {caps.label} runs without guidance in {len(first.sigmas)} steps, of which each counts; "
            "leave it out, or take a Dev variant."
        )
    if cache == TAYLOR and request.guided_batch in (ONE, ALL):
        raise RequestError(
            f"--cache {TAYLOR} counts the pipeline's own forwards; leave --guided-batch {request.guided_batch} out, or"
            f" take --cache {GUIDANCE}."
        )


def _batch(asked: str, request: Request, stage: StagePlan) -> str:
    """`asked`, as far as the stage has anything to put together or take apart."""
    if stage.streams == 1 or request.cache == TAYLOR:
        return TWO
    alone = request.self_refine_guidance == "reuse" or request.cache == GUIDANCE
    # What runs the conditional prediction alone could not be told from a stage's first call.
    return TWO if asked == ALL and alone and not stage.uses_cfg else asked


def _notes(batch: str, first: StagePlan) -> list[str]:
    notes = []
    if first.speed.cache != OFF:
        plain = first.evaluations * first.streams
        notes.append(
            f"cache {first.speed.cache}: {forwards(first)} of {plain} predictions are made, the others answered"
        )
    if batch != AUTO and first.streams == 1:
        notes.append(f"--guided-batch {batch} is not used: stage 1 runs without guidance")
    if first.speed.compiled:
        notes.append("speed fast: the transformer's blocks are compiled, which takes a minute or more the first time")
    return notes


def forwards(stage: StagePlan) -> int:
    """Predictions that the transformer makes in a stage: evaluations by streams, less what its cache answers."""
    streams = stage.streams
    if stage.speed.cache == GUIDANCE:
        full = -(-stage.evaluations // KEPT)
        return full * streams + stage.evaluations - full
    if stage.speed.cache == TAYLOR:
        return sum(made_anew(index) for index in range(stage.evaluations)) * streams
    return stage.evaluations * streams


def made_anew(index: int) -> bool:
    """Whether TaylorSeer, as it is set up here, computes evaluation `index` of a stage."""
    return index < FIRST or (index - FIRST - 1) % KEPT == 0


def numbers_held(caps: Caps, stage: StagePlan, batch: int = 1) -> int:
    """Numbers that a forward of `batch` predictions holds at its peak, to first order."""
    each = HELD[caps.family][stage.pipeline not in (T2V, T2V_09)]
    return each * caps.transformer_width * stage.tokens * batch


def at_once(stage: StagePlan) -> int:
    """Predictions that one forward of a stage makes, where the device holds what is asked."""
    if stage.speed.batch == ONE:
        return 1
    return stage.streams if stage.speed.batch == ALL else 1 + stage.uses_cfg


def activations_gb(caps: Caps, stages: Iterable[StagePlan]) -> float:
    """GB (bf16, two bytes a number) that the largest forward of the stages holds beside the weights, as planned."""
    return round(max(2 * numbers_held(caps, stage, at_once(stage)) for stage in stages if stage.sigmas) / 1e9, 2)


def fitting(caps: Caps, stage: StagePlan, room: int) -> str:
    """The stage's batch with `auto` settled: two where `room` numbers hold them, as on any device that this was not
    made for; one otherwise."""
    if stage.speed.batch != AUTO:
        return stage.speed.batch
    return ONE if stage.uses_cfg and numbers_held(caps, stage, 2) > room else TWO
