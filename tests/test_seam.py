"""The self-refiner in real pipelines: nothing changes where nothing is refined, and what is refined is the method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from extensions.selfrefiner import noise, refiner, seam
from extensions.selfrefiner.refiner import Certainty
from extensions.selfrefiner.schedule import parse, passes
from extensions.selfrefiner.seam import Refiner
from modules.ltx.errors import RequestError
from modules.ltx.ltx_util import DISTILLED_SIGMAS
from modules.ltx.samplers import FlowMatchAncestralScheduler, FlowMatchHeunScheduler, sampler
from tests.seam_kit import CLASSES_09, CLASSES_2, PLAIN, apart, same

pytestmark = pytest.mark.library

NEVER = Certainty(threshold=0.0)
ALWAYS = Certainty(threshold=1e9)


def planned_passes(text: str, stage: int = 1) -> tuple[int, ...]:
    plan = parse(text)
    return passes((plan.stage1, plan.stage2)[stage - 1], DISTILLED_SIGMAS)[0]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", [*CLASSES_2, *CLASSES_09])
def test_without_a_refined_step_not_a_bit_changes(bench: Any, kind: str, guided: bool) -> None:
    one = bench(kind)
    bare, _ = one.run(guided=guided)
    forwards = one.forwards
    attached, _ = one.run(Refiner(PLAIN), guided=guided)
    assert same(bare, attached)
    assert one.forwards == forwards
    assert len(bare) == (1 if kind in CLASSES_09 else 2)


@pytest.mark.parametrize(("text", "count"), [("2-6:2", 13), ("1-5:3,6-13:1", 18), ("0:1", 8)])
@pytest.mark.parametrize("guided", [False, True])
def test_evaluations_at_the_transformer(bench: Any, text: str, count: int, guided: bool) -> None:
    one = bench("LTX2Pipeline")
    one.run(Refiner(planned_passes(text), NEVER), guided=guided)
    assert one.forwards == count * (3 if guided else 1)


@pytest.mark.short
@pytest.mark.parametrize("guided", [False, True])
def test_the_seam_is_the_reference_loop(bench: Any, guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the guided velocities that the pipeline made, the loop of the paper gives every step's latents."""
    one = bench("LTX2Pipeline")
    rounds: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"video": [], "sound": []}
    steps: dict[str, list[torch.Tensor]] = {"video": [], "sound": []}
    step = seam.FlowMatchRefiningScheduler._step

    def noted(self: Any, v: torch.Tensor, t: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        after = step(self, v, t, x, *args, **kwargs)
        rounds[self.stream].append((x, v))
        if self.session.entry.number == self.session.entry.of - 1:
            steps[self.stream].append(after[0])
        return after

    monkeypatch.setattr(seam.FlowMatchRefiningScheduler, "_step", noted)
    counts = (1, 1, 3, 2, 3, 4, 2, 1)
    gaps: list[float] = []
    distance = refiner.distance

    def measured(d: torch.Tensor, norm: str) -> torch.Tensor:
        made: torch.Tensor = distance(d, norm)
        gaps.append(float((made - 0.3).abs().min()))
        return made

    monkeypatch.setattr(refiner, "distance", measured)
    rule = Certainty("p1", threshold=0.3, certain=2.0)
    _, session = one.run(Refiner(counts, rule, seed=5), guided=guided)
    assert session is not None
    keys = [(s, p) for s, count in enumerate(counts) for p in range(1, count)]
    drawn = iter(keys)
    asked = []
    cursor = iter(range(sum(counts)))

    def predict(x: dict[str, torch.Tensor], sigma: float) -> dict[str, torch.Tensor]:
        asked.append(x)
        number = next(cursor)
        return {name: rounds[name][number][1] for name in rounds}

    def fresh() -> dict[str, torch.Tensor]:
        key = next(drawn)
        return {name: noise.draw(rounds[name][0][0], 5, ("stage1", name, *key)) for name in rounds}

    start = {name: rounds[name][0][0] for name in rounds}
    made = refiner.sample(
        predict, DISTILLED_SIGMAS, start, counts, threshold=0.3, certain=2.0, noise=fresh, decide="video"
    )
    assert len(asked) == sum(counts)
    for name in rounds:
        for number, x in enumerate(asked):
            torch.testing.assert_close(x[name], rounds[name][number][0], atol=1e-6, rtol=1e-6)
        for number, after in enumerate(made):
            torch.testing.assert_close(after[name], steps[name][number], atol=1e-6, rtol=1e-6)
    shares = [share for refined in session.report for share in refined.shares["video"]]
    assert any(0 < share < 1 for share in shares), "the case must have both kinds of tokens"
    assert min(gaps) > 1e-5, "no distance may lie so near the threshold that rounding decides"


def test_a_settled_step_runs_no_further_forward(bench: Any) -> None:
    one = bench("LTX2Pipeline")
    for guided, calls in ((False, 1), (True, 3)):
        made, session = one.run(Refiner((1, 5, 5, 1, 1, 1, 1, 1), ALWAYS), guided=guided)
        assert one.forwards == calls * (8 + 2), "one further pass at each of two steps"
        assert [(r.step, r.planned, r.used) for r in session.report] == [(1, 5, 2), (2, 5, 2)]
        assert [r.shares for r in session.report] == [{"video": (1.0,), "sound": (1.0,)}] * 2
        # Everything was certain at once: the blend is the first pass.
        assert same(made, one.run(None, guided=guided)[0])


def test_the_report_and_the_map(bench: Any) -> None:
    one = bench("LTX2Pipeline")
    rule = Certainty(threshold=0.8, certain=2.0)
    _, session = one.run(Refiner((1, 1, 3, 1, 1, 3, 1, 1), rule, keep_map=True))
    assert [(r.step, r.used) for r in session.report] == [(2, 3), (5, 3)]
    for refined in session.report:
        assert refined.sigma == pytest.approx(DISTILLED_SIGMAS[refined.step])
        settled = refined.settled["video"]
        assert settled.shape == (12,)
        for number, share in enumerate(refined.shares["video"], start=1):
            assert float(((settled > 0) & (settled <= number)).double().mean()) == share
    assert [session.position(index) for index in range(4)] == [(0, 1, 1), (1, 1, 1), (2, 1, 3), (2, 2, 3)]


@pytest.mark.parametrize("kind", ["LTX2Pipeline", "LTXPipeline", "LTX2ConditionPipeline"])
def test_a_batch_of_two_is_two_singles(bench: Any, kind: str) -> None:
    one = bench(kind)
    rule = Certainty(threshold=0.8, certain=0.5)
    asked = (1, 1, 3, 3, 1, 2, 1, 1)

    def of(seeds: list[int]) -> tuple[Any, ...]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = generators if len(seeds) > 1 else generators[0]
        more = {"num_videos_per_prompt": len(seeds)} if len(seeds) > 1 else {}
        made: tuple[Any, ...] = one.run(Refiner(asked, rule, seed=seeds[0]), generator=generator, **more)[0]
        return made

    both = of([7, 8])
    for index, seed in enumerate((7, 8)):
        alone = of([seed])
        for together, single in zip(both, alone, strict=True):
            torch.testing.assert_close(together[index], single[0], atol=2e-5, rtol=1e-4)


def test_the_class_the_scheduler_and_the_config_come_back(bench: Any) -> None:
    one = bench("LTX2ConditionPipeline")
    pipe = one.pipe
    before = (type(pipe.transformer), pipe.scheduler, dict(pipe.config), dict(vars(pipe)))

    class Odd(BaseException):
        pass

    def fail(*_: Any) -> None:
        if one.forwards == 4:
            raise Odd

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(Odd):
        one.run(Refiner((1, 3, 3, 1, 1, 1, 1, 1), NEVER))
    handle.remove()
    assert (type(pipe.transformer), pipe.scheduler, dict(pipe.config)) == before[:3]
    assert vars(pipe).keys() == before[3].keys()
    with seam.attach(pipe, Refiner(PLAIN)):
        assert isinstance(pipe.transformer, before[0])
        assert type(pipe.transformer).__name__ == before[0].__name__
        assert "FlowMatch" in type(pipe.scheduler).__name__
        with pytest.raises(RequestError, match="attached to this"), seam.attach(pipe, Refiner(PLAIN)):
            pass


def test_an_interrupt_between_two_passes_stops_within_a_forward(bench: Any) -> None:
    one = bench("LTX2Pipeline")

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 3:  # the second pass of the second step
            pipe._interrupt = True
        return {}

    one.run(Refiner((1, 9, 1, 1, 1, 1, 1, 1), NEVER), callback_on_step_end=stop)
    assert one.forwards == 4


def test_previews_show_what_is_meant_not_the_noise(bench: Any) -> None:
    one = bench("LTX2Pipeline")
    seen = []

    def look(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe.scheduler.session.preview(), tensors["latents"]))
        return {}

    one.run(Refiner((1, 1, 3, 1, 1, 1, 1, 1), NEVER), callback_on_step_end=look)
    assert seen[0][0] is None
    assert seen[2][0].shape == seen[2][1].shape
    assert not torch.equal(*seen[2])


@pytest.mark.parametrize("kind", CLASSES_09)
def test_09_runs_the_refined_part_of_a_cut_schedule(bench: Any, kind: str) -> None:
    one = bench(kind)
    if kind != "LTXConditionPipeline":
        one.run(Refiner((1, 3, 1, 1, 1, 1, 1, 1), NEVER))
        assert one.forwards == 10
        return
    latents = torch.randn((1, 32, 3, 2, 2), generator=torch.Generator().manual_seed(2))
    for strength, steps in ((0.5, 4), (0.4, 3), (0.9, 7)):
        bare, _ = one.run(None, denoise_strength=strength, latents=latents)
        assert one.forwards == steps
        plain, _ = one.run(Refiner(PLAIN), denoise_strength=strength, latents=latents)
        assert same(bare, plain)
        _, session = one.run(Refiner((1, 3, 2, 1), NEVER), denoise_strength=strength, latents=latents)
        assert one.forwards == steps + 3
        first = 8 - steps
        assert [r.step for r in session.report] == [1, 2]
        assert [r.sigma for r in session.report] == pytest.approx(DISTILLED_SIGMAS[first + 1 : first + 3])


@pytest.mark.parametrize("kind", [FlowMatchHeunScheduler, FlowMatchAncestralScheduler])
def test_other_solvers_step_once_from_the_blend(bench: Any, kind: Any) -> None:
    one = bench("LTX2Pipeline")

    def make(theirs: Any, sigmas: Any) -> Any:
        solver = sampler(theirs, kind, sigmas)
        return solver.settle(seed=4) if kind is FlowMatchAncestralScheduler else solver

    planned, one.make = one.make, make
    try:
        bare, _ = one.run()
        plain_forwards = one.forwards
        same_again, _ = one.run(Refiner(PLAIN))
        assert same(bare, same_again)
        assert plain_forwards == (15 if kind is FlowMatchHeunScheduler else 8)
        refined, session = one.run(Refiner((1, 1, 3, 1, 2, 1, 1, 1), NEVER))
        assert one.forwards == plain_forwards + 3
        assert [r.step for r in session.report] == [2, 4]
        assert apart(bare, refined) > 0.01
        settled, _ = one.run(Refiner((1, 1, 3, 1, 2, 1, 1, 1), ALWAYS))
        assert same(bare, settled), "certain at once: the blend is the first pass"
    finally:
        one.make = planned


def unipc(theirs: Any, sigmas: Any) -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


def test_a_multistep_solver_sees_one_step_for_all_passes(bench: Any) -> None:
    one = bench("LTXPipeline")
    planned, one.make = one.make, unipc
    try:
        with pytest.MonkeyPatch.context() as patch:
            # LTXPipeline always passes `sigmas`, which this scheduler does not take.
            place = "diffusers.pipelines.ltx.pipeline_ltx.retrieve_timesteps"
            patch.setattr(place, exact_by_count)
            exact, _ = one.run()
            patch.setattr(place, by_count)
            bare, _ = one.run()
            plain, _ = one.run(Refiner(PLAIN))
            settled, _ = one.run(Refiner((1, 1, 3, 2, 1, 1, 1, 1), ALWAYS))
            assert one.forwards == 8 + 2
            one.run(Refiner((1, 1, 3, 2, 1, 1, 1, 1), NEVER))
            assert one.forwards == 8 + 3
    finally:
        one.make = planned
    assert same(bare, plain)
    # Its timesteps are rounded to whole numbers unless something is refined: then the transformer is told the sigma.
    assert not same(bare, settled)
    assert same(exact, settled)


def exact_by_count(scheduler: Any, steps: int, device: Any, timesteps: Any = None, **_: Any) -> tuple[Any, int]:
    scheduler.set_timesteps(steps, device=device)
    scheduler.set_begin_index(0)
    return scheduler.sigmas[:-1] * 1000, steps


def by_count(scheduler: Any, steps: int, device: Any, timesteps: Any = None, **_: Any) -> tuple[Any, int]:
    scheduler.set_timesteps(steps, device=device)
    return scheduler.timesteps, len(scheduler.timesteps)


def test_what_cannot_be_refined_is_refused_unchanged(bench: Any) -> None:
    from diffusers import DDIMScheduler

    one = bench("LTX2Pipeline")
    planned, one.make = one.make, lambda theirs, sigmas: DDIMScheduler()
    try:
        refused = pytest.raises(RequestError, match="DDIMScheduler, which does no flow")
        with one.scheduled() as pipe, refused, seam.attach(pipe, Refiner(PLAIN)):
            pass
    finally:
        one.make = planned
    with pytest.raises(RequestError, match="at least one"), seam.attach(one.pipe, Refiner((0,))):
        pass
    with pytest.raises(RequestError, match="unknown"), seam.attach(one.pipe, Refiner(PLAIN, guidance="other")):
        pass
    assert isinstance(one.pipe.scheduler, FlowMatchEulerDiscreteScheduler)
