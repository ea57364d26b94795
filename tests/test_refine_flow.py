"""The self-refiner from a request to a file: plan, notes, events, report, map, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from modules.ltx import __main__ as command_line
from modules.ltx import stages
from modules.ltx.compare import both, compare
from modules.ltx.errors import RequestError
from modules.ltx.hosts import refiner as loader
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.ltx_process import run
from modules.ltx.media import Encoding
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.plan import plan as make_plan
from modules.ltx.request import Request
from modules.ltx.state import Event, State
from tests.conftest import SMALL

pytestmark = pytest.mark.library

DISTILLED = "nano-2.3-distilled-t2v"
Planned = Callable[..., Plan]


def counts(plan: Plan) -> list[int]:
    return [stage.evaluations for stage in plan.stages if stage.sigmas]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("2-6:2", [13, 3]),
        ("1-5:3,6-13:1", [18, 3]),
        ("0:1", [8, 3]),
        ("2-6:2;1-2:2", [13, 5]),
        (";1-2:2", [8, 5]),
        ("2-8:3;2-4:2", [20, 4]),
    ],
)
def test_evaluations_of_both_stages(planned: Planned, plan: str, expected: list[int]) -> None:
    settled = planned(DISTILLED, refine=True, steps=8, width=128, height=128, self_refine="p1", self_refine_plan=plan)
    assert counts(settled) == expected
    told = json.loads(json.dumps(settled.to_json()))
    assert [stage["evaluations"] for stage in told["stages"] if stage["sigmas"]] == expected
    assert [sum(stage["passes"]) for stage in told["stages"] if stage["sigmas"]] == expected
    assert told["evaluations"] == sum(expected)


def test_the_cost_is_told_before_it_is_paid(planned: Planned) -> None:
    options: dict[str, object] = {"refine": True, "steps": 8, "width": 128, "height": 128, "self_refine": "p1"}
    settled = planned(DISTILLED, self_refine_plan="2-6:2;1-2:2", **options)
    # Stage 2 has four times the tokens: (5 + 2 * 4) / (8 + 3 * 4).
    assert settled.refiner_cost == 65
    [note] = [note for note in settled.notes if note.startswith("self-refiner 2-6:2;1-2:2")]
    assert "13 evaluations instead of 8 in stage 1, 5 evaluations instead of 3 in stage 2" in note
    assert "65 % more" in note
    options.update(refine=False, self_refine_plan="2-6:2")
    dev = planned("nano-2.3-dev-t2v", **options)
    saved = planned("nano-2.3-dev-t2v", **options, self_refine_guidance="reuse")
    assert dev.stages[0].streams == 4
    assert (dev.refiner_cost, saved.refiner_cost) == (62, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"self_refine_plan": "2-6:2"}, "--self-refine-plan is not used: the self-refiner is off"),
        ({"self_refine": "off", "self_refine_preset": "light"}, "--self-refine-preset is not used"),
        ({"self_refine": "p1", "self_refine_plan": "1:2;1:2"}, "the plan's part for stage 2 is not used"),
        ({"self_refine": "p1", "self_refine_plan": "2-8:3"}, "step 8 does not exist"),
        ({"self_refine": "p1", "self_refine_plan": "0:1"}, "refines no step"),
        ({"self_refine": "p1", "self_refine_plan": "0:2"}, "another sample"),
    ],
)
def test_what_is_not_done_is_a_note(planned: Planned, options: dict[str, object], said: str) -> None:
    settled = planned(DISTILLED, steps=8, **options)
    assert [note for note in settled.notes if said in note], settled.notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"self_refine": "p3"}, "p1, p2 or p2-wan2gp"),
        ({"self_refine": "p1", "self_refine_plan": "6-2:2"}, "'6-2:2' runs backwards"),
        ({"self_refine_plan": "6-2:2"}, "'6-2:2' runs backwards"),
        ({"self_refine": "p1", "self_refine_plan": "1:2", "self_refine_preset": "light"}, "one of the two"),
        ({"self_refine": "p1", "self_refine_preset": "huge"}, "light-both"),
        ({"self_refine": "p1", "self_refine_threshold": 2}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(planned: Planned, options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        planned(DISTILLED, **options)


def test_without_the_extension_everything_else_works() -> None:
    caps, _ = caps_for(DISTILLED, mode="T2V")
    assert make_plan(Request.parse({"model": DISTILLED}), caps).refiner is None
    with pytest.raises(RequestError, match="not installed"):
        make_plan(Request.parse({"model": DISTILLED, "self_refine": "p1"}), caps)


def test_registering_twice_is_harmless(tmp_path: Path) -> None:
    host = EmbeddedHost(Settings(tmp_path))
    first = host.denoise_callback()
    assert loader.register(host)
    again = host.denoise_callback()
    assert type(first) is type(again)
    assert type(again).__module__ == "ltx_selfrefiner.callback"


def sampled(plan: Plan, host: EmbeddedHost) -> State:
    state = State(plan, seed=1)
    for _, stage in stages.ordered(plan):
        state = stage(state, host)
    return state


def draws(plan: Plan, host: EmbeddedHost, place: str) -> list[torch.Tensor]:
    """Everything that diffusers' pipelines and the decoder draw in a job."""
    from diffusers.utils import torch_utils

    drawn: list[torch.Tensor] = []

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(torch_utils.randn_tensor(*args, **kwargs))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{place}.randn_tensor", noted)
        run(plan, host, path=host.settings.outputs / f"{len(plan.notes)}.mp4", encoding=Encoding(thumbnail=False))
    return drawn


def test_noise_drawn_elsewhere_is_the_same_with_the_refiner_on(planned: Planned, host: EmbeddedHost) -> None:
    place = "diffusers.pipelines.ltx2.pipeline_ltx2"
    off = draws(planned(DISTILLED, refine=True, steps=4), host, place)
    refined = planned(DISTILLED, refine=True, steps=4, self_refine="p1", self_refine_plan="1:3;0:2")
    on = draws(refined, host, place)
    assert len(off) == 4, "video and sound, in both stages"
    for one, other in zip(off, on, strict=True):
        assert torch.equal(one, other)


def test_stage_one_is_untouched_by_a_plan_for_stage_two(planned: Planned, host: EmbeddedHost) -> None:
    plain = planned(DISTILLED, refine=True, steps=4)
    second = planned(DISTILLED, refine=True, steps=4, self_refine="p1", self_refine_plan=";0:2")
    states = [State(plan, seed=1) for plan in (plain, second)]
    for number in range(3):  # encode, stage 1, upsample
        states = [
            stages.ordered(plan)[number][1](state, host) for plan, state in zip((plain, second), states, strict=True)
        ]
    one, other = (state.video_latents for state in states)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    assert not states[1].refined


def test_events_metadata_and_map(planned: Planned, cache: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=events.append)
    plan = planned(
        DISTILLED,
        steps=8,
        self_refine="p1",
        self_refine_plan="2:3,5:2",
        self_refine_threshold=0.5,
        self_refine_map=True,
    )
    state = run(plan, host, path=tmp_path / "a.mp4", encoding=Encoding(thumbnail=False))
    told = [(e.step, e.run, e.runs) for e in events if e.phase == "sample"][1:]
    assert told == [
        (1, 1, 1), (2, 1, 1), (2, 1, 3), (2, 2, 3), (3, 3, 3), (4, 1, 1),
        (5, 1, 1), (5, 1, 2), (6, 2, 2), (7, 1, 1), (8, 1, 1),
    ]  # fmt: skip
    assert [e.evaluations for e in events if e.phase == "sample"] == list(range(12))
    stored: Any = read_metadata(tmp_path / "a.mp4")["self_refiner"]
    rows = stored["stage1"]
    assert [(row["step"], row["planned"]) for row in rows] == [(2, 3), (5, 2)]
    assert rows == state.refined[0].rows
    assert state.media is not None
    [path] = state.media.maps
    assert path == tmp_path / "a-stage1-uncertainty.png"
    with Image.open(path) as picture:
        assert picture.width > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-stage1-uncertainty.png", "a.mp4"]


def test_the_published_example_runs_and_draws_a_map_of_each_stage(
    planned: Planned, host: EmbeddedHost, tmp_path: Path
) -> None:
    asked = {"self_refine": "p1", "self_refine_plan": "2-8:3;2-4:2", "self_refine_map": True}
    plan = planned(DISTILLED, steps=8, refine=True, width=128, height=128, **asked)
    assert sum("not exist" in note for note in plan.notes) == 2
    state = run(plan, host, path=tmp_path / "new" / "a.mp4", encoding=Encoding(thumbnail=False))
    assert [(done.stage, len(done.rows)) for done in state.refined] == [("stage1", 6), ("stage2", 1)]
    made = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert made == ["a-stage1-uncertainty.png", "a-stage2-uncertainty.png", "a.mp4"]


@pytest.mark.short
def test_the_same_seed_and_plan_give_the_same_latents(planned: Planned, host: EmbeddedHost) -> None:
    plan = planned(DISTILLED, steps=8, self_refine="p2", self_refine_preset="light")
    assert plan.refiner is not None
    assert plan.refiner.text == "2-6:2"
    one, other = (sampled(plan, host).video_latents for _ in range(2))
    plain = sampled(replace(plan, refiner=None), host).video_latents
    assert one is not None
    assert other is not None
    assert plain is not None
    assert torch.equal(one, other)
    assert not torch.equal(one, plain)


def test_compare_writes_off_on_and_both(host: EmbeddedHost, tmp_path: Path) -> None:
    request = Request.parse(SMALL | {"model": DISTILLED, "steps": 4, "self_refine": "p1", "self_refine_plan": "1-2:2"})
    plans = both(request, host)
    assert plans[0].seed == plans[1].seed
    compare(plans, host, path=tmp_path / "c.mp4", encoding=Encoding(thumbnail=False))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c-off.mp4", "c-on.mp4", "c.mp4"]
    off, on = (read_metadata(tmp_path / f"c-{name}.mp4") for name in ("off", "on"))
    assert "self_refiner" not in off
    assert "self_refiner" in on
    assert off["latents"] != on["latents"]
    with pytest.raises(RequestError, match="nothing to compare"):
        both(replace(request, self_refine="off"), host)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", DISTILLED, "--prompt", "x", "--refine", "--json", "--self-refine", "p1"]
    assert command_line.main([*words, "--self-refine-preset", "light-both"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["refiner"]["text"] == "2-6:2;1-2:2"
    assert [stage["passes"] for stage in told["stages"] if stage["sigmas"]] == [[1, 1, 2, 2, 2, 2, 2, 1], [1, 2, 2]]
    assert command_line.main([*words, "--self-refine-plan", "2-6"]) == 2
    assert "'2-6' has no colon" in capsys.readouterr().err
