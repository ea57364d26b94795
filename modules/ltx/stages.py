"""The stages as plain callables `(state, host) -> state`: encode, sample, upsample, refine, decode.

A stage reads its numbers from the plan and its tensors from the state, borrows what it needs from the
host's pipeline, and returns the state moved on. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from modules.ltx import borrow, caching, compiling, duration, enhance, guided, recipe, speed
from modules.ltx.denoise import Attached
from modules.ltx.embeddings import Key
from modules.ltx.errors import LTXError
from modules.ltx.finite import finite
from modules.ltx.host import Host
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_util import centre_box, seed_for
from modules.ltx.plan import Plan, StagePlan
from modules.ltx.preview import middle_frame
from modules.ltx.solving import solving
from modules.ltx.state import Embeds, Event, Refinement, State
from modules.video_models.ltx_models import CONDITION_09
from modules.video_models.video_overrides import Given, Start, call_args

Stage = Callable[[State, Host], State]
_SIZES = {speed.ONE: 1, speed.TWO: 2, speed.ALL: 4}


def ordered(plan: Plan) -> list[tuple[str, Stage]]:
    """The job as (phase, stage), in the order it runs. Decoding, which writes files, is `ltx_process`'s."""
    calls: Mapping[str, Callable[..., State]] = {"stage1": sample, "upsample": upsample, "stage2": refine}
    job: list[tuple[str, Stage]] = [("encode", encode)]
    for stage in plan.stages:
        job.append((phase_of(stage), partial(_stage, call=calls[stage.name], name=stage.name)))
    return job


def phase_of(stage: StagePlan) -> str:
    """What a stage is called while it runs."""
    return {"stage1": "sample", "upsample": "upsample", "stage2": "refine"}[stage.name]


def _stage(state: State, host: Host, *, call: Callable[..., State], name: str) -> State:
    """A stage as the state's plan has it: encoding may have settled the length of the clip."""
    return call(state, host, stage=state.plan.stage(name))


def encode(state: State, host: Host) -> State:
    """Prompt to embeddings, once a job; negative ones only where some stage's guidance needs them."""
    state = enhance.settle(state, host)
    plan = state.plan
    with (
        host.pipeline(plan.caps, plan.caps.pipeline) as pipe,
        borrow.forward_hook(pipe.text_encoder, host.poll),
        torch.no_grad(),  # only a pipeline's __call__ brings its own
    ):
        host.emit(Event("encode", 0, 1, planned=plan.evaluations))
        positive = _embedded(pipe, host, plan, plan.prompt)
        negative = _embedded(pipe, host, plan, negative_prompt(plan)) if plan.needs_negative else (None, None)
        cut = _cut_off(pipe.tokenizer, plan)
    embeds = Embeds(*positive, *negative)
    host.emit(Event("encode", 1, 1, planned=plan.evaluations, message=cut))
    encoded_state = replace(state, embeds=embeds, notes=state.notes + ((cut,) if cut else ()))
    return duration.settle(encoded_state, host)


def _embedded(pipe: Any, host: Host, plan: Plan, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A text's embeddings and mask; the encoder runs only where it has not read the text before."""
    length = plan.caps.max_sequence_length
    kept = host.embeddings(pipe.text_encoder)
    key = Key(type(pipe).__name__, text, length)
    found = kept.get(key)
    if found is None:
        # One text at a time: diffusers encodes prompt and negative prompt apart from one another, too.
        asked = {"prompt": text, "do_classifier_free_guidance": False, "max_sequence_length": length}
        embeds, mask, *_ = pipe.encode_prompt(**asked, device=host.device(pipe))
        found = embeds.cpu(), mask.cpu()
        kept.put(key, found)
    return found


def negative_prompt(plan: Plan) -> str:
    """The negative prompt; where the plan leaves it to the family, Lightricks' as diffusers ships it."""
    if plan.negative is not None:
        return plan.negative
    from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

    return plan.caps.negative_opening + str(DEFAULT_NEGATIVE_PROMPT)


def _cut_off(tokenizer: Any, plan: Plan) -> str:
    tokens, kept = len(tokenizer(plan.prompt).input_ids), plan.caps.max_sequence_length
    return f"the prompt has {tokens} tokens; the first {kept} are read, the rest is cut off" if tokens > kept else ""


def sample(state: State, host: Host, *, stage: StagePlan) -> State:
    """The base pass: from noise to latents, through the host."""
    with _ready(state, host, stage) as (pipe, args, attached):
        output = host.base_pass(pipe, args | call_args(state.plan, stage, _cropped(state, stage)), state.plan)
        return _refined(_sampled(state, stage, pipe, output), stage, attached)


def refine(state: State, host: Host, *, stage: StagePlan) -> State:
    """Stage 2: the upsampled latents partly re-noised and finished at full size; sound goes along."""
    start = Start(state.video_latents, state.audio_latents)
    with _ready(state, host, stage) as (pipe, args, attached):
        output = pipe(**args, **call_args(state.plan, stage, _cropped(state, stage), start))
        return _refined(_sampled(state, stage, pipe, output), stage, attached)


def upsample(state: State, host: Host, *, stage: StagePlan) -> State:
    """Latents doubled in width and height, as often as the plan says, then resized where that overshoots."""
    caps, latents = state.plan.caps, state.video_latents
    if latents is None or stage.upsampler is None:
        raise LTXError("upsample: there are no latents to upsample")
    with host.upsampler(caps, stage.upsampler) as pipe:
        for number in range(stage.upsample_passes):
            host.poll()
            host.emit(Event("upsample", number, stage.upsample_passes, state.done, state.plan.evaluations))
            extra = {} if caps.latents_normalized else {"latents_normalized": False}
            latents = pipe(latents=latents, output_type="latent", return_dict=False, **extra)[0]
    latents = _resized(latents.float().cpu(), stage.width // caps.grid, stage.height // caps.grid)
    host.emit(Event("upsample", stage.upsample_passes, stage.upsample_passes, state.done, state.plan.evaluations))
    return replace(state, video_latents=finite(latents, phase_of(stage), "video latents"))


def _resized(latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """(batch, channels, frames, h, w) latents at another size, each frame bicubically; itself if it fits."""
    if tuple(latents.shape[-2:]) == (height, width):
        return latents
    batch, channels, frames = latents.shape[:3]
    flat = latents.transpose(1, 2).flatten(0, 1)
    flat = torch.nn.functional.interpolate(flat, size=(height, width), mode="bicubic", antialias=True)
    return flat.view(batch, frames, channels, height, width).transpose(1, 2)


@contextmanager
def _ready(state: State, host: Host, stage: StagePlan) -> Iterator[tuple[Any, dict[str, Any], Attached | None]]:
    """The stage's pipeline with its own scheduler, LoRA and cancel hook, the arguments every call has, and the
    self-refiner where the plan has it work."""
    plan = state.plan
    with ExitStack() as borrowed:
        pipe = borrowed.enter_context(host.pipeline(plan.caps, stage.pipeline))
        wanted = (*stage.loras, *((stage.lora,) if stage.lora else ()))
        borrowed.enter_context(borrow.adapters(pipe, [(*host.weights(lora), lora.strength) for lora in wanted]))
        borrowed.enter_context(solving(pipe, stage, state.seed))
        borrowed.enter_context(borrow.forward_hook(pipe.transformer, host.poll))
        borrowed.enter_context(_sped(pipe.transformer, plan, stage, host))
        generator = torch.Generator("cpu").manual_seed(seed_for(state.seed, stage.name))
        attached = borrowed.enter_context(_attached(state, host, stage, pipe, generator))
        args = {
            **_embeds_args(state, stage, host.device(pipe)),
            "generator": generator,
            "callback_on_step_end": _progress(state, host, stage, attached),
            "callback_on_step_end_tensor_inputs": ["latents"],
        }
        yield pipe, args, attached


@contextmanager
def _sped(transformer: torch.nn.Module, plan: Plan, stage: StagePlan, host: Host) -> Iterator[None]:
    """The stage's transformer compiled, batched and cached as the plan says; untouched where it says nothing."""
    asked, blocks = stage.speed, stage.guidance.stg_blocks if stage.guidance else ()
    batch = speed.fitting(plan.caps, stage, host.room(plan.caps) if asked.batch == speed.AUTO and stage.uses_cfg else 0)
    streams = guided.Streams(_SIZES[batch], stage.uses_cfg, blocks, stage.uses_modality)
    with (
        compiling.compiled(transformer) if asked.compiled else nullcontext(),
        guided.batched(transformer, streams),
        caching.cached(transformer, asked.cache, cfg=stage.uses_cfg),
    ):
        yield


def _attached(
    state: State, host: Host, stage: StagePlan, pipe: Any, generator: torch.Generator
) -> AbstractContextManager[Attached | None]:
    """The self-refiner around the stage's call; nothing at all where no step is refined."""
    settings, callback = state.plan.refiner, host.denoise_callback()
    if settings is None or callback is None or max(stage.passes) == 1:
        return nullcontext()
    return callback.attach(
        pipe,
        settings,
        stage.passes,
        seed=state.seed,
        purpose=stage.name,
        denoise_strength=stage.denoise_strength,
        generator=generator,
    )


def _refined(state: State, stage: StagePlan, attached: Attached | None) -> State:
    """The state with what the self-refiner tells of the stage."""
    if attached is None:
        return state
    grid = _latent_grid(state.plan.caps, stage)
    done = Refinement(stage.name, attached.told(), attached.picture(*grid))
    return replace(state, refined=(*state.refined, done))


def _latent_grid(caps: Caps, stage: StagePlan) -> tuple[int, int, int]:
    """Latent frames, rows and columns."""
    return (stage.frames - 1) // caps.frame_ratio + 1, stage.height // caps.grid, stage.width // caps.grid


def _embeds_args(state: State, stage: StagePlan, device: Any) -> dict[str, Any]:
    """Prompt embeddings on the pipeline's device; the negative ones only where this stage runs CFG."""
    embeds = state.embeds
    if embeds is None:
        raise LTXError(f"{stage.name}: the prompt was not encoded")
    args = {"prompt_embeds": embeds.prompt.to(device), "prompt_attention_mask": embeds.prompt_mask.to(device)}
    if stage.uses_cfg and embeds.negative is not None and embeds.negative_mask is not None:
        args["negative_prompt_embeds"] = embeds.negative.to(device)
        args["negative_prompt_attention_mask"] = embeds.negative_mask.to(device)
    return args


def _progress(state: State, host: Host, stage: StagePlan, attached: Attached | None) -> Callable[..., dict[str, Any]]:
    """The pipeline's step callback: one event a pass of a step, and the place where a cancel is seen."""
    steps = len(stage.sigmas)
    phase = phase_of(stage)
    grid, front = _latent_grid(state.plan.caps, stage), stage.pipeline == CONDITION_09
    host.emit(Event(phase, 0, steps, state.done, state.plan.evaluations))

    def on_step_end(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        alone = recipe.step_of(stage.scheduler.sampler, index, steps), 1, 1
        step, run, runs = alone if attached is None else attached.position(index)
        x0 = getattr(pipe.scheduler, "x0", None) if attached is None or runs == 1 else attached.preview()
        shown = tensors["latents"] if x0 is None or not x0.numel() else x0  # 0.9 I2V steps all frames but the first
        host.emit(
            Event(
                phase,
                step + 1 if run == runs else step,
                steps,
                state.done + index + 1,
                state.plan.evaluations,
                run=run,
                runs=runs,
                preview=middle_frame(shown, grid, extra_in_front=front),
            )
        )
        host.poll()
        return {}

    return on_step_end


def _cropped(state: State, stage: StagePlan) -> Given:
    """The job's images and prefix cropped to the stage's aspect ratio: no class but one keeps it by itself."""

    def fitting(images: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(image.crop(centre_box(image.size, stage.width, stage.height)) for image in images)

    return Given(fitting(state.images), fitting(state.prefix))


def _sampled(state: State, stage: StagePlan, pipe: Any, output: Any) -> State:
    """The state with a sampling stage's latents, unpacked, in float32, on the CPU."""
    caps, video, phase = state.plan.caps, output[0], phase_of(stage)
    if video.ndim == 3:  # LTXPipeline and LTXImageToVideoPipeline return tokens
        patches = (pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)
        video = pipe._unpack_latents(video, *_latent_grid(caps, stage), *patches)
    audio = output[1].float().cpu() if caps.supports_audio else None
    return replace(
        state,
        video_latents=finite(video.float().cpu(), phase, "video latents"),
        audio_latents=None if audio is None else finite(audio, phase, "sound latents"),
        delivered_audio=audio if stage.name == state.plan.audio_from else state.delivered_audio,
        done=state.done + stage.evaluations,
    )
