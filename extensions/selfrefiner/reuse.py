"""A saving: further passes run the conditional prediction alone and keep the guidance of the first.

In the first pass of a step the differences d_k = v_cond - v_k are kept for k = unconditional, STG and modality.
In the others the transformer runs once, on the conditional half of its batch, and the other predictions are answered
as v_cond' - d_k, so that the pipeline's own guidance and rescale go on working. It also answers a settled step's
repeats, at no cost. Knows how the LTX pipelines batch their guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from modules.ltx.errors import RequestError

# Classes whose unconditional prediction is the first half of the conditional one's batch.
BATCHED = (
    "LTXPipeline",
    "LTXImageToVideoPipeline",
    "LTXConditionPipeline",
    "LTX2Pipeline",
    "LTX2ImageToVideoPipeline",
    "LTX2ConditionPipeline",
)
MODES = ("full", "reuse")

Outputs = tuple[Tensor, ...]


def check_reuse(pipe: Any, mode: str) -> None:
    """Raise RequestError for an unknown mode, and for "reuse" where uncond is a call of its own."""
    name = type(pipe).__name__
    if mode not in MODES:
        raise RequestError(f"self-refiner guidance {mode!r}: unknown; choose one of {', '.join(MODES)}.")
    if mode == "reuse" and name not in BATCHED:
        raise RequestError(f"self-refiner guidance reuse: {name} runs uncond in a call of its own; use full.")


class Reuse:
    """The differences of the running step, by kind of call."""

    def __init__(self, *, on: bool) -> None:
        self.on = on
        self.shapes: dict[str, list[tuple[torch.Size, torch.dtype, torch.device]]] = {}
        self.forget()

    def forget(self) -> None:
        """A new step begins."""
        self.differences: dict[str, Outputs] = {}
        self.told: Outputs = ()  # v_cond of the running round

    def answer(
        self, pipe: Any, session: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """What the transformer's call returns: nothing but zeros in a settled step, otherwise `forward`'s or less."""
        kind = _kind(kwargs)
        if session.skip and kind in self.shapes:
            blank = tuple(torch.zeros(s, dtype=d, device=at) for s, d, at in self.shapes[kind])
            return _packed(blank, kwargs)
        reusing = self.on and session.entry.of > 1
        if reusing and session.entry.number > 0:
            outputs = self._cheap(pipe, kind, forward, args, kwargs)
        else:
            outputs = _tensors(forward(*args, **kwargs))
            if reusing:
                self._keep(pipe, kind, outputs)
        self.shapes[kind] = [(o.shape, o.dtype, o.device) for o in outputs]
        return _packed(outputs, kwargs)

    def _keep(self, pipe: Any, kind: str, outputs: Outputs) -> None:
        if kind == "text":
            guided = bool(pipe.do_classifier_free_guidance)
            self.told = tuple(o.chunk(2)[1] for o in outputs) if guided else outputs
            if guided:
                self.differences["text"] = tuple(t - o.chunk(2)[0] for t, o in zip(self.told, outputs, strict=True))
        else:
            self.differences[kind] = tuple(t - o for t, o in zip(self.told, outputs, strict=True))

    def _cheap(
        self, pipe: Any, kind: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Outputs:
        known = self.differences.get(kind)
        if kind != "text":
            assert known is not None
            return tuple(t - d for t, d in zip(self.told, known, strict=True))
        if known is None:
            self.told = _tensors(forward(*args, **kwargs))
            return self.told
        batch = len(known[0])
        self.told = _tensors(
            forward(*_halved(args, batch), **dict(zip(kwargs, _halved(kwargs.values(), batch), strict=True)))
        )
        return tuple(torch.cat([t - d, t]) for t, d in zip(self.told, known, strict=True))


def _kind(kwargs: Mapping[str, Any]) -> str:
    """Which of the guidance terms a call is for."""
    if kwargs.get("isolate_modalities"):
        return "modality"
    return "stg" if kwargs.get("spatio_temporal_guidance_blocks") else "text"


def _halved(values: Any, batch: int) -> tuple[Any, ...]:
    """The conditional half of every argument that has a batch of twice `batch`."""
    return tuple(v[batch:] if isinstance(v, Tensor) and v.ndim and len(v) == 2 * batch else v for v in values)


def _tensors(output: Any) -> Outputs:
    """The output of a transformer, whichever way it returns it, as a tuple of tensors."""
    return tuple(output) if isinstance(output, (tuple, list)) else tuple(output.to_tuple())


def _packed(outputs: Outputs, kwargs: Mapping[str, Any]) -> Any:
    if not kwargs.get("return_dict", True):
        return outputs
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=outputs[0])
