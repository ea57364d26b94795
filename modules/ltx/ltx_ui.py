"""The tab: every control declared once, and what a choice of model does to all of them.

A control is named after the field of `Request` that it sets and shows that field's help. Which variants have it, and
with what default, is read from the variant's row. Knows neither gradio nor hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.ltx.ltx_capabilities import Caps
from modules.ltx.request import BY_NAME, default_of

Test = Callable[[Caps], bool]
Default = Callable[[Caps], Any]


def _always(_: Caps) -> bool:
    return True


@dataclass(frozen=True)
class Control:
    """One control. `name`: a field of Request, or one of MEDIA; `kind`: how it is shown; `applies`: which variants have
    it; `default`: the variant's own value, which is not written into the request; `span`: least, most, step."""

    name: str
    label: str
    kind: str
    section: str
    applies: Test = _always
    default: Default = lambda _: None
    span: tuple[float, float, float] | None = None
    choices: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        option = BY_NAME.get(self.name)
        return option.help if option is not None else ""


def _number(name: str, label: str, section: str, span: tuple[float, float, float], **given: Any) -> Control:
    return Control(name, label, "slider", section, span=span, **given)


def _has(name: str) -> Test:
    return lambda caps: bool(getattr(caps, name))


def _of(name: str) -> Default:
    return lambda caps: getattr(caps, name)


def _guided(name: str) -> Default:
    return lambda caps: getattr(caps.guidance, name)


def _scale(name: str, label: str, top: float, step: float = 0.1) -> Control:
    known = _always if name == "guidance_scale" else _has("supports_stg")
    return _number(name, label, "Guidance", (0.0, top, step), applies=known, default=_guided(name))


MEDIA = ("first_image", "last_image", "gallery", "prefix_video", "prefix_frames", "prefix_skip", "image_strength")
_REFINE = "Self-refiner"

CONTROLS: tuple[Control, ...] = (
    _number("width", "LTX width", "Size", (64, 4096, 32), default=_of("default_width")),
    _number("height", "LTX height", "Size", (64, 4096, 32), default=_of("default_height")),
    _number("frames", "LTX frames", "Size", (1, 1025, 8), default=_of("default_frames")),
    Control("seed", "LTX seed (-1 is random)", "number", "Size", default=lambda _: -1),
    Control("first_image", "LTX first image", "image", "Input media", _has("supports_input_media")),
    Control("last_image", "LTX last image", "image", "Input media", _has("supports_multi_condition")),
    Control("gallery", "LTX images, spread over the clip", "files", "Input media", _has("supports_multi_condition")),
    Control("prefix_video", "LTX video to begin with", "video", "Input media", _has("supports_multi_condition")),
    _number(
        "prefix_frames",
        "LTX frames of that video",
        "Input media",
        (1, 241, 8),
        applies=_has("supports_multi_condition"),
        default=lambda _: 17,
    ),
    _number(
        "prefix_skip",
        "LTX frames to skip before them",
        "Input media",
        (0, 1024, 1),
        applies=_has("supports_multi_condition"),
        default=lambda _: 0,
    ),
    _number(
        "image_strength",
        "LTX input strength",
        "Input media",
        (0.0, 1.0, 0.05),
        applies=_has("supports_multi_condition"),
        default=lambda _: 1.0,
    ),
    Control(
        "refine",
        "LTX two stages",
        "checkbox",
        "Stages",
        _has("supports_two_stage_refine"),
        default=_has("supports_two_stage_refine"),
    ),
    _number(
        "refine_strength",
        "LTX refine strength",
        "Stages",
        (0.05, 0.95, 0.05),
        applies=lambda caps: caps.supports_two_stage_refine and caps.stage2_schedule == "denoise-strength",
        default=_of("refine_strength"),
    ),
    _number(
        "upsample",
        "LTX upsample ratio (1 is off)",
        "Stages",
        (1.0, 4.0, 0.1),
        applies=_has("supports_upsample"),
        default=lambda _: 1.0,
    ),
    _number("steps", "LTX steps", "Sampling", (1, 200, 1), default=_of("default_steps")),
    Control(
        "sampler",
        "LTX sampler",
        "choice",
        "Sampling",
        default=_of("default_sampler"),
        choices=BY_NAME["sampler"].choices,
    ),
    _number(
        "sampler_shift",
        "LTX sampler shift (below 0: by size)",
        "Sampling",
        (-1.0, 10.0, 0.05),
        applies=_has("supports_sampler_shift"),
        default=lambda _: -1.0,
    ),
    Control(
        "dynamic_shift",
        "LTX dynamic shift",
        "checkbox",
        "Sampling",
        _has("supports_dynamic_shift"),
        default=_of("default_dynamic_shift"),
    ),
    _scale("guidance_scale", "LTX guidance scale", 30.0),
    _scale("stg_scale", "LTX STG scale", 10.0),
    _scale("modality_scale", "LTX modality scale", 30.0),
    _scale("guidance_rescale", "LTX guidance rescale", 1.0, 0.05),
    _scale("audio_guidance_scale", "LTX sound guidance scale", 30.0),
    _scale("audio_stg_scale", "LTX sound STG scale", 10.0),
    _scale("audio_modality_scale", "LTX sound modality scale", 30.0),
    _scale("audio_guidance_rescale", "LTX sound guidance rescale", 1.0, 0.05),
    Control(
        "self_refine",
        "LTX self-refiner",
        "choice",
        _REFINE,
        default=lambda _: "off",
        choices=BY_NAME["self_refine"].choices,
    ),
    Control("self_refine_plan", "LTX self-refiner plan", "text", _REFINE, default=lambda _: ""),
    Control(
        "self_refine_preset",
        "LTX self-refiner preset",
        "choice",
        _REFINE,
        default=lambda _: "",
        choices=("", *BY_NAME["self_refine_preset"].choices),
    ),
    _number("self_refine_threshold", "LTX self-refiner threshold", _REFINE, (0.0, 1.0, 0.01), default=lambda _: 0.1),
    _number(
        "self_refine_certain", "LTX self-refiner certain share", _REFINE, (0.0, 1.0, 0.001), default=lambda _: 0.999
    ),
    Control("self_refine_map", "LTX uncertainty map", "checkbox", _REFINE, default=lambda _: False),
    _number(
        "decode_timestep",
        "LTX decode timestep",
        "Decoding",
        (0.0, 1.0, 0.01),
        applies=_has("supports_decode_timestep"),
        default=_of("decode_timestep"),
    ),
    _number(
        "image_cond_noise_scale",
        "LTX image cond noise scale",
        "Decoding",
        (0.0, 1.0, 0.005),
        applies=_has("supports_image_cond_noise_scale"),
        default=_of("image_cond_noise_scale"),
    ),
    Control("audio", "LTX save audio", "checkbox", "Decoding", _has("supports_audio"), default=_has("supports_audio")),
)
SECTIONS = tuple(dict.fromkeys(control.section for control in CONTROLS))


@dataclass(frozen=True)
class Shown:
    """One control for one variant."""

    control: Control
    applies: bool
    value: Any
    why: str = ""


def shown(caps: Caps) -> tuple[Shown, ...]:
    """Every control as the variant has it, in order. Needs no weights."""
    return tuple(
        Shown(c, c.applies(caps), c.default(caps), "" if c.applies(caps) else f"{caps.label} does not have it")
        for c in CONTROLS
    )


def sections(caps: Caps) -> dict[str, bool]:
    """Which groups of controls have one that applies."""
    return {name: any(s.applies for s in shown(caps) if s.control.section == name) for name in SECTIONS}


@dataclass(frozen=True)
class Asked:
    """What the tab says beside its controls: model, words and frame rate; `paths` gives the file of a media value."""

    model: str
    prompt: str
    negative: str
    fps: float
    paths: Callable[[str, Any], str | None]
    loras: Sequence[Mapping[str, object]] = field(default=())


def request_values(caps: Caps, asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """What `Request.parse` takes: of the controls that apply those that differ from the variant's own default."""
    made: dict[str, Any] = {"model": asked.model, "prompt": asked.prompt, "fps": asked.fps, "loras": list(asked.loras)}
    if asked.negative.strip():
        made["negative"] = asked.negative
    for one in shown(caps):
        name, value = one.control.name, values.get(one.control.name)
        # What was not moved is left to the plan: guidance, say, follows the sampler's recipe.
        unsaid = default_of(name) if name in BY_NAME else None
        if name in MEDIA or not one.applies or value is None or value == (one.value if unsaid is None else unsaid):
            continue
        made[name] = int(value) if isinstance(value, float) and value.is_integer() and _whole(name) else value
    return {**made, **_media(caps, asked, values)}


def _whole(name: str) -> bool:
    return BY_NAME[name].kind == "int"


def _media(caps: Caps, asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    if not caps.supports_input_media:
        return {}
    strength = float(values.get("image_strength", 1.0)) if caps.supports_multi_condition else 1.0
    images = []
    for name, frame in (("first_image", 0), ("last_image", -1)):
        path = asked.paths(name, values.get(name))
        if path and (frame == 0 or caps.supports_multi_condition):
            images.append({"path": path, "frame": frame, "strength": strength})
    made: dict[str, Any] = {}
    if caps.supports_multi_condition:
        for item in values.get("gallery") or ():
            path = asked.paths("gallery", item)
            if path:
                images.append({"path": path, "frame": None, "strength": strength})
        video = asked.paths("prefix_video", values.get("prefix_video"))
        if video:
            made["prefix"] = {
                "path": video,
                "frames": int(values.get("prefix_frames") or 17),
                "skip": int(values.get("prefix_skip") or 0),
                "strength": strength,
            }
    return {**made, "images": images} if images else made


def create_ui(*theirs: Any) -> None:
    """SD.Next calls this for its LTX tab, with 13 components of its own."""
    from modules.ltx.hosts import sdnext_tab

    sdnext_tab.create(*theirs)
