"""One training loop for every stage: seeded by step, resumable, averaged weights, progress.

A stage is a `Task`: its modules, its length, and `loss(step, rng)`. Everything random in a step comes
from (stage, step, worker), so a resumed training takes the very steps an undisturbed one would have taken.
Does not know what is trained.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nano.muon import Muon

SEED = 20260


class Task(Protocol):
    """What a stage brings. `modules` are trained and averaged; `loss` returns figures too, for the log."""

    name: str
    steps: int
    lr: float

    def modules(self) -> Mapping[str, torch.nn.Module]: ...

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]: ...


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that share a training, each on its own part of a batch."""

    rank: int = 0
    count: int = 1

    def average(self, parameters: list[torch.nn.Parameter]) -> None:
        """Gradients become the mean over the workers. What one did not use in this step, another may have:
        a missing gradient counts as zero, or they would send each other lists of different lengths."""
        if self.count == 1:
            return
        flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for parameter, gradient in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()


def rate(step: int, steps: int) -> float:
    """Warm-up over 2 %, level, then linear to nothing over the last 40 %."""
    warm = max(20, steps // 50)
    return min(1.0, (step + 1) / warm, max(0.0, (steps - step) / (0.4 * steps)))


def train(task: Task, folder: Path, worker: Worker | None = None, *, every: int = 200) -> None:
    """Train to the end, going on from a checkpoint in `folder` if there is one; leaves `TASK.pt` there.

    The file holds the averaged weights (decay 0.99 to 0.998, by how far the training is) as "weights".
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    worker = worker or Worker()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.name}.pt"
    modules = torch.nn.ModuleDict(dict(task.modules()))
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = Muon(parameters, lr=task.lr, workers=(worker.rank, worker.count))
    averaged = {name: value.detach().clone() for name, value in modules.state_dict().items()}
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        step = saved["step"]
        if step < task.steps:
            modules.load_state_dict(saved["raw"])
            if saved["optimizer"] is not None:
                optimizer.load_state_dict(saved["optimizer"])
        averaged = saved["weights"]
    log = (folder / f"{task.name}.log").open("a") if worker.rank == 0 else None
    columns = (
        TextColumn(task.name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started, since = time.time(), step
    with Progress(*columns, disable=worker.rank != 0 or os.environ.get("NANO_QUIET") == "1") as progress:
        bar = progress.add_task(task.name, total=task.steps, completed=step, note="")
        while step < task.steps:
            seed = [SEED, sum(map(ord, task.name)), step, worker.rank]
            torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
            loss, figures = task.loss(step, np.random.default_rng([*seed, 1]))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            worker.average([p for p in parameters if p.requires_grad])
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = task.lr * rate(step, task.steps)
            optimizer.step()
            step += 1
            decay = min(0.998, 0.99 + 0.008 * step / task.steps, step / (step + 10))
            for name, value in modules.state_dict().items():
                if value.is_floating_point():
                    averaged[name].lerp_(value, 1 - decay)
                else:
                    averaged[name].copy_(value)
            note = " ".join(f"{key} {value:.4g}" for key, value in figures.items())
            progress.update(bar, completed=step, note=note)
            if log and (step % 50 == 0 or step == task.steps):
                log.write(f"{step} {(time.time() - started) / (step - since):.3f}s/step {note}\n")
                log.flush()
            if worker.rank == 0 and (step % every == 0 or step == task.steps):
                _save(file, step, modules, averaged, optimizer)


def _save(file: Path, step: int, modules: torch.nn.Module, averaged: dict[str, Tensor], optimizer: Muon) -> None:
    """Beside the old one first, then in its place: an interrupted save loses nothing."""
    new = file.with_suffix(".new")
    state = {"step": step, "raw": modules.state_dict(), "weights": averaged, "optimizer": optimizer.state_dict()}
    torch.save(state, new)
    new.replace(file)


def averaged_weights(folder: Path, task: str, module: str) -> dict[str, Tensor]:
    """What a finished (or unfinished) training left for one of its modules."""
    saved = torch.load(folder / f"{task}.pt", weights_only=True)["weights"]
    prefix = f"{module}."
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
