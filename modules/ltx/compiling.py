"""The transformer's blocks compiled for a stage, one kernel set for all of them: a borrowed transformer.

Only the repeated blocks are compiled, as diffusers names them: one of them is, and the others share what came of it.
The first forward of a new shape pays for it; what it costs and gains is measured in `bench/compiled.py`. Where it
cannot work is the plan's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Batches, kinds of guidance and sizes each make a variant, of which PyTorch allows eight before it runs whatever comes
# behind them uncompiled, at no gain; two sizes of a guided clip are more.
VARIANTS = 64


@contextmanager
def compiled(transformer: Any, backend: str = "inductor") -> Iterator[None]:
    """The transformer with its repeated blocks compiled; PyTorch keeps what it compiled for the next time.

    Each size is compiled by itself: with sizes as unknowns compiling takes several times as long.
    """
    names = set(transformer._repeated_blocks)
    blocks = [module for module in transformer.modules() if type(module).__name__ in names]
    before = [block._compiled_call_impl for block in blocks]
    try:
        for block in blocks:
            block.compile(backend=backend, dynamic=False)
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        for block, theirs in zip(blocks, before, strict=True):
            block._compiled_call_impl = theirs
