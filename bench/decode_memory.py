"""`python -m bench.decode_memory`: what decoding a tile holds at its peak, by the published VAEs, not run.

The decoders are built with their published configs on fake tensors, which have shapes and no numbers, and PyTorch's own
memory tracker counts what lives at once. What a GPU's convolutions take to work in is not in it. Prints a table and, as
its last line, JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

VAES = {"2.x": "AutoencoderKLLTX2Video", "0.9": "AutoencoderKLLTXVideo"}  # their defaults are the published configs
SIZES, FRAMES = (256, 512, 768, 1024), (25, 49, 97)
GIB = 2**30


def peak(name: str, size: int, frames: int) -> tuple[int, int]:
    """Bytes of activations at the peak of decoding a tile in bfloat16, and of the decoder's weights."""
    import diffusers
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            vae: Any = getattr(diffusers, name)()
            latents = torch.empty(1, vae.config.latent_channels, (frames - 1) // 8 + 1, size // 32, size // 32)
            tracker = MemTracker()
            with tracker:
                vae.decoder(latents, None)
        (held,) = tracker.get_tracker_snapshot("peak").values()
        counted = {str(kind).rsplit(".", maxsplit=1)[-1]: value for kind, value in held.items()}
        return counted["ACT"], sum(weight.numel() * 2 for weight in vae.decoder.parameters())
    finally:
        torch.set_default_dtype(torch.float32)


def main() -> int:
    rows = []
    print(f"{'VAE':4} {'tile':>6} {'frames':>6} {'GiB':>7} {'numbers a pixel and frame':>26}")
    for family, name in VAES.items():
        for size in SIZES:
            for frames in FRAMES:
                held, weights = peak(name, size, frames)
                each = held / 2 / (size * size * frames)
                rows.append({"vae": family, "size": size, "frames": frames, "bytes": held, "each": round(each, 1)})
                print(f"{family:4} {size:6} {frames:6} {held / GIB:7.2f} {each:26.1f}")
        print(f"{family:4} weights {weights / GIB:.2f} GiB")
    print(json.dumps({"dtype": "bfloat16", "tiles": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
