"""`python -m bench.guidance`: a guided step's four predictions made one at a time, as the pipelines do, or at once.

One step of LTX-2.3 Dev (CFG, STG and modality guidance) by the trained LTX-Nano and by wider random models; 25 frames
each. Time is the process's own on a core: the median of calls that take turns, as a ratio to the pipelines' way in the
same run. `--memory` tells instead what a forward holds, of the published configs, not run: numbers for each token and
channel, which `speed.HELD` is taken from. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kit import Gate, end
from modules.ltx import speed

WAYS = {"one": 1, "two": 2, "all": 4}
CLOSE = 1e-5  # of the norm of a prediction: float32 in another order
_NEWER = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "perturbed_attn")


@dataclass(frozen=True)
class Case:
    """A transformer (`heads` None: the trained one), the side of its clip in pixels, and how often it is timed."""

    name: str
    side: int
    times: int
    heads: int | None = None
    size: int = 64


QUICK = (Case("nano", 128, 5),)
CASES = (
    Case("nano", 128, 15),
    Case("nano", 256, 11),
    Case("nano", 512, 5),
    Case("width 512", 384, 5, heads=8),
    Case("width 1024", 384, 3, heads=16),
)


def transformer(case: Case, cache: Path) -> Any:
    """In evaluation; random ones have four blocks."""
    from diffusers import LTX2VideoTransformer3DModel

    from modules.ltx.hosts import nano

    trained: Any = LTX2VideoTransformer3DModel.from_pretrained(nano.ensure("2.3-dev", cache), subfolder="transformer")
    if case.heads is None:
        return trained.eval()
    config = {name: value for name, value in trained.config.items() if not name.startswith("_")}
    width = case.heads * case.size
    config |= {"num_attention_heads": case.heads, "attention_head_dim": case.size, "cross_attention_dim": width}
    config |= {"audio_num_attention_heads": case.heads, "audio_attention_head_dim": 32, "num_layers": 4}
    made: Any = LTX2VideoTransformer3DModel(**{**config, "audio_cross_attention_dim": 32 * case.heads})
    return made.eval()


def calls(model: Any, side: int, text: int = 64) -> list[dict[str, Any]]:
    """What LTX2Pipeline calls the transformer with in one step: CFG's batch of two, STG, modality."""
    import torch

    config, cells, draw = model.config, side // 32, torch.Generator().manual_seed(0)
    frames, sounds = 4, 26
    width = config.num_attention_heads * config.attention_head_dim
    audio = config.audio_num_attention_heads * config.audio_attention_head_dim
    where = torch.device("cpu")
    one: dict[str, Any] = {
        "hidden_states": torch.randn(1, frames * cells**2, config.in_channels, generator=draw),
        "audio_hidden_states": torch.randn(1, sounds, config.audio_in_channels, generator=draw),
        "timestep": torch.tensor([700.0]),
        "sigma": torch.tensor([700.0]),
        "video_coords": model.rope.prepare_video_coords(1, frames, cells, cells, where, fps=24.0),
        "audio_coords": model.audio_rope.prepare_audio_coords(1, sounds, where),
    }
    texts = {
        "encoder_hidden_states": torch.randn(2, text, width, generator=draw),
        "audio_encoder_hidden_states": torch.randn(2, text, audio, generator=draw),
    }
    shape = {"num_frames": frames, "height": cells, "width": cells, "fps": 24.0, "audio_num_frames": sounds}
    shape |= {"use_cross_timestep": True, "return_dict": False}
    alone = {**one, **{name: value[1:] for name, value in texts.items()}, **shape}
    return [
        {**{name: torch.cat([value] * 2) for name, value in one.items()}, **texts, **shape},
        {**alone, "spatio_temporal_guidance_blocks": [1], "isolate_modalities": False},
        {**alone, "spatio_temporal_guidance_blocks": None, "isolate_modalities": True},
    ]


def step(model: Any, asked: Sequence[Mapping[str, Any]], way: str) -> list[Any]:
    """The answers to the calls of a step, put together as `way` says."""
    import torch

    from modules.ltx.guided import Streams, batched

    with torch.no_grad(), batched(model, Streams(WAYS[way], cfg=True, stg_blocks=(1,), modality=True)):
        return [model(**call) for call in asked]


def measure(case: Case, cache: Path) -> dict[str, Any]:
    """Milliseconds a step by way, their ratios to `two`, and the largest distance of a prediction from its own."""
    model = transformer(case, cache)
    asked = calls(model, case.side)
    plain = step(model, asked, "two")
    apart = max(
        float((a - b).norm() / b.norm())
        for way in ("one", "all")
        for mine, theirs in zip(step(model, asked, way), plain, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(case.times):
        for way, seconds in taken.items():
            began = time.process_time()
            step(model, asked, way)
            seconds.append(time.process_time() - began)
    middle = {way: statistics.median(seconds) for way, seconds in taken.items()}
    return {
        "case": case.name,
        "side": case.side,
        "tokens": asked[1]["hidden_states"].shape[1],
        "ms": {way: round(1000 * seconds, 1) for way, seconds in middle.items()},
        "speed": {way: round(middle["two"] / seconds, 2) for way, seconds in middle.items()},
        "apart": apart,
    }


def held(family: str, *, own: bool, tokens: int, batch: int) -> float:
    """Numbers at the peak of a forward, for each token and channel; `own`: each token has its own level of noise."""
    import torch
    from diffusers import LTX2VideoTransformer3DModel, LTXVideoTransformer3DModel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    text, old = 1024, family == "0.9"
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            newer = {**dict.fromkeys(_NEWER, True), "use_prompt_embeddings": False} if family == "2.3" else {}
            model: Any = LTXVideoTransformer3DModel(num_layers=2) if old else None
            model = model or LTX2VideoTransformer3DModel(num_layers=2, **newer)
            config, e = model.config, torch.empty
            width = config.num_attention_heads * config.attention_head_dim
            call = {"hidden_states": e(batch, tokens, 128), "timestep": e(batch, tokens) if own else e(batch)}
            call |= {"encoder_hidden_states": e(batch, text, width if family == "2.3" else config.caption_channels)}
            shape: dict[str, Any] = {"num_frames": 16, "height": 16, "width": tokens // 256, "return_dict": False}
            if old:
                shape |= {"encoder_attention_mask": e(batch, text)}
            else:
                call |= {"audio_hidden_states": e(batch, 126, 128), "audio_timestep": e(batch), "sigma": e(batch)}
                wide = 2048 if family == "2.3" else config.caption_channels
                call |= {"audio_encoder_hidden_states": e(batch, text, wide)}
                shape |= {"fps": 24.0, "audio_num_frames": 126, "use_cross_timestep": family == "2.3"}
            tracker = MemTracker()
            with tracker:
                model(**call, **shape)
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        counted = {str(kind).rsplit(".", maxsplit=1)[-1]: value for kind, value in peak.items()}
        return float(round(counted["ACT"] / 2 / (batch * tokens * width), 1))
    finally:
        torch.set_default_dtype(torch.float32)


def memory() -> dict[str, Any]:
    """`held` by family and kind of levels, at 1024 tokens, for a batch of one and of two."""
    return {
        f"{family}, {'own levels' if own else 'one level'}": {
            str(batch): held(family, own=own, tokens=1024, batch=batch) for batch in (1, 2)
        }
        for family in ("2.0", "2.3", "0.9")
        for own in (False, True)
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: speed against the pipelines' way."""
    yield "| model | size | tokens | two (as the pipelines), ms a step | one at a time | all at once | apart |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row['case']} | {row['side']}x{row['side']} | {row['tokens']} | {row['ms']['two']:.0f} |"
            f" {row['speed']['one']:.2f} | {row['speed']['all']:.2f} | {row['apart']:.1e} |"
        )


def reckoned(found: Mapping[str, Any]) -> list[Gate]:
    """What the plan reckons with is no less than what was found."""
    return [
        Gate(f"numbers held, {name}", value, limit)
        for name, batches in found.items()
        for limit in [speed.HELD["0.9" if name.startswith("0.9") else "2.x"]["own" in name]]
        for value in batches.values()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guidance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest case, in seconds")
    parser.add_argument("--memory", action="store_true", help="what a forward holds, instead of how long it takes")
    parser.add_argument("--cache", type=Path, help="where LTX-Nano is built (the user's cache)")
    asked = parser.parse_args(argv)
    if asked.memory:
        found = memory()
        for name, batches in found.items():
            print(f"{name}: {batches}")
        return end("guidance", {"held": found}, reckoned(found))
    from modules.ltx.hosts.places import cache_folder

    rows = [measure(case, cache_folder(asked.cache)) for case in (QUICK if asked.quick else CASES)]
    print("\n".join(table(rows)))
    apart = max(row["apart"] for row in rows)
    return end("guidance", {"cases": rows}, [Gate("largest distance from the pipelines' way", apart, CLOSE)])


if __name__ == "__main__":
    sys.exit(main())
