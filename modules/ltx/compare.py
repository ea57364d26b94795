"""The same job with the self-refiner off and on, and both side by side in one video.

Knows files and runs; what is compared is in the two plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from modules.ltx.errors import RequestError
from modules.ltx.front import settle
from modules.ltx.host import Host
from modules.ltx.ltx_process import run
from modules.ltx.ltx_util import random_seed
from modules.ltx.media import Encoding, write_video
from modules.ltx.plan import Plan
from modules.ltx.request import Request, default_of
from modules.ltx.state import State

NAMES = ("off", "on")
CHUNK = 8  # frames read at a time


def both(request: Request, host: Host) -> tuple[Plan, Plan]:
    """The plans without and with the self-refiner, of one seed. Raises RequestError where the two are the same."""
    seed = random_seed() if request.seed is None else request.seed
    on = settle(replace(request, seed=seed), host)
    if on.refiner is None or on.evaluations == sum(len(stage.sigmas) for stage in on.stages):
        raise RequestError("--compare: nothing is refined, so there is nothing to compare; add --self-refine p1.")
    unset = {f.name: default_of(f.name) for f in fields(Request) if f.name.startswith("self_refine_")}
    plain = replace(request, seed=seed, self_refine="off", **unset)
    return settle(plain, host), on


def compare(plans: tuple[Plan, Plan], host: Host, *, path: Path, encoding: Encoding) -> tuple[State, State]:
    """Write STEM-off.mp4, STEM-on.mp4, and `path` with the one left of the other and the refined one's sound.

    Raises what `run` raises; the videos that were finished by then stay.
    """
    targets = [path.with_name(f"{path.stem}-{name}.mp4") for name in NAMES]
    off, on = (run(plan, host, path=target, encoding=encoding) for plan, target in zip(plans, targets, strict=True))
    sides = [frames(target) for target in targets]
    pairs = (np.concatenate(pair, axis=2) for pair in zip(*sides, strict=True))
    title = {
        "title": f"self-refiner off | on: {plans[1].prompt[:160]}",
        "left": str(targets[0]),
        "right": str(targets[1]),
    }
    write_video(path, pairs, fps=plans[1].fps, sound=None, metadata=title, encoding=replace(encoding, crf=12))
    return off, on


def frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The pictures of an mp4 of ours, (n, height, width, 3) at a time."""
    held: list[Any] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            held.append(frame.to_ndarray(format="rgb24"))
            if len(held) == CHUNK:
                yield np.stack(held)
                held = []
    if held:
        yield np.stack(held)
