"""Solvers against analytic flows, written-out formulas, and each other."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from modules.ltx import recipe
from modules.ltx.ltx_util import DISTILLED_SIGMAS, shifted_sigmas
from modules.ltx.request import SAMPLERS
from modules.ltx.res2s import SMALLEST, coefficients, renoised
from modules.ltx.samplers import FlowMatchSolver, sampler
from modules.ltx.solving import kind_of

pytestmark = pytest.mark.library

MEAN, SPREAD = 0.7, 0.3  # of the data: one Gaussian in every dimension


def solver(name: str, sigmas: Sequence[float], **settings: Any) -> Any:
    made = sampler(FlowMatchEulerDiscreteScheduler(), kind_of(name), sigmas)
    if isinstance(made, FlowMatchSolver):
        made.settle(seed=4, **settings)
    made.set_timesteps()
    return made


def best(x: Tensor, s: float) -> Tensor:
    """E[x0 | x at level s]: what a perfect model answers for that data."""
    signal = (1 - s) * SPREAD**2 / ((1 - s) ** 2 * SPREAD**2 + s**2)
    return MEAN + signal * (x - (1 - s) * MEAN)


def walked(made: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result of a run with the perfect model, and the latents before each evaluation."""
    seen = []
    for index, t in enumerate(made.timesteps):
        s = float(made.sigmas[index])
        seen.append(x)
        x = made.step((x - best(x, s)) / s, t, x, return_dict=False)[0]
    return x, seen


def exact(x: Tensor, s: float, n: float) -> Tensor:
    """Along the flow, (x - mean) over the deviation stays."""

    def deviation(level: float) -> float:
        return math.hypot((1 - level) * SPREAD, level)

    return (1 - n) * MEAN + (x - (1 - s) * MEAN) / deviation(s) * deviation(n)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_prediction_of_every_evaluation_is_told(name: str) -> None:
    made = solver(name, DISTILLED_SIGMAS)
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    for index, t in enumerate(made.timesteps):
        s = float(made.sigmas[index])
        x0 = best(x, s)
        x = made.step((x - x0) / s, t, x, return_dict=False)[0]
        torch.testing.assert_close(made.x0.float(), x0, rtol=0, atol=1e-5)
    made.set_timesteps()
    assert made.x0 is None


def geometric(steps: int, first: float = 0.95) -> list[float]:
    """Equal steps of log sigma down to what res_2s ends at."""
    return [first * (SMALLEST / first) ** (i / steps) for i in range(steps)]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("res_2s", 2)])
def test_the_order_of_convergence(name: str, order: int) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        sigmas = geometric(steps) if name == "res_2s" else [0.95 - 0.9 * i / steps for i in range(steps + 1)]
        made = solver(name, sigmas, eta=0.0) if name == "res_2s" else solver(name, sigmas)
        x = torch.tensor([[[1.3, -0.4]]], dtype=torch.float64)
        _, seen = walked(made, x)
        end = float(made.sigmas[len(seen) - 1])  # the state before the last evaluation, which leaves the flow
        errors.append(float((seen[-1] - exact(x, sigmas[0], end)).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes
    assert errors[-1] < errors[0] / 2 ** (2.5 * order)


@pytest.mark.parametrize("name", SAMPLERS)
def test_where_the_model_is_sure_every_solver_arrives_at_its_answer(name: str) -> None:
    """x0 the same at every evaluation: Euler is exact there, and the others are Euler."""
    x0 = torch.full((1, 6, 4), 0.25)
    made = solver(name, DISTILLED_SIGMAS, **({} if name == "euler" else {"eta": 0.0}))
    plain = solver("euler", DISTILLED_SIGMAS)
    x = before = torch.randn(1, 6, 4)
    at: dict[float, Tensor] = {}
    for index, t in enumerate(plain.timesteps):
        at[float(plain.sigmas[index])] = before
        before = plain.step((before - x0) / plain.sigmas[index], t, before, return_dict=False)[0]
    for index, t in enumerate(made.timesteps):
        s = made.sigmas[index]
        if float(s) in at:
            torch.testing.assert_close(x, at[float(s)], atol=2e-5, rtol=0)
        x = made.step((x - x0) / s, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, x0, atol=2e-5, rtol=0)


def drift(name: str, eta: float, steps: int) -> float:
    """How far the deviation strays at worst from what data of that spread have at the level, as a share."""
    sigmas = geometric(steps)
    made = solver(name, sigmas, eta=eta)
    torch.manual_seed(0)
    x = (1 - sigmas[0]) * MEAN + math.hypot((1 - sigmas[0]) * SPREAD, sigmas[0]) * torch.randn(1, 200, 200)
    result, seen = walked(made, x)
    quiet, _ = walked(solver(name, sigmas, eta=0.0), x)
    assert float((result - quiet).std()) > 0.1, "noise moved it"
    ratios = []
    for index in range(0, len(seen), 4):
        s = float(made.sigmas[index])
        assert float(seen[index].mean()) == pytest.approx((1 - s) * MEAN, abs=0.02)
        ratios.append(float(seen[index].std()) / math.hypot((1 - s) * SPREAD, s))
    return max(abs(ratio - 1) for ratio in ratios)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_ancestral_noise_keeps_the_variance_of_the_data(eta: float) -> None:
    """Short of what a step's length costs, which fades with the steps."""
    few, many = (drift("euler_ancestral", eta, steps) for steps in (60, 360))
    assert many < 0.02
    assert many < 0.4 * few


def test_the_noise_of_res_2s_costs_the_same_variance_whatever_the_steps_length() -> None:
    """A property of the published method: a fixed share of the noise is drawn anew at every step, around a mean that
    lacks the data's own spread. With V = (1-n)^2 spread^2 + n^2 and r the old noise's share of n, a short step loses
    (n - r)^2 (1 - n^2 / V). So many steps lose much: 15, as published, are not too many."""
    for n in (0.9, 0.5, 0.2):
        s = n * (1 + 1e-9)
        level, following = (torch.tensor(value, dtype=torch.float64) for value in (s, n))
        x = torch.tensor([[[MEAN * (1 - s)]], [[MEAN * (1 - s) + 1.0]]], dtype=torch.float64)
        ends = renoised(x, exact(x, s, n), level, following, eta=0.5, noise=torch.zeros_like(x))
        slope = float(ends[1] - ends[0])
        variance, up = (1 - n) ** 2 * SPREAD**2 + n * n, 0.5 * n
        rest = math.sqrt(n * n - up * up)
        lost = variance - (slope**2 * variance + up * up)
        assert lost == pytest.approx((n - rest) ** 2 * (1 - n * n / variance), rel=1e-3)
    assert drift("res_2s", 0.5, 30) < 0.05
    assert drift("res_2s", 0.5, 360) > drift("res_2s", 0.5, 60)


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
def test_noise_drawn_anew_replaces_as_much_as_is_taken(eta: float) -> None:
    """Where x0 is known, the level behind is exactly n: part of it old noise, part new."""
    x0, old, new = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (0.4, 1.0, 10.0))
    for s, n in ((0.9, 0.7), (0.5, 0.1)):
        levels = torch.tensor(s, dtype=torch.float64), torch.tensor(n, dtype=torch.float64)
        at = {level: (1 - level) * x0 + level * old for level in (s, n)}
        made = renoised(at[s], at[n], *levels, eta=eta, noise=new)
        up = n * min(eta, 0.9999)
        assert float(made) == pytest.approx((1 - n) * 0.4 + math.sqrt(n * n - up * up) + up * 10.0)
        held = renoised(at[s], at[n], *(0 * level for level in levels), eta=eta, noise=new)
        assert torch.equal(held, at[n])


def reference_res2s(sigmas: Sequence[float], x: Tensor, noises: Sequence[Tensor], eta: float) -> Tensor:
    """The published loop as it is told, with its rounds of anchoring instead of their fixed point."""
    levels = [*sigmas, SMALLEST]
    drawn = iter(noises)
    for s, n in itertools.pairwise(levels):
        h = math.log(s / n)
        a21, b1, b2 = coefficients(h)
        mid = math.sqrt(s * n)
        anchor, x0 = x.clone(), best(x, s)
        e1 = x0 - anchor
        x_mid = _sde(anchor, anchor + h * a21 * e1, s, mid, 0.5, next(drawn))
        if h < 0.5 and s > 0.03:
            for _ in range(100):
                anchor = x_mid - h * a21 * e1
                e1 = x0 - anchor
        e2 = best(x_mid, mid) - anchor
        x = _sde(anchor, anchor + h * (b1 * e1 + b2 * e2), s, n, eta, next(drawn))
    return best(x, SMALLEST)


def _sde(x: Tensor, made: Tensor, s: float, n: float, eta: float, noise: Tensor) -> Tensor:
    up = n * min(eta, 0.9999)
    rest = math.sqrt(n * n - up * up)
    ratio = (1 - n) + rest
    slope = (x - made) / (s - n)
    return ratio * ((x - s * slope) + rest / ratio * slope) + up * noise


@pytest.mark.parametrize("sigmas", [DISTILLED_SIGMAS, shifted_sigmas(15, 2.05), (0.909375, 0.725, 0.421875)])
def test_res_2s_is_the_published_loop(sigmas: tuple[float, ...]) -> None:
    made = solver("res_2s", sigmas)
    again = solver("res_2s", sigmas)
    torch.manual_seed(3)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    result, seen = walked(made, x)
    assert len(seen) == 2 * len(sigmas) + 1
    noises = []
    for index in range(len(seen) - 1):
        noise = again._noise(x, "end" if index % 2 else "middle")
        noises.append((noise - noise.mean()) / noise.std())
    # Sigmas are float32 in a scheduler, float64 in the reference.
    torch.testing.assert_close(result, reference_res2s(sigmas, x, noises, 0.5), atol=1e-5, rtol=1e-5)


def test_coefficients_of_res_2s() -> None:
    """Against the integrals they stand for: b1 and b2 integrate exactly what is linear in log sigma."""
    for h in (1e-5, 1e-2, 0.3, 2.0, 6.0):
        a21, b1, b2 = coefficients(h)
        assert h * (b1 + b2) == pytest.approx(1 - math.exp(-h), rel=1e-9)
        assert h * a21 == pytest.approx(1 - math.exp(-h / 2), rel=1e-9)
        # integral over 0..h of e^-(h - t) t / (h/2) dt, the weight of the midpoint's slope
        assert h * b2 == pytest.approx((h - 1 + math.exp(-h)) / (h / 2), rel=1e-4)


def test_gradient_estimation_is_the_published_step() -> None:
    sigmas = DISTILLED_SIGMAS
    made = solver("gradient_estimation", sigmas)
    torch.manual_seed(1)
    x = start = torch.randn(1, 5, 4, dtype=torch.float64)
    before = None
    for s, n in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        v = (x - best(x, s)) / s
        led = v if before is None or n == 0 else 2.0 * (v - before) + before
        before, x = v, x + (n - s) * led
    torch.testing.assert_close(walked(made, start)[0], x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["euler_ancestral", "res_2s"])
def test_noise_is_the_jobs_own(name: str) -> None:
    """The same by seed, another for another seed and for the sound; sample i of a batch is the job of seed + i."""

    def noise(seed: int, batch: int = 1, *, sound: bool = False) -> Tensor:
        made = solver(name, DISTILLED_SIGMAS).settle(seed=seed)
        made = copy.deepcopy(made) if sound else made
        made.set_timesteps()
        drawn: Tensor = made._noise(torch.zeros(batch, 6, 4), "middle")
        return drawn

    assert torch.equal(noise(4), noise(4))
    assert not torch.equal(noise(4), noise(5))
    assert not torch.equal(noise(4), noise(4, sound=True))
    assert torch.equal(noise(4, 2)[1], noise(5)[0])
    latents = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(4))
    assert not torch.allclose(noise(4), latents), "not the numbers the latents began with"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_evaluations_are_what_the_plan_counts(name: str, steps: int) -> None:
    made = solver(name, shifted_sigmas(steps, 0.95) if steps > 1 else (1.0,))
    assert len(made.timesteps) == steps + recipe.more_evaluations(name, steps)
    starts = getattr(made, "step_starts", range(steps))
    assert len(starts) == steps
    told = [recipe.step_of(name, index, steps) for index in range(len(made.timesteps))]
    assert told == [sum(start <= index for start in starts) - 1 for index in range(len(told))]


def test_res_2s_wants_sigmas_above_its_last() -> None:
    with pytest.raises(ValueError, match=r"above 0\.0011"):
        solver("res_2s", (1.0, 0.001))
