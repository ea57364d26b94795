"""Adapters that others have on the pipeline, such as a host's own networks, while a LoRA of ours stands beside them.

Knows what peft and diffusers change of others when one more is loaded, chosen and deleted: which are active, and
which layers are wrapped. Loading ours is `borrow.adapters`'s; strengths of others are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modules.ltx.errors import RequestError


@dataclass(frozen=True)
class Layer:
    """One that was wrapped before ours came, and what it was then: which adapters, by name, were `active`, whether
    all were `disabled`, and whose parameters were trainable, which peft couples with being active."""

    layer: Any
    active: tuple[str, ...]
    disabled: bool
    trainable: tuple[tuple[Any, bool], ...]

    def join(self) -> None:
        """Theirs active beside ours, which was chosen alone; none of theirs where they had been turned off."""
        if self.disabled:
            self.layer.enable_adapters(True)
        else:
            self.layer.set_adapter([*self.active, *self.layer.active_adapters])

    def put_back(self) -> None:
        self.layer.set_adapter(list(self.active))
        self.layer._disable_adapters = self.disabled  # its own method would make all of them trainable
        for parameter, trainable in self.trainable:
            parameter.requires_grad_(trainable)


def layers(pipe: Any) -> list[Layer]:
    """All that are wrapped now. Raises RequestError where adapters are fused into them, for peft then leaves every
    other one out without a word."""
    found = []
    for _, _, layer in _wrapped(pipe):
        if layer.merged:
            names = ", ".join(layer.merged_adapters)
            raise RequestError(
                f"LoRA: another one ({names}) is fused into the model; unfuse it, or load the model anew."
            )
        trainable = tuple((parameter, parameter.requires_grad) for parameter in layer.parameters())
        found.append(Layer(layer, tuple(layer.active_adapters), layer.disable_adapters, trainable))
    return found


def remove(pipe: Any, ours: Sequence[str], theirs: Sequence[Layer]) -> None:
    """Delete ours, as far as they got, and unwrap what nobody else had wrapped; may be called again."""
    for layer in theirs:
        layer.put_back()  # first: of a layer whose active adapter is deleted, peft makes any other one active
    pipe.delete_adapters(list(ours))
    known = {id(one.layer) for one in theirs}
    for parent, name, layer in list(_wrapped(pipe)):
        if id(layer) not in known:
            setattr(parent, name, layer.get_base_layer())


def _wrapped(pipe: Any) -> Iterator[tuple[Any, str, Any]]:
    """(parent, name in it, layer) of every layer of the pipeline that is wrapped for adapters."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in pipe.components.values():
        for parent in part.modules() if isinstance(part, torch.nn.Module) else ():
            for name, layer in parent.named_children():
                if isinstance(layer, BaseTunerLayer):
                    yield parent, name, layer
