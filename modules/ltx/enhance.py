"""The prompt written out by the model's own prompt enhancer, where the user wants that: LTX 2.5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from modules.ltx import borrow
from modules.ltx.errors import LTXError
from modules.ltx.host import Host
from modules.ltx.ltx_util import centre_box
from modules.ltx.state import Event, State

SEED = 10  # of ltx_pipelines and diffusers; the enhancer of 2.5 decodes greedily, so that it hardly matters


def settle(state: State, host: Host) -> State:
    """The state with the prompt that the enhancer makes of the plan's; as it is where nobody asked for that.

    The request keeps the user's words, so that a repeated file is enhanced again.
    """
    plan = state.plan
    if not plan.enhances_prompt:
        return state
    host.emit(Event("encode", 0, 1, planned=plan.evaluations, message="writing the prompt out"))
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),  # enhance_prompt seeds the global generators
        host.enhancer(plan.caps) as pipe,
        borrow.forward_hook(pipe.prompt_enhancer, host.poll),  # once a token
    ):
        image = _first_frame(state)
        text = pipe.enhance_prompt(
            prompt=plan.prompt,
            system_prompt=_system_prompt(image),
            seed=SEED,
            device=pipe.prompt_enhancer.device,
            image=image,
        )[0].strip()
    if not text:
        raise LTXError("the prompt enhancer answered nothing; leave --enhance-prompt out")
    return replace(state, plan=replace(plan, prompt=text), notes=(*state.notes, f"prompt, written out: {text}"))


def _first_frame(state: State) -> Any:
    """The picture the clip begins with, as the first stage will show it; None where it begins with none."""
    stage = state.plan.stages[0]
    firsts = [image for image, at in zip(state.images, state.plan.images, strict=True) if at.frame == 0]
    first = next(iter((*firsts, *state.prefix)), None)
    return None if first is None else first.crop(centre_box(first.size, stage.width, stage.height))


def _system_prompt(image: Any) -> str:
    from diffusers.pipelines.ltx2 import utils

    return str(utils.LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT if image is None else utils.LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT)
