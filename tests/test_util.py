"""The formulas against diffusers' own, and against arithmetic done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from hypothesis import given
from hypothesis import strategies as st

from modules.ltx import ltx_util

# The scheduler config that Lightricks/LTX-2 publishes.
LTX2_CONFIG = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
}


def test_published_lists_are_verbatim() -> None:
    assert list(ltx_util.DISTILLED_SIGMAS) == DISTILLED_SIGMA_VALUES
    assert list(ltx_util.STAGE2_SIGMAS) == STAGE_2_DISTILLED_SIGMA_VALUES


@pytest.mark.parametrize("tokens", [16, 1024, 1536, 4096, 6144, 12288])
@pytest.mark.parametrize("steps", [2, 8, 30, 40])
def test_token_count_schedule_is_diffusers(tokens: int, steps: int) -> None:
    mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
    assert ltx_util.shift_for_tokens(tokens) == pytest.approx(mu)
    scheduler = FlowMatchEulerDiscreteScheduler(**LTX2_CONFIG)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    ours = torch.tensor([*ltx_util.shifted_sigmas(steps, mu), 0.0])
    # diffusers computes 1 - sigma in float32, where it loses e^m of its precision.
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-7 * (1 + math.exp(mu)))


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_linear_schedule_is_diffusers_with_dynamic_shift_off(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**(LTX2_CONFIG | {"use_dynamic_shifting": False}))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    torch.testing.assert_close(torch.tensor([*ltx_util.linear_sigmas(steps), 0.0]), scheduler.sigmas, rtol=0, atol=2e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 30, 40])
def test_linear_quadratic_schedule_is_diffusers(steps: int) -> None:
    ours = torch.tensor(ltx_util.linear_quadratic_sigmas(steps))
    torch.testing.assert_close(ours, linear_quadratic_schedule(steps), rtol=0, atol=1e-7)


def test_linear_quadratic_at_eight_steps_is_the_distilled_list() -> None:
    assert ltx_util.linear_quadratic_sigmas(8) == pytest.approx(ltx_util.DISTILLED_SIGMAS, abs=5e-5)


def test_one_step_is_pure_noise() -> None:
    assert ltx_util.shifted_sigmas(1, 2.05) == (1.0,)
    assert ltx_util.linear_sigmas(1) == (1.0,)


@given(st.integers(1, 60))
def test_resampled_lists_fall_from_the_same_start(steps: int) -> None:
    sigmas = ltx_util.resample_sigmas(ltx_util.DISTILLED_SIGMAS, steps)
    assert len(sigmas) == steps
    assert sigmas[0] == 1.0
    assert all(a > b for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True))


def test_twice_as_many_steps_keep_the_published_sigmas() -> None:
    assert ltx_util.resample_sigmas(ltx_util.STAGE2_SIGMAS, 6)[::2] == pytest.approx(ltx_util.STAGE2_SIGMAS)


@given(st.integers(1, 5000))
def test_frames_are_8k_plus_1_and_never_more(frames: int) -> None:
    got = ltx_util.get_frames(frames)
    assert got % 8 == 1
    assert got <= frames < got + 8


@given(st.integers(1, 5000), st.sampled_from([32, 64]))
def test_sizes_are_floored_to_the_grid(size: int, grid: int) -> None:
    got = ltx_util.get_bucket(size, grid)
    assert got % grid == 0
    assert got == max(size - size % grid, grid)


def test_token_count_of_the_default_stage_1() -> None:
    assert ltx_util.token_count(384, 256, 121) == 12 * 8 * 16


@pytest.mark.parametrize(("frame", "index"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (-1, 3), (24, 3)])
def test_latent_index_of_a_pixel_frame(frame: int, index: int) -> None:
    assert ltx_util.latent_index(frame, 25) == index


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 64), st.integers(1, 64))
def test_centre_box_is_inside_and_of_the_ratio(across: int, down: int, width: int, height: int) -> None:
    left, top, right, bottom = ltx_util.centre_box((across, down), width, height)
    assert 0 <= left < right <= across
    assert 0 <= top < bottom <= down
    # One side is kept whole, and the other is within a pixel of the ratio.
    assert right - left == across or bottom - top == down
    assert (
        abs((right - left) * height - (bottom - top) * width) <= max(width, height)
        or min(right - left, bottom - top) == 1
    )


def test_each_purpose_draws_from_its_own_seed() -> None:
    seeds = {ltx_util.seed_for(7, purpose) for purpose in ("stage1", "stage2", "decode")}
    assert len(seeds) == 3
    assert ltx_util.seed_for(7, "stage1") == 7
    assert all(0 <= ltx_util.seed_for(2**63 - 1, p) < 2**63 for p in ("stage1", "stage2", "decode"))
