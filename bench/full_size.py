"""`python -m bench.full_size --size 2b|13b|19b|22b`: step and stage times and peak memory of full-size models, random
weights.

Made for a CUDA GPU; on a CPU `--layers 1 --side 64 --frames 9` shows that it works. One stage and two, with the
self-refiner and without, at 768x512 and 1536x1024, 121 frames. Prints a table and, as its last line, JSON. Random
weights make noise: only time and memory mean anything here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.kit import end
from bench.sizes import SIZES, SizedHost

SHAPES = ((768, 512, 121), (1536, 1024, 121))
KINDS: dict[str, dict[str, Any]] = {
    "one stage": {},
    "one stage, refiner 2-6:2": {"self_refine": "p1", "self_refine_plan": "2-6:2"},
    "two stages": {"refine": True},
}


def job(host: SizedHost, shape: tuple[int, int, int], **asked: Any) -> dict[str, Any]:
    """Seconds and peak bytes a phase, and seconds an evaluation. A model without sound or stage 2 is asked for none."""
    from modules.ltx.front import settle
    from modules.ltx.ltx_process import run
    from modules.ltx.request import Request
    from modules.ltx.stages import negative_prompt

    width, height, frames = shape
    size = {"width": width, "height": height, "frames": frames, "seed": 1, "model": host.size.row, "steps": 8}
    plan = settle(Request.parse({**size, "prompt": "a ball", **asked}), host)
    host.read(plan.caps, plan.prompt, negative_prompt(plan))
    began = time.perf_counter()
    timings = run(plan, host).timings
    phases = {one.phase: {"seconds": round(one.seconds, 2), "peak": one.peak} for one in timings}
    seconds = {one.phase: one.seconds for one in timings}
    told: dict[str, Any] = {"wall": round(time.perf_counter() - began, 2), "phases": phases}
    for stage, phase in zip(plan.stages, [name for name in phases if name in ("sample", "refine")], strict=False):
        told[f"{phase}_evaluation"] = round(seconds[phase] / max(stage.evaluations, 1), 3)
    return told


def reserved(device: str) -> int | None:
    """Bytes that the CUDA allocator holds."""
    import torch

    return int(torch.cuda.max_memory_reserved()) if device.startswith("cuda") else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=__doc__)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--quantize", choices=("fp8", "sdnq-int4", "sdnq-int8"), help="of the transformer (bf16)")
    parser.add_argument("--device", help="cuda, or cpu to try it (the machine's best)")
    parser.add_argument("--layers", type=int, help="fewer blocks than published, to try it")
    parser.add_argument("--side", type=int, help="one square size instead of the two, to try it")
    parser.add_argument("--frames", type=int, default=121, help="frames of that one size (121)")
    asked = parser.parse_args(argv)
    from modules.ltx.errors import LTXError
    from modules.ltx.hosts.embedded import Settings
    from modules.ltx.hosts.machine import choose_device

    device = choose_device(asked.device)
    shapes = ((asked.side, asked.side, asked.frames),) if asked.side else SHAPES
    changed = {"num_layers": asked.layers} if asked.layers else {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), device=device, quantize=asked.quantize)
        host = SizedHost(asked.size, settings, **changed)
        for shape in shapes:
            for kind, options in KINDS.items():
                name = f"{'x'.join(map(str, shape))}, {kind}"
                try:
                    rows[name] = job(host, shape, **options)
                except LTXError as error:  # too large for this device, or not of this model
                    rows[name] = {"refused": str(error)}
                print(name, rows[name], flush=True)
    told = {"size": asked.size, "weights": asked.quantize or "bfloat16", "device": device, "rows": rows}
    return end("full_size", {**told, "reserved": reserved(device)})


if __name__ == "__main__":
    sys.exit(main())
