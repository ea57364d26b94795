"""Guidance's predictions in larger or smaller batches than the pipeline makes: a borrowed transformer.

The LTX pipelines call the transformer with a batch of two for CFG and once more each for STG and modality guidance
(2.x). Here a step's predictions are made one at a time, which holds the least, or all in one forward, which goes
through the weights once. The pipeline sees the same calls with the same answers, to rounding. Knows how the pipelines
call their transformer; whether it pays is measured in `bench/guidance.py`, how many are made is the plan's choice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Forward = Callable[..., Any]

_APART = ("audio_to_video_attn", "video_to_audio_attn")  # of a block: what modality guidance leaves out


@dataclass(frozen=True)
class Streams:
    """What a stage's guidance asks the transformer for beside the conditional prediction; `batch`: how many of these
    one forward makes, 1, 2 (as the pipeline does) or 4 (all there are)."""

    batch: int = 2
    cfg: bool = False
    stg_blocks: tuple[int, ...] = ()
    modality: bool = False


@dataclass
class _Answers:
    """The answers of one step that were made ahead of the calls that want them, by kind of call."""

    seen: Tensor | None = None  # the latents that they were made of
    made: dict[str, Outputs] = field(default_factory=dict)


@contextmanager
def batched(transformer: torch.nn.Module, streams: Streams) -> Iterator[None]:
    """The transformer with a class of the same name, whose calls are put together as `streams` says.

    A class, because the pipelines call the module, whose `.forward` others replace (offloading, LoRA).
    """
    if streams.batch == 2 or (streams.batch > 2 and not (streams.stg_blocks or streams.modality)):
        yield  # the pipeline's own way
        return
    kind, answers = type(transformer), _Answers()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        forward = functools.partial(kind.__call__, self)
        if args or kwargs.get("return_dict", True):
            return forward(*args, **kwargs)
        if streams.batch == 1:
            return _one_by_one(forward, kwargs) if streams.cfg else forward(**kwargs)
        return _together(self, forward, kwargs, streams, answers)

    try:
        transformer.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        yield
    finally:
        transformer.__class__ = kind


def _one_by_one(forward: Forward, kwargs: Mapping[str, Any]) -> Outputs:
    """Each sample of the batch in a forward of its own."""
    size = len(kwargs["hidden_states"])
    made = [forward(**rows_of(kwargs, size, [row])) for row in range(size)]
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


def _together(
    transformer: Any, forward: Forward, kwargs: Mapping[str, Any], streams: Streams, answers: _Answers
) -> Any:
    """The first call of a step makes all its predictions; the further ones are answered from them.

    A call that is not as the stage's guidance would have it, such as the self-refiner's for the conditional prediction
    alone, is left as it is.
    """
    kind, latents = kind_of(kwargs), kwargs["hidden_states"]
    if kind != "text":
        known = answers.made.pop(kind, None)
        same = known is not None and answers.seen is not None and torch.equal(answers.seen, latents)
        return known if same else forward(**kwargs)
    answers.made.clear()
    if len(latents) != 1 + streams.cfg:
        return forward(**kwargs)
    asked = [name for name, on in (("stg", streams.stg_blocks), ("modality", streams.modality)) if on]
    rows = [*range(len(latents)), *[len(latents) - 1] * len(asked)]  # the others are of the conditional prompt
    marks = {name: _mark(len(rows), len(latents) + at, latents) for at, name in enumerate(asked)}
    call = rows_of(kwargs, len(latents), rows)
    if "stg" in marks:
        call |= {"spatio_temporal_guidance_blocks": list(streams.stg_blocks), "perturbation_mask": marks["stg"]}
    with _isolated(transformer, marks.get("modality")):
        outputs = forward(**call)
    answers.seen = latents[-1:]
    answers.made = {name: tuple(o[len(latents) + at :][:1] for o in outputs) for at, name in enumerate(asked)}
    return tuple(o[: len(latents)] for o in outputs)


def kind_of(kwargs: Mapping[str, Any]) -> str:
    """Which of the guidance terms a call of a 2.x transformer is for: text, stg or modality."""
    if kwargs.get("isolate_modalities"):
        return "modality"
    return "stg" if kwargs.get("spatio_temporal_guidance_blocks") else "text"


def _mark(size: int, row: int, like: Tensor) -> Tensor:
    """(size,) ones, with a 0 at `row`."""
    mark = torch.ones(size, dtype=like.dtype, device=like.device)
    mark[row] = 0
    return mark


def rows_of(kwargs: Mapping[str, Any], size: int, rows: Sequence[int]) -> dict[str, Any]:
    """The arguments with the given rows of whatever has a batch of `size`."""
    return {
        name: value[list(rows)] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in kwargs.items()
    }


@contextmanager
def _isolated(transformer: Any, mark: Tensor | None) -> Iterator[None]:
    """Sound and picture deaf to each other where `mark` is 0: what each block's attention says of the other is zeroed,
    which adds as little as the attention that diffusers leaves out."""

    def masked(_: Any, __: Any, output: Tensor) -> Tensor:
        assert mark is not None
        return output * mark.to(output)[:, None, None]

    with ExitStack() as undo:
        for block in transformer.transformer_blocks if mark is not None else ():
            for name in _APART:
                undo.callback(getattr(block, name).register_forward_hook(masked).remove)
        yield
