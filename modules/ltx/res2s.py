"""res_2s, the second-order solver of Lightricks' HQ recipe, as a scheduler.

An exponential Runge-Kutta step in log sigma, from s to n, h = ln(s / n), with a second evaluation at sqrt(s n):

    a21 = phi1(-h/2) / 2,  b2 = 2 phi2(-h),  b1 = phi1(-h) - b2
    e1 = x0(x, s) - x,  x_mid = x + h a21 e1,  e2 = x0(x_mid, sqrt(s n)) - x,  x_next = x + h (b1 e1 + b2 e2)

Noise is added behind each of both evaluations. Sources: Lightricks/LTX-2 ltx_pipelines/utils/samplers.py and
res2s.py, ltx_core components/diffusion_steps.py (Res2sDiffusionStep).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from modules.ltx.samplers import FlowMatchSolver, Seen

ETA = 0.5  # share of a level's noise that is drawn anew; behind the midpoint it is always this
SMALLEST = 0.0011  # upstream's stand-in for the final 0, whose logarithm there is not
MOST_ETA = 0.9999
# Where the step is short and not at its end, x is moved to where the midpoint says it must have been.
ANCHOR_H, ANCHOR_SIGMA = 0.5, 0.03


class FlowMatchRes2sScheduler(FlowMatchSolver):
    """n steps are 2 n + 1 evaluations: two a step, and a last one at SMALLEST, whose x0 is the result.

    `eta` 0 adds no noise at all (second order then); anything else is for the end of a step. Its noise is drawn by
    keyed seeds: the job's plain seed would draw the very numbers that the latents began with.
    """

    eta = ETA
    dtype = torch.float64

    def install(self, sigmas: Any) -> FlowMatchRes2sScheduler:
        super().install(sigmas)
        if sigmas[-1] <= SMALLEST:
            raise ValueError(f"res_2s needs sigmas above {SMALLEST}, not {sigmas[-1]}")
        return self

    def _entries(self) -> tuple[list[float], tuple[int, ...]]:
        ends = (*self.planned[1:], SMALLEST)
        both = [sigma for s, n in zip(self.planned, ends, strict=True) for sigma in (s, math.sqrt(s * n))]
        return [*both, SMALLEST], tuple(range(0, len(both), 2))

    def _advance(self, at: int, seen: Seen) -> Tensor:
        if at == len(self.timesteps) - 1:
            return seen.x0
        first = at % 2 == 0
        s, mid, n = (self._sigma(index, seen.x) for index in ((at, at + 1, at + 2) if first else (at - 1, at, at + 1)))
        h = float((s / n).log())
        a21, b1, b2 = coefficients(h)
        if first:
            made = seen.x + h * a21 * (seen.x0 - seen.x)
            made = self._noised(seen, seen.x, made, (s, mid), "middle")
            anchor = seen.x
            if h < ANCHOR_H and float(s) > ANCHOR_SIGMA:
                # The fixed point of upstream's up to 100 rounds of x = x_mid - h a21 (x0 - x).
                anchor = (made - h * a21 * seen.x0) / (1 - h * a21)
                anchor = torch.where(seen.level(s) > 0, anchor, seen.x)
            self.kept = (anchor, seen.x0 - anchor)
            return made
        anchor, e1 = self.kept
        made = anchor + h * (b1 * e1 + b2 * (seen.x0 - anchor))
        return self._noised(seen, anchor, made, (s, n), "end")

    def _noised(self, seen: Seen, x: Tensor, made: Tensor, levels: tuple[Tensor, Tensor], purpose: str) -> Tensor:
        if self.eta == 0:
            return made
        eta = ETA if purpose == "middle" else self.eta
        s, n = (seen.level(sigma) for sigma in levels)
        return renoised(x, made, s, n, eta=eta, noise=normalised(self._noise(x, purpose)))


def coefficients(h: float) -> tuple[float, float, float]:
    """a21, b1, b2 of a step of length h > 0 in log sigma."""
    b2 = 2 * _phi2(-h)
    return _phi1(-h / 2) / 2, _phi1(-h) - b2, b2


def _phi1(z: float) -> float:
    """(e^z - 1) / z."""
    return math.expm1(z) / z


def _phi2(z: float) -> float:
    """(e^z - 1 - z) / z^2; the series where the difference would lose its digits."""
    if abs(z) < 1e-3:
        return 0.5 + z / 6 + z * z / 24
    return (math.expm1(z) - z) / (z * z)


def renoised(x: Tensor, made: Tensor, s: Tensor, n: Tensor, *, eta: float, noise: Tensor) -> Tensor:
    """`made`, reached from x between levels s and n, with a share of its noise drawn anew; the variance stays.

    Levels are numbers or (batch, tokens, 1); a token at level 0 stays `made`.
    """
    up = min(eta, MOST_ETA) * n
    rest = (n.square() - up.square()).clamp(min=0).sqrt()
    scale = (1 - n) + rest
    slope = (x - made) / (s - n).clamp(min=1e-12)
    after = scale * (x - s * slope + rest / scale * slope) + up * noise
    return torch.where(n > 0, after, made)


def normalised(noise: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the last two axes (tokens and channels), as upstream's `_get_new_noise`."""
    axes = (-2, -1)
    return (noise - noise.mean(axes, keepdim=True)) / noise.std(axes, keepdim=True)
