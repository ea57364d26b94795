"""Prompt embeddings kept between jobs, so that another seed of a prompt needs no text encoder.

Belongs to one encoder at a time: with another one in memory nothing of the first is left. Bounded by bytes, because a
prompt of LTX 2.x is 49 layers of hidden states, 385 MB in bfloat16 (1024 tokens, 3840 wide); on the CPU.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MOST = 2 << 30  # bytes: five prompts of 2.x


class Key(NamedTuple):
    """What decides an embedding: of the pipelines of 0.9 some mask the padding from the encoder, and some do not."""

    pipeline: str
    text: str
    length: int  # tokens, with padding


class Embeddings:
    """(embeddings, mask) by what made them; those that were not asked for longest go first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._encoder: weakref.ref[Any] | None = None
        self._kept: OrderedDict[Key, tuple[Tensor, Tensor]] = OrderedDict()

    def of(self, encoder: Any) -> Embeddings:
        """Itself, emptied where it belonged to another encoder."""
        if self._encoder is None or self._encoder() is not encoder:
            self._encoder, self._kept = weakref.ref(encoder), OrderedDict()
        return self

    def get(self, key: Key) -> tuple[Tensor, Tensor] | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, made: tuple[Tensor, Tensor]) -> None:
        """Keep what fits; a prompt that is larger than all that may be kept is not."""
        self._kept[key] = made
        while self.size > self._most:
            self._kept.popitem(last=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.nbytes for both in self._kept.values() for tensor in both)
