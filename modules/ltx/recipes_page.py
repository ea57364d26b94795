"""Writes the tables of docs/recipes.md: `python -m modules.ltx.recipes_page`.

What this project does is read from the rows, diffusers' defaults from the signatures of the installed pipelines;
only upstream's side is written down here, each with its source.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modules.ltx.capability_rows import Caps, Guidance
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.plan import Plan, StagePlan, plan
from modules.ltx.request import Request
from modules.video_models.ltx_models import CONDITION_09, T2V, T2V_09

# Lightricks/LTX-2: ltx_pipelines/utils/constants.py, ti2vid_two_stages.py, distilled.py, ltx_core schedulers.py.
_DEV = {
    "steps": "30",
    "schedule": "LTX2Scheduler for 4096 tokens (m = 2.05), whatever the size",
    "sampler": "euler",
    "video guidance": "cfg 3, stg 1, modality 3, rescale 0.7",
    "sound guidance": "cfg 7, stg 1, modality 3, rescale 0.7",
    "STG blocks": "28",
    "image CRF": "33",
    "size": "768x512 in stage 1, 121 frames, 24 fps",
    "stage 2": "0.909375, 0.725, 0.421875; no guidance, LoRA 1",
    "sound of two stages": "stage 1",
    "negative prompt": "as of 2.5, for all",
}
_DISTILLED = _DEV | {
    "steps": "8",
    "schedule": "the eight published sigmas",
    "video guidance": "none",
    "sound guidance": "none",
    "STG blocks": "-",
    "stage 2": "0.909375, 0.725, 0.421875; no guidance",
    "sound of two stages": "stage 2",
    "negative prompt": "none",
}
# Lightricks/LTX-Video: configs/ltxv-*.yaml.
_OLD = {
    "steps": "40",
    "schedule": "as the checkpoint says",
    "sampler": "euler",
    "video guidance": "cfg 3, stg 1, rescale 0.7",
    "decode timestep, noise": "0.05, 0.025",
    "stage 2": "-",
    "negative prompt": "LTX-Video's five faults",
}
_OLD_DISTILLED = _OLD | {"steps": "8", "video guidance": "none", "negative prompt": "none"}
UPSTREAM: Mapping[str, Mapping[str, str]] = {
    "2.0-dev-t2v": _DEV | {"steps": "40", "STG blocks": "29"},
    "2.3-dev-t2v": _DEV,
    "2.3-distilled-t2v": _DISTILLED,
    "2.5-dev-t2v": _DEV | {"image CRF": "18", "negative prompt": "as of 2.5"},
    "2.5-distilled-t2v": _DISTILLED | {"image CRF": "18", "sampler": "euler_ancestral in stage 1, euler in stage 2"},
    "0.9.0-t2v": _OLD,
    "0.9.1-t2v": _OLD,
    "0.9.5-t2v": _OLD,
    "0.9.6-t2v": _OLD,
    "0.9.6-distilled-t2v": _OLD_DISTILLED | {"sampler": "euler with fresh noise at each step"},
    "0.9.7-dev": _OLD
    | {
        "steps": "30, the last 3 left out",
        "video guidance": "seven segments: cfg 1, 1, 6, 8, 6, 1, 1; stg 0, 0, 4, 4, 4, 2, 1",
        "stage 2": "first pass at 2/3 size; 13 of 30 steps, cfg 1, stg 1",
    },
    "0.9.8-distilled": _OLD_DISTILLED
    | {"steps": "7", "stage 2": "first pass at 2/3 size; 0.9094, 0.725, 0.4219; no guidance"},
}


_THEIR_SCHEDULE = {
    T2V: "the repo's scheduler config: by the clip's tokens",
    T2V_09: "uniform, shifted by the repo's config",
    CONDITION_09: "linear-quadratic",
}


def rows() -> Iterator[tuple[Caps, Mapping[str, str]]]:
    """The variants that have a table, and upstream's side."""
    by_id = {caps.id: caps for caps in all_caps()}
    for name, theirs in UPSTREAM.items():
        yield by_id[name], theirs


def ours(caps: Caps) -> dict[str, str]:
    """What the plan of a plain request says, one stage and two."""
    caps = replace(caps, unavailable=())
    one = plan(Request(prompt="x"), caps)
    stage = one.stages[0]
    guidance = stage.guidance or Guidance()
    told = {
        "steps": str(len(stage.sigmas)),
        "schedule": _schedule(stage),
        "sampler": stage.scheduler.sampler,
        "video guidance": _scales(guidance, ""),
        "sound guidance": _scales(guidance, "audio_"),
        "STG blocks": ", ".join(map(str, guidance.stg_blocks)) or "-",
        "image CRF": str(caps.image_crf),
        "size": f"{one.width}x{one.height}, {one.frames} frames, {one.fps:g} fps",
        "decode timestep, noise": f"{one.decode.timestep}, {one.decode.noise_scale}",
        "negative prompt": _negative(one),
        "stage 2": "-",
    }
    if one.decode.timestep is None:
        del told["decode timestep, noise"]
    if not caps.supports_audio:
        for name in ("sound guidance", "STG blocks", "image CRF"):
            del told[name]
    if caps.supports_two_stage_refine:
        two = plan(Request(prompt="x", refine=True), caps)
        last = two.stages[-1]
        lora = f", LoRA {last.lora.strength:g}" if last.lora else ""
        told["stage 2"] = f"{', '.join(f'{sigma:.6g}' for sigma in last.sigmas)}; no guidance{lora}"
        if last.scheduler.sampler != stage.scheduler.sampler:
            told["sampler"] = f"{stage.scheduler.sampler} in stage 1, {last.scheduler.sampler} in stage 2"
        if caps.supports_audio:
            told["sound of two stages"] = str(two.audio_from).replace("stage", "stage ")
    return told


def _negative(settled: Plan) -> str:
    if not settled.needs_negative:
        return "none"
    if settled.negative is None:
        return "as of 2.5" if settled.caps.negative_opening else "as of 2.0"
    return "LTX-Video's five faults"


def _schedule(stage: StagePlan) -> str:
    shift = "" if stage.scheduler.shift is None else f" (m = {stage.scheduler.shift:.4g} for its {stage.tokens} tokens)"
    names = {
        "token-count": "LTX2Scheduler for the stage's own tokens",
        "distilled": "the eight published sigmas",
        "linear-quadratic": "linear-quadratic",
        "linear": "uniform, stretched to end at 0.1",
    }
    return names[stage.scheduler.source] + shift


def _scales(guidance: Guidance, stream: str) -> str:
    names = {"cfg": "guidance_scale", "stg": "stg_scale", "modality": "modality_scale", "rescale": "guidance_rescale"}
    idle = {"cfg": 1.0, "stg": 0.0, "modality": 1.0, "rescale": 0.0}
    values = {short: getattr(guidance, stream + name) for short, name in names.items()}
    return ", ".join(f"{short} {value:g}" for short, value in values.items() if value != idle[short]) or "none"


def defaults(caps: Caps) -> dict[str, str]:
    """What the variant's diffusers class does with a prompt alone."""
    import diffusers

    asked = inspect.signature(getattr(diffusers, caps.pipeline).__call__).parameters
    told: dict[str, Any] = {name: parameter.default for name, parameter in asked.items()}
    scales = Guidance(**{name: told[name] for name in vars(Guidance()) if name in told and told[name] is not None})
    new = caps.supports_audio
    decode = told["decode_timestep"], told["decode_noise_scale"]
    frames = told["num_frames"] or 121
    made = {
        "steps": str(told["num_inference_steps"]),
        "schedule": _THEIR_SCHEDULE[caps.pipeline],
        "sampler": "euler",
        "video guidance": _scales(scales, ""),
        "size": f"{told['width']}x{told['height']}, {frames} frames, {told['frame_rate']:g} fps",
        "decode timestep, noise": f"{decode[0]}, {decode[0] if decode[1] is None else decode[1]}",
        "stage 2": "by hand",
        "negative prompt": "none",
    }
    if new:
        made["sound guidance"] = _scales(scales, "audio_")
        made["STG blocks"] = ", ".join(map(str, told["spatio_temporal_guidance_blocks"]))
        made["image CRF"] = "asks the loaded text encoder; 33 without one"
        made["sound of two stages"] = "by hand"
    return made


def page() -> Iterator[str]:
    """Markdown: a table a variant; what differs from here is bold."""
    for caps, theirs in rows():
        here, default = ours(caps), defaults(caps)
        yield f"### {caps.label.replace(' T2V', '')}"
        yield ""
        yield f"`{caps.source}`, `{caps.pipeline}`"
        yield ""
        yield "| | here | Lightricks | diffusers' defaults |"
        yield "|---|---|---|---|"
        for name, value in here.items():
            cells = (_marked(side.get(name, "-"), value) for side in (theirs, default))
            yield f"| {name} | {value} | {' | '.join(cells)} |"
        yield ""


def _marked(theirs: str, here: str) -> str:
    return theirs if theirs in (here, "-") else f"**{theirs}**"


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()))
