"""One scheduler for every LTX class: flow-match Euler over exactly the plan's sigmas.

No 0.9 class takes `sigmas=`, some pipelines refuse `timesteps=`, and the published scheduler configs
shift whatever list they are given. So the list is installed by `set_timesteps` itself, whatever the
pipeline passes. The class name holds "FlowMatch", which hosts look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class FlowMatchPlanScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # untyped
    """Euler steps x + (sigma_next - sigma) * v over a fixed list of sigmas, final 0 appended.

    One instance per stage. LTX-2 pipelines deepcopy it for the sound; the list travels with the copy.

    `x0` is the clean latents that the latest evaluation predicts, shaped as its sample; None before the first. It is
    what a preview shows: latents at a level of 0.9 are noise to the eye.
    """

    x0: Tensor | None = None

    def install(self, sigmas: Sequence[float]) -> FlowMatchPlanScheduler:
        """Fix the list (descending, in (0, 1], without the final 0). Raises ValueError otherwise."""
        pairs = zip(sigmas, [*sigmas[1:], 0.0], strict=True)
        if not sigmas or sigmas[0] > 1.0 or any(a <= b for a, b in pairs):
            raise ValueError(f"sigmas must fall strictly from at most 1 to above 0, not {list(sigmas)}")
        self.planned = tuple(sigmas)
        return self

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Install the planned list. Every argument but `device` is what a pipeline would have computed."""
        sigma = torch.tensor(self.planned, dtype=torch.float32, device=device)
        self.num_inference_steps = len(self.planned)
        self.timesteps = sigma * self.config.num_train_timesteps
        self.sigmas = torch.cat([sigma, sigma.new_zeros(1)])
        self._step_index: int | None = None
        self._begin_index = None
        self.x0 = None
        self._installed()

    def _installed(self) -> None:
        """The list stands, a call is about to begin: solvers of other kinds set themselves up here."""

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        self.x0 = self._clean(int(self.step_index), model_output, sample, per_token_timesteps)
        more |= {"per_token_timesteps": per_token_timesteps, "return_dict": return_dict}
        return super().step(model_output, timestep, sample, **more)

    def _clean(self, at: int, v: Tensor, x: Tensor, per_token: Tensor | None) -> Tensor:
        """The clean latents that prediction `v` of evaluation `at` means. `per_token` (batch, tokens): the timestep of
        each, from 0.9 Condition, whose prediction is minus the velocity."""
        if per_token is None:
            return x - self._sigma(at, x) * v
        own: Tensor = per_token[..., None].to(x) / self.config.num_train_timesteps
        return x + own * v

    def _sigma(self, at: int, like: Tensor) -> Tensor:
        sigma: Tensor = self.sigmas[at].to(like)
        return sigma


def planned(theirs: Any, sigmas: Sequence[float]) -> FlowMatchPlanScheduler:
    """A fresh scheduler for one stage, with `theirs`' config but no shift of any kind."""
    plain: FlowMatchPlanScheduler = FlowMatchPlanScheduler.from_config(
        theirs.config,
        shift=1.0,
        use_dynamic_shifting=False,
        shift_terminal=None,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        invert_sigmas=False,
        stochastic_sampling=False,
    )
    return plain.install(sigmas)
