"""What a plan says of batches, caches and compiling, and that the transformer is given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.ltx import caching, compiling, guided, pace, speed
from modules.ltx.errors import Cancelled, RequestError
from modules.ltx.hosts import quantizing
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import Caps, caps_for, effective
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request
from modules.ltx.state import State
from tests.test_equivalence import bare, ours

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
DEV, OLD = "nano-2.3-dev-t2v", "nano-0.9-t2v"
CLOSE = 1e-5  # of the norm: the same sums in float32, in another order


def make(model: str, **options: object) -> Plan:
    caps, notes = caps_for(model)
    return plan(Request.parse({"prompt": "x", **options}), caps, notes)


@contextmanager
def counted(host: EmbeddedHost, settled: Plan) -> Iterator[list[int]]:
    """The batch of every pass through a block of the transformer: what is skipped or answered is not in it."""
    seen: list[int] = []
    with host.pipeline(settled.caps, settled.stages[0].pipeline) as pipe:
        part = pipe.transformer.transformer_blocks[1].ff
        handle = part.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        kind, hooks = type(pipe.transformer), [dict(m._forward_hooks) for m in pipe.transformer.modules()]
        try:
            yield seen
        finally:
            handle.remove()
        assert type(pipe.transformer) is kind
        assert [dict(m._forward_hooks) for m in pipe.transformer.modules()] == hooks
        assert not pipe.transformer.is_cache_enabled


def latents(state: State) -> tuple[torch.Tensor, ...]:
    return tuple(x for x in (state.video_latents, state.audio_latents) if x is not None)


def apart(one: State, other: State) -> float:
    """The largest distance of latents as a share of their norm."""
    pairs = zip(latents(one), latents(other), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize(
    ("model", "options", "batch", "batches"),
    [
        (DEV, {}, "one", [1, 1, 1, 1] * 2),
        (DEV, {}, "all", [4] * 2),
        (DEV, {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}, "all", [3] * 2),
        (OLD, {}, "one", [1, 1] * 2),
    ],
)
def test_the_same_predictions_in_other_batches(
    host: EmbeddedHost, planned: Planned, model: str, options: dict[str, object], batch: str, batches: list[int]
) -> None:
    plain = planned(model, **options)
    other = planned(model, **options, guided_batch=batch)
    with counted(host, other) as seen:
        made = ours(other, host)
    assert seen == batches
    assert apart(made, ours(plain, host)) < CLOSE


@pytest.mark.parametrize(("batch", "guidance"), [("one", "full"), ("all", "full"), ("all", "reuse")])
def test_the_self_refiner_sees_the_same_predictions(
    host: EmbeddedHost, planned: Planned, batch: str, guidance: str
) -> None:
    options: dict[str, object] = {"self_refine": "p1", "self_refine_plan": "1:2", "self_refine_threshold": 0.0}
    options |= {"self_refine_guidance": guidance}
    plain, other = planned(DEV, **options), planned(DEV, **options, guided_batch=batch)
    with counted(host, other) as seen:
        made = ours(other, host)
    full = [1] * 4 if batch == "one" else [4]
    assert seen == [*full, *full, *(full if guidance == "full" else [1])]
    assert apart(made, ours(plain, host)) < CLOSE


@pytest.mark.parametrize("model", ["nano-2.3-dev-condition", "nano-2.3-dev-i2v"])
def test_pictures_keep_their_levels_in_one_batch(
    host: EmbeddedHost, planned: Planned, picture: Path, model: str
) -> None:
    given = {"images": [{"path": str(picture)}]}
    plain, other = planned(model, **given), planned(model, **given, guided_batch="all")
    assert apart(ours(other, host), ours(plain, host)) < CLOSE


def test_a_device_without_room_for_two_makes_one_at_a_time(cache: Path, tmp_path: Path, planned: Planned) -> None:
    class Small(EmbeddedHost):
        def room(self, caps: Caps) -> int:
            return 1000

    small = Small(Settings(tmp_path, cache=cache, device="cpu", offline=True))
    settled = planned(DEV)
    with counted(small, settled) as seen:
        ours(settled, small)
    assert seen == [1, 1, 1, 1] * 2


def test_where_two_fit_by_the_numbers() -> None:
    """22B at 768x512, 121 frames: 6144 tokens of 4096 channels, 26 numbers each."""
    made = make("LTXVideo 2.3 22B T2V", width=768, height=512, frames=121)
    [stage] = made.stages
    assert speed.numbers_held(made.caps, stage) == 26 * 4096 * 6144
    assert speed.fitting(made.caps, stage, 2 * 26 * 4096 * 6144) == "two"
    assert speed.fitting(made.caps, stage, 2 * 26 * 4096 * 6144 - 1) == "one"
    assert made.to_json()["memory"]["activations"] == pytest.approx(2 * 2 * 26 * 4096 * 6144 / 1e9, abs=0.01)
    alone = make("LTXVideo 2.3 22B T2V Distilled")
    assert speed.fitting(alone.caps, alone.stages[0], 0) == "two"  # it has no two to take apart
    asked = make("LTXVideo 2.3 22B T2V", guided_batch="all")
    assert speed.fitting(asked.caps, asked.stages[0], 0) == "all"


@pytest.mark.parametrize(("kind", "steps", "made_anew"), [("guidance", 8, 20), ("taylorseer", 8, 24)])
def test_a_cache_makes_as_few_predictions_as_the_plan_says(
    host: EmbeddedHost, planned: Planned, kind: str, steps: int, made_anew: int
) -> None:
    plain, less = planned(DEV, steps=steps), planned(DEV, steps=steps, cache=kind)
    with counted(host, less) as seen:
        made = ours(less, host)
    assert sum(seen) == speed.forwards(less.stages[0]) == made_anew
    assert any(f"{sum(seen)} of {4 * steps} predictions" in note for note in less.notes)
    assert less.to_json()["stages"][0]["forwards"] == sum(seen)
    assert pace.work(less)["sample"] == pytest.approx(pace.work(plain)["sample"] * sum(seen) / (4 * steps))
    assert 1e-4 < apart(made, ours(plain, host)) < 0.5


def test_a_cached_job_leaves_the_next_one_as_it_was(host: EmbeddedHost, planned: Planned) -> None:
    before = ours(planned(DEV), host)
    ours(planned(DEV, steps=6, cache="taylorseer"), host)
    ours(planned(DEV, cache="guidance", guided_batch="all"), host)
    assert apart(ours(planned(DEV), host), before) == 0


class Told(torch.nn.Module):
    """A transformer of known answers: what it is asked for, times the number of the evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, **asked: Any) -> tuple[torch.Tensor, ...]:
        worth = {"text": 1.0, "stg": 5.0, "modality": 7.0}[guided.kind_of(asked)]
        return (asked["hidden_states"] * worth * 10**self.calls,)


def test_kept_guidance_is_the_conditional_prediction_less_the_kept_difference() -> None:
    """Evaluation 0: uncond 2, cond 3, STG 15. Evaluation 1, of which cond is 30: uncond 30 - 1, STG 30 + 12."""
    model = Told()
    both, alone = torch.tensor([[2.0], [3.0]]), torch.tensor([[3.0]])
    with caching.guidance_kept(model, cfg=True, every=2):
        for expected in (((2.0, 3.0), 15.0), ((29.0, 30.0), 42.0), ((200.0, 300.0), 1500.0)):
            (text,) = model(hidden_states=both, return_dict=False)
            (stg,) = model(hidden_states=alone, spatio_temporal_guidance_blocks=[1], return_dict=False)
            assert text.flatten().tolist() == list(expected[0])
            assert stg.item() == expected[1]
            model.calls += 1
    assert type(model) is Told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "guidance", "self_refine": "p1"}, "self-refiner predicts steps again"),
        ({"cache": "taylorseer", "sampler": "heun"}, "two evaluations a step"),
        ({"cache": "taylorseer", "sampler": "res_2s"}, "two evaluations a step"),
        ({"cache": "taylorseer", "guided_batch": "one"}, "pipeline's own forwards"),
        ({"cache": "guidance", "model": "nano-2.3-distilled-t2v"}, "runs without guidance"),
        ({"cache": "taylorseer", "speed": "fast"}, "compiled again and again"),
        ({"guided_batch": "all", "speed": "fast"}, "compiled again and again"),
        ({"cache": "sometimes"}, "it takes off, guidance or taylorseer"),
    ],
)
def test_what_does_not_go_together_is_refused(
    host: EmbeddedHost, planned: Planned, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        planned(**{"model": DEV, **options})


def test_compiling_is_refused_where_it_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caps, _ = caps_for("nano")
    fast = Request.parse({"prompt": "x", "speed": "fast"})
    lacking = {
        "quantized weights": quantizing.lacks("sdnq-int8"),
        "--offload sequential": EmbeddedHost(Settings(tmp_path, offload="sequential")).lacks(),
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    lacking["C++ compiler"] = EmbeddedHost(Settings(tmp_path)).lacks()
    for said, lacks in lacking.items():
        with pytest.raises(RequestError, match=rf"^--speed fast: .*{said.replace('+', '.')}"):
            plan(fast, effective(caps, lacks))
    small, _ = caps_for("LTXVideo 2.3 22B T2V SDNQ-4Bit")
    with pytest.raises(RequestError, match="unpacked"):
        plan(fast, small)
    assert plan(fast, caps).stages[0].speed.compiled
    assert not plan(replace(fast, speed="safe"), caps).stages[0].speed.compiled


def test_compiled_blocks_are_given_back(host: EmbeddedHost, planned: Planned) -> None:
    settled = planned("nano-2.3-distilled-t2v")
    with host.pipeline(settled.caps, settled.caps.pipeline) as pipe:
        blocks = pipe.transformer.transformer_blocks
        taken: list[bool] = []

        def cancelled() -> None:
            with compiling.compiled(pipe.transformer, backend="eager"):
                taken.extend(block._compiled_call_impl is not None for block in blocks)
                taken.append(pipe.transformer._compiled_call_impl is None)
                raise Cancelled("now")

        with pytest.raises(Cancelled):
            cancelled()
        assert all(taken)
        assert all(block._compiled_call_impl is None for block in blocks)


def test_a_cache_is_found_by_a_transformer_that_ran_without_one(cache: Path) -> None:
    """diffusers before 0.41 lists hooked modules at the first call and keeps the list, an empty one here."""
    transformer = bare("LTXPipeline", "0.9", cache).transformer
    with transformer.cache_context("first"):
        pass
    registry = transformer._diffusers_hook
    registry._child_registries_cache = []  # as those releases leave it; later ones do not look at it
    with caching.extrapolated(transformer):
        assert registry._child_registries_cache is None
    assert registry._child_registries_cache is None
