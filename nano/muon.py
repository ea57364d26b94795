"""Muon for every matrix and convolution, Adam for the rest: fewer steps than Adam alone on small models.

Muon orthogonalises the momentum of each weight matrix before it is applied (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/; the Newton-Schulz coefficients are from there). torch's own
`torch.optim.Muon` refuses convolutions, which are matrices here: (out, in x kernel).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_BLOCK = 128


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrices (..., rows, columns) with singular values 1: five Newton-Schulz iterations."""
    if min(matrix.shape[-2:]) > _BLOCK:
        # The cost grows with the cube of the shorter side; blocks of rows do as well in practice.
        return torch.cat([orthogonal(rows) for rows in torch.split(matrix, _BLOCK, dim=-2)], dim=-2)
    a, b, c = _COEFFICIENTS
    flip = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if flip else matrix
    # The iteration forgives bfloat16, and some CPUs are 2.5 times as fast with it.
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if flip else x).float()
    return result


def _orthogonal_all(matrices: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Those of one shape together: three times as fast as one by one."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, matrix in matrices.items():
        shapes.setdefault(matrix.shape, []).append(index)
    made: dict[int, Tensor] = {}
    for indices in shapes.values():
        stack = orthogonal(torch.stack([matrices[index] for index in indices]))
        made.update(zip(indices, stack, strict=True))
    return made


class Muon(torch.optim.Optimizer):
    """Weights of two and more dimensions by Muon at `lr`, all others by Adam at `lr * adam_ratio`.

    `workers` is (rank, count) of processes with the same gradients: each orthogonalises its share.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        adam_ratio: float = 0.5,
        weight_decay: float = 0.0,
        workers: tuple[int, int] = (0, 1),
    ) -> None:
        self.workers = workers
        every = [p for p in parameters if p.requires_grad]
        matrices = [p for p in every if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16]
        chosen = {id(p) for p in matrices}
        rest = [p for p in every if id(p) not in chosen]
        groups = [{"params": matrices, "muon": True}, {"params": rest, "muon": False}]
        defaults = {"lr": lr, "momentum": momentum, "adam_ratio": adam_ratio, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._adam(parameter, group)

    def _muon(self, group: dict[str, Any]) -> None:
        used = [parameter for parameter in group["params"] if parameter.grad is not None]
        ahead = {}
        for index, parameter in enumerate(used):
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            if index % self.workers[1] == self.workers[0]:
                ahead[index] = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        made = _orthogonal_all(ahead)
        flat = torch.cat(
            [made[i].flatten() if i in made else used[i].new_zeros(used[i].numel()) for i in range(len(used))]
        )
        if self.workers[1] > 1:
            torch.distributed.all_reduce(flat)
        for parameter, update in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            # A step of one size for every shape: the root mean square of an update is 0.2 at lr 1 (Liu et al.
            # 2025, "Muon is scalable for LLM training", arXiv 2502.16982), as Adam's is, so one lr suits both.
            scale = 0.2 * max(parameter.flatten(1).shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Any, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        first, second = state["first"], state["second"]
        first.lerp_(parameter.grad, 0.1)
        second.lerp_(parameter.grad.square(), 0.01)
        mean, square = first / (1 - 0.9 ** state["step"]), second / (1 - 0.99 ** state["step"])
        parameter.addcdiv_(mean, square.sqrt().add_(1e-8), value=-group["lr"] * group["adam_ratio"])
