"""What an evaluation need not compute anew: the guidance of the evaluation before, kept for the next ones.

Guidance is a sum of differences between the conditional prediction and others (unconditional, STG, modality). These
differences change slowly from step to step, so in some evaluations the transformer makes the conditional prediction
alone and the others are answered as it minus the kept difference: the pipeline's own guidance and rescale go on
working. What it is worth, beside diffusers' caches, is measured in `bench/caches.py`. Knows how the LTX pipelines call
their transformer; which stages are run so is the plan's choice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from modules.ltx import speed
from modules.ltx.guided import Forward, Outputs, kind_of, rows_of


@dataclass
class _Kept:
    """`told`: the conditional prediction of the running evaluation; `differences`: it minus each other one, by kind of
    call, as the last full evaluation had them."""

    evaluation: int = -1
    told: Outputs = ()
    differences: dict[str, Outputs] = field(default_factory=dict)


def cached(transformer: Any, cache: str, *, cfg: bool) -> AbstractContextManager[None]:
    """The transformer with the plan's cache; nothing at all where that is off."""
    if cache == speed.GUIDANCE:
        return guidance_kept(transformer, cfg=cfg)
    return extrapolated(transformer) if cache == speed.TAYLOR else nullcontext()


@contextmanager
def extrapolated(transformer: Any) -> Iterator[None]:
    """Diffusers' TaylorSeer over whole forwards: in each second evaluation the blocks are left out, and what the last
    projections, of picture and sound, gave before is continued along a line."""
    from diffusers.hooks import TaylorSeerCacheConfig

    config = TaylorSeerCacheConfig(
        cache_interval=speed.KEPT,
        disable_cache_before_step=speed.FIRST,
        taylor_factors_dtype=torch.float32,
        skip_predict_identifiers=[r"transformer_blocks\.\d+"],
        cache_identifiers=["proj_out", "audio_proj_out"],
    )
    transformer.enable_cache(config)
    try:
        _forget_hooked_modules(transformer)
        yield
    finally:
        transformer.disable_cache()
        _forget_hooked_modules(transformer)


def _forget_hooked_modules(transformer: Any) -> None:
    """Have diffusers look for hooked modules again. Before 0.41 it lists them at the first call only, so a transformer
    that ran without a cache before fails with one ("No context is set")."""
    registry: Any = getattr(transformer, "_diffusers_hook", None)
    if hasattr(registry, "_child_registries_cache"):
        registry._child_registries_cache = None


@contextmanager
def guidance_kept(transformer: torch.nn.Module, *, cfg: bool, every: int = speed.KEPT) -> Iterator[None]:
    """The transformer with a class of the same name that makes all predictions in one of `every` evaluations, from the
    first on, and the conditional one alone in the others. `cfg`: its batches hold the unconditional one in front."""
    kind, kept = type(transformer), _Kept()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _answer(functools.partial(kind.__call__, self), kwargs, kept, cfg=cfg, every=every)

    try:
        transformer.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        yield
    finally:
        transformer.__class__ = kind


def _answer(forward: Forward, kwargs: dict[str, Any], kept: _Kept, *, cfg: bool, every: int) -> Outputs:
    kind = kind_of(kwargs)
    if kind == "text":
        kept.evaluation += 1
    if kept.evaluation % every == 0:
        return _made(forward(**kwargs), kind, kept, cfg=cfg)
    if kind != "text":
        return tuple(told - apart for told, apart in zip(kept.told, kept.differences[kind], strict=True))
    if not cfg:
        kept.told = tuple(forward(**kwargs))
        return kept.told
    size = len(kwargs["hidden_states"])
    kept.told = tuple(forward(**rows_of(kwargs, size, range(size // 2, size))))
    pairs = zip(kept.told, kept.differences["text"], strict=True)
    return tuple(torch.cat([told - apart, told]) for told, apart in pairs)


def _made(outputs: Outputs, kind: str, kept: _Kept, *, cfg: bool) -> Outputs:
    """A full evaluation's answer, its differences kept."""
    if kind != "text":
        kept.differences[kind] = tuple(told - o for told, o in zip(kept.told, outputs, strict=True))
    elif cfg:
        halves = [o.chunk(2) for o in outputs]
        kept.told = tuple(told for _, told in halves)
        kept.differences["text"] = tuple(told - other for other, told in halves)
    else:
        kept.told = tuple(outputs)
    return outputs
