"""`python -m bench.compiled`: what compiling the transformer's blocks gains and costs, and attention backends and
channels-last for the VAE, which are alternatives that need no compiler.

LTX-Nano's trained Dev, a guided step of 25 frames, and its VAE decoding as many. Time is the process's own on a core:
the median of calls that take turns, as a ratio to the plain way in the same run; warm-up is the first call, with what
the C++ compiler takes (TORCHINDUCTOR_COMPILE_THREADS=1 has it waited for). `--clips` also makes clips with `--speed
fast` and without, and compares latents and what the judge sees. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from bench.caches import Maker, Setting, row
from bench.guidance import CLOSE, Case, calls, step, transformer
from bench.kit import Gate, end

BACKENDS = ("native", "_native_flash", "_native_math")  # those of diffusers that a CPU has
MODELS = ("nano-2.3-dev-t2v", "nano-2.3-distilled-t2v")
Way = Callable[[], AbstractContextManager[None]]


def turns(call: Callable[[], Any], ways: Mapping[str, Way], times: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of `call` in each way, and how far what it returns is from the first way's, as a share."""
    plain, apart = None, {}
    for name, way in ways.items():
        with way():
            made = call()
        plain = made if plain is None else plain
        pairs = list(zip(made, plain, strict=True))
        apart[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            with way():
                began = time.process_time()
                call()
                taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}, apart


def blocks(side: int, cache: Path, times: int) -> dict[str, Any]:
    """A guided step, plain and compiled, and what the first compiled one takes."""
    from modules.ltx.compiling import compiled

    model = transformer(Case("nano", side, times), cache)
    asked = calls(model, side)

    def call() -> list[Any]:
        return [tensor for answer in step(model, asked, "two") for tensor in answer]

    with compiled(model):
        began, wall = _spent(), time.perf_counter()
        call()
        warm, waited = _spent() - began, time.perf_counter() - wall
        call()  # what the second call of a shape still looks at
    seconds, apart = turns(call, {"safe": nullcontext, "fast": lambda: compiled(model)}, times)
    return {**_told(seconds, apart), "warm_up_s": round(warm, 1), "warm_up_wall_s": round(waited, 1)}


def _spent() -> float:
    """Seconds of cores that this process and the compilers that it has waited for took."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def backends(side: int, cache: Path, times: int) -> dict[str, Any]:
    """A guided step by each attention backend."""
    model = transformer(Case("nano", side, times), cache)
    asked = calls(model, side)

    @contextmanager
    def by(name: str) -> Iterator[None]:
        model.set_attention_backend(name)
        try:
            yield
        finally:
            model.set_attention_backend("native")

    def call() -> list[Any]:
        return [tensor for answer in step(model, asked, "two") for tensor in answer]

    return _told(*turns(call, {name: partial(by, name) for name in BACKENDS}, times))


def decoding(side: int, cache: Path, times: int) -> dict[str, Any]:
    """The VAE's decoder on plain and on channels-last weights and latents."""
    import torch
    from diffusers import AutoencoderKLLTX2Video

    from modules.ltx.hosts import nano

    folder = nano.ensure("2.3-dev", cache)
    vaes: dict[str, Any] = {
        name: AutoencoderKLLTX2Video.from_pretrained(folder, subfolder="vae").eval() for name in ("plain", "last")
    }
    vaes["last"].to(memory_format=torch.channels_last_3d)
    latents = torch.randn(1, 32, 4, side // 32, side // 32, generator=torch.Generator().manual_seed(0))
    form = {"plain": torch.contiguous_format, "last": torch.channels_last_3d}
    chosen = ["plain"]

    @contextmanager
    def in_form(name: str) -> Iterator[None]:
        chosen[0] = name
        yield

    def call() -> list[Any]:
        with torch.no_grad():
            return [vaes[chosen[0]].decode(latents.contiguous(memory_format=form[chosen[0]])).sample]

    return _told(*turns(call, {name: partial(in_form, name) for name in vaes}, times))


def _told(seconds: Mapping[str, float], apart: Mapping[str, float]) -> dict[str, Any]:
    first = next(iter(seconds.values()))
    return {
        "ms": {name: round(1000 * taken, 1) for name, taken in seconds.items()},
        "speed": {name: round(first / taken, 2) for name, taken in seconds.items()},
        "apart": max(apart.values()),
    }


def clips(count: int, cache: Path | None) -> dict[str, Any]:
    """Clips of both models with `--speed fast`, against the same ones without: `bench.caches.row`."""
    from nano import evaluate

    told = {}
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder), cache)
        for model in MODELS:
            pairs = [
                [maker.make(model, Setting(name, {"speed": name}), scene, seed) for name in ("safe", "fast")]
                for seed, scene in enumerate(evaluate.scenes(count, seed=23))
            ]
            told[model] = row([fast for _, fast in pairs], [safe for safe, _ in pairs])
    return told


def table(told: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a row a way."""
    yield "| what | way | ms | speed | warm-up, s of a core |"
    yield "|---|---|---|---|---|"
    for what, one in told.items():
        for name, ms in one["ms"].items():
            warm = one.get("warm_up_s", "-") if name == "fast" else "-"
            yield f"| {what} | {name} | {ms:.0f} | {one['speed'][name]:.2f} | {warm} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="backends and the VAE alone, in seconds: nothing compiled")
    parser.add_argument("--clips", type=int, default=0, help="clips for each model to compare (none)")
    parser.add_argument("--cache", type=Path, help="where LTX-Nano is built (the user's cache)")
    asked = parser.parse_args(argv)
    from modules.ltx.hosts.places import cache_folder

    cache = cache_folder(asked.cache)
    sides, times = ((128,), 3) if asked.quick else ((128, 256), 11)
    told: dict[str, Any] = {}
    for side in sides:
        if not asked.quick:
            told[f"blocks compiled, {side}x{side}"] = blocks(side, cache, times)
        told[f"attention, {side}x{side}"] = backends(side, cache, times)
        told[f"VAE decoding, {side}x{side}"] = decoding(side, cache, min(times, 5))
    print("\n".join(table(told)))
    made = clips(asked.clips, asked.cache) if asked.clips else {}
    for model, one in made.items():
        print(f"{model}: {one}")
    apart = max(one["apart"] for one in told.values())
    return end("compiled", {"ways": told, "clips": made}, [Gate("largest distance from the plain way", apart, CLOSE)])


if __name__ == "__main__":
    sys.exit(main())
