"""Solvers beyond Euler, written as schedulers: ancestral Euler and Heun, over exactly the plan's sigmas.

Pipelines pass `step` no generator, so a stochastic solver seeds itself, each stream by itself. Both know that
some tokens are given: noise on a clean token would destroy it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modules.ltx.ltx_util import seed_for
from modules.ltx.scheduler import FlowMatchPlanScheduler, planned

NOISE_SEED_OFFSET = (
    10000  # Lightricks/LTX-2 ltx_pipelines: the ancestral sampler's generator is seeded with seed + 10000
)


class FlowMatchAncestralScheduler(FlowMatchPlanScheduler):
    """Euler down to below the next level, then noise back up to it (recipes of LTX-2.5 Distilled, stage 1).

    With s, n the levels and s_down = n (1 + (n/s - 1) eta): x = (s_down/s) x + (1 - s_down/s) x0, then scaled by
    (1-n)/(1-s_down) and noised to level n; n = 0 gives x0.
    """

    def settle(self, *, seed: int, eta: float = 1.0) -> FlowMatchAncestralScheduler:
        """Fix the noise: sample i of a batch draws from seed + 10000 + i. Call it behind `install`."""
        self.seed, self.eta, self.stream = seed, eta, "video"
        self.levels: Tensor | None = None  # each token's level in units of the step's, see `watched`
        self.generators: list[torch.Generator] = []
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowMatchAncestralScheduler:
        """LTX-2 pipelines copy the scheduler for the sound, which must not get the video's noise again."""
        twin: FlowMatchAncestralScheduler = type(self).from_config(self.config)
        memo[id(self)] = twin
        twin.install(self.planned).settle(seed=self.seed, eta=self.eta)
        twin.stream = "sound"
        return twin

    def _installed(self) -> None:
        self.generators, self.levels = [], None

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
        x, v, at = sample.float(), model_output.float(), int(self.step_index)
        s, n = self.sigmas[at].to(x.device), self.sigmas[at + 1].to(x.device)
        drawn = self._noise(sample)
        if per_token_timesteps is not None:  # 0.9 Condition: minus the velocity, and each token's own level
            own = per_token_timesteps[..., None] / self.config.num_train_timesteps
            after = ancestral(x, x + own * v, own, torch.minimum(n, own), eta=self.eta, noise=drawn)
        elif self.levels is not None and x.ndim == 3 and self.levels.shape[1] == x.shape[1]:
            ratio = self.levels[: len(x), :, None].to(x.device)
            after = ancestral(x, x - s * v, ratio * s, ratio * n, eta=self.eta, noise=drawn)
        else:
            after = ancestral(x, x - s * v, s, n, eta=self.eta, noise=drawn)
        self._step_index = at + 1
        return _answer(after.to(sample.dtype), return_dict)

    def _noise(self, sample: Tensor) -> Tensor:
        """(batch, ...) from one generator a sample."""
        if not self.generators:
            seeds = [self.seed + NOISE_SEED_OFFSET + index for index in range(len(sample))]
            seeds = seeds if self.stream == "video" else [seed_for(seed, "ancestral sound") for seed in seeds]
            self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        drawn = [torch.randn(sample.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(sample.device)


def ancestral(x: Tensor, x0: Tensor, s: Tensor, n: Tensor, *, eta: float, noise: Tensor) -> Tensor:
    """One ancestral Euler step from level s to n, numbers or (batch, tokens, 1); a token at level 0 stays."""
    down = n * (1 + (n / s.clamp(min=1e-12) - 1) * eta)
    ratio = down / s.clamp(min=1e-12)
    scale = (1 - n) / (1 - down).clamp(min=1e-12)
    spread = (n.square() - (down * scale).square()).clamp(min=0).sqrt()
    after = scale * (ratio * x + (1 - ratio) * x0) + spread * noise
    return torch.where(s > 0, after, x)


@contextmanager
def watched(transformer: torch.nn.Module, scheduler: Any) -> Iterator[None]:
    """Tell `scheduler` each token's noise level, which a pipeline tells the transformer only."""

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        timestep = kwargs.get("timestep")
        scheduler.levels = None
        if isinstance(timestep, Tensor) and timestep.ndim == 2 and timestep.shape[1] > 1:
            # The most there is is the step's own: no pipeline conditions every token.
            scheduler.levels = (timestep / timestep.max().clamp(min=1e-12)).clamp(max=1.0)

    handle = transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class FlowMatchHeunScheduler(FlowMatchPlanScheduler):
    """Heun's method: a second evaluation at the next level, and the mean of both velocities. The last step, to 0,
    is Euler's. `step_starts` says which entries of `timesteps` begin a step."""

    def _installed(self) -> None:
        first, rest, end = self.sigmas[:1], self.sigmas[1:-1], self.sigmas[-1:]
        entries = torch.cat([first, rest.repeat_interleave(2)])
        self.sigmas = torch.cat([entries, end])
        self.timesteps = entries * self.config.num_train_timesteps
        self.num_inference_steps = len(entries)
        self.step_starts = tuple(range(0, len(entries), 2))
        self.entry = 0
        self.before: tuple[Tensor, Tensor] | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        self.entry = begin_index

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        x, v, at = sample.float(), model_output.float(), self.entry
        self.entry += 1
        if at % 2 == 0:
            s, n = self.sigmas[at], self.sigmas[at + 1]
            self.before = (x, v) if n > 0 else None
            return _answer((x + (n - s) * v).to(sample.dtype), return_dict)
        assert self.before is not None
        began, slope = self.before
        s, n = self.sigmas[at - 1], self.sigmas[at]
        self.before = None
        return _answer((began + (n - s) * (slope + v) / 2).to(sample.dtype), return_dict)


def _answer(sample: Tensor, return_dict: bool) -> Any:
    if not return_dict:
        return (sample,)
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

    return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)


def sampler(theirs: Any, kind: type[FlowMatchPlanScheduler], sigmas: Sequence[float]) -> Any:
    """A fresh scheduler of `kind` for one stage, with `theirs`' config but no shift of any kind."""
    return kind.from_config(planned(theirs, sigmas).config).install(sigmas)
