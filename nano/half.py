"""Runs a transformer fast on a CPU while it is trained: in bfloat16, and compiled where that pays.

Knows torch and where diffusers' LTX-2 transformer gets its attention from. Does not know what is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _FloatAttention(TorchFunctionMode):
    """Attention in float32: the bfloat16 kernel of CPUs is several times slower on its way back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **named)
        query = named.get("query", args[0] if args else None)
        if not isinstance(query, Tensor) or query.device.type != "cpu":
            return func(*args, **named)
        wide = [_float(value) for value in args]
        return func(*wide, **{key: _float(value) for key, value in named.items()}).to(query.dtype)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class Half(torch.nn.Module):
    """Runs a module in bfloat16 on weights kept in float32: matrix products are 2.5 times as fast on CPUs
    that have them, and small updates are not lost."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module: Any = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cast = {name: value.bfloat16() for name, value in self.module.named_parameters()}
        half = [a.bfloat16() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        wide = ("timestep", "audio_timestep", "sigma", "video_coords")
        named = {
            key: value.bfloat16()
            if isinstance(value, Tensor) and value.is_floating_point() and key not in wide
            else value
            for key, value in kwargs.items()
        }
        with self.attention():
            return torch.func.functional_call(self.module, cast, tuple(half), named)

    def attention(self) -> AbstractContextManager[Any]:
        """What attention is to be while the module runs."""
        return _FloatAttention()

    @property
    def rope(self) -> Any:
        return self.module.rope


class Compiled(Half):
    """The same with every block compiled, for the numbers of tokens that come `often`; 1.4 times as fast.

    Each number takes about a minute to compile, so all others run as they are.
    """

    def __init__(self, module: Any, often: Collection[int]) -> None:
        super().__init__(module)
        self.often = often
        torch._dynamo.config.recompile_limit = 64
        for block in self.module.transformer_blocks:
            block.compile(dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        worth = kwargs["hidden_states"].shape[1] in self.often and not kwargs.get("isolate_modalities")
        with torch.compiler.set_stance("default" if worth else "force_eager"):
            return super().__call__(*args, **kwargs)

    def attention(self) -> AbstractContextManager[Any]:
        return _matmul_attention()


@contextmanager
def _matmul_attention() -> Iterator[None]:
    """Attention written as two matrix products, which a compiler joins with what stands around it."""
    from diffusers.models.transformers import transformer_ltx2

    before = transformer_ltx2.dispatch_attention_fn
    transformer_ltx2.dispatch_attention_fn = _attention
    try:
        yield
    finally:
        transformer_ltx2.dispatch_attention_fn = before


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """(batch, tokens, heads, channels), as diffusers' own takes and gives them."""
    q, k, v = (part.transpose(1, 2).float() for part in (query, key, value))
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        score = score + attn_mask.float()
    mixed: Tensor = score.softmax(-1) @ v
    return mixed.transpose(1, 2).to(query.dtype)
