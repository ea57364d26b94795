"""Predict and perturb: the self-refining step of arXiv 2601.18577, as formulas on tensors.

One step goes from noise level s (`sigma`, 1 is pure noise) to n. Its first pass predicts the guided velocity v at
x, which implies x0 = x - s v. Each further pass goes back to level s with fresh noise, x' = (1 - s) x0 + s noise,
predicts again, and replaces what was there wherever the two predictions still disagree; tokens on which they
agree are certain and keep their values for the rest of the step. Then the solver steps once, with the blend.

Tensors are (batch, ..., channels); a token is one place of `...`. Mixing is done in float32 at least. Knows no
pipeline, no schedule text and no random generator: noise is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NORMS = ("p1", "p2", "p2-wan2gp")
DECIDE = ("video", "both", "any")

Streams = Mapping[str, Tensor]


@dataclass(frozen=True)
class Certainty:
    """When a token is certain, and when a step is over.

    `norm`: p1 is the mean of |d| over channels, p2 its root mean square; p2-wan2gp divides the Euclidean length by
    the number of channels, as Wan2GP does: p2 over the root of their number, 11 times smaller at LTX's 128.
    `threshold`: distances below it are certain; 0 never is. `certain`: the share of certain tokens above which a
    sample needs no further pass. `decide`: which stream's share counts, where there are several.
    """

    norm: str = "p1"
    threshold: float = 0.1
    certain: float = 0.999
    decide: str = "video"

    def __post_init__(self) -> None:
        if self.norm not in NORMS or self.decide not in DECIDE:
            raise ValueError(f"norm {self.norm!r} of {NORMS}, decide {self.decide!r} of {DECIDE}")


@dataclass(frozen=True)
class Blend:
    """What a step keeps between passes, whatever their number: the state, its velocity, its x0, and which tokens
    (batch, ...) are certain."""

    x: Tensor
    v: Tensor
    x0: Tensor
    certain: Tensor


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def first(x: Tensor, v: Tensor, sigma: Any) -> Blend:
    """After the first pass nothing is certain. `sigma` is a number or (batch, ..., 1)."""
    x, v = wide(x), wide(v)
    return Blend(x, v, x - sigma * v, torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device))


def perturb(blend: Blend, level: Any, noise: Tensor) -> Tensor:
    """The blend's x0 at noise level `level`, a number or (batch, ..., 1); tokens at level 0 stay as they are."""
    fresh = (1 - level) * blend.x0 + level * noise
    return fresh if isinstance(level, float) else torch.where(level > 0, fresh, blend.x)


def again(blend: Blend, x: Tensor, v: Tensor, *, sigma: Any, rule: Certainty, over: Tensor) -> Blend:
    """The blend after one more pass. Samples that are `over` (batch,) keep theirs."""
    x, v = wide(x), wide(v)
    x0 = x - sigma * v
    kept = over.view(-1, *(1,) * (x.ndim - 2))
    certain = blend.certain | ((distance(x0 - blend.x0, rule.norm) < rule.threshold) & ~kept)
    old = (certain | kept)[..., None]
    return Blend(torch.where(old, blend.x, x), torch.where(old, blend.v, v), torch.where(old, blend.x0, x0), certain)


def distance(d: Tensor, norm: str) -> Tensor:
    """(batch, ..., channels) to (batch, ...)."""
    if norm == "p1":
        return d.abs().mean(-1)
    square = d.square()
    return square.mean(-1).sqrt() if norm == "p2" else square.sum(-1).sqrt() / d.shape[-1]


def share(certain: Tensor, free: Tensor | None = None) -> Tensor:
    """The certain share of each sample's tokens (batch,); of the `free` ones (batch, ...) where some are given."""
    if free is None:
        return certain.flatten(1).double().mean(1)
    free = free.expand_as(certain)
    counted = free.flatten(1).double().sum(1)
    return (certain & free).flatten(1).double().sum(1) / counted.clamp(min=1)


def finished(shares: Streams, rule: Certainty) -> Tensor:
    """Which samples (batch,) need no further pass, from the shares of each stream."""
    done = {name: value > rule.certain for name, value in shares.items()}
    if rule.decide == "video":
        return done.get("video", next(iter(done.values())))
    stacked = torch.stack([value.cpu() for value in done.values()])
    return stacked.all(0) if rule.decide == "both" else stacked.any(0)


def sample(
    predict: Callable[[Any, Any], Any],
    sigmas: Sequence[Any],
    x: Any,
    passes: Sequence[int],
    *,
    norm: str = "p1",
    threshold: float = 0.1,
    certain: float = 0.999,
    noise: Callable[[], Any],
    decide: str = "video",
) -> list[Any]:
    """The whole loop with Euler steps, for reference; returns the latents after each step.

    `predict(x, sigma)` answers the guided velocity; `passes[i]` is the number of its calls at step i, the plain one
    included; `noise()` answers something like x, once for each extra pass. `sigmas` fall, with or without the final
    0. `x` is a tensor (batch, tokens, channels) or a dict of streams; with a dict everything is one, and `decide`
    says which stream's certainty ends a step: "video", "both" or "any". Kept between passes: a `Blend` a stream.
    """
    rule = Certainty(norm, threshold, certain, decide)
    alone = isinstance(x, Tensor)

    def streams(value: Any) -> dict[str, Tensor]:
        return {"video": value} if alone else dict(value)

    def as_given(value: Mapping[str, Tensor]) -> Any:
        kept = {name: tensor.to(state[name].dtype) for name, tensor in value.items()}
        return kept["video"] if alone else kept

    state = streams(x)
    levels = [*sigmas, *([0.0] if len(sigmas) == len(passes) else [])]
    after = []
    for s, n, count in zip(levels[:-1], levels[1:], passes, strict=True):
        v = streams(predict(as_given(state), s))
        blends = {name: first(state[name], v[name], s) for name in state}
        over = torch.zeros(len(next(iter(state.values()))), dtype=torch.bool)
        for _ in range(count - 1):
            drawn = streams(noise())
            moved = {name: perturb(blends[name], s, drawn[name]).to(state[name].dtype) for name in state}
            v = streams(predict(as_given(moved), s))
            blends = {
                name: again(blends[name], moved[name], v[name], sigma=s, rule=rule, over=over.to(moved[name].device))
                for name in state
            }
            over = over | finished({name: share(blend.certain) for name, blend in blends.items()}, rule).cpu()
            if bool(over.all()):
                break
        state = {name: (blend.x + (n - s) * blend.v).to(state[name].dtype) for name, blend in blends.items()}
        after.append(as_given(state))
    return after
