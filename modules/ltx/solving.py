"""The plan's solver, borrowed by a pipeline for one stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from modules.ltx import borrow
from modules.ltx.ltx_util import seed_for
from modules.ltx.plan import StagePlan
from modules.ltx.res2s import FlowMatchRes2sScheduler
from modules.ltx.samplers import (
    FlowMatchAncestralScheduler,
    FlowMatchGradientScheduler,
    FlowMatchHeunScheduler,
    FlowMatchSolver,
    sampler,
    watched,
)
from modules.ltx.scheduler import FlowMatchPlanScheduler


def kind_of(name: str) -> type[FlowMatchPlanScheduler]:
    """The scheduler class of a sampler's name."""
    kinds: dict[str, type[FlowMatchPlanScheduler]] = {
        "euler": FlowMatchPlanScheduler,
        "euler_ancestral": FlowMatchAncestralScheduler,
        "gradient_estimation": FlowMatchGradientScheduler,
        "heun": FlowMatchHeunScheduler,
        "res_2s": FlowMatchRes2sScheduler,
    }
    return kinds[name]


@contextmanager
def solving(pipe: Any, stage: StagePlan, seed: int) -> Iterator[Any]:
    """`pipe` with a fresh scheduler over the stage's sigmas; `seed` is the job's, the stage draws from its own."""
    sigmas = (*stage.scheduler.skipped, *stage.sigmas)
    ours = sampler(pipe.scheduler, kind_of(stage.scheduler.sampler), sigmas)
    with ExitStack() as borrowed:
        if isinstance(ours, FlowMatchSolver):
            ours.settle(seed=seed_for(seed, stage.name))
            borrowed.enter_context(watched(pipe.transformer, ours))
        yield borrowed.enter_context(borrow.scheduler(pipe, ours))
