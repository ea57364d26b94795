"""Every control of the tab, declared once: its name, label, kind and range, who has it, and what it starts with.

A control is named after the field of `Request` that it sets and shows that field's help; those of MEDIA make up
pictures, videos and LoRAs, which are lists in a request. Everything ordered is derived from `CONTROLS`. Those of
`OUTPUTS` say how the file is written, where no web UI has controls of its own for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modules.ltx.denoise import OPTIONS
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.recipe import FOUR_WAY_OPTIONS
from modules.ltx.request import BY_NAME

Test = Callable[[Caps], bool]
Default = Callable[[Caps], Any]

# Of the controls that are no field of a request: what they are for.
MEDIA = {
    "first_image": "the image that the video starts with",
    "last_image": "the image that the video ends with",
    "gallery": "images that the video passes through, in their order",
    "gallery_frames": "the frame of each additional image, such as 0, 48, -1 (-1 is the last); empty: spread evenly",
    "gallery_strengths": "the strength of each additional image, such as 1, 0.8; empty: the strength below",
    "image_strength": "how closely the video keeps the given images and video: 1 is exactly",
    "prefix_video": "a video that the new video continues",
    "prefix_frames": "how many frames of that video are kept at the start; 8k+1",
    "prefix_skip": "how many frames of that video are skipped first",
    "loras": "one LoRA per line: FILE or REPO, then :STRENGTH, then :STRENGTH of stage 2, where they are not 1",
}

# How the file is written: fields of `media.Encoding`.
FILES = {
    "codec": "h264 plays everywhere; hevc and av1 make smaller files, av1 slowly",
    "crf": "quality of the video: 0 is best, 51 is smallest; -1 is the codec's own, which looks the same",
    "png_frames": "also save every frame as a PNG",
    "thumbnail": "also save a small preview image",
}

# Why a variant lacks them.
WHY_NOT = {
    "refine_strength": "its stage 2 begins at a fixed level of noise",
    "sampler_shift": "its sigmas are fixed",
    "dynamic_shift": "its sigmas are fixed",
    **dict.fromkeys(("guided_batch", "cache"), "it runs without guidance"),
    **dict.fromkeys(FOUR_WAY_OPTIONS, "its only guidance is the guidance scale"),
    "decoder": "only LTX 2.5 has a second decoder",
    "decode_timestep": "its decoder takes no noise level",
    "image_cond_noise_scale": "it keeps images without noise",
    "audio": "it makes no sound",
}


# Which control has no effect while another has such a value: (controls, why, when). `when` gets the variant's row and
# the values of all controls, its own value where one is missing.
Values = Mapping[str, Any]
_GUIDANCE = ("guidance_scale", "guidance_rescale", *(name for name in FOUR_WAY_OPTIONS if name != "stg_blocks"))
_STG = ("stg_scale", "audio_stg_scale")
_MEDIA_GIVEN = ("first_image", "last_image", "gallery", "prefix_video")


def _without(name: str) -> Callable[[Caps, Values], bool]:
    return lambda _, values: not values[name]


def _unguided(caps: Caps, values: Values) -> bool:
    """A variant whose recipe has no guidance, and none was turned on."""
    return not caps.guided and all(values[name] == getattr(caps.guidance, name) for name in _GUIDANCE)


IDLE: tuple[tuple[tuple[str, ...], str, Callable[[Caps, Values], bool]], ...] = (
    (("stage2_steps", "refine_strength"), "no effect while two stages are off", _without("refine")),
    (
        tuple(f"self_refine_{name}" for name in OPTIONS),
        "no effect while the self-refiner is off",
        lambda _, values: values["self_refine"] in (None, "", "off"),
    ),
    (
        tuple(name for name in (*_GUIDANCE, "stg_blocks") if name != "guidance_scale"),
        "no effect until the guidance scale is above 1",
        _unguided,
    ),
    (("stg_blocks",), "no effect while both STG scales are 0", lambda _, values: not any(values[n] for n in _STG)),
    (("prefix_frames", "prefix_skip"), "no effect without a video to continue", _without("prefix_video")),
    (("gallery_frames", "gallery_strengths"), "no effect without additional images", _without("gallery")),
    (
        ("image_strength",),
        "no effect without an image or a video",
        lambda _, values: not any(values[name] for name in _MEDIA_GIVEN),
    ),
)
# The controls whose values decide that.
DECIDING = ("refine", "self_refine", *_GUIDANCE, *_MEDIA_GIVEN)


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

    def about(self, caps: Caps) -> str:
        """The help, with what is particular to the variant."""
        if self.name == "guidance_scale" and not caps.guided:
            return f"{self.help}; this model runs without guidance, a value above 1 turns it on and doubles the time"
        return self.help

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
    _media("gallery", "additional images", "files", _many),
    _media("gallery_frames", "frames of the additional images", "text", _many),
    _media("gallery_strengths", "strengths of the additional images", "text", _many),
    _media("prefix_video", "video to continue", "video", _many),
    _slider("Input media", "prefix_frames", "frames to keep of that video", (1, 241, 8), _is(17), applies=_many),
    _slider("Input media", "prefix_skip", "frames to skip of that video", (0, 1024, 1), _is(0), applies=_many),
    _slider("Input media", "image_strength", "strength of images and video", (0.0, 1.0, 0.05), _is(1.0), applies=_many),
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
    _choice("Guidance", "guided_batch", "predictions per forward pass", _is("auto"), _has("guided")),
    _choice("Sampling", "cache", "cache", _is("off"), _has("guided")),
    _choice("Sampling", "speed", "speed", _is("safe"), lambda caps: not caps.compile_why_not),
    _choice("Self-refiner", "self_refine", "self-refiner", _is("off")),
    _choice("Self-refiner", "self_refine_preset", "self-refiner preset", _empty),
    _text("Self-refiner", "self_refine_plan", "self-refiner plan", _empty),
    _slider("Self-refiner", "self_refine_threshold", "self-refiner threshold", (0.0, 1.0, 0.01), _is(0.1)),
    _slider("Self-refiner", "self_refine_certain", "self-refiner share that must agree", (0.0, 1.0, 0.001), _is(0.999)),
    _choice("Self-refiner", "self_refine_decide", "self-refiner part that must agree", _is("video")),
    _choice("Self-refiner", "self_refine_guidance", "self-refiner guidance", _is("full")),
    _tick("Self-refiner", "self_refine_map", "uncertainty map", _is(False)),
    _text("LoRAs", "loras", "LoRAs", _empty, applies=lambda caps: not caps.lora_why_not, kind="lines"),
    _choice("Decoding", "decoder", "decoder", _is("vae"), _has("supports_diffusion_decoder")),
    _slider("Decoding", "tile_size", "tile size (0: by memory)", (0, 2048, 64), _is(0)),
    _slider("Decoding", "tile_frames", "tile frames (0: by memory)", (0, 256, 8), _is(0)),
    _tick("Decoding", "make_room", "retry when memory runs out", _is(False)),
    _slider("Decoding", "decode_timestep", "decode timestep", (0.0, 1.0, 0.01), _of("decode_timestep"), applies=_old),
    _slider(
        "Decoding",
        "image_cond_noise_scale",
        "noise on images",
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
