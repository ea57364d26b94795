"""Our scheduler runs exactly the plan's list, on every class, and is otherwise diffusers' Euler."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS
from modules.ltx.scheduler import FlowMatchPlanScheduler, planned

pytestmark = pytest.mark.library

SHIFTING = {
    "use_dynamic_shifting": True,
    "shift_terminal": 0.1,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "shift": 3.0,
}


@pytest.mark.parametrize(
    "asked", [{"sigmas": [0.9, 0.1], "mu": 2.0}, {"num_inference_steps": 50}, {"timesteps": [1.0]}]
)
def test_whatever_the_pipeline_asks_the_plan_is_installed(asked: dict[str, object]) -> None:
    scheduler = planned(FlowMatchEulerDiscreteScheduler(**SHIFTING), STAGE2_SIGMAS)
    scheduler.set_timesteps(**asked)  # type: ignore[arg-type]
    assert scheduler.sigmas.tolist() == torch.tensor([*STAGE2_SIGMAS, 0.0]).tolist()
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(STAGE2_SIGMAS) * 1000, rtol=0, atol=0)


def test_steps_are_bit_identical_to_diffusers_euler() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=list(DISTILLED_SIGMAS))
    ours = planned(FlowMatchEulerDiscreteScheduler(**SHIFTING), DISTILLED_SIGMAS)
    ours.set_timesteps(3)
    generator = torch.Generator().manual_seed(0)
    x = y = torch.randn(1, 4, 8, generator=generator)
    for t_ours, t_theirs in zip(ours.timesteps, theirs.timesteps, strict=True):
        v = torch.randn(x.shape, generator=generator)
        x = ours.step(v, t_ours, x, return_dict=False)[0]
        y = theirs.step(v, t_theirs, y, return_dict=False)[0]
        assert torch.equal(x, y)


def test_exact_on_a_straight_flow() -> None:
    """With the constant velocity noise - x0, Euler lands on x0 whatever the list."""
    noise, x0 = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    ours = planned(FlowMatchEulerDiscreteScheduler(), DISTILLED_SIGMAS)
    ours.set_timesteps()
    x = noise
    for t in ours.timesteps:
        x = ours.step(noise - x0, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-6)


def test_tokens_at_their_own_level_are_told_clean() -> None:
    """As 0.9 Condition asks: minus the velocity, a timestep a token, of which the first is given and clean."""
    noise, x0 = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    ours = planned(FlowMatchEulerDiscreteScheduler(), STAGE2_SIGMAS)
    ours.set_timesteps()
    assert ours.x0 is None
    level = torch.tensor([0.0, *[STAGE2_SIGMAS[0]] * 4])
    x = torch.lerp(x0, noise, level[:, None])
    ours.step(x0 - noise, ours.timesteps[0], x, per_token_timesteps=(1000 * level).expand(2, 5), return_dict=False)
    assert ours.x0 is not None
    torch.testing.assert_close(ours.x0, x0, rtol=0, atol=1e-5)


def test_a_copy_for_the_sound_keeps_the_list() -> None:
    ours = planned(FlowMatchEulerDiscreteScheduler(), STAGE2_SIGMAS)
    sound = copy.deepcopy(ours)
    sound.set_timesteps(sigmas=[1.0])
    assert sound.timesteps.numel() == 3


@pytest.mark.parametrize("bad", [(), (1.1, 0.5), (0.5, 0.5), (0.2, 0.4), (0.5, 0.0)])
def test_lists_that_do_not_fall_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        FlowMatchPlanScheduler().install(bad)


def test_hosts_recognise_it() -> None:
    assert "FlowMatch" in FlowMatchPlanScheduler.__name__
