"""What the user asks for: one frozen record, every option declared once with its unit, range and help.

The command line, the tab and the API all build a `Request` from the same declarations (`OPTIONS`).
Parsing and range checks live here; what a variant allows, and every default that depends on the
variant, is decided in `plan.py`. `None` always means "the variant's own default".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from modules.ltx.errors import RequestError

MAX_SIDE = 4096  # pixels; 4096x4096x9 is already 32768 tokens, more than any LTX model was trained on
MAX_FRAMES = 2401  # 100 s at 24 fps; upstream's longest published clips are 20 s
MAX_SEED = 2**63 - 1  # torch.Generator.manual_seed takes a signed 64-bit integer
SAMPLERS = ("euler", "euler_ancestral", "gradient_estimation", "heun", "res_2s")
DECODERS = ("vae", "diffusion")
BATCHES, CACHES, SPEEDS = ("auto", "one", "two", "all"), ("off", "guidance", "taylorseer"), ("safe", "fast")
MAX_PROMPT = 1_000_000  # characters; the tokenizer cuts far earlier, this only bounds the metadata


@dataclass(frozen=True)
class Option:
    """How one field of `Request` is shown and checked. `kind` is one of int, float, bool, str, list, choice."""

    name: str
    kind: str
    help: str
    flag: str
    low: float | None = None
    high: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()

    def allowed(self) -> str:
        """The range in words, for help texts and error sentences."""
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
        kind = words.get(self.kind, "a comma-separated list of whole numbers")
        unit = f" {self.unit}" if self.unit else ""
        if self.low is None or self.high is None:
            return f"{kind}{unit}"
        low, high = (str(x) if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        return f"{kind} from {low} to {high}{unit}"

    def parse(self, value: object) -> Any:
        """`value` (text or a JSON value) as this option's type; None stays None. Raises RequestError."""
        if value is None:
            return None
        parsed = _PARSERS[self.kind](value)
        if parsed is None or (self.choices and parsed not in self.choices):
            raise RequestError(f"{self.flag} {value!r}: not valid; it takes {self.allowed()}.")
        for number in parsed if isinstance(parsed, tuple) else (parsed,):
            if self.low is not None and self.high is not None and not self.low <= number <= self.high:
                raise RequestError(f"{self.flag} {value}: out of range; it takes {self.allowed()}.")
        return parsed


def _int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(str(value).strip())
    except ValueError:
        return None


def _float(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value).strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bool(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False, "1": True, "0": False}.get(str(value).strip().lower())


def _text(value: object) -> str | None:
    # A lone surrogate (from a badly decoded argv) cannot be written to the metadata as UTF-8.
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        return None
    return value.encode("utf-8", "replace").decode("utf-8")


def _ints(value: object) -> tuple[int, ...] | None:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        return None
    numbers = [_int(part) for part in parts]
    return None if None in numbers else tuple(n for n in numbers if n is not None)


_PARSERS: Mapping[str, Any] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _text,
    "list": _ints,
    "choice": _text,
}


@dataclass(frozen=True)
class ImageAt:
    """An image that the video must show: `frame` is a pixel frame, 0 the first, -1 the last.

    None: images without a frame are spread evenly over the clip, from its first frame to its last.
    """

    path: str
    frame: int | None = 0
    strength: float = 1.0


@dataclass(frozen=True)
class Prefix:
    """What the video begins with: `frames` frames of a video file, the first `skip` of it left out."""

    path: str
    frames: int = 17
    skip: int = 0
    strength: float = 1.0


@dataclass(frozen=True)
class Lora:
    """LoRA weights (a file, a folder or a hub repo) and how strongly they act, 1.0 as trained, 0 not at all.

    `stage2`: in stage 2; None is as strongly as in stage 1.
    """

    source: str
    strength: float = 1.0
    stage2: float | None = None


def option(
    kind: str,
    help: str,
    *,
    default: Any = None,
    between: tuple[float, float] | None = None,
    flag: str = "",
    unit: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries its own `Option` declaration (without the name, which follows)."""
    low, high = between if between is not None else (None, None)
    declared = {"kind": kind, "help": help, "flag": flag, "low": low, "high": high, "unit": unit, "choices": choices}
    return field(default=default, metadata={"option": declared})


def scale(help: str, top: float) -> Any:
    """A number from 0 to `top`; see `option`."""
    return option("float", help, between=(0, top))


@dataclass(frozen=True)
class Request:
    """Everything a user can ask for. Build it with `Request.parse` to get the checks."""

    model: str = option("str", "an id, a label of `models`, a folder, a hub repo, or `nano`", default="nano")
    variant: str | None = option("str", "treat the folder or repo of --model as this variant (id or label)")
    prompt: str = option("str", "what the video shows and sounds like", default="")
    enhance_prompt: bool = option(
        "bool",
        "expand the prompt with the model's prompt enhancer, which also sees the first image (LTX 2.5)",
        default=False,
    )
    negative: str | None = option("str", "what the video should not show; only used with a guidance scale above 1")
    seed: int | None = option("int", "the same seed makes the same video; default: random", between=(0, MAX_SEED))
    steps: int | None = option("int", "denoising steps of stage 1", between=(1, 200))
    width: int | None = option("int", "width of the result", between=(32, MAX_SIDE), unit="pixels")
    height: int | None = option("int", "height of the result", between=(32, MAX_SIDE), unit="pixels")
    frames: int | None = option("int", "length, rounded down to 8k+1", between=(1, MAX_FRAMES), unit="frames")
    fps: float | None = option("float", "frames per second", between=(1, 120), unit="fps")

    refine: bool = option(
        "bool",
        "two stages: stage 1 at half the size, 2x upsampling of the latents, stage 2 at the full size",
        default=False,
    )
    upsample: float | None = option(
        "float",
        "upsample the latents by this ratio; width and height are then the size before upsampling",
        between=(1, 4),
    )
    stage2_steps: int | None = option("int", "denoising steps of stage 2", between=(1, 60))
    refine_strength: float | None = option(
        "float", "how much noise stage 2 adds before it denoises again (LTX 0.9)", between=(0.05, 0.95)
    )

    guidance_scale: float | None = scale("how strongly the video follows the prompt; 1 is off", 30)
    stg_scale: float | None = scale(
        "steers the video away from a prediction that skips some blocks (STG); 0 is off", 10
    )
    modality_scale: float | None = scale("how strongly the video follows the sound; 1 is off", 30)
    guidance_rescale: float | None = scale("reduces the over-exposure that guidance causes; 0 is off", 1)
    audio_guidance_scale: float | None = scale("how strongly the sound follows the prompt; 1 is off", 30)
    audio_stg_scale: float | None = scale(
        "steers the sound away from a prediction that skips some blocks; 0 is off", 10
    )
    audio_modality_scale: float | None = scale("how strongly the sound follows the video; 1 is off", 30)
    audio_guidance_rescale: float | None = scale("limits how much guidance amplifies the sound; 0 is off", 1)
    stg_blocks: tuple[int, ...] | None = option(
        "list", "transformer blocks that STG skips, such as 28 or 28,29", between=(0, 999)
    )

    sampler: str | None = option(
        "choice",
        "solver of stage 1; res_2s is Lightricks' HQ recipe: 15 steps with two evaluations each, in both stages",
        choices=SAMPLERS,
    )
    sampler_shift: float | None = option(
        "float",
        "shift of the sigma schedule: larger values spend more steps at high noise; below 0, size and length decide",
        between=(-1, 10),
    )
    dynamic_shift: bool | None = option(
        "bool", "choose the shift of the sigma schedule by the size and length of the video"
    )
    guided_batch: str | None = option(
        "choice",
        "how many predictions of guidance one forward pass computes: one takes the least memory, all reads the weights"
        " once per step; auto takes two, or one where two do not fit",
        choices=BATCHES,
    )
    cache: str | None = option(
        "choice",
        "what every second evaluation of stage 1 reuses of earlier ones: guidance alone, or all of it (taylorseer)",
        choices=CACHES,
    )
    speed: str | None = option(
        "choice",
        "fast compiles the transformer: the first video takes a minute or more longer; results differ by rounding",
        choices=SPEEDS,
    )
    decoder: str | None = option(
        "choice",
        "decoder of the latents: the VAE, or the diffusion decoder of LTX 2.5 (finer details, slower, much memory)",
        choices=DECODERS,
    )
    tile_size: int | None = option(
        "int",
        "side of the tiles that are decoded; by default the memory of the device decides",
        between=(128, 4096),
        unit="pixels",
    )
    tile_frames: int | None = option(
        "int",
        "length of the tiles that are decoded; by default also chosen by memory",
        between=(16, 1024),
        unit="frames",
    )
    make_room: bool = option(
        "bool",
        "when memory runs out, try again with smaller tiles, then with more offload, and report it",
        default=False,
    )
    decode_timestep: float | None = scale("noise level at which the VAE decodes (LTX 0.9)", 1)
    image_cond_noise_scale: float | None = scale("noise on the given images; more allows more motion (LTX 0.9)", 1)
    audio: bool = option("bool", "write the sound into the file", default=True)

    self_refine: str | None = option(
        "choice",
        "predict some steps several times, for steadier motion; p1 (recommended) and p2 are measures of agreement",
        choices=("off", "p1", "p2", "p2-wan2gp"),
    )
    self_refine_plan: str | None = option(
        "str",
        "how often steps are predicted: 2-6:2 predicts steps 2 to 6 twice; after `;` comes stage 2, as in 2-6:2;1-2:2",
    )
    self_refine_preset: str | None = option(
        "choice",
        "a named plan, in place of a plan of your own",
        choices=("light", "light-both", "strong", "strong-both", "paper"),
    )
    self_refine_threshold: float | None = option(
        "float", "two predictions agree where they differ by less than this (default 0.1; 0: never)", between=(0, 1)
    )
    self_refine_certain: float | None = option(
        "float", "share of the video that must agree before a step ends early (default 0.999)", between=(0, 1)
    )
    self_refine_decide: str | None = option(
        "choice",
        "which part must agree before a step ends early: video, both, or any of video and sound (default video)",
        choices=("video", "both", "any"),
    )
    self_refine_guidance: str | None = option(
        "choice",
        "guidance of repeated predictions: full (default) computes it again, reuse takes that of the first",
        choices=("full", "reuse"),
    )
    self_refine_map: bool = option(
        "bool", "also write an image that shows where the predictions differed", default=False
    )

    images: tuple[ImageAt, ...] = ()
    prefix: Prefix | None = None
    loras: tuple[Lora, ...] = ()

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Request:
        """A checked Request from text or JSON values. Unknown names and bad values raise RequestError."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise RequestError(f"unknown option {unknown[0]!r}; known are: {', '.join(o.name for o in OPTIONS)}.")
        given = {name: BY_NAME[name].parse(value) for name, value in values.items() if name in BY_NAME}
        kept = {name: value for name, value in given.items() if value is not None}
        images = tuple(_image(item) for item in _items(values, "images"))
        loras = tuple(_lora(item) for item in _items(values, "loras"))
        return cls(**kept, images=images, prefix=_prefix(values.get("prefix")), loras=loras)

    def to_json(self) -> dict[str, Any]:
        """JSON values of what was asked, without what was left at None; `parse` reads it back."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def _options() -> tuple[Option, ...]:
    declared = [(f.name, f.metadata["option"]) for f in fields(Request) if "option" in f.metadata]
    return tuple(
        Option(name=name, **{**given, "flag": given["flag"] or "--" + name.replace("_", "-")})
        for name, given in declared
    )


OPTIONS = _options()
BY_NAME: Mapping[str, Option] = {o.name: o for o in OPTIONS}
STRENGTH = Option("strength", "float", "strength of an image", "--condition-strength", 0.0, 1.0)
PREFIX_FRAMES = Option(
    "frames", "int", "frames of the video to begin with; 8k+1 is kept", "--prefix-frames", 1, MAX_FRAMES
)
PREFIX_SKIP = Option("skip", "int", "frames of the file to leave out before it", "--prefix-skip", 0, 10_000_000)
LORA_STRENGTH = Option("strength", "float", "strength of a LoRA", "--lora PATH:STRENGTH:STAGE2", -4.0, 4.0)
FRAME = Option("frame", "int", "frame an image stands at", "frame", -1, MAX_FRAMES)


def default_of(name: str) -> Any:
    """The default of a Request field, for help texts."""
    value = Request.__dataclass_fields__[name].default
    return None if value is MISSING else value


def _items(values: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    items = values.get(name) or ()
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Mapping) for item in items):
        raise RequestError(f"{name}: not valid; it takes a list of objects.")
    return list(items)


def _image(item: Mapping[str, object]) -> ImageAt:
    _only(item, "images", {"path", "frame", "strength"})
    frame = FRAME.parse(item.get("frame", 0))
    return ImageAt(_path(item, "path", "image"), frame, STRENGTH.parse(item.get("strength", 1.0)))


def _prefix(item: object) -> Prefix | None:
    if item is None:
        return None
    if not isinstance(item, Mapping):
        raise RequestError("prefix: not valid; it takes an object.")
    _only(item, "prefix", {"path", "frames", "skip", "strength"})
    checks = {"frames": PREFIX_FRAMES, "skip": PREFIX_SKIP, "strength": STRENGTH}
    given = {name: option.parse(item.get(name)) for name, option in checks.items()}
    kept = {name: value for name, value in given.items() if value is not None}
    return Prefix(_path(item, "path", "prefix"), **kept)


def _lora(item: Mapping[str, object]) -> Lora:
    _only(item, "loras", {"source", "strength", "stage2"})
    first, second = LORA_STRENGTH.parse(item.get("strength", 1.0)), LORA_STRENGTH.parse(item.get("stage2"))
    return Lora(_path(item, "source", "LoRA"), first, second)


def _only(item: Mapping[str, object], where: str, allowed: set[str]) -> None:
    unknown = sorted(set(item) - allowed)
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; known are: {', '.join(sorted(allowed))}.")


def _path(item: Mapping[str, object], key: str, what: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise RequestError(f"{what} {value!r}: not a path; give the path of a file.")
    return value
