"""Every control of the tab, declared once: its name, label, kind and range, who has it, and what it starts with.

A control is named after the field of `Request` that it sets and shows that field's help; those of MEDIA make up
pictures, videos and LoRAs, which are lists in a request. Everything ordered is derived from `CONTROLS`. Those of
`OUTPUTS` say how the file is written, where no web UI has controls of its own for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules.ltx.ltx_capabilities import Caps
from modules.ltx.recipe import FOUR_WAY_OPTIONS
from modules.ltx.request import BY_NAME

Test = Callable[[Caps], bool]
Default = Callable[[Caps], Any]

# Of the controls that are no field of a request: what they are for.
MEDIA = {
    "first_image": "the picture that the video begins with",
    "last_image": "the picture that it ends with",
    "gallery": "pictures that it passes through",
    "gallery_frames": "their frames, as 0, 48, -1 (-1 is the last); empty: spread evenly over the clip",
    "gallery_strengths": "how strongly each is held, as 1, 0.8; empty: as the slider says",
    "image_strength": "how strongly pictures and video are held: 1 is fully",
    "prefix_video": "a video that the clip goes on from",
    "prefix_frames": "how many of its frames are kept; 8k+1",
    "prefix_skip": "how many of its frames are left out before those",
    "loras": "a line each: FILE or REPO, then :STRENGTH and :STRENGTH of stage 2 where they are not 1",
}

# How the file is written: fields of `media.Encoding`.
FILES = {
    "codec": "h264 plays everywhere; hevc and av1 make smaller files, av1 slowly",
    "crf": "quality of the picture, 0 is best, 51 smallest; -1: as good as looks the same (the codec's own)",
    "png_frames": "keep every frame as a PNG, too",
    "thumbnail": "a small picture beside the video",
}

# What a variant that lacks them is told.
WHY_NOT = {
    "refine_strength": "its stage 2 begins at a fixed level of noise",
    "sampler_shift": "its sigmas are given",
    "dynamic_shift": "its sigmas are given",
    **dict.fromkeys(("guided_batch", "cache"), "it runs without guidance"),
    **dict.fromkeys(FOUR_WAY_OPTIONS, "its guidance is the guidance scale alone"),
    "decoder": "only LTX 2.5 has a second decoder",
    "decode_timestep": "its decoder takes no level of noise",
    "image_cond_noise_scale": "it holds images without noise",
    "audio": "it makes no sound",
}


def _always(_: Caps) -> bool:
    return True


def _nothing(_: Caps) -> Any:
    return None


@dataclass(frozen=True)
class Control:
    """One control. `name`: a field of Request, or one of MEDIA; `kind`: how it is shown; `applies`: which variants have
    it; `default`: the variant's own value, which is not written into the request; `span`: least, most, step."""

    name: str
    label: str
    kind: str
    section: str
    applies: Test = _always
    default: Default = _nothing
    span: tuple[float, float, float] | None = None
    choices: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        return BY_NAME[self.name].help if self.name in BY_NAME else {**MEDIA, **FILES}[self.name]

    def why_not(self, caps: Caps) -> str:
        """Why a variant does not have it; empty for one that has."""
        if self.applies(caps):
            return ""
        if self.name in ("refine", "stage2_steps", "upsample"):
            return f"not with this model: {caps.upsampler_why_not}"
        return f"not with this model: {WHY_NOT.get(self.name, 'it does not have it')}"


Span = tuple[float, float, float]


def _slider(section: str, name: str, label: str, span: Span, default: Default, *, applies: Test = _always) -> Control:
    return Control(name, f"LTX {label}", "slider", section, applies, default, span)


def _choice(section: str, name: str, label: str, default: Default, applies: Test = _always) -> Control:
    empty = ("",) if default is _empty else ()
    return Control(name, f"LTX {label}", "choice", section, applies, default, choices=(*empty, *BY_NAME[name].choices))


def _tick(section: str, name: str, label: str, default: Default, applies: Test = _always) -> Control:
    return Control(name, f"LTX {label}", "checkbox", section, applies, default)


def _text(
    section: str, name: str, label: str, default: Default, *, applies: Test = _always, kind: str = "text"
) -> Control:
    return Control(name, f"LTX {label}", kind, section, applies, default)


def _media(name: str, label: str, kind: str, applies: Test) -> Control:
    return Control(name, f"LTX {label}", kind, "Input media", applies)


def _is(value: Any) -> Default:
    return lambda _: value


def _has(name: str) -> Test:
    return lambda caps: bool(getattr(caps, name))


def _of(name: str) -> Default:
    return lambda caps: getattr(caps, name)


def _scale(name: str, label: str, top: float, step: float = 0.1) -> Control:
    known = _has("supports_stg") if name in FOUR_WAY_OPTIONS else _always
    return _slider("Guidance", name, label, (0.0, top, step), lambda caps: getattr(caps.guidance, name), applies=known)


def _blocks(caps: Caps) -> str:
    return ",".join(map(str, caps.stg_default_blocks))


_empty = _is("")
_many, _two, _old = (
    _has("supports_multi_condition"),
    _has("supports_two_stage_refine"),
    _has("supports_decode_timestep"),
)


def _noises_stage_2(caps: Caps) -> bool:
    return _two(caps) and caps.stage2_schedule == "denoise-strength"


_DECLARED: tuple[Control, ...] = (
    _tick("Prompt", "enhance_prompt", "prompt enhancer", _is(False), _has("supports_prompt_enhancer")),
    _slider("Size", "width", "width", (64, 4096, 32), _of("default_width")),
    _slider("Size", "height", "height", (64, 4096, 32), _of("default_height")),
    _slider("Size", "frames", "frames", (1, 1025, 8), _of("default_frames")),
    Control("seed", "LTX seed (-1 is random)", "number", "Size", default=_is(-1)),
    _media("first_image", "first image", "image", _has("supports_input_media")),
    _media("last_image", "last image", "image", _many),
    _media("gallery", "more images", "files", _many),
    _media("gallery_frames", "frames of those images", "text", _many),
    _media("gallery_strengths", "strengths of those images", "text", _many),
    _media("prefix_video", "video to begin with", "video", _many),
    _slider("Input media", "prefix_frames", "frames of that video", (1, 241, 8), _is(17), applies=_many),
    _slider("Input media", "prefix_skip", "frames to skip before them", (0, 1024, 1), _is(0), applies=_many),
    _slider("Input media", "image_strength", "input strength", (0.0, 1.0, 0.05), _is(1.0), applies=_many),
    _tick("Stages", "refine", "two stages", _two, _two),
    _slider("Stages", "stage2_steps", "steps of stage 2", (1, 60, 1), _of("stage2_steps"), applies=_two),
    _slider(
        "Stages",
        "refine_strength",
        "refine strength",
        (0.05, 0.95, 0.05),
        _of("refine_strength"),
        applies=_noises_stage_2,
    ),
    _slider(
        "Stages", "upsample", "upsample ratio (1 is off)", (1.0, 4.0, 0.1), _is(1.0), applies=_has("supports_upsample")
    ),
    _slider("Sampling", "steps", "steps", (1, 200, 1), _of("default_steps")),
    _choice("Sampling", "sampler", "sampler", _of("default_sampler")),
    _slider(
        "Sampling",
        "sampler_shift",
        "sampler shift (below 0: by size)",
        (-1.0, 10.0, 0.05),
        _is(-1.0),
        applies=_has("supports_sampler_shift"),
    ),
    _tick("Sampling", "dynamic_shift", "dynamic shift", _of("default_dynamic_shift"), _has("supports_dynamic_shift")),
    _scale("guidance_scale", "guidance scale", 30.0),
    _scale("stg_scale", "STG scale", 10.0),
    _text("Guidance", "stg_blocks", "STG blocks", _blocks, applies=_has("supports_stg")),
    _scale("modality_scale", "modality scale", 30.0),
    _scale("guidance_rescale", "guidance rescale", 1.0, 0.05),
    _scale("audio_guidance_scale", "sound guidance scale", 30.0),
    _scale("audio_stg_scale", "sound STG scale", 10.0),
    _scale("audio_modality_scale", "sound modality scale", 30.0),
    _scale("audio_guidance_rescale", "sound guidance rescale", 1.0, 0.05),
    _choice("Guidance", "guided_batch", "predictions a forward", _is("auto"), _has("guided")),
    _choice("Sampling", "cache", "cache between steps", _is("off"), _has("guided")),
    _choice("Sampling", "speed", "speed", _is("safe"), lambda caps: not caps.compile_why_not),
    _choice("Self-refiner", "self_refine", "self-refiner", _is("off")),
    _choice("Self-refiner", "self_refine_preset", "self-refiner preset", _empty),
    _text("Self-refiner", "self_refine_plan", "self-refiner plan", _empty),
    _slider("Self-refiner", "self_refine_threshold", "self-refiner threshold", (0.0, 1.0, 0.01), _is(0.1)),
    _slider("Self-refiner", "self_refine_certain", "self-refiner certain share", (0.0, 1.0, 0.001), _is(0.999)),
    _choice("Self-refiner", "self_refine_decide", "self-refiner agreement of", _is("video")),
    _choice("Self-refiner", "self_refine_guidance", "self-refiner guidance", _is("full")),
    _tick("Self-refiner", "self_refine_map", "uncertainty map", _is(False)),
    _text("LoRAs", "loras", "LoRAs", _empty, applies=lambda caps: not caps.lora_why_not, kind="lines"),
    _choice("Decoding", "decoder", "decoder", _is("vae"), _has("supports_diffusion_decoder")),
    _slider("Decoding", "tile_size", "tile size (0: by memory)", (0, 2048, 64), _is(0)),
    _slider("Decoding", "tile_frames", "tile frames (0: by memory)", (0, 256, 8), _is(0)),
    _tick("Decoding", "make_room", "make room where memory runs out", _is(False)),
    _slider("Decoding", "decode_timestep", "decode timestep", (0.0, 1.0, 0.01), _of("decode_timestep"), applies=_old),
    _slider(
        "Decoding",
        "image_cond_noise_scale",
        "image cond noise scale",
        (0.0, 1.0, 0.005),
        _of("image_cond_noise_scale"),
        applies=_has("supports_image_cond_noise_scale"),
    ),
    _tick("Decoding", "audio", "save audio", _has("supports_audio"), _has("supports_audio")),
)
OUTPUTS: tuple[Control, ...] = (
    Control("codec", "LTX codec", "choice", "Output", default=_is("h264"), choices=("h264", "hevc", "av1")),
    Control("crf", "LTX quality (crf)", "slider", "Output", default=_is(-1), span=(-1, 51, 1)),
    Control("png_frames", "LTX frames as PNG", "checkbox", "Output", default=_is(False)),
    Control("thumbnail", "LTX thumbnail", "checkbox", "Output", default=_is(True)),
)
SECTIONS = tuple(dict.fromkeys(control.section for control in _DECLARED))
# A page lays them out by sections, and hands values over in that order.
CONTROLS = tuple(sorted(_DECLARED, key=lambda control: SECTIONS.index(control.section)))
