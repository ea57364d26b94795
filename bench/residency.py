"""`python -m bench.residency`: what a second job saves, what switching costs, and the stage-2 LoRA.

Counts what is loaded and how often the text encoder runs over a row of jobs; times the first job against later ones;
times attaching and detaching the stage-2 LoRA against the stage it is for, on full and on SDNQ int4 weights, and a
forward with the LoRA beside the weights against one with it added into them. Prints a table and, as its last line,
JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.kit import Gate, end, in_turn, seconds

SMALL = {"width": 128, "height": 128, "frames": 9, "steps": 2, "seed": 1, "prompt": "a red ball moving right"}


class Bench:
    """One host, and counts of what it reads and of texts that are encoded."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        from modules.ltx.hosts.embedded import EmbeddedHost, Settings

        self.loads, self.texts = 0, 0
        self.folder = folder
        self.host = EmbeddedHost(Settings(folder, device="cpu", offline=True, **settings), self._on_event)
        self._watched: set[int] = set()

    def _on_event(self, event: Any) -> None:
        self.loads += event.phase == "load"

    def plan(self, model: str, **asked: Any) -> Any:
        from modules.ltx.front import settle
        from modules.ltx.request import Request

        return settle(Request.parse({**SMALL, "model": model, **asked}), self.host)

    def job(self, model: str, **asked: Any) -> tuple[float, int, int]:
        """Seconds, models read and texts encoded."""
        from modules.ltx.ltx_process import run

        plan = self.plan(model, **asked)
        loads, texts = self.loads, self.texts
        took = seconds(lambda: run(plan, self.host))
        self.parts(plan)  # from now on the encoder is counted
        return took, self.loads - loads, self.texts - texts

    def parts(self, plan: Any) -> dict[str, Any]:
        """The components by name."""
        with self.host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
            if id(pipe.text_encoder) not in self._watched:
                self._watched.add(id(pipe.text_encoder))
                pipe.text_encoder.register_forward_pre_hook(self._read)
            return dict(pipe.components)

    def _read(self, *_: Any) -> None:
        self.texts += 1


def jobs(folder: Path, picture: Path) -> tuple[dict[str, Any], list[Gate]]:
    bench = Bench(folder)
    image = {"images": [{"path": str(picture)}]}
    dev, also = "nano-2.3-dev-t2v", "nano-2.3-dev-i2v"
    first = bench.job(dev)
    again = bench.job(dev, seed=2)
    other = bench.job(dev, prompt="a blue square", negative="a ball", seed=3)
    shared = bench.parts(bench.plan(dev))
    switched = bench.job(also, **image), bench.job("nano-2.3-dev-condition", **image)
    parts = bench.parts(bench.plan(also, **image))
    same = sum(parts[name] is shared[name] for name in ("transformer", "vae", "text_encoder", "connectors", "vocoder"))
    print(f"first job {first[0]:.2f} s, another seed {again[0]:.2f} s, other texts {other[0]:.2f} s")
    told = {"first": first, "again": again, "other": other, "switched": switched}
    return told, [
        Gate("models read for a second job", again[1], 0),
        Gate("texts encoded for another seed of a prompt", again[2], 0),
        Gate("texts encoded for another prompt and negative prompt", other[2], 2, least=True),
        Gate("models read on switching T2V, I2V, Condition", sum(one[1] for one in switched), 0),
        Gate("components shared by T2V and I2V, of 5", same, 5, least=True),
    ]


def lora(folder: Path, rounds: int, **settings: Any) -> dict[str, float]:
    """Seconds of attach and detach, and of the three forwards of stage 2 that they are for."""
    from modules.ltx import borrow

    bench = Bench(folder, **settings)
    plan = bench.plan("nano-2.3-dev-t2v", width=256, height=256, frames=25, refine=True)
    two = plan.stages[-1]
    weights = [(*bench.host.weights(two.lora), two.lora.strength)]
    with bench.host.pipeline(plan.caps, plan.caps.pipeline) as pipe:

        def attach(_: int) -> None:
            with borrow.adapters(pipe, weights):
                pass

        attach(0)
        attached = in_turn({"attach": attach}, rounds)["attach"]
        call = forward(pipe, two)
        with borrow.adapters(pipe, weights):
            call(0)
            unfused = in_turn({"forward": call}, rounds)["forward"]
        found = {
            "attach_and_detach": statistics.median(attached),
            "stage_2_forwards": len(two.sigmas) * statistics.median(unfused),
        }
        if not settings:
            found |= fused(pipe, weights, call, rounds)
    return {name: round(value, 4) for name, value in found.items()}


def fused(pipe: Any, weights: Any, call: Callable[[int], None], rounds: int) -> dict[str, float]:
    """A forward with the LoRA beside the weights over one with it added into them, and what adding costs."""
    from modules.ltx import borrow

    with borrow.adapters(pipe, weights):
        fuse = seconds(pipe.fuse_lora)
        call(0)

        def beside(number: int) -> None:
            pipe.unfuse_lora()
            call(number)

        inside = in_turn({"fused": call}, rounds)["fused"]
        back = seconds(pipe.unfuse_lora)
        outside = in_turn({"unfused": call}, rounds)["unfused"]
    return {
        "fuse_and_unfuse": fuse + back,
        "unfused_over_fused": statistics.median(outside) / statistics.median(inside),
    }


def forward(pipe: Any, stage: Any) -> Callable[[int], None]:
    """One forward of the transformer at the stage's size, as its pipeline makes it: the last step alone."""
    import torch

    embeds = pipe.encode_prompt("a red ball", do_classifier_free_guidance=False, max_sequence_length=128)
    from bench.two_stage import UNGUIDED
    from modules.ltx.scheduler import planned

    def call(_: int) -> None:
        theirs = pipe.scheduler
        pipe.scheduler = planned(theirs, [0.4])
        try:
            pipe(
                **UNGUIDED,
                **{"prompt_embeds": embeds[0], "prompt_attention_mask": embeds[1], "num_inference_steps": 1},
                **{"width": stage.width, "height": stage.height, "num_frames": stage.frames, "frame_rate": 24.0},
                generator=torch.Generator().manual_seed(1),
                output_type="latent",
                return_dict=False,
            )
        finally:
            pipe.scheduler = theirs

    return call


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.residency", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    asked = parser.parse_args(argv)
    from PIL import Image

    # As bench.quantizing: SDNQ would compile its unpacking, minutes for a model as small as this.
    os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
    rounds = 5 if asked.quick else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (128, 128), "red").save(folder / "picture.png")
        told, gates = jobs(folder, folder / "picture.png")
        swaps = {"full": lora(folder, rounds), "sdnq-int4": lora(folder, rounds, quantize="sdnq-int4")}
    for kind, row in swaps.items():
        print(f"stage-2 LoRA, {kind}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return end("residency", {**told, "lora": swaps}, gates)


if __name__ == "__main__":
    sys.exit(main())
