"""Decide everything: `plan(request, caps)` turns a request into frozen numbers, before weights are read.

Pure, and free of torch: the same request and row give the same plan in well under a millisecond.
After this module nobody looks at a user's option again. Whatever cannot be done raises RequestError
here; whatever was adjusted is a note, in words. The parts that make up a stage are in `recipe.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from modules.ltx import allowed, denoise, recipe, tiles, wording
from modules.ltx.denoise import DenoiseCallback, RefinerPlan
from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import IDENTITY, Caps, Guidance
from modules.ltx.ltx_util import get_frames, token_count
from modules.ltx.recipe import EULER
from modules.ltx.request import ImageAt, Prefix, Request


@dataclass(frozen=True)
class SchedulerPlan:
    """Which solver runs a stage's sigmas, and where they came from. The list itself is the stage's."""

    sampler: str = EULER
    source: str = ""  # token-count | anchor-4096 | sampler-shift | distilled | stage2 | linear-quadratic | linear
    shift: float | None = None  # m of the token-count schedule
    skipped: tuple[float, ...] = ()  # head of a schedule that denoise_strength cuts away (0.9 stage 2)


@dataclass(frozen=True)
class LoraPlan:
    """LoRA weights a stage runs with: a repo or file, the file inside the repo if it must be named."""

    repo: str
    strength: float
    file: str | None = None


@dataclass(frozen=True)
class StagePlan:
    """One stage: stage1, upsample or stage2. Sizes in pixels; sigmas without the final 0."""

    name: str
    width: int
    height: int
    frames: int
    pipeline: str = ""
    sigmas: tuple[float, ...] = ()
    scheduler: SchedulerPlan = SchedulerPlan()
    guidance: Guidance | None = None
    lora: LoraPlan | None = None  # the recipe's own
    loras: tuple[LoraPlan, ...] = ()  # the user's
    noise_scale: float | None = None  # start latent = (1 - noise_scale) * latent + noise_scale * noise
    denoise_strength: float | None = None  # how 0.9 is told the same
    use_cross_timestep: bool = False
    passes: tuple[int, ...] = ()  # evaluations of each step; 1 is a plain step
    upsampler: str | None = None
    upsample_passes: int = 0  # 2x each; a resize of the latents follows where that overshoots

    @property
    def evaluations(self) -> int:
        """Guided predictions of the stage: one loop iteration of the pipeline each."""
        return sum(self.passes) - len(self.passes) + self.plain_evaluations

    @property
    def plain_evaluations(self) -> int:
        """What they would be without the self-refiner: the solver's own."""
        return len(self.sigmas) + recipe.more_evaluations(self.scheduler.sampler, len(self.sigmas))

    @property
    def tokens(self) -> int:
        """Latent tokens of its clip: what one evaluation costs, to first order."""
        return token_count(self.width, self.height, self.frames)

    @property
    def uses_cfg(self) -> bool:
        """Whether it needs the negative prompt: CFG runs where the video's or the sound's scale is above 1."""
        guidance = self.guidance
        return guidance is not None and max(guidance.guidance_scale, guidance.audio_guidance_scale) > 1.0

    @property
    def streams(self) -> int:
        """How often the transformer sees the clip in one evaluation: four with all guidance, one with none."""
        g = self.guidance
        if g is None:
            return 1
        modality = max(g.modality_scale, g.audio_modality_scale) > 1.0
        return 1 + self.uses_cfg + bool(g.stg_blocks) + modality


@dataclass(frozen=True)
class DecodePlan:
    """How latents become frames: VAE noise level (None = not conditioned), and tiles in pixel frames.

    Tiles that the user did not give are settled when the model is there, by the memory of its device.
    """

    decoder: str = "vae"  # vae | diffusion; the VAE takes over where the other cannot be had
    timestep: float | None = None
    noise_scale: float | None = None
    tile_frames: int = 48  # upstream tiles 64 frames and shares 24, diffusers 16 and 8
    overlap_frames: int = 16
    tile_size: int = 512  # pixels, 64 shared: upstream's and diffusers' default
    overlap_size: int = 64
    tiles_given: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole job. `request` is what was asked, kept for the metadata only."""

    caps: Caps
    request: Request
    prompt: str
    negative: str | None  # None: the family's published negative prompt
    seed: int | None
    width: int
    height: int
    frames: int
    fps: float
    stages: tuple[StagePlan, ...]
    images: tuple[ImageAt, ...]
    audio_from: str | None
    decode: DecodePlan
    notes: tuple[str, ...]
    image_cond_noise_scale: float | None = None
    found: tuple[str, ...] = ()  # how the variant was found, in words
    enhances_prompt: bool = False  # `prompt` is the user's until the prompt enhancer has written it out
    predicts_frames: bool = False  # `frames` is the default until the prompt is encoded; then the model says
    prefix: Prefix | None = None  # the video that the clip begins with
    refiner: RefinerPlan | None = None  # the self-refiner's settings; None: off
    make_room: bool = False  # where memory runs out, a phase is tried again with less (`relief.py`)

    @property
    def evaluations(self) -> int:
        return sum(stage.evaluations for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        """Its stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def media(self) -> tuple[str, ...]:
        """The files it is made from."""
        return (*(image.path for image in self.images), *((self.prefix.path,) if self.prefix else ()))

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def needs_negative(self) -> bool:
        """Whether any stage runs classifier-free guidance, for video or for sound."""
        return any(stage.uses_cfg for stage in self.stages)

    @property
    def refiner_cost(self) -> int:
        """Per cent of the job's denoising that the self-refiner adds at most: by streams and by tokens."""
        plain = sum(stage.plain_evaluations * stage.streams * stage.tokens for stage in self.stages)
        reuse = self.refiner is not None and self.refiner.guidance == "reuse"
        more = sum(
            (stage.evaluations - stage.plain_evaluations) * (1 if reuse else stage.streams) * stage.tokens
            for stage in self.stages
        )
        return round(100 * more / plain)

    def with_seed(self, seed: int) -> Plan:
        """The same plan with its seed settled, in the request too."""
        return replace(self, seed=seed, request=replace(self.request, seed=seed))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; the keys are part of the command line's contract."""
        return {
            "model": self.caps.label,
            "model_id": self.caps.id,
            "source": self.caps.source,
            "prompt": self.prompt,
            "negative": self.negative,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "fps": self.fps,
            "seconds": round(self.seconds, 3),
            "predicts_frames": self.predicts_frames,
            "enhances_prompt": self.enhances_prompt,
            "stages": [{**asdict(stage), "evaluations": stage.evaluations} for stage in self.stages],
            "images": [asdict(image) for image in self.images],
            "prefix": None if self.prefix is None else asdict(self.prefix),
            "audio_from": self.audio_from,
            "evaluations": self.evaluations,
            "refiner": None if self.refiner is None else {**asdict(self.refiner), "cost_percent": self.refiner_cost},
            "decode": asdict(self.decode),
            "make_room": self.make_room,
            "memory": recipe.memory_gb(self.caps),
            "notes": list(self.notes),
        }


def plan(
    request: Request, caps: Caps, notes: Iterable[str] = (), denoise_callback: DenoiseCallback | None = None
) -> Plan:
    """Every choice of a job. Raises RequestError for what `caps` cannot do; `notes` are put behind the first.

    `denoise_callback` is the host's self-refiner, if it has one.
    """
    notes = tuple(notes)
    if caps.unavailable:
        raise RequestError(f"{caps.label}: cannot run here: {'; '.join(caps.unavailable)}.")
    allowed.refuse_unsupported(request, caps)
    sizes = recipe.sizes(request, caps)
    frames = get_frames(request.frames or caps.default_frames, caps.frame_ratio)
    prefix, prefix_notes = allowed.prefix(request, caps, frames)
    images = allowed.images(request, caps, frames, prefix)
    fps = request.fps or caps.default_fps
    stages, stage_notes = _stages(request, caps, sizes, frames)
    allowed.refuse_loras(stages, caps)
    decode, decode_notes = tiles.asked(_decode(request, caps), request)
    refinement = denoise.settle(request, denoise_callback, {s.name: s.sigmas for s in stages if s.sigmas})
    stages = tuple(replace(s, passes=(refinement.passes or {}).get(s.name, s.passes)) for s in stages)
    settled = Plan(
        caps=caps,
        request=request,
        prompt=request.prompt,
        negative=caps.default_negative if request.negative is None else request.negative,
        seed=request.seed,
        width=sizes.width,
        height=sizes.height,
        frames=frames,
        fps=fps,
        stages=stages,
        images=images,
        prefix=prefix,
        audio_from=_audio_from(request, caps, stages),
        decode=decode,
        notes=(),
        found=notes,
        enhances_prompt=request.enhance_prompt,
        predicts_frames=caps.supports_duration_head and request.frames is None,
        image_cond_noise_scale=_noise_on_images(request, caps),
        refiner=refinement.settings,
        make_room=request.make_room,
    )
    found = [
        *notes,
        *sizes.notes,
        *wording.frame_notes(request, frames, predicted=settled.predicts_frames),
        *stage_notes,
        *decode_notes,
    ]
    found += [*prefix_notes, *wording.prompt_notes(settled)]
    found += [*refinement.notes, *wording.refiner_notes(settled)]
    return replace(settled, notes=(wording.headline(settled), *found))


def _stages(request: Request, caps: Caps, sizes: recipe.Sizes, frames: int) -> tuple[tuple[StagePlan, ...], list[str]]:
    """The ordered stages and the notes their numbers need."""
    solver = recipe.solver(request, caps)
    schedule = recipe.base_schedule(request, caps, sizes.base_width, sizes.base_height, frames)
    guidance = recipe.base_guidance(request, caps)
    notes = [*schedule.notes, *solver.notes, *recipe.guidance_notes(request, guidance)]
    loras, loras2 = recipe.strengths(request.loras)
    stages = [
        StagePlan(
            name="stage1",
            width=sizes.base_width,
            height=sizes.base_height,
            frames=frames,
            pipeline=caps.pipeline,
            sigmas=schedule.sigmas,
            scheduler=SchedulerPlan(solver.stage1, schedule.source, schedule.shift),
            guidance=guidance,
            lora=_own_lora(caps, solver.lora_stage1),
            loras=_loras(loras),
            noise_scale=1.0,
            use_cross_timestep=caps.use_cross_timestep,
            passes=(1,) * len(schedule.sigmas),
        )
    ]
    if sizes.upsample_passes:
        stages.append(
            StagePlan(
                name="upsample",
                width=sizes.width,
                height=sizes.height,
                frames=frames,
                upsampler=caps.upsampler,
                upsample_passes=sizes.upsample_passes,
            )
        )
    if request.refine:
        stage2 = recipe.stage2_schedule(request, caps)
        notes += stage2.notes
        stages.append(_stage2(caps, sizes, frames, stage2, solver))
        stages[-1] = replace(stages[-1], loras=_loras(loras2))
    return tuple(stages), notes


def _loras(chosen: Iterable[tuple[str, float]]) -> tuple[LoraPlan, ...]:
    return tuple(LoraPlan(source, strength) for source, strength in chosen)


def _own_lora(caps: Caps, strength: float) -> LoraPlan | None:
    """The recipe's own LoRA, where the variant has one and the stage runs with it."""
    if not caps.stage2_dev_lora_repo or strength == 0.0:
        return None
    return LoraPlan(caps.stage2_dev_lora_repo, strength, caps.stage2_dev_lora_file)


def _stage2(
    caps: Caps, sizes: recipe.Sizes, frames: int, schedule: recipe.Schedule, solver: recipe.Solver
) -> StagePlan:
    """Stage 2 at the result's size: identity guidance, the stage-2 LoRA for Dev, a fresh scheduler."""
    return StagePlan(
        name="stage2",
        width=sizes.width,
        height=sizes.height,
        frames=frames,
        pipeline=caps.stage2_pipeline,
        sigmas=schedule.sigmas,
        scheduler=SchedulerPlan(solver.stage2, schedule.source, skipped=schedule.skipped),
        guidance=IDENTITY,
        lora=_own_lora(caps, solver.lora_stage2),
        noise_scale=schedule.sigmas[0],
        denoise_strength=schedule.denoise_strength,
        use_cross_timestep=caps.use_cross_timestep,
        passes=(1,) * len(schedule.sigmas),
    )


def _audio_from(request: Request, caps: Caps, stages: tuple[StagePlan, ...]) -> str | None:
    """The stage whose sound is written; None without sound."""
    if not (caps.supports_audio and request.audio):
        return None
    return caps.audio_from if stages[-1].name == "stage2" else "stage1"


def _decode(request: Request, caps: Caps) -> DecodePlan:
    kind = request.decoder or "vae"
    if not caps.supports_decode_timestep:
        return DecodePlan(kind)
    given = request.decode_timestep
    return DecodePlan(kind, caps.decode_timestep if given is None else given, caps.decode_noise_scale)


def _noise_on_images(request: Request, caps: Caps) -> float | None:
    if not caps.supports_image_cond_noise_scale:
        return None
    given = request.image_cond_noise_scale
    return caps.image_cond_noise_scale if given is None else given
