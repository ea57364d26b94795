"""`python -m bench.scale`: what a video costs in time, memory and bytes, from one GPU to a thousand.

Arithmetic on published sizes, each constant with its source; what can be checked here is checked: the operations
against torch's own counter on the real classes (no weights: meta tensors), the shape of the curve against LTX-Nano on
this CPU, the queue's writes against its own file. Prints tables and, as its last line, one JSON document; `--no-runs`
leaves out what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# LTX-2's transformer as diffusers declares it (LTX2VideoTransformer3DModel): blocks, width of the video's and the
# sound's stream, text tokens; sound tokens a second of its VAE.
BLOCKS, WIDTH, SOUND_WIDTH, TEXT, SOUND_RATE = 48, 4096, 2048, 1024, 25
# One H100 SXM by NVIDIA's data sheet: 989 TFLOP/s dense bfloat16, 900 GB/s NVLink both ways; a 400 Gbit/s network card.
# The share that is reached of each is an assumption, of the order that is told of large transformers.
SPEED, LINK, NETWORK = 989e12 * 0.45, 450e9 * 0.7, 50e9 * 0.7  # a second
LAUNCH = BLOCKS * 70 * 4e-6  # seconds a forward takes where there is next to nothing to compute: 70 kernels a block
DECODE = 1.27e6  # operations of LTX-2's video VAE a pixel and frame (torch's counter on its published config)
TRANSFORMER, ENCODER = 44e9, 24e9  # bytes, capability_rows.py
HELD = 21.2  # widths in bfloat16 that a token holds at the peak of a forward (torch's tracker, meta tensors, text only)
DISK = 2e9  # bytes a second of a shared folder, read by one machine
# All 49 hidden states of Gemma 3 12B (3840 wide) for 1024 tokens in bfloat16: what kept.py writes a text.
EMBEDS = 49 * 3840 * 1024 * 2
TOLD, MOST = 2.0, 40.0  # events a second of a job that are written down and of all jobs; about 20 a job besides
VIDEO = 3e6  # bytes of a 5 s clip of 1280x704 at the default quality


@dataclass(frozen=True)
class Clip:
    """Pixels and frames of a video, at 24 a second."""

    width: int
    height: int
    frames: int

    @property
    def tokens(self) -> int:
        return (self.width // 32) * (self.height // 32) * ((self.frames - 1) // 8 + 1)

    @property
    def sound(self) -> int:
        return round(self.frames / 24 * SOUND_RATE)


def forward(clip: Clip) -> dict[str, float]:
    """Operations of one forward: of the video's tokens, which processes share, and of sound and text, which each does.

    Weights that a video token meets in a block, in units of width squared: self-attention 4, text 2 (queries, output),
    sound 1 to listen and 1 to be heard, feed-forward 8. Two operations a weight."""
    video = 2 * 16 * WIDTH**2 * BLOCKS * clip.tokens
    attention = 4 * clip.tokens**2 * WIDTH * BLOCKS
    across = 4 * clip.tokens * (TEXT * WIDTH + 2 * clip.sound * SOUND_WIDTH) * BLOCKS
    whole = 2 * 18 * SOUND_WIDTH**2 * BLOCKS * clip.sound + 2 * 2 * (WIDTH**2 + SOUND_WIDTH**2) * BLOCKS * TEXT
    return {"tokens": video, "attention": attention, "across": across, "whole": whole}


def seconds(clip: Clip, gpus: int) -> float:
    """A forward on so many GPUs of one video; eight share NVLink, more the network."""
    part = forward(clip)
    shared = (part["tokens"] + part["attention"] + part["across"]) / gpus
    numbers = (4 * WIDTH + 2 * SOUND_WIDTH) * clip.tokens / gpus * BLOCKS  # queries, keys, values and what comes back
    exchange = 0.0 if gpus == 1 else 2 * numbers * (gpus - 1) / gpus / (LINK if gpus <= 8 else NETWORK)
    return max(LAUNCH, (shared + part["whole"]) / SPEED) + exchange


def decode(clip: Clip) -> float:
    """Decoding the video: by one process, whatever their number. Convolutions reach about half of what matrices do."""
    return DECODE * clip.width * clip.height * clip.frames / (SPEED / 2)


def encode(texts: int) -> float:
    """Reading prompts: two operations a weight of the encoder (two bytes each) and token."""
    return texts * TEXT * ENCODER / SPEED


def alone(clip: Clip, evaluations: int) -> list[dict[str, Any]]:
    """One video on several GPUs."""
    first = seconds(clip, 1) * evaluations
    rows = []
    for gpus in (1, 2, 4, 8, 16, 32):
        took = seconds(clip, gpus) * evaluations
        rest = encode(2) + decode(clip)
        row = {"gpus": gpus, "sampling, s": round(took, 1), "share of ideal": round(first / took / gpus, 2)}
        rows.append({**row, "text and decoding, s": round(rest, 1), "share of all": round(rest / (rest + took), 2)})
    return rows


def many(clip: Clip, evaluations: int, texts: int, write: float) -> list[dict[str, Any]]:
    """Many videos, a GPU each. `texts`: prompts that a job encodes; `write`: seconds of one of the queue's writes."""
    job = seconds(clip, 1) * evaluations + encode(texts) + decode(clip)
    rows = []
    for gpus in (1, 8, 64, 256, 1000):
        rate = gpus / job
        writes = min(gpus * TOLD, MOST) + rate * 20
        rows.append(
            {
                "gpus": gpus,
                "videos an hour": round(rate * 3600),
                "videos, MB/s": round(rate * VIDEO / 1e6, 1),
                "kept states, GB/s": round(rate * texts * EMBEDS / 1e9, 2),
                "queue, writes/s": round(writes),
                "queue, share of its one writer": round(writes * write, 2),
                "models read at the start, s": round((TRANSFORMER + ENCODER) * max(1, gpus / 8) / (DISK * 10)),
            }
        )
    return rows


def counted(clip: Clip) -> float:
    """Operations of a forward of the real class by torch's counter, of two blocks, times as many as there are."""
    import torch
    from diffusers import LTX2VideoTransformer3DModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        model = LTX2VideoTransformer3DModel(num_layers=2)
        grid = {"num_frames": (clip.frames - 1) // 8 + 1, "height": clip.height // 32, "width": clip.width // 32}
        with FlopCounterMode(display=False) as counter:
            model(
                hidden_states=torch.empty(1, clip.tokens, 128),
                audio_hidden_states=torch.empty(1, clip.sound, 128),
                encoder_hidden_states=torch.empty(1, TEXT, 3840),
                audio_encoder_hidden_states=torch.empty(1, TEXT, 3840),
                timestep=torch.empty(1),
                audio_num_frames=clip.sound,
                **grid,
                return_dict=False,
            )
        of = counter.get_flop_counts()
    blocks = [ops for name, ops in of.items() if ".transformer_blocks." in name and name.count(".") == 2]
    return sum(sum(ops.values()) for ops in blocks) * BLOCKS / len(blocks)


def curve() -> dict[str, Any]:
    """LTX-Nano's forward on this CPU against tokens: a + b T + c T^2 through three sizes, and how it hits a fourth."""
    import numpy as np
    import torch

    from modules.ltx.hosts import nano, places

    folder = nano.ensure("2.3-distilled", places.cache_folder(None))
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True)
    took = {side: _timed(model, side, torch) for side in (8, 16, 24, 32)}
    tokens = {side: 4.0 * side * side for side in took}
    fit = np.polyfit([tokens[side] for side in (8, 16, 32)], [took[side] for side in (8, 16, 32)], 2)
    said = float(np.polyval(fit, tokens[24]))
    return {"tokens": tokens, "seconds": took, "predicted": said, "off": round(said / took[24] - 1, 3)}


def _timed(model: Any, side: int, torch: Any) -> float:
    """The fastest of three forwards of 4 x side x side tokens."""
    config, best = model.config, 1e9
    call = {
        "hidden_states": torch.randn(1, 4 * side * side, config.in_channels),
        "audio_hidden_states": torch.randn(1, 32, config.audio_in_channels),
        "encoder_hidden_states": torch.randn(1, 64, config.cross_attention_dim),
        "audio_encoder_hidden_states": torch.randn(1, 64, config.audio_cross_attention_dim),
        **{"timestep": torch.tensor([500.0]), "sigma": torch.tensor([500.0]), "return_dict": False},
        **{"num_frames": 4, "height": side, "width": side, "audio_num_frames": 32},
    }
    with torch.no_grad():
        for _ in range(3):
            began = time.process_time()  # other programs want the cores as well
            model(**call)
            best = min(best, time.process_time() - began)
    return best


def written(events: int = 300) -> float:
    """Seconds that one event takes to be in the queue's file."""
    from modules.ltx.jobs import New, Store

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        job = store.add([New({"prompt": "x"})])[0].id
        began = time.perf_counter()
        for number in range(events):
            store.tell(job, {"state": "running", "phase": "sample", "step": number}, kept=False)
        return (time.perf_counter() - began) / events


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-runs", action="store_true", help="arithmetic alone")
    runs = not parser.parse_args().no_runs
    clips = [Clip(1280, 704, 121), Clip(1280, 704, 241), Clip(1920, 1088, 121), Clip(3840, 2176, 121)]
    write = written() if runs else 1e-3
    told: dict[str, Any] = {"clips": [], "write": write}
    for clip in clips:
        each = forward(clip)
        row = {"clip": f"{clip.width}x{clip.height}x{clip.frames}", "tokens": clip.tokens}
        row |= {f"{name}, TFLOP": round(value / 1e12, 1) for name, value in each.items()}
        row |= {"s": round(seconds(clip, 1), 2), "activations, GB": round(clip.tokens * WIDTH * 2 * HELD / 1e9, 1)}
        told["clips"].append(row)
    show("One forward of LTX-2 on one GPU", told["clips"])
    for name, clip in (("720p, 5 s", clips[0]), ("1080p, 5 s", clips[2])):
        told[name] = alone(clip, 120)
        show(f"One video, {name}: Dev, 30 steps of 4 predictions, seconds", told[name])
    for name, evaluations, texts in (("Distilled, 8 steps", 8, 1), ("Dev, 30 steps of 4", 120, 2)):
        told[name] = many(clips[0], evaluations, texts, write)
        show(f"Many videos, 720p, 5 s, {name}", told[name])
    if runs:
        small = Clip(512, 512, 33)
        told["counted"] = {"ours": sum(forward(small).values()), "torch": counted(small)}
        told["curve"] = curve()
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
