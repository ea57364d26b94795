"""Trains Dev on with captions that are sometimes another clip's, so that guidance has something to do.

Captions of large models are full of mistakes, so their models take a prompt for a hint, and guidance makes them follow
it. In this world every caption was true: Dev met its prompts without guidance, and lost shapes with it
(docs/nano-training.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nano.transformer import LASTING, Dev

_MISTAKEN = 0.2  # of the captions
STEPS = 2500


class Captions(Dev):
    name = "captions"
    lr = 1e-3
    connectors_until = 0

    def __init__(
        self, pools: Path, weights: Mapping[str, Mapping[str, Tensor]], steps: int = STEPS, *, compiled: bool = False
    ) -> None:
        super().__init__(pools, steps, LASTING, compiled=compiled)
        self.transformer.load_state_dict(weights["transformer"])
        self.connectors.load_state_dict(weights["connectors"])

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"transformer": self.transformer}

    def captions(self, said: Sequence[str], rng: np.random.Generator) -> list[str]:
        others = [said[int(other)] for other in rng.permutation(len(said))]
        pairs = zip(said, others, strict=True)
        told = [other if rng.random() < _MISTAKEN else own for own, other in pairs]
        return super().captions(told, rng)
