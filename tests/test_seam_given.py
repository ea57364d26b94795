"""What the user gave stays given: the self-refiner never perturbs a token above its own noise level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from extensions.selfrefiner import refiner as refiner_module
from extensions.selfrefiner.refiner import Certainty
from extensions.selfrefiner.seam import Refiner
from modules.ltx.request import SAMPLERS
from modules.ltx.samplers import FlowMatchSolver, sampler, watched
from modules.ltx.solving import kind_of
from tests.library_kit import condition
from tests.seam_kit import PLAIN, Bench, picture, same

pytestmark = pytest.mark.library

ASKED = Refiner((1, 1, 3, 3, 1, 2, 2, 1), Certainty(threshold=0.8, certain=0.9), seed=5)


@contextmanager
def solved(one: Bench, name: str) -> Iterator[None]:
    """The bench under a sampler, which must be told each token's noise level."""
    theirs = one.make

    def make(old: Any, sigmas: Any) -> Any:
        made = sampler(old, kind_of(name), sigmas)
        if isinstance(made, FlowMatchSolver):
            made.settle(seed=4)
        borrowed.enter_context(watched(one.pipe.transformer, made))
        return made

    with ExitStack() as borrowed:
        one.make = make
        try:
            yield
        finally:
            one.make = theirs


def inputs_of(one: Bench, refiner: Refiner | None, **more: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and their timesteps as the transformer gets them, round by round."""
    seen = []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((kwargs["hidden_states"].clone(), kwargs["timestep"].clone()))

    handle = one.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        one.run(refiner, **more)
    finally:
        handle.remove()
    return seen


def conditions(kind: str, strength: float) -> dict[str, Any]:
    """A first image, or a prefix of two latent frames, or a first and a last image."""
    if kind == "first and last":
        return {"conditions": [condition(picture()), condition(picture(4), -1, strength)]}
    if kind == "prefix":
        return {"conditions": [condition([picture()] * 9, strength=strength)]}
    return {"conditions": [condition(picture(), strength=strength)]}


@pytest.mark.parametrize("solver", SAMPLERS)
@pytest.mark.parametrize("kind", ["first", "first and last", "prefix"])
def test_condition_tokens_of_full_strength_are_the_condition_at_every_pass(bench: Any, kind: str, solver: str) -> None:
    one = bench("LTX2ConditionPipeline")
    with solved(one, solver):
        seen = inputs_of(one, ASKED, **conditions(kind, 1.0))
    held = seen[0][1][0] == 0
    assert int(held.sum()) == {"first": 4, "first and last": 8, "prefix": 8}[kind]
    for x, timestep in seen:
        assert torch.equal(x[:, held], seen[0][0][:, held])
        assert bool((timestep[:, held] == 0).all())
    again = [(first, more) for first, more in itertools.pairwise(seen) if torch.equal(first[1], more[1])]
    assert again, "passes of one step"
    assert all(not torch.equal(first[0][:, ~held], more[0][:, ~held]) for first, more in again), "others are perturbed"


@pytest.mark.parametrize("kind", ["LTX2ImageToVideoPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"])
@pytest.mark.parametrize("solver", ["euler", "euler_ancestral", "gradient_estimation"])
def test_the_first_image_stays_in_the_other_classes(bench: Any, kind: str, solver: str) -> None:
    one = bench(kind)
    with solved(one, solver):
        seen = inputs_of(one, ASKED)
    held = seen[0][1][0] == 0
    assert int(held.sum()) == 4
    for x, _ in seen:
        assert torch.equal(x[:, held], seen[0][0][:, held])


def test_weaker_conditions_are_never_noisier_than_in_the_bare_pipeline(bench: Any) -> None:
    """A token at level s' is perturbed to s': measured as the distance of what the transformer gets from x0."""
    one = bench("LTX2ConditionPipeline")
    sigma: dict[int, torch.Tensor] = {}
    perturb = refiner_module.perturb

    def noted(blend: Any, level: Any, noise: torch.Tensor) -> torch.Tensor:
        if level.ndim:  # the sound's is one for all
            sigma[len(sigma)] = level
        made: torch.Tensor = perturb(blend, level, noise)
        # What was added to x0 is its own level of noise, no more.
        torch.testing.assert_close(made, (1 - level) * blend.x0 + level * noise, atol=1e-6, rtol=0)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refiner_module, "perturb", noted)
        seen = inputs_of(one, ASKED, **conditions("first", 0.6))
    assert len(sigma) == 6
    for level in sigma.values():
        told = sorted({round(float(value), 4) for value in (level / level.max()).flatten()})
        assert told == [0.4, 1.0]
    weak = (seen[0][1][0] / seen[0][1].max()).round(decimals=3) == 0.4
    assert int(weak.sum()) == 4


def test_weaker_images_of_09_condition_stay_as_they_are_while_held(bench: Any) -> None:
    one = bench("LTXConditionPipeline")
    given = [LTXVideoCondition(image=picture(), frame_index=0, strength=0.3)]
    seen = inputs_of(one, ASKED, conditions=given)
    weak = seen[0][1][0] < seen[0][1].max()
    assert int(weak.sum()) == 4
    for x, timestep in seen:
        held = weak & (timestep[0] < timestep.max())
        assert torch.equal(x[:, held], seen[0][0][:, held])
    assert bool((seen[-1][1] == seen[-1][1].max()).all()), "in the end it is below its own level and goes along"


def test_given_tokens_do_not_count_as_certain(bench: Any) -> None:
    one = bench("LTX2ConditionPipeline")
    _, session = one.run(Refiner((1, 1, 2, 1, 1, 1, 1, 1), Certainty(threshold=1e-9), seed=5))
    assert session.report[0].shares["video"] == (0.0,)


def test_the_jobs_own_generator_is_where_it_would_have_been(bench: Any) -> None:
    """0.9 Condition draws from it in every round when image_cond_noise_scale is above 0."""
    one = bench("LTXConditionPipeline")
    states, drawn = [], []
    for refiner in (None, Refiner(PLAIN), ASKED):
        generator = torch.Generator().manual_seed(3)
        seen = inputs_of(one, refiner, generator=generator, image_cond_noise_scale=0.15)
        states.append(generator.get_state())
        drawn.append([x[:, :4] for x, timestep in seen])
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert same(tuple(drawn[0]), tuple(drawn[1]))
    # The third step is shown three times, with the same noise on its image.
    assert torch.equal(drawn[2][2], drawn[2][3])
    assert torch.equal(drawn[2][2], drawn[0][2])
