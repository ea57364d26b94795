"""The command line: argv to Request, Events to a progress bar, results to text or JSON.

Options are generated from the declarations in `request.py`. Torch is imported only by `generate`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from modules.ltx.errors import RequestError
from modules.ltx.hosts import quantizing
from modules.ltx.request import (
    BY_NAME,
    LORA_STRENGTH,
    OPTIONS,
    PREFIX_FRAMES,
    PREFIX_SKIP,
    STRENGTH,
    Option,
    Request,
    default_of,
)
from modules.ltx.version import VERSION

# How the options are grouped in --help; whatever is not named here stands under "video".
GROUPS = {
    "two stages": ("refine", "upsample", "stage2_steps", "refine_strength"),
    "guidance": (
        *("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale"),
        *(
            "audio_guidance_scale",
            "audio_stg_scale",
            "audio_modality_scale",
            "audio_guidance_rescale",
            "stg_blocks",
        ),
    ),
    "self-refiner": (
        *("self_refine", "self_refine_plan", "self_refine_preset", "self_refine_threshold", "self_refine_certain"),
        *("self_refine_decide", "self_refine_guidance", "self_refine_map"),
    ),
    "schedule and decoding": (
        "sampler",
        "sampler_shift",
        "decoder",
        "tile_size",
        "tile_frames",
        "make_room",
        "decode_timestep",
        "image_cond_noise_scale",
    ),
}
SPECIAL = ("model", "variant", "prompt", "dynamic_shift", "audio")
EPILOG = """examples:
  python -m modules.ltx generate --prompt "a small red ball moving right on black"
  python -m modules.ltx generate --model nano --refine --prompt "a blue square bouncing" --seed 7
  python -m modules.ltx plan --model "LTXVideo 2.3 22B T2V" --prompt "a street in the rain" --refine
  python -m modules.ltx generate --from outputs/VIDEO.mp4 --seed 8      the same video with another seed
"""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are RequestErrors, so that they look like all others."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; `{self.prog} --help` lists the options.")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m modules.ltx",
        description="Make video with sound from text and images with Lightricks' LTX models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    models = commands.add_parser("models", help="list every variant, and what each can do")
    plan = commands.add_parser("plan", help="show what would be made, without loading anything")
    generate = commands.add_parser("generate", help="make a video")
    serve = commands.add_parser("serve", help="open the web app on this machine")
    models.add_argument("--markdown", action="store_true", help="print the README's table")
    for sub in (models, plan, generate, serve):
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
    for sub in (plan, generate):
        add_request_options(sub)
    for sub in (plan, generate, serve):
        add_machine_options(sub)
    add_output_options(generate)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    serve.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    serve.add_argument("--outputs", metavar="FOLDER", default="outputs", help="folder for videos (default outputs)")
    serve.add_argument("--loras", metavar="FOLDER", help="folder of the LoRA files that the API may name")
    serve.add_argument("--token-file", metavar="FILE", help="text file with the token that is asked for (or LTX_TOKEN)")
    serve.add_argument("--proxy", metavar="NAME", action="append", help="name of a proxy in front; may be repeated")
    from modules.ltx.cli_queue import add_parsers  # it imports this file

    add_parsers(commands)
    return parser


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Everything a Request holds, grouped."""
    main = parser.add_argument_group("what to make")
    main.add_argument("--from", dest="from_file", metavar="FILE.mp4", help="start from the settings stored in a video")
    for name in ("model", "variant", "prompt"):
        _add(main, BY_NAME[name])
    grouped = {name for names in GROUPS.values() for name in names}
    for option in OPTIONS:
        if option.name not in grouped and option.name not in SPECIAL:
            _add(main, option)
    main.add_argument("--no-audio", dest="audio", action="store_const", const=False, help="write no sound")
    images = parser.add_argument_group("images and LoRA")
    images.add_argument("--image", metavar="FILE", help="first frame (I2V and Condition variants)")
    images.add_argument("--last-image", metavar="FILE", help="last frame (Condition variants)")
    images.add_argument(
        "--image-at",
        nargs=2,
        metavar=("FRAME", "FILE"),
        action="append",
        help="an image at a frame, may be repeated (Condition variants)",
    )
    images.add_argument(
        "--gallery", nargs="+", metavar="FILE", help="images spread evenly over the clip (Condition variants)"
    )
    images.add_argument("--prefix", metavar="FILE", help="a video that the clip begins with (Condition variants)")
    images.add_argument("--prefix-frames", metavar="N", help=f"{PREFIX_FRAMES.help} (default 17)")
    images.add_argument("--prefix-skip", metavar="N", help=f"{PREFIX_SKIP.help} (default 0)")
    images.add_argument("--condition-strength", metavar="X", help=f"{STRENGTH.help}: {STRENGTH.allowed()} (default 1)")
    lora_help = (
        f"LoRA weights, may be repeated; strength is {LORA_STRENGTH.allowed()} (default 1), in stage 2 STAGE2 if given"
    )
    images.add_argument("--lora", metavar="PATH[:STRENGTH[:STAGE2]]", action="append", help=lora_help)
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add(group, BY_NAME[name])
        if "sampler_shift" in names:
            shift: dict[str, Any] = {"dest": "dynamic_shift", "action": "store_const"}
            help_on = "shift the schedule by the stage's token count (the default of 2.x Dev)"
            group.add_argument("--dynamic-shift", const=True, help=help_on, **shift)
            group.add_argument("--no-dynamic-shift", const=False, help="use upstream's 4096-token anchor", **shift)


def _add(group: Any, option: Option) -> None:
    """One option as text; its own parser checks it later, with one sentence for every front door."""
    default = default_of(option.name)
    if option.kind == "bool":
        group.add_argument(option.flag, dest=option.name, action="store_const", const=True, help=option.help)
        return
    shown = f" (default {default})" if default else ""
    allowed = "" if option.kind == "str" else f": {option.allowed()}"
    metavar = {"int": "N", "float": "X", "list": "N,N", "choice": "NAME"}.get(option.kind, "TEXT")
    group.add_argument(option.flag, dest=option.name, metavar=metavar, help=f"{option.help}{allowed}{shown}")


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this machine (left out: chosen by what it has)")
    group.add_argument("--device", metavar="NAME", help="cuda (also ROCm), xpu, mps or cpu")
    group.add_argument("--dtype", metavar="NAME", help="bfloat16, float16 or float32")
    group.add_argument("--offload", metavar="NAME", help="none, model, group or sequential: less memory, more time")
    group.add_argument(
        "--no-share",
        action="store_true",
        help="read each variant's own text encoder and connectors, not one for all that have the same",
    )
    group.add_argument(
        "--quantize", metavar="KIND", help=f"make weights smaller while loading: {', '.join(quantizing.KINDS)}"
    )
    group.add_argument(
        "--quantize-parts",
        metavar="NAMES",
        default=",".join(quantizing.DEFAULT_PARTS),
        help=f"of {', '.join(quantizing.PARTS)} (default {','.join(quantizing.DEFAULT_PARTS)})",
    )
    group.add_argument("--offline", action="store_true", help="never touch the network")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE", help="name of the mp4 (default: outputs/DATE-MODEL-SEED.mp4)")
    group.add_argument("--outputs", metavar="FOLDER", default="outputs", help="folder for names of ours")
    add_file_options(group)
    group.add_argument(
        "--compare", action="store_true", help="make it with the self-refiner off and on, and both side by side"
    )


def add_file_options(group: Any) -> None:
    """How the video's file is written."""
    group.add_argument(
        "--codec", metavar="NAME", default="h264", help="h264 plays everywhere, hevc and av1 are smaller (default h264)"
    )
    group.add_argument("--crf", metavar="N", help="quality, 0 (best) to 51 (default 18; hevc 20, av1 24)")
    group.add_argument("--png", action="store_true", help="write every frame as PNG, too")
    group.add_argument("--no-thumbnail", action="store_true", help="write no thumbnail")


def encoding_of(args: argparse.Namespace) -> Any:
    """The `media.Encoding` of a parsed command line."""
    from modules.ltx.media import Encoding

    crf = Option("crf", "int", "quality", "--crf", 0, 51).parse(args.crf)
    return Encoding(codec=args.codec, crf=crf, png_frames=args.png, thumbnail=not args.no_thumbnail)


def request_of(args: argparse.Namespace) -> Request:
    """The checked Request of a parsed command line, on top of `--from` where that is given."""
    values: dict[str, object] = {}
    if args.from_file is not None:
        from modules.ltx.front import request_of_file

        values = request_of_file(Path(args.from_file))
    given = {option.name: getattr(args, option.name) for option in OPTIONS}
    values |= {name: value for name, value in given.items() if value is not None}
    images, prefix = _images(args), _prefix(args)
    if images:
        values["images"] = images
    if prefix is not None:
        values["prefix"] = prefix
    if args.condition_strength is not None and not images and prefix is None:
        raise RequestError("--condition-strength: there is no image for it; add --image, --last-image or --prefix.")
    if args.lora:
        values["loras"] = [_lora(text) for text in args.lora]
    return Request.parse(values)


def _images(args: argparse.Namespace) -> list[dict[str, object]]:
    strength = 1.0 if args.condition_strength is None else STRENGTH.parse(args.condition_strength)
    placed: list[tuple[str | None, object]] = [(args.image, 0), (args.last_image, -1)]
    placed += [(path, frame) for frame, path in args.image_at or ()]
    placed += [(path, None) for path in args.gallery or ()]
    return [{"path": path, "frame": frame, "strength": strength} for path, frame in placed if path is not None]


def _prefix(args: argparse.Namespace) -> dict[str, object] | None:
    if args.prefix is None:
        for name in ("frames", "skip"):
            if getattr(args, f"prefix_{name}") is not None:
                raise RequestError(f"--prefix-{name}: there is no video for it; add --prefix FILE.")
        return None
    return {
        "path": args.prefix,
        "frames": args.prefix_frames,
        "skip": args.prefix_skip,
        "strength": args.condition_strength,
    }


def _lora(text: str) -> dict[str, object]:
    """PATH, PATH:STRENGTH or PATH:STRENGTH:STAGE2. A colon that no number follows belongs to the path (C:\\x)."""
    source, strengths = text, list[str]()
    while len(strengths) < 2:
        head, colon, tail = source.rpartition(":")
        if not colon or not _is_number(tail):
            break
        source, strengths = head, [tail, *strengths]
    return {"source": source, **dict(zip(("strength", "stage2"), strengths, strict=False))}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def print_json(value: object) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")
