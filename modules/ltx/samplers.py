"""Solvers beyond Euler, written as schedulers over exactly the plan's sigmas: what they share, and the simple ones.

A solver sees, of each evaluation, the latents x, the model's x0 and each token's own noise level; all of them work
on those alone, so that given tokens (level 0) stay what they are, and half-given ones move at their own level.
Pipelines pass `step` no generator, so a stochastic solver seeds itself, each stream (video, sound) by itself.
res_2s is in `res2s.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.ltx.borrow import hooked
from modules.ltx.ltx_util import seed_for
from modules.ltx.scheduler import FlowMatchPlanScheduler, planned

# Lightricks/LTX-2 ltx_pipelines: the ancestral sampler's generator is seeded with seed + 10000.
NOISE_SEED_OFFSET = 10000
# Gradient estimation's correction of the velocity (Permenter and Yuan 2024, arXiv 2306.04848; ge_gamma upstream).
GAMMA = 2.0


@dataclass(frozen=True)
class Seen:
    """One evaluation: latents, prediction, and `level(sigma)`: each token's own level where the step's is sigma."""

    x: Tensor
    x0: Tensor
    level: Callable[[Tensor], Tensor]


class FlowMatchSolver(FlowMatchPlanScheduler):
    """A solver of its own. Subclasses write `_advance`, and `_entries` where a step has several evaluations."""

    eta = 0.0
    seed = 0
    stream = "video"
    dtype = torch.float32

    def settle(self, *, seed: int, eta: float | None = None) -> FlowMatchSolver:
        """Fix the noise: sample i of a batch draws from `seed` + i. `eta` 0 adds none; None is the solver's own."""
        self.seed = seed
        self.eta = self.eta if eta is None else eta
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowMatchSolver:
        """LTX-2 pipelines copy the scheduler for the sound, which must not get the video's noise again."""
        twin: FlowMatchSolver = type(self).from_config(self.config)
        memo[id(self)] = twin
        twin.install(self.planned)
        twin.seed, twin.eta, twin.stream = self.seed, self.eta, "sound"
        return twin

    def _entries(self) -> tuple[list[float], tuple[int, ...]]:
        """The sigma of each evaluation, and which of them begin a step."""
        return list(self.planned), tuple(range(len(self.planned)))

    def _installed(self) -> None:
        entries, self.step_starts = self._entries()
        sigma = torch.tensor(entries, dtype=torch.float32, device=self.sigmas.device)
        self.sigmas = torch.cat([sigma, sigma.new_zeros(1)])
        self.timesteps = sigma * self.config.num_train_timesteps
        self.num_inference_steps = len(entries)
        self.levels: Tensor | None = None  # each token's level in units of the step's, see `watched`
        self.kept: Any = None  # what an evaluation leaves for the next one
        self._generators: dict[tuple[str, int], torch.Generator] = {}

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        at = int(self.step_index)
        seen = self._seen(at, model_output, sample, per_token_timesteps)
        self.x0 = seen.x0
        after = self._advance(at, seen).to(sample.dtype)
        self._step_index = at + 1
        if not return_dict:
            return (after,)
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=after)

    def _advance(self, at: int, seen: Seen) -> Tensor:
        """The latents that evaluation `at` leads to."""
        raise NotImplementedError

    def _seen(self, at: int, model_output: Tensor, sample: Tensor, per_token: Tensor | None) -> Seen:
        exact = torch.float32 if sample.device.type == "mps" else self.dtype  # which has no float64
        x, v = sample.to(exact), model_output.to(exact)
        x0 = self._clean(at, v, x, per_token)
        if per_token is not None:  # 0.9 Condition: each token's own level
            own = per_token[..., None].to(exact) / self.config.num_train_timesteps
            return Seen(x, x0, lambda sigma: torch.minimum(sigma, own))
        if self.levels is not None and x.ndim == 3 and self.levels.shape[1] == x.shape[1]:
            ratio = self.levels[: len(x), :, None].to(x)
            return Seen(x, x0, lambda sigma: ratio * sigma)
        return Seen(x, x0, lambda sigma: sigma)

    def _noise(self, like: Tensor, purpose: str = "") -> Tensor:
        """Standard normal, (batch, ...), one generator a sample and a purpose; drawn on the CPU."""
        drawn = []
        for index in range(len(like)):
            if (purpose, index) not in self._generators:
                seed = self._seed(self.seed + index, purpose)
                self._generators[purpose, index] = torch.Generator("cpu").manual_seed(seed)
            drawn.append(torch.randn(like.shape[1:], generator=self._generators[purpose, index]))
        return torch.stack(drawn).to(like)

    def _seed(self, seed: int, purpose: str) -> int:
        return seed_for(seed, f"{type(self).__name__} {purpose} {self.stream}")


class FlowMatchAncestralScheduler(FlowMatchSolver):
    """Euler down to below the next level, then noise back up to it (recipes of LTX-2.5 Distilled, stage 1).

    With s, n the levels and s_down = n (1 + (n/s - 1) eta): x = (s_down/s) x + (1 - s_down/s) x0, then scaled by
    (1-n)/(1-s_down) and noised to level n; n = 0 gives x0.
    """

    eta = 1.0

    def _advance(self, at: int, seen: Seen) -> Tensor:
        s, n = (seen.level(self._sigma(index, seen.x)) for index in (at, at + 1))
        return ancestral(seen.x, seen.x0, s, n, eta=self.eta, noise=self._noise(seen.x))

    def _seed(self, seed: int, purpose: str) -> int:
        own = seed + NOISE_SEED_OFFSET
        return own if self.stream == "video" else seed_for(own, "ancestral sound")


def ancestral(x: Tensor, x0: Tensor, s: Tensor, n: Tensor, *, eta: float, noise: Tensor) -> Tensor:
    """One ancestral Euler step from level s to n, numbers or (batch, tokens, 1); a token at level 0 stays."""
    down = n * (1 + (n / s.clamp(min=1e-12) - 1) * eta)
    ratio = down / s.clamp(min=1e-12)
    scale = (1 - n) / (1 - down).clamp(min=1e-12)
    spread = (n.square() - (down * scale).square()).clamp(min=0).sqrt()
    after = scale * (ratio * x + (1 - ratio) * x0) + spread * noise
    return torch.where(s > 0, after, x)


def velocity(seen: Seen, s: Tensor) -> Tensor:
    """(x - x0) / s at each token's own level, 0 where a token is given."""
    return torch.where(s > 0, (seen.x - seen.x0) / s.clamp(min=1e-12), torch.zeros_like(seen.x))


class FlowMatchGradientScheduler(FlowMatchSolver):
    """Euler with the velocity led on by its change: v + (gamma - 1)(v - v_before); one evaluation a step.

    The last step goes to the model's x0 as it is.
    """

    def _advance(self, at: int, seen: Seen) -> Tensor:
        s, n = (seen.level(self._sigma(index, seen.x)) for index in (at, at + 1))
        v = velocity(seen, s)
        led = v if self.kept is None or at == len(self.timesteps) - 1 else v + (GAMMA - 1) * (v - self.kept)
        self.kept = v
        return seen.x + (n - s) * led


class FlowMatchHeunScheduler(FlowMatchSolver):
    """Heun's method: a second evaluation at the next level, and the mean of both velocities. The last step, to 0,
    is Euler's: 2 n - 1 evaluations."""

    def _entries(self) -> tuple[list[float], tuple[int, ...]]:
        first, rest = self.planned[0], self.planned[1:]
        return [first, *(sigma for sigma in rest for _ in range(2))], tuple(range(0, 2 * len(self.planned) - 1, 2))

    def _advance(self, at: int, seen: Seen) -> Tensor:
        if at % 2 == 0:
            s, n = (seen.level(self._sigma(index, seen.x)) for index in (at, at + 1))
            v = velocity(seen, s)
            self.kept = (seen.x, v)
            return seen.x + (n - s) * v
        s, n = (seen.level(self._sigma(index, seen.x)) for index in (at - 1, at))
        began, slope = self.kept
        after: Tensor = began + (n - s) * (slope + velocity(seen, n)) / 2
        return after


@contextmanager
def watched(transformer: torch.nn.Module, scheduler: Any) -> Iterator[None]:
    """Tell `scheduler` each token's noise level, which a pipeline tells the transformer only."""

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        timestep = kwargs.get("timestep")
        scheduler.levels = None
        if isinstance(timestep, Tensor) and timestep.ndim == 2 and timestep.shape[1] > 1:
            # The most there is is the step's own: no pipeline conditions every token.
            scheduler.levels = (timestep / timestep.max().clamp(min=1e-12)).clamp(max=1.0)

    with hooked(transformer, look, with_kwargs=True):
        yield


def sampler(theirs: Any, kind: type[FlowMatchPlanScheduler], sigmas: Sequence[float]) -> Any:
    """A fresh scheduler of `kind` for one stage, with `theirs`' config but no shift of any kind."""
    return kind.from_config(planned(theirs, sigmas).config).install(sigmas)
