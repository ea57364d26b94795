"""`python -m bench.decoding`: frames decoded and encoded at once against either alone, and what longer clips hold.

Tiles stream into the encoder, which works in a thread of its own. Wall time over the slower of the two, with one core
for decoding, so that there is another one for the encoder, as beside a GPU; with all cores both share them, and there
is nothing to gain. Then the most that a process of its own holds above the loaded model, for clips of more and more
frames. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kit import Gate, child, end, held, in_turn

SIDE = 256
ALONE = "one core for decoding"
SLOWER = 1.1  # of the slower of the two
FLAT = 1.25  # the most that the longest clip may hold over one of three tiles
FRAMES = 481  # twenty seconds, 15 tiles: the frames of the last one have nothing to hide behind, so it takes several
LENGTHS = (97, 193, 481)  # frames; 97 is three tiles


class Clip:
    """Random latents of a clip, LTX-Nano's VAE, and the plan of its tiles."""

    def __init__(self, frames: int, folder: Path) -> None:
        import torch

        from modules.ltx.front import settle
        from modules.ltx.hosts.embedded import EmbeddedHost, Settings
        from modules.ltx.request import Request

        self.host = EmbeddedHost(Settings(folder, device="cpu", offline=True))
        self.path = folder / "clip.mp4"
        asked = {"model": "nano-2.3-distilled-t2v", "frames": frames, "width": SIDE, "height": SIDE, "seed": 1}
        self.plan = settle(Request.parse(asked), self.host)
        with self.host.pipeline(self.plan.caps, self.plan.caps.pipeline) as pipe:
            self.pipe = pipe
        channels = pipe.vae.config.latent_channels
        shape = (1, channels, (frames - 1) // 8 + 1, SIDE // 32, SIDE // 32)
        self.latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def decoded(self) -> Iterator[Any]:
        import torch

        from modules.ltx import decode

        return decode.frames(
            self.pipe,
            self.latents,
            self.plan.decode,
            device="cpu",
            generator=torch.Generator(),
            before_tile=lambda: self.host.free("tile"),
        )

    def encode(self, frames: Any) -> None:
        from modules.ltx.media import write_video

        waiting = self.plan.decode.tile_frames
        write_video(self.path, frames, fps=24, sound=None, metadata={}, waiting=waiting)

    def decode(self) -> None:
        for _ in self.decoded():
            pass


def memory(frames: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        clip = Clip(frames, Path(folder))
        loaded = held()
        clip.encode(clip.decoded())
    return {"frames": frames, "above": held() - loaded}


def both(clip: Clip, rounds: int) -> dict[str, list[float]]:
    """Seconds of decoding, of encoding, and of the two at once, in turn."""
    ready = list(clip.decoded())
    cases: dict[str, Callable[[int], object]] = {
        "decode": lambda _: clip.decode(),
        "encode": lambda _: clip.encode(iter(ready)),
        "both": lambda _: clip.encode(clip.decoded()),
    }
    return in_turn(cases, rounds)


def over(found: Mapping[str, Sequence[float]]) -> float:
    """The median over rounds of the two at once over the slower of them."""
    rounds = zip(found["both"], found["decode"], found["encode"], strict=True)
    return statistics.median(together / max(one, other) for together, one, other in rounds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one way alone")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"of the clip ({FRAMES})")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.memory:
        return end("decoding_memory", memory(asked.memory))
    import torch

    cores = torch.get_num_threads()
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = Clip(asked.frames, Path(folder))
        ways = {ALONE: 1} if asked.quick else {ALONE: 1, f"all {cores} cores for both": cores}
        for name, threads in ways.items():
            torch.set_num_threads(threads)
            times[name] = both(clip, 3 if asked.quick else 9)
            medians = ", ".join(f"{part} {statistics.median(found):.2f} s" for part, found in times[name].items())
            print(f"{name}: {medians}; together over the slower {over(times[name]):.2f}")
    lengths = (LENGTHS[0], LENGTHS[-1]) if asked.quick else LENGTHS
    rows = [child("bench.decoding", "--memory", str(frames)) for frames in lengths]
    for row in rows:
        print(f"{row['frames']} frames: {row['above'] / 2**20:.0f} MiB above the loaded model")
    gates = [
        Gate("decode and encode over the slower of the two", over(times[ALONE]), SLOWER),
        Gate(f"held for {LENGTHS[-1]} frames over {LENGTHS[0]}", rows[-1]["above"] / rows[0]["above"], FLAT),
    ]
    return end("decoding", {"seconds": times, "memory": rows}, gates)


if __name__ == "__main__":
    sys.exit(main())
