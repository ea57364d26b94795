"""`python -m bench.quantizing`: how close smaller weights come, how much smaller they are, and what they cost in time.

The same prompts, seeds and recipe on full and on quantized LTX-Nano weights: the distance of the latents, as a share of
their norm, and the share of clips in which the judge sees what the prompt says. Bytes are those of the transformer's
parameters and buffers. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = ("nano-2.3-distilled-t2v", "nano-2.3-dev-t2v", "nano-2.0-distilled-t2v", "nano-0.9-t2v")
KINDS = ("sdnq-int8", "sdnq-int4", "quanto-int8", "fp8")


def measure(clips: int, cache: Path | None, folder: Path) -> dict[str, Any]:
    """By variant and kind: distance, bytes and seconds, each against full weights, and shares right where trained."""
    from nano import evaluate

    told: dict[str, Any] = {"clips": clips}
    scenes = evaluate.scenes(clips)
    for variant in VARIANTS:
        full = list(_made(variant, None, scenes, cache, folder))
        rows = {"full": _row(full, full)}
        for kind in KINDS:
            rows[kind] = _row(list(_made(variant, kind, scenes, cache, folder)), full)
        told[variant] = rows
    return told


def _made(variant: str, kind: str | None, scenes: Sequence[Any], cache: Path | None, folder: Path) -> Iterator[Any]:
    """Of each scene: latents, whether all was right (None: random weights), bytes, seconds of its sampling."""
    import torch

    from modules.ltx import stages
    from modules.ltx.front import settle
    from modules.ltx.hosts.embedded import EmbeddedHost, Settings
    from modules.ltx.request import Request
    from modules.ltx.state import State
    from nano import judge, prompts

    host = EmbeddedHost(Settings(folder, cache=cache, device="cpu", offline=True, quantize=kind))
    for seed, scene in enumerate(scenes):
        asked = {"model": variant, "prompt": prompts.plain(scene), "seed": seed, "width": 256, "height": 256}
        settled = settle(Request.parse({**asked, "frames": 25}), host)
        state = State(settled, seed=seed)
        began = time.perf_counter()
        for _, stage in stages.ordered(settled):
            state = stage(state, host)
        seconds = time.perf_counter() - began
        latents = state.video_latents
        assert latents is not None
        with host.pipeline(settled.caps, settled.caps.pipeline) as pipe:
            parts = [*pipe.transformer.parameters(), *pipe.transformer.buffers()]
            size = sum(_bytes(part) for part in parts)
            right = None
            if not settled.caps.is_random:
                with torch.no_grad():
                    pixels = pipe.vae.decode(latents).sample[0].permute(1, 2, 3, 0)
                frames = (pixels.mul(0.5).add(0.5).clamp(0, 1) * 255).round().byte().numpy()
                right = all(judge.verdict(judge.look(frames), scene).values())
        yield latents, right, size, seconds


def _bytes(tensor: Any) -> int:
    """Of storage: a quantized tensor of quanto says it is as large as what it stands for."""
    inner = [getattr(tensor, name, None) for name in ("_data", "_scale")]
    return sum(part.numel() * part.element_size() for part in inner if part is not None) or (
        tensor.numel() * tensor.element_size()
    )


def _row(made: Sequence[Any], full: Sequence[Any]) -> dict[str, float | None]:
    apart = [float((a[0] - b[0]).norm() / b[0].norm()) for a, b in zip(made, full, strict=True)]
    rights = [one[1] for one in made]
    # The first clip of each loads the model.
    ratio = [a[3] / b[3] for a, b in zip(made[1:], full[1:], strict=True)]
    return {
        "distance": round(float(np.mean(apart)), 4),
        "right": None if rights[0] is None else round(float(np.mean(rights)), 3),
        "bytes": round(made[0][2] / full[0][2], 3),
        "seconds": round(float(np.median(ratio)), 2) if ratio else None,
    }


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    yield "| variant | weights | distance of latents | all right | bytes of the transformer | time |"
    yield "|---|---|---|---|---|---|"
    for variant in VARIANTS:
        for kind, row in told[variant].items():
            right = "-" if row["right"] is None else f"{100 * row['right']:.0f} %"
            yield (
                f"| {variant} | {kind} | {100 * row['distance']:.1f} % | {right} | {row['bytes']:.2f} |"
                f" {row['seconds'] or float('nan'):.2f} |"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quantizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=24, help="prompts for each variant and kind (24)")
    parser.add_argument("--cache", type=Path, help="where LTX-Nano is built (the user's cache)")
    asked = parser.parse_args(argv)
    if asked.clips < 2:
        parser.error("--clips: at least 2, the first one loads the model")
    os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
    with tempfile.TemporaryDirectory() as folder:
        told = measure(asked.clips, asked.cache, Path(folder))
    print("\n".join(table(told)))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
