"""One video's tokens over several processes: diffusers' context parallelism with a plan that fits the LTX classes.

Each process holds the whole model and a part of the video's tokens; where a token looks at all others, the processes
exchange heads for tokens (Ulysses). Knows the transformer classes and diffusers' hooks; deliberately does not know how
the processes came to be (`ranks.py`) nor what is made. What diffusers declares itself (`_cp_plan`) fails for every LTX
class: docs/scale.md says where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import apply_context_parallel
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ParallelConfig,
)
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from modules.ltx.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

# The attentions whose keys are the video's tokens. The others read text or sound, which every process has whole.
_EXCHANGING = ("attn1", "video_to_audio_attn")


def split(transformer: Any, count: int, device: str) -> None:
    """Have each forward of `transformer` done by `count` processes together. It takes and gives whole tensors in every
    process, the same ones; the process group must stand. Raises RequestError where the heads cannot be shared out."""
    check_heads(int(transformer.config.num_attention_heads), count)
    kind = device.split(":", maxsplit=1)[0]
    config = ContextParallelConfig(ulysses_degree=count)
    # By hand: `enable_parallelism` divides by the number of accelerators, of which a CPU has none.
    mesh = init_device_mesh(kind, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(distributed.get_rank(), count, torch.device(device), mesh=mesh)
    for block in transformer.transformer_blocks:
        for name in _EXCHANGING:
            if hasattr(block, name):
                getattr(block, name).processor._parallel_config = parallel
    apply_context_parallel(transformer, config, plan_of(transformer))
    shared = _Shared(config, int(transformer.config.num_attention_heads))
    transformer.register_forward_pre_hook(shared.begin, with_kwargs=True)
    transformer.register_forward_hook(shared.end)


def check_heads(heads: int, count: int) -> None:
    """Raise RequestError where `heads` cannot be given out to `count` processes: each must have one, and those that are
    added to make it even must be fewer than one process has."""
    each = -(-heads // count)
    if each * count - heads >= each:
        can = ", ".join(str(n) for n in range(2, heads + 1) if -(-heads // n) * n - heads < -(-heads // n))
        raise RequestError(f"--nproc {count}: the model has {heads} attention heads; take one of {can}.")


def plan_of(transformer: Any) -> dict[str, Any]:
    """Where the video's tokens are parted; what is said in one number for all of them stays whole."""
    four = getattr(transformer.config, "rope_type", "interleaved") == "split"  # batch, heads, tokens, angles
    angles = ContextParallelInput(split_dim=2 if four else 1, expected_dims=4 if four else 3, split_output=True)
    tokens = {
        "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        "timestep": ContextParallelInput(split_dim=1, expected_dims=2),  # of each token, where images are given
    }
    if getattr(transformer.config, "use_keyframes_abs_pos_embedding", False):
        tokens["video_keyframes_mask"] = ContextParallelInput(split_dim=1, expected_dims=3)
    ropes = [name for name in ("rope", "cross_attn_rope") if hasattr(transformer, name)]
    turned = {name: {0: angles, 1: angles} for name in ropes}
    return {"": tokens, **turned}


class _Shared:
    """What is to be done around a forward: told how the tokens come out, and the answers made whole."""

    def __init__(self, config: ContextParallelConfig, heads: int) -> None:
        self._config, self._heads, self._count = config, heads, config.ulysses_degree
        self._tokens = 0

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """The exchange for parts of unequal size costs more calls: only where tokens or heads do not come out even."""
        self._tokens = int(kwargs["hidden_states"].shape[1])
        if self._tokens < self._count:
            raise RequestError(f"--nproc {self._count}: this clip has {self._tokens} tokens; take fewer processes.")
        self._config.ulysses_anything = bool(self._tokens % self._count or self._heads % self._count)

    def end(self, module: Any, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The whole video, and the first process's sound in all of them. Each has made the same sound, but for the last
        bits, and what is decided by it (guidance that is left out, a step that has settled) must be decided alike."""
        video, *sounds = output
        for sound in sounds:
            distributed.broadcast(sound, 0)
        return self._whole(video), *sounds

    def _whole(self, part: Tensor) -> Tensor:
        """Parts of (batch, tokens, channels) side by side. Not diffusers' own gathering: gloo refuses unequal parts."""
        each, more = divmod(self._tokens, self._count)
        sizes = [each + (rank < more) for rank in range(self._count)]
        padded = torch.nn.functional.pad(part, (0, 0, 0, max(sizes) - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
