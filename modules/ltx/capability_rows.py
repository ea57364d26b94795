"""The rows of the capability table: what one row holds, the parent rows, and how a variant derives from one.

Numbers stand beside their sources. How a row is *found* is in `ltx_capabilities.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from modules.ltx.request import SAMPLERS
from modules.video_models.ltx_models import CONDITION, CONDITION_09, RANDOM, T2V, Model


@dataclass(frozen=True)
class Guidance:
    """All eight scales and the STG blocks of one stage; the defaults are the identity (no guidance)."""

    guidance_scale: float = 1.0
    stg_scale: float = 0.0
    modality_scale: float = 1.0
    guidance_rescale: float = 0.0
    audio_guidance_scale: float = 1.0
    audio_stg_scale: float = 0.0
    audio_modality_scale: float = 1.0
    audio_guidance_rescale: float = 0.0
    stg_blocks: tuple[int, ...] = ()  # empty where STG is off


IDENTITY = Guidance()
# Lightricks/LTX-2 constants.py: MultiModalGuiderParams of LTX_2_PARAMS, video and audio.
FOUR_WAY = Guidance(3.0, 1.0, 3.0, 0.7, 7.0, 1.0, 3.0, 0.7)
# Same file, LTX_2_3_HQ_PARAMS: with res_2s, STG is off and guidance rescaled otherwise.
HQ = replace(FOUR_WAY, stg_scale=0.0, guidance_rescale=0.45, audio_stg_scale=0.0, audio_guidance_rescale=1.0)
HQ_STEPS = 15
# Same file, DEFAULT_NEGATIVE_PROMPT since 2.5; behind it comes the text that diffusers ships.
NEGATIVE_25 = "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short, "
HQ_LORA = (0.25, 0.5)  # strength in stage 1 and 2: ltx_pipelines ti2vid_two_stages_hq.py and its arguments


@dataclass(frozen=True)
class Caps:
    """One variant: how it is loaded, what it takes, its defaults. Sizes in pixels, weights in GB of bf16."""

    id: str = ""
    label: str = ""
    source: str = ""  # hub repo, folder, or nano:NAME
    pipeline: str = ""  # diffusers class of the base pass
    mode: str = "T2V"
    quantization: str = "none"
    transformer: str = "transformer"
    vae_dtype: str | None = None

    family: str = "2.x"  # which condition records and latent conventions its classes use
    generation: str = "2.0"
    is_ltx_2_3: bool = False
    is_distilled: bool = False

    supports_audio: bool = False
    supports_stg: bool = False
    supports_frame_rate_kwarg: bool = False
    supports_decode_timestep: bool = False
    supports_image_cond_noise_scale: bool = False
    supports_dynamic_shift: bool = False
    supports_sampler_shift: bool = False
    supports_two_stage_refine: bool = False
    supports_upsample: bool = False
    supports_duration_head: bool = False  # the model says how long a clip of the prompt is, where nobody does
    supports_diffusion_decoder: bool = False  # it comes with a second decoder, which denoises pixels
    use_cross_timestep: bool = False
    latents_normalized: bool = False  # what travels between stages is normalised (0.9) or not (2.x)
    forced_no_dynamic_shift: bool = False  # pinned off when the model loads

    default_sampler: str = "euler"
    samplers: tuple[str, ...] = SAMPLERS
    default_cfg: float = 1.0
    default_steps: int = 8
    default_sampler_shift: float | None = None
    default_dynamic_shift: bool = False
    default_width: int = 768
    default_height: int = 512
    default_frames: int = 121
    default_fps: float = 24.0
    default_negative: str | None = ""  # None: the family's published text, read from diffusers when encoding
    negative_opening: str = ""  # what the generation puts in front of the family's text
    guidance: Guidance = IDENTITY
    stg_default_blocks: tuple[int, ...] = ()  # used wherever STG is on, asked for or by default
    schedule: str = "distilled"  # distilled | token-count | linear-quadratic | linear
    decode_timestep: float = 0.0
    decode_noise_scale: float = 0.0
    image_cond_noise_scale: float = 0.0
    image_crf: int = 33  # ltx_pipelines constants.py DEFAULT_IMAGE_CRF

    grid: int = 32
    frame_ratio: int = 8
    num_blocks: int = 48  # transformer blocks: an STG block that does not exist would silently cost a pass
    max_sequence_length: int = 1024

    text_encoder_repo: str | None = None  # where variants that share one take it from; None: its own repo
    connectors_repo: str | None = None
    prompt_enhancer_repo: str | None = None  # the model that rewrites prompts, where it is one of its own

    upsampler: str | None = None
    upsampler_why_not: str = ""
    stage2_pipeline: str = ""
    stage2_schedule: str = "stage2"  # stage2 | denoise-strength
    stage2_dev_lora_repo: str | None = None
    stage2_dev_lora_file: str | None = None
    stage2_steps: int = 3
    refine_strength: float = 0.4  # where stage2_schedule is denoise-strength; diffusers' 0.9.7 example
    audio_from: str = "stage1"

    transformer_gb: float = 38.0
    transformer_width: int = 4096  # channels of the video stream: heads x head size of its config
    text_encoder_gb: float = 24.0

    slow_decoder: str = ""  # what the diffusion decoder lacks here to be fast; filled in by `effective`
    compile_why_not: str = ""  # why no blocks can be compiled as it is loaded here; filled in by `effective`
    lora_why_not: str = ""  # why no LoRA can be used as it is loaded here; filled in by `effective`
    unavailable: tuple[str, ...] = ()  # why this machine cannot run it; filled in by `effective`

    @property
    def is_random(self) -> bool:
        """Whether its weights are random: an LTX-Nano that shows noise."""
        return self.source.startswith(RANDOM)

    @property
    def shared_parts(self) -> dict[str, str]:
        """Components that other variants have too, and the repo that all of them take each from."""
        return {part: repo for part, name in SHARED.items() if (repo := getattr(self, name))}

    @property
    def supports_prompt_enhancer(self) -> bool:
        return self.prompt_enhancer_repo is not None

    @property
    def is_i2v(self) -> bool:
        return self.mode == "I2V"

    @property
    def supports_multi_condition(self) -> bool:
        return self.pipeline in (CONDITION, CONDITION_09)

    @property
    def supports_input_media(self) -> bool:
        return self.is_i2v or self.supports_multi_condition

    @property
    def supports_canonical_stage2(self) -> bool:
        return self.supports_two_stage_refine and self.stage2_schedule == "stage2"

    @property
    def guided(self) -> bool:
        """Whether its own recipe has guidance, which is more than one prediction a step."""
        return self.guidance != IDENTITY

    @property
    def stg_default_scale(self) -> float:
        return self.guidance.stg_scale

    @property
    def modality_default_scale(self) -> float:
        return self.guidance.modality_scale

    @property
    def guidance_rescale_default(self) -> float:
        return self.guidance.guidance_rescale

    def to_json(self) -> dict[str, object]:
        """The row as JSON values: its fields, what they imply, and whether it is ready here."""
        derived = {name: getattr(self, name) for name, kind in vars(Caps).items() if isinstance(kind, property)}
        return {**asdict(self), **derived, "ready": not self.unavailable}


@cache
def parents() -> Mapping[str, Caps]:
    """The parent rows by name. Sources are named beside each number that is not upstream's default."""
    dev20 = Caps(
        generation="2.0",
        supports_audio=True,
        supports_stg=True,
        supports_frame_rate_kwarg=True,
        supports_dynamic_shift=True,
        supports_sampler_shift=True,
        supports_two_stage_refine=True,
        supports_upsample=True,
        default_cfg=3.0,
        default_steps=30,  # diffusers' and the host's; upstream runs 2.0 with 40
        default_dynamic_shift=True,
        default_negative=None,  # constants.py DEFAULT_NEGATIVE_PROMPT
        guidance=FOUR_WAY,
        stg_default_blocks=(29,),  # LTX_2_PARAMS
        schedule="token-count",
        upsampler="Lightricks/LTX-2",
        stage2_dev_lora_repo="CalamitousFelicitousness/LTX-2.0-distilled-lora-384-Diffusers",
    )
    dev23 = replace(
        dev20,
        generation="2.3",
        is_ltx_2_3=True,
        use_cross_timestep=True,
        stg_default_blocks=(28,),  # LTX_2_3_PARAMS
        # The connectors are byte-identical in all 2.3 variants, which share one Gemma 3, as the host does.
        text_encoder_repo="OzzyGT/LTX-2.3",
        connectors_repo="OzzyGT/LTX-2.3",
        upsampler="CalamitousFelicitousness/LTX-2.3-Spatial-Upsampler-x2-1.1-Diffusers",
        stage2_dev_lora_repo="CalamitousFelicitousness/LTX-2.3-distilled-lora-384-Diffusers",
        transformer_gb=44.0,
    )
    dev25 = replace(
        dev23,
        generation="2.5",
        is_ltx_2_3=False,
        image_crf=18,  # LTX_2_4_IMAGE_CRF; diffusers LTX2_5_IMAGE_CRF
        negative_opening=NEGATIVE_25,
        supports_duration_head=True,
        supports_diffusion_decoder=True,
        prompt_enhancer_repo="google/gemma-4-E2B-it",  # diffusers LTX2Pipeline; its system prompts are made for it
        text_encoder_repo=None,  # Gemma 4
        connectors_repo=None,
        upsampler="Lightricks/LTX-2.5-Diffusers",
        stage2_dev_lora_repo="Lightricks/LTX-2.5",
        stage2_dev_lora_file="loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors",
    )
    dev090 = Caps(
        family="0.9",
        generation="0.9.0",
        latents_normalized=True,
        forced_no_dynamic_shift=True,
        # Their Condition class gives each token its own sigma, which has no step length in common with the others'.
        samplers=("euler", "euler_ancestral", "gradient_estimation"),
        default_cfg=3.0,
        default_steps=50,
        default_frames=161,
        default_fps=25.0,
        # LTX-Video inference.py, --negative_prompt
        default_negative="worst quality, inconsistent motion, blurry, jittery, distorted",
        guidance=replace(IDENTITY, guidance_scale=3.0),
        schedule="linear",
        text_encoder_repo="Lightricks/LTX-Video",  # T5 v1.1 XXL, the same in all of 0.9
        num_blocks=28,
        max_sequence_length=128,  # diffusers' default for LTXPipeline
        upsampler_why_not="the only 0.9 upsampler is proved for the VAE of 0.9.7 and 0.9.8",
        transformer_gb=3.8,
        transformer_width=2048,
        text_encoder_gb=9.5,
    )
    # Timestep-conditioned VAE from 0.9.1 on; .05 and .025 from LTX-Video's configs.
    dev091 = replace(
        dev090,
        generation="0.9.1",
        supports_decode_timestep=True,
        decode_timestep=0.05,
        decode_noise_scale=0.025,
    )
    dev095 = replace(
        dev091,
        generation="0.9.5",
        supports_image_cond_noise_scale=True,
        image_cond_noise_scale=0.15,  # diffusers' default for LTXConditionPipeline
        schedule="linear-quadratic",
        max_sequence_length=256,  # diffusers' default for LTXConditionPipeline
    )
    dev096 = replace(dev095, generation="0.9.6")
    dev097 = replace(
        dev096,
        generation="0.9.7",
        num_blocks=48,
        transformer_gb=26.0,
        transformer_width=4096,
        supports_upsample=True,
        supports_two_stage_refine=True,
        upsampler="a-r-r-o-w/LTX-Video-0.9.7-Latent-Spatial-Upsampler-diffusers",
        upsampler_why_not="",
        stage2_schedule="denoise-strength",
        stage2_steps=10,
    )
    rows = {
        "2.0-dev": dev20,
        "2.0-distilled": _distilled(dev20),
        "2.3-dev": dev23,
        "2.3-distilled": _distilled(dev23),
        "2.5-dev": dev25,
        # ltx_pipelines distilled.py: ancestral Euler in stage 1 from 2.5 on
        "2.5-distilled": replace(_distilled(dev25), default_sampler="euler_ancestral"),
        "0.9.0-dev": dev090,
        "0.9.1-dev": dev091,
        "0.9.5-dev": dev095,
        "0.9.6-dev": dev096,
        "0.9.6-distilled": _distilled(dev096),
        "0.9.7-dev": dev097,
        # The last 3 of 8 linear-quadratic sigmas are upstream's stage-2 list: 8 steps at strength .375.
        "0.9.8-distilled": replace(_distilled(dev097), generation="0.9.8", stage2_steps=8, refine_strength=0.375),
    }
    return MappingProxyType(rows | _nano_parents(rows))


def _distilled(dev: Caps) -> Caps:
    """The Distilled row of a Dev row: 8 steps, no guidance, its sigmas are already shifted."""
    return replace(
        dev,
        is_distilled=True,
        default_cfg=1.0,
        default_steps=8,
        default_dynamic_shift=False,
        supports_dynamic_shift=False,
        supports_sampler_shift=False,
        guidance=IDENTITY,
        default_negative="",
        negative_opening="",
        schedule="distilled" if dev.family == "2.x" else dev.schedule,
        stage2_dev_lora_repo=None,
        stage2_dev_lora_file=None,
        audio_from="stage2",
    )


def _nano_parents(rows: Mapping[str, Caps]) -> dict[str, Caps]:
    """LTX-Nano: the same rows on models small enough to run anywhere."""
    nano: dict[str, Caps] = {}
    for name in ("2.0-dev", "2.0-distilled", "2.3-dev", "2.3-distilled"):
        row, generation = rows[name], rows[name].generation
        nano[f"nano-{name}"] = replace(
            row,
            **_NANO_SIZE,
            stg_default_blocks=(NANO_STG_BLOCK,),
            upsampler=f"nano:{generation}-upsampler",
            stage2_dev_lora_repo=f"nano:{generation}-lora" if row.stage2_dev_lora_repo else None,
        )
    nano["nano-0.9"] = replace(
        rows["0.9.7-dev"], **_NANO_SIZE, default_steps=20, generation="0.9", upsampler="nano:0.9-upsampler"
    )
    return nano


SHARED: Mapping[str, str] = MappingProxyType({"text_encoder": "text_encoder_repo", "connectors": "connectors_repo"})

NANO_BLOCKS = 6
NANO_STG_BLOCK = 3  # as deep in its 6 blocks as 28 is in 48; the one behind blurs outlines (docs/nano-training.md)
_NANO_SIZE: Mapping[str, Any] = MappingProxyType(
    {
        "default_width": 256,
        "default_height": 256,
        "default_frames": 25,
        "default_fps": 24.0,
        "default_negative": "",
        "text_encoder_repo": None,
        "connectors_repo": None,
        "num_blocks": NANO_BLOCKS,
        # A multiple of the connectors' registers; the forward at 1024 costs three times as much on a CPU.
        "max_sequence_length": 64,
        "transformer_gb": 0.01,
        "transformer_width": 160,
        "text_encoder_gb": 0.01,
    }
)


def row_of(model: Model) -> Caps:
    """The caps of a catalogue row: its parent, with what its class and its place in the table add."""
    parent = parents()[model.base]
    nine = parent.family == "0.9"
    stage2_2x = T2V if model.pipeline == T2V else CONDITION  # LTX2ImageToVideoPipeline ignores its image there
    condition09 = model.pipeline == CONDITION_09
    mirrors = {"OzzyGT/LTX-2.3": "OzzyGT/LTX-2.3-sdnq-dynamic-int4"} if model.quantization == "sdnq-int4" else {}
    shared = {name: mirrors.get(getattr(parent, name) or "", getattr(parent, name)) for name in SHARED.values()}
    return replace(
        parent,
        **shared,
        id=model.id,
        label=model.label,
        source=model.repo,
        pipeline=model.pipeline,
        mode=model.mode,
        quantization=model.quantization,
        transformer=model.transformer,
        vae_dtype=model.vae_dtype,
        stage2_pipeline=CONDITION_09 if nine else stage2_2x,
        supports_image_cond_noise_scale=condition09,
        image_cond_noise_scale=parent.image_cond_noise_scale if condition09 else 0.0,
        schedule="linear" if nine and not condition09 else parent.schedule,
    )
