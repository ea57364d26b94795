"""How long the clip is to be, where the model itself says so: LTX 2.5 reads it from the encoded prompt."""

from __future__ import annotations

from dataclasses import replace

import torch

from modules.ltx.host import Host
from modules.ltx.plan import Plan
from modules.ltx.plan import plan as make_plan
from modules.ltx.state import State

# LTX2Pipeline.__call__ and ltx_pipelines DEFAULT_AUTO_DURATION
MIN_SECONDS, MAX_SECONDS = 1.0, 20.0


def settle(state: State, host: Host) -> State:
    """The state with a plan of the predicted length; as it is where the length was given."""
    plan = state.plan
    if not plan.predicts_frames:
        return state
    frames = _predicted(state, host)
    if frames is None:
        said = f"frames: this copy of the model has no duration head; {plan.frames} are made"
        return replace(state, plan=replace(plan, predicts_frames=False), notes=(*state.notes, said))
    settled = planned_again(plan, frames, host)
    said = f"frames: {settled.frames} made, the {settled.seconds:.2f} s that the model expects of this prompt"
    return replace(state, plan=settled, notes=(*state.notes, said))


def planned_again(plan: Plan, frames: int, host: Host) -> Plan:
    """The plan with its length known, and its prompt as it was encoded. The request stays what was asked: asked again,
    it is predicted again."""
    asked = replace(plan.request, frames=frames)
    again = make_plan(asked, plan.caps, plan.found, host.denoise_callback())
    return replace(again, request=plan.request, prompt=plan.prompt, decode=plan.decode)


def _predicted(state: State, host: Host) -> int | None:
    plan, embeds = state.plan, state.embeds
    with host.pipeline(plan.caps, plan.caps.pipeline) as pipe, torch.no_grad():
        head = getattr(pipe, "duration_head", None)
        if head is None or embeds is None:
            return None
        device = host.device(pipe)
        side = getattr(pipe.tokenizer, "padding_side", "left")
        video, sound, _ = pipe.connectors(embeds.prompt.to(device), embeds.prompt_mask.to(device), padding_side=side)
        return int(
            head.to(device).predict_num_frames(
                video[:1],
                sound[:1],
                frame_rate=plan.fps,
                temporal_compression_ratio=plan.caps.frame_ratio,
                min_seconds=MIN_SECONDS,
                max_seconds=MAX_SECONDS,
            )
        )
