"""`python -m bench.denoise_memory`: what one transformer call holds at its peak, by the published models, not run.

As `bench.decode_memory`: published configs on fake tensors, which have shapes and no numbers, and PyTorch's own memory
tracker. Two blocks stand for all, because without gradients no block leaves anything behind. Prints a table and, as its
last line, JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MODELS = {"2.x": "LTX2VideoTransformer3DModel", "0.9": "LTXVideoTransformer3DModel"}
SIZES, STREAMS = ((16, 16, 16), (16, 24, 32)), (1, 2)  # latent frames, rows, columns; samples in one call
GIB = 2**30


def peak(name: str, grid: tuple[int, int, int], streams: int) -> int:
    """Bytes of activations at the peak of one call in bfloat16."""
    import diffusers
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            model: Any = getattr(diffusers, name)(num_layers=2)
            given = inputs(model, grid, streams)
            tracker = MemTracker()
            with tracker:
                model(**given)
        (held,) = tracker.get_tracker_snapshot("peak").values()
        return {str(kind).rsplit(".", maxsplit=1)[-1]: value for kind, value in held.items()}["ACT"]
    finally:
        torch.set_default_dtype(torch.float32)


def inputs(model: Any, grid: tuple[int, int, int], streams: int) -> dict[str, Any]:
    """What a pipeline calls the model with."""
    import torch

    frames, height, width = grid
    tokens, text, config = frames * height * width, 128, model.config
    given: dict[str, Any] = {
        "hidden_states": torch.empty(streams, tokens, config.in_channels),
        "encoder_hidden_states": torch.empty(streams, text, config.caption_channels),
        "encoder_attention_mask": torch.empty(streams, text),
        "timestep": torch.empty(streams),
        "num_frames": frames,
        "height": height,
        "width": width,
    }
    if hasattr(config, "audio_in_channels"):
        given |= {
            "audio_hidden_states": torch.empty(streams, frames * 8, config.audio_in_channels),
            "audio_encoder_hidden_states": torch.empty(streams, text, config.caption_channels),
            "audio_encoder_attention_mask": torch.empty(streams, text),
            "audio_num_frames": frames * 8,
            "fps": 24.0,
        }
    return given


def main() -> int:
    rows = []
    print(f"{'model':5} {'tokens':>7} {'streams':>7} {'GiB':>7} {'numbers a token and stream':>27}")
    for family, name in MODELS.items():
        for grid in SIZES:
            for streams in STREAMS:
                tokens = grid[0] * grid[1] * grid[2]
                held = peak(name, grid, streams)
                each = held / 2 / (tokens * streams)
                rows.append({"model": family, "tokens": tokens, "streams": streams, "bytes": held, "each": round(each)})
                print(f"{family:5} {tokens:7} {streams:7} {held / GIB:7.2f} {each:27.0f}")
    print(json.dumps({"dtype": "bfloat16", "calls": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
