"""What is tried by itself where memory runs out in a phase, one rung after the other, where the plan says `make_room`.

A rung says what it changed, or that it has nothing to give; the phase is then done again from the state before it, so
that nothing is sampled twice. Rungs are asked in their order each time: one may be taken several times. A further one
is another function in LADDER. Knows the plan and the host; does not know what a phase does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from modules.ltx import savings
from modules.ltx.host import Host
from modules.ltx.plan import Plan

Rung = Callable[[Plan, str, Host], "tuple[Plan, str] | None"]


def smaller_tiles(plan: Plan, phase: str, host: Host) -> tuple[Plan, str] | None:
    """Of decoding alone; what comes out differs where seams are."""
    decode = savings.next_tiles(plan) if phase == "decode" else None
    if decode is None:
        return None
    return replace(plan, decode=decode), f"tiles of {decode.tile_size} pixels and {decode.tile_frames} frames"


def more_offload(plan: Plan, phase: str, host: Host) -> tuple[Plan, str] | None:
    """Of every phase; slower, and the same comes out."""
    done = host.relieve(plan.caps)
    return (plan, done) if done else None


def one_prediction(plan: Plan, phase: str, host: Host) -> tuple[Plan, str] | None:
    """Of sampling with guidance; about as fast, and the same comes out but for rounding."""
    stages = tuple(savings.alone(stage) for stage in plan.stages)
    less = replace(plan, stages=stages)
    if savings.held(less, phase) >= savings.held(plan, phase):
        return None
    return less, "one prediction of guidance at a time"


LADDER: tuple[Rung, ...] = (smaller_tiles, more_offload, one_prediction)


def eased(plan: Plan, phase: str, host: Host) -> tuple[Plan, str] | None:
    """The plan to do the phase with again, and a note; None where nobody asked for it, or nothing is left to give."""
    if not plan.make_room:
        return None
    found = next((found for rung in LADDER if (found := rung(plan, phase, host)) is not None), None)
    return None if found is None else (found[0], f"out of memory in {phase}, done again with {found[1]}")
