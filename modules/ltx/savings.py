"""What a phase of a plan holds at its peak, as an estimate, and which other settings would hold less, at what price.

Weights are the row's; what decoding and denoising hold beside them is counted by `bench.decode_memory` and
`bench.guidance --memory`, two bytes a number as on accelerators. What kernels take to work in is not in it. Pure, no
torch; knows no page and no host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modules.ltx import recipe, speed, tiles
from modules.ltx.ltx_util import get_frames, token_count
from modules.ltx.plan import DecodePlan, Plan, StagePlan
from modules.ltx.tiles import LADDER, Tiles

BYTES = 2  # of a number: bfloat16 and float16
_STAGES = {"sample": "stage1", "refine": "stage2"}
_LEAST_SIDE, _LEAST_FRAMES = 256, 25  # below these a smaller clip is no clip that anybody wants
_FREE = 0.01  # what a saving that costs nothing is taken to cost, so that savings can be divided by costs


@dataclass(frozen=True)
class Saving:
    """Other settings: `values` of a request, by name. `holds` and `saves` in bytes; `slower`: the share of the phase's
    work that comes on top; `loses`: the share of the clip's pixels that goes."""

    said: str
    values: Mapping[str, Any] = field(default_factory=dict)
    holds: int = 0
    saves: int = 0
    slower: float = 0.0
    loses: float = 0.0

    @property
    def worth(self) -> float:
        """Bytes saved for what it costs. Pixels that are lost count ten times as much as work: they are what was
        asked for."""
        return self.saves / (_FREE + max(self.slower, 0.0) + 10 * self.loses)

    @property
    def figures(self) -> str:
        """What it holds, and its price, in words."""
        price = [f"{self.slower:.0%} more work"] if self.slower >= _FREE else []
        price += [f"{self.loses:.0%} fewer pixels"] if self.loses else []
        return f"about {self.holds / 1e9:.3g} GB instead of {(self.holds + self.saves) / 1e9:.3g}" + "".join(
            f", {one}" for one in price
        )


def held(plan: Plan, phase: str) -> int:
    """Bytes that a phase holds at its peak beside the weights; 0 where nobody has counted."""
    if phase == "decode":
        return BYTES * tiles.peak(_tiles(plan.decode), (plan.width, plan.height, plan.frames))
    stage = next((one for one in plan.stages if one.name == _STAGES.get(phase)), None)
    return 0 if stage is None else _denoising(plan, stage)


def savings(plan: Plan, phase: str) -> list[Saving]:
    """What would hold less in that phase, the most worth first. Never empty-handed while the clip can shrink."""
    found = [*(_smaller_tiles(plan) if phase == "decode" else _smaller_batch(plan, phase)), _smaller_clip(plan, phase)]
    return sorted(found, key=lambda one: -one.worth)


def said(plan: Plan, phase: str, machine: Mapping[str, object]) -> str:
    """A sentence for who ran out of memory: how much the phase holds, and what would hold less."""
    weights, largest = (value for value in recipe.memory_gb(plan.caps).values())
    best, there = savings(plan, phase)[0], held(plan, phase)
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best.values.items())
    beside = f" beside {weights:.3g} GB of weights" if weights >= 0.1 else ""
    told = f"it holds about {there / 1e9:.3g} GB{beside}" if there else f"the weights take {weights:.3g} GB"
    helps = [f"{flags} ({best.figures})" if best.saves > 0 else flags]
    if machine.get("offload") == "none" and not str(machine.get("device", "cpu")).startswith("cpu"):
        helps.append(f"--offload model ({largest:.3g} GB of weights at a time)")
    return f"out of memory in {phase}: {told}; try {', or '.join(helps)}"


def _tiles(decode: DecodePlan) -> Tiles:
    return Tiles(decode.tile_size, decode.tile_frames, decode.overlap_size, decode.overlap_frames)


def _denoising(plan: Plan, stage: StagePlan) -> int:
    return BYTES * speed.numbers_held(plan.caps, stage, speed.at_once(stage))


def _smaller_tiles(plan: Plan) -> list[Saving]:
    clip, now = (plan.width, plan.height, plan.frames), _tiles(plan.decode)
    there = tiles.peak(now, clip)
    return [
        Saving(
            f"Decode in tiles of {one.size} pixels and {one.frames} frames",
            {"tile_size": one.size, "tile_frames": one.frames},
            BYTES * tiles.peak(one, clip),
            BYTES * (there - tiles.peak(one, clip)),
            slower=decoded(one, clip) / decoded(now, clip) - 1,
        )
        for one in LADDER
        if tiles.peak(one, clip) < there
    ]


def _smaller_batch(plan: Plan, phase: str) -> list[Saving]:
    """Guidance's predictions one at a time: of what fills a device no slower (`bench.guidance`)."""
    batch = {"guided_batch": speed.ONE}
    asked = replace(plan, stages=tuple(alone(stage) for stage in plan.stages))
    there, holds = held(plan, phase), held(asked, phase)
    return [Saving("Predict one at a time", batch, holds, there - holds)] if holds < there else []


def alone(stage: StagePlan) -> StagePlan:
    """The stage with one prediction a forward."""
    return replace(stage, speed=replace(stage.speed, batch=speed.ONE)) if stage.streams > 1 else stage


def decoded(one: Tiles, clip: Sequence[int]) -> float:
    """How often each pixel of a clip (width, height, frames) is decoded: what tiles share is decoded again."""
    spans = ((one.size, one.shared, clip[0]), (one.size, one.shared, clip[1]), (one.frames, one.shared_frames, clip[2]))
    often = 1.0
    for size, shared, whole in spans:
        count = 1 if whole <= size else -(-(whole - shared) // (size - shared))
        often *= (whole + (count - 1) * shared) / whole
    return often


def _smaller_clip(plan: Plan, phase: str) -> Saving:
    """Half the pixels, else half the frames."""
    values, clip = _shrunk(plan)
    there = held(plan, phase)
    if phase == "decode":
        holds = BYTES * tiles.peak(_tiles(plan.decode), clip)
    else:
        holds = round(there * token_count(*clip) / token_count(plan.width, plan.height, plan.frames))
    loses = 1 - clip[0] * clip[1] * clip[2] / (plan.width * plan.height * plan.frames)
    what = f"{values['width']}x{values['height']}" if "width" in values else f"{values['frames']} frames of it"
    return Saving(f"Make {'it ' if 'width' in values else ''}{what}", values, holds, there - holds, loses=loses)


def _shrunk(plan: Plan) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Values of a request, and the clip (width, height, frames) that comes of them."""
    step = plan.caps.grid * (2 if plan.request.refine else 1)
    ratio = plan.request.upsample or 1.0
    width, height = (max(round(side / ratio * 0.7 / step) * step, step) for side in (plan.width, plan.height))
    if min(width, height) >= _LEAST_SIDE or plan.frames <= _LEAST_FRAMES:
        return {"width": width, "height": height}, (round(width * ratio), round(height * ratio), plan.frames)
    frames = get_frames(plan.frames // 2, plan.caps.frame_ratio)
    return {"frames": frames}, (plan.width, plan.height, frames)


def next_tiles(plan: Plan) -> DecodePlan | None:
    """How to decode instead in the tiles that are worth most; None where there are no smaller ones."""
    found = sorted(_smaller_tiles(plan), key=lambda one: -one.worth)
    if not found:
        return None
    size, frames = (found[0].values[name] for name in ("tile_size", "tile_frames"))
    one = next(tile for tile in LADDER if (tile.size, tile.frames) == (size, frames))
    return replace(
        plan.decode,
        tile_size=one.size,
        tile_frames=one.frames,
        overlap_size=one.shared,
        overlap_frames=one.shared_frames,
        tiles_given=True,
    )
