"""Samplers from a request to the transformer: which one a variant runs, the HQ recipe, counts, events, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from modules.ltx import stages
from modules.ltx.errors import RequestError
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_capabilities import all_caps, caps_for
from modules.ltx.plan import Plan, plan
from modules.ltx.request import SAMPLERS, Request
from modules.ltx.state import Event, State

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]


def make(model: str, **options: object) -> Plan:
    caps, notes = caps_for(model)
    # What this machine lacks is another matter.
    return plan(Request.parse({"prompt": "x", **options}), replace(caps, unavailable=()), notes)


def samplers(made: Plan) -> list[str]:
    return [stage.scheduler.sampler for stage in made.stages if stage.sigmas]


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_every_variants_own_sampler(caps: object) -> None:
    row = next(c for c in all_caps() if c is caps)
    media = [{"path": "first.png"}] if row.is_i2v else []
    made = make(row.label, images=media)
    wanted = "euler_ancestral" if row.generation == "2.5" and row.is_distilled else "euler"
    assert samplers(made) == [wanted]
    assert row.default_sampler in row.samplers
    assert set(row.samplers) <= set(SAMPLERS)


def test_25_distilled_ends_its_second_stage_with_plain_euler() -> None:
    assert samplers(make("LTXVideo 2.5 22B T2V Distilled", refine=True)) == ["euler_ancestral", "euler"]


def test_res_2s_on_dev_is_the_hq_recipe() -> None:
    made = make("LTXVideo 2.3 22B T2V", refine=True, sampler="res_2s", width=1920, height=1088)
    first, _, second = made.stages
    assert samplers(made) == ["res_2s", "res_2s"]
    assert (len(first.sigmas), first.evaluations) == (15, 31)
    assert (len(second.sigmas), second.evaluations) == (3, 7)
    assert first.scheduler.source == "token-count"
    guidance = first.guidance
    assert guidance is not None
    assert (guidance.guidance_scale, guidance.stg_scale, guidance.modality_scale) == (3.0, 0.0, 3.0)
    assert (guidance.audio_guidance_scale, guidance.audio_stg_scale, guidance.audio_modality_scale) == (7.0, 0.0, 3.0)
    assert (guidance.guidance_rescale, guidance.audio_guidance_rescale, guidance.stg_blocks) == (0.45, 1.0, ())
    assert first.lora is not None
    assert second.lora is not None
    assert first.lora.repo == second.lora.repo
    assert (first.lora.strength, second.lora.strength) == (0.25, 0.5)
    assert any("HQ recipe" in note for note in made.notes)
    # and what the user says stands
    own = make("LTXVideo 2.3 22B T2V", sampler="res_2s", steps=9, stg_scale=1.0, guidance_rescale=0.2).stages[0]
    assert own.guidance is not None
    assert (len(own.sigmas), own.guidance.stg_scale, own.guidance.stg_blocks) == (9, 1.0, (28,))
    assert own.guidance.guidance_rescale == 0.2
    assert own.lora is None


def test_res_2s_on_distilled_keeps_its_own_numbers() -> None:
    made = make("LTXVideo 2.3 22B T2V Distilled", sampler="res_2s", refine=True)
    assert [stage.evaluations for stage in made.stages if stage.sigmas] == [17, 7]
    assert all(stage.lora is None and stage.streams == 1 for stage in made.stages)
    assert any("no published recipe" in note for note in made.notes)


@pytest.mark.parametrize(
    ("sampler", "expected"), [("euler", 8), ("euler_ancestral", 8), ("gradient_estimation", 8), ("heun", 15)]
)
def test_other_samplers_change_nothing_but_the_solver(sampler: str, expected: int) -> None:
    plain = make("LTXVideo 2.3 22B T2V", steps=8)
    made = make("LTXVideo 2.3 22B T2V", steps=8, sampler=sampler)
    assert made.evaluations == expected
    first = made.stages[0]
    assert replace(first, scheduler=plain.stages[0].scheduler) == plain.stages[0]


@pytest.mark.parametrize("sampler", ["heun", "res_2s"])
def test_09_refuses_solvers_of_several_evaluations(sampler: str) -> None:
    with pytest.raises(RequestError, match="runs euler, euler_ancestral, gradient_estimation"):
        make("LTXVideo 0.9.7 13B Dev", sampler=sampler)


def test_passes_of_the_self_refiner_are_added_to_the_solvers_own(planned: Planned) -> None:
    options = {"steps": 8, "self_refine": "p1", "self_refine_plan": "2-6:2"}
    counted = {name: planned("nano-2.3-distilled-t2v", sampler=name, **options) for name in SAMPLERS}
    assert {name: made.evaluations for name, made in counted.items()} == {
        "euler": 13,
        "euler_ancestral": 13,
        "gradient_estimation": 13,
        "heun": 20,
        "res_2s": 22,
    }
    for made in counted.values():
        assert json.loads(json.dumps(made.to_json()))["evaluations"] == made.evaluations


def sampled(made: Plan, host: EmbeddedHost, seed: int = 1) -> tuple[State, list[Event], int]:
    """The state behind all sampling, the events, and forwards of the transformer."""
    events: list[Event] = []
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    listening = EmbeddedHost(host.settings, on_event=events.append)
    with listening.pipeline(made.caps, made.stages[0].pipeline) as pipe:
        handle = pipe.transformer.register_forward_pre_hook(count)
    state = State(made, seed=seed)
    for _, stage in stages.ordered(made):
        state = stage(state, listening)
    handle.remove()
    return state, events, forwards


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_stages_run_under_every_sampler(planned: Planned, host: EmbeddedHost, name: str) -> None:
    made = planned("nano-2.3-distilled-t2v", sampler=name, steps=8, refine=True, width=128, height=128)
    state, events, forwards = sampled(made, host)
    assert forwards == state.done == made.evaluations
    done = [event.evaluations for event in events if event.phase in ("sample", "refine")]
    assert done == sorted(done)
    assert done[-1] == made.evaluations
    steps = [event.step for event in events if event.phase == "sample"]
    assert (steps[0], steps[-1]) == (0, 8)
    assert state.video_latents is not None
    again, other = (sampled(made.with_seed(seed), host, seed)[0].video_latents for seed in (1, 2))
    assert again is not None
    assert other is not None
    assert torch.equal(state.video_latents, again), "the same seed, the same video"
    assert not torch.equal(state.video_latents, other)
