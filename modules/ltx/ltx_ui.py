"""The tab: what a choice of model does to the controls of `ltx_controls.py`, and the request that their values make.

Which variants have a control, and with what default, is read from the variant's row. Knows neither gradio nor hosts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.ltx_controls import CONTROLS, DECIDING, IDLE, MEDIA, OUTPUTS, SECTIONS, Control
from modules.ltx.request import BY_NAME, Lora, Request, default_of

__all__ = [
    "CONTROLS",
    "DECIDING",
    "MEDIA",
    "SECTIONS",
    "Asked",
    "Control",
    "Shown",
    "blocks",
    "dependent",
    "outputs",
    "presets",
    "request_values",
    "sections",
    "shown",
    "values_of",
]
_LARGE = ("image", "files", "video", "lines")
_SHAPES = ((16, 9), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (9, 16), (21, 9))


@dataclass(frozen=True)
class Shown:
    """One control for one variant. `why`: the reason where the variant does not have it; `idle`: where it has no effect
    beside the other values; `about`: what it does. Media that a variant does not have are hidden."""

    control: Control
    applies: bool
    value: Any
    why: str = ""
    idle: str = ""
    about: str = ""

    @property
    def visible(self) -> bool:
        return self.applies or self.control.section != "Input media"

    @property
    def live(self) -> bool:
        """Whether a change of it changes the video."""
        return self.applies and not self.idle

    @property
    def words(self) -> str:
        """The explanation at the control: what it does, then why it is greyed."""
        return " ".join(f"{said[0].upper()}{said[1:]}." for said in (self.about, self.why or self.idle) if said)


def shown(caps: Caps, values: Mapping[str, Any] | None = None) -> tuple[Shown, ...]:
    """Every control as the variant has it, in order, beside `values` of controls. Needs no weights."""
    own = {c.name: c.default(caps) for c in CONTROLS}
    given = {name: value for name, value in (values or {}).items() if value is not None}
    idle = dict(_idle(caps, own | given))
    return tuple(
        Shown(c, c.applies(caps), own[c.name], c.why_not(caps), idle.get(c.name, ""), c.about(caps)) for c in CONTROLS
    )


def dependent(caps: Caps, values: Mapping[str, Any]) -> list[Shown]:
    """The controls that may have no effect beside the `values` of others, in order."""
    names = {name for names, _, _ in IDLE for name in names}
    return [one for one in shown(caps, values) if one.control.name in names]


def _idle(caps: Caps, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Which controls have no effect, and why; the first reason comes last."""
    for names, why, when in reversed(IDLE):
        if when(caps, values):
            yield from ((name, why) for name in names)


def outputs(caps: Caps) -> tuple[Shown, ...]:
    """The controls of the written file."""
    return tuple(Shown(c, True, c.default(caps), about=c.help) for c in OUTPUTS)


def blocks(several: Iterable[Shown]) -> Iterator[tuple[bool, list[Shown]]]:
    """Controls in their order, as a page lays them out: large ones (True) below one another, small ones in pairs."""
    for large, ones in itertools.groupby(several, lambda one: one.control.kind in _LARGE):
        row = list(ones)
        step = len(row) if large else 2
        yield from ((large, row[n : n + step]) for n in range(0, len(row), step))


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
    loras = [*asked.loras, *_loras(values.get("loras"))]
    made: dict[str, Any] = {"model": asked.model, "prompt": asked.prompt, "fps": asked.fps, "loras": loras}
    if asked.negative.strip():
        made["negative"] = asked.negative
    for one in shown(caps):
        name, value = one.control.name, values.get(one.control.name)
        # What was not moved is left to the plan: guidance, say, follows the sampler's recipe.
        unsaid = default_of(name) if name in BY_NAME else None
        if name in MEDIA or not one.applies or value is None or value == (one.value if unsaid is None else unsaid):
            continue
        made[name] = int(value) if isinstance(value, float) and value.is_integer() and _whole(name) else value
    return _settled({**made, **_media(caps, asked, values)})


def _whole(name: str) -> bool:
    return BY_NAME[name].kind == "int"


def _settled(made: dict[str, Any]) -> dict[str, Any]:
    """Without what has no meaning in company: steps of a stage 2 that is off."""
    if not made.get("refine"):
        made.pop("stage2_steps", None)
        made.pop("refine_strength", None)
    return made


def _loras(lines: Any) -> list[dict[str, object]]:
    """Of `FILE:STRENGTH:STAGE2` a line, as --lora takes it."""
    return [_lora(line.strip()) for line in str(lines or "").splitlines() if line.strip()]


def _lora(line: str) -> dict[str, object]:
    source, numbers = line, list[float]()
    while len(numbers) < 2 and ":" in source:
        rest, _, last = source.rpartition(":")
        try:
            numbers.insert(0, float(last))
        except ValueError:
            break
        source = rest
    return {"source": source, **dict(zip(("strength", "stage2"), numbers, strict=False))}


def values_of(request: Request, caps: Caps) -> dict[str, Any]:
    """The value of every control that makes `request`: the other way of `request_values`. Media are paths."""
    asked = request.to_json()
    values = {one.control.name: _back(one, asked.get(one.control.name)) for one in shown(caps)}
    first, last = (next((at for at in request.images if at.frame == frame), None) for frame in (0, -1))
    more = [at for at in request.images if at is not first and at is not last]
    prefix = request.prefix
    strength = next((at.strength for at in (first, last, prefix) if at is not None), 1.0)
    values.update(
        first_image=first.path if first else None,
        last_image=last.path if last else None,
        gallery=[at.path for at in more] or None,
        gallery_frames=", ".join(str(at.frame) for at in more if at.frame is not None),
        gallery_strengths=", ".join(f"{at.strength:g}" for at in more),
        image_strength=strength,
        prefix_video=prefix.path if prefix else None,
        loras="\n".join(_line(lora) for lora in request.loras),
    )
    if prefix is not None:
        values.update(prefix_frames=prefix.frames, prefix_skip=prefix.skip)
    return values


def _back(one: Shown, asked: Any) -> Any:
    if asked is None:
        return one.value
    return ",".join(map(str, asked)) if isinstance(asked, (list, tuple)) else asked


def _line(lora: Lora) -> str:
    second = "" if lora.stage2 is None else f":{lora.stage2:g}"
    return f"{lora.source}:{lora.strength:g}{second}" if second or lora.strength != 1 else lora.source


def presets(caps: Caps) -> dict[str, tuple[int, int]]:
    """Sizes by aspect ratio, each with about as many pixels as the variant's own size."""
    pixels = caps.default_width * caps.default_height
    step = 2 * caps.grid if caps.supports_two_stage_refine else caps.grid
    made = {f"{caps.default_width}x{caps.default_height} (its own)": (caps.default_width, caps.default_height)}
    for wide, high in _SHAPES:
        width, height = (round((pixels * ratio) ** 0.5 / step) * step for ratio in (wide / high, high / wide))
        if (width, height) not in made.values():
            made[f"{wide}:{high}, {width}x{height}"] = width, height
    return made


def _media(caps: Caps, asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    if not caps.supports_input_media:
        return {}
    strength = float(values.get("image_strength") or 0.0) if caps.supports_multi_condition else 1.0
    images = []
    for name, frame in (("first_image", 0), ("last_image", -1)):
        path = asked.paths(name, values.get(name))
        if path and (frame == 0 or caps.supports_multi_condition):
            images.append({"path": path, "frame": frame, "strength": strength})
    made: dict[str, Any] = {}
    if caps.supports_multi_condition:
        images += _gallery(asked, values, strength)
        video = asked.paths("prefix_video", values.get("prefix_video"))
        if video:
            made["prefix"] = {
                "path": video,
                "frames": int(values.get("prefix_frames") or 17),
                "skip": int(values.get("prefix_skip") or 0),
                "strength": strength,
            }
    return {**made, "images": images} if images else made


def _gallery(asked: Asked, values: Mapping[str, Any], strength: float) -> list[dict[str, object]]:
    """The further pictures, with the frames and strengths that were given for them."""
    found = [asked.paths("gallery", item) for item in values.get("gallery") or ()]
    paths = [path for path in found if path]
    frames = _numbers("gallery_frames", values, len(paths), int)
    strengths = _numbers("gallery_strengths", values, len(paths), float)
    return [
        {
            "path": path,
            "frame": None if frames is None else frames[n],
            "strength": strength if strengths is None else strengths[n],
        }
        for n, path in enumerate(paths)
    ]


def _numbers(name: str, values: Mapping[str, Any], count: int, kind: Callable[[str], Any]) -> list[Any] | None:
    """The numbers of a text, one a picture; None where there are none. Raises RequestError for other text."""
    text = str(values.get(name) or "").strip()
    if not text or not count:
        return None
    label = next(control.label for control in CONTROLS if control.name == name)
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{label}: {text!r} is no list of numbers; write one a picture, as 0, 48, -1.") from error
    if len(numbers) != count:
        raise RequestError(f"{label}: {len(numbers)} numbers for {count} pictures; write one a picture, or none.")
    return numbers


def create_ui(*theirs: Any) -> None:
    """SD.Next calls this for its LTX tab, with 13 components of its own."""
    from modules.ltx.hosts import sdnext_tab

    sdnext_tab.create(*theirs)
