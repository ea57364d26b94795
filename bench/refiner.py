"""`python -m bench.refiner`: what the self-refiner costs beyond its forwards.

Two calls of one pipeline with the same number of evaluations, one of plain steps, one with refined steps, in turn.
Everything is the process's own seconds on one core, and only neighbours are compared: the machine may be busy. What is
not spent in the transformer is what the seam and the pipeline's own loop cost; the difference of the two is the seam's.
Then the whole time against evaluations, the saving of an early stop, and guidance reuse; a loop written down straight
(every stream again in every pass, all predictions kept); and the most that a process of its own holds. Prints a table
and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.kit import Gate, child, end, held
from modules.ltx.ltx_util import DISTILLED_SIGMAS, resample_sigmas

PLAN = (1, 1, 2, 2, 2, 2, 2, 1)  # "2-6:2": 13 evaluations
SEAM = 0.02  # of denoising
DEEP = (1, 1, 9, 9, 1, 1, 1, 1)  # where an early stop saves most
GUIDED = {
    **{"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7},
    **{"audio_guidance_scale": 7.0, "audio_stg_scale": 1.0, "audio_modality_scale": 3.0},
    **{"audio_guidance_rescale": 0.7, "spatio_temporal_guidance_blocks": [4], "negative_prompt": ""},
}
PLAIN = {
    **{"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0},
    **{"audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0},
    **{"audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None},
}


class Clock:
    """Seconds spent in the transformer, and calls of it."""

    def __init__(self, transformer: Any) -> None:
        self.seconds, self.calls, self._began = 0.0, 0, 0.0
        transformer.register_forward_pre_hook(self._start)
        transformer.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._began = time.process_time()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._began
        self.calls += 1


class Subject:
    """LTX-Nano's LTX2Pipeline at one size, called with passes or without."""

    def __init__(self, side: int, frames: int, cache: Path) -> None:
        import diffusers

        from modules.ltx.hosts import nano

        self.pipe = diffusers.LTX2Pipeline.from_pretrained(nano.ensure("2.3-dev", cache))
        self.pipe.set_progress_bar_config(disable=True)
        self.clock = Clock(self.pipe.transformer)
        self.size = {"width": side, "height": side, "num_frames": frames, "frame_rate": 24.0}
        # The text is read once: it is no part of denoising.
        encoded = self.pipe.encode_prompt("a red ball", "", do_classifier_free_guidance=True, max_sequence_length=64)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        self.text = dict(zip(names, encoded, strict=True))

    @contextmanager
    def _scheduled(self, steps: int) -> Iterator[None]:
        from modules.ltx.scheduler import planned

        theirs = self.pipe.scheduler
        self.pipe.scheduler = planned(theirs, resample_sigmas(DISTILLED_SIGMAS, steps))
        try:
            yield
        finally:
            self.pipe.scheduler = theirs

    def run(
        self, passes: tuple[int, ...] | None, *, steps: int = 8, guided: bool = False, **how: Any
    ) -> dict[str, float]:
        """Seconds in all, in the transformer, and its calls."""
        import contextlib

        import torch

        from extensions.selfrefiner.refiner import Certainty
        from extensions.selfrefiner.seam import Refiner, attach

        rule = Certainty(threshold=how.get("threshold", 0.0))
        refiner = None if passes is None else Refiner(passes, rule, guidance=how.get("guidance", "full"))
        arguments = {**self.size, **self.text, **(GUIDED if guided else PLAIN), "max_sequence_length": 64}
        self.clock.seconds, self.clock.calls = 0.0, 0
        with self._scheduled(steps), contextlib.nullcontext() if refiner is None else attach(self.pipe, refiner):
            began = time.process_time()
            self.pipe(
                **arguments,
                num_inference_steps=steps,
                output_type="latent",
                generator=torch.Generator().manual_seed(1),
            )
            took = time.process_time() - began
        return {"seconds": took, "forward": self.clock.seconds, "calls": self.clock.calls}


def overhead(subject: Subject, rounds: int, *, guided: bool) -> dict[str, float]:
    """The seam's share of denoising, from neighbouring calls of 13 plain and 13 refined evaluations."""
    shares, totals = [], []
    for _ in range(rounds):
        plain = subject.run(None, steps=sum(PLAN), guided=guided)
        refined = subject.run(PLAN, guided=guided)
        assert plain["calls"] == refined["calls"]
        beside = (refined["seconds"] - refined["forward"]) - (plain["seconds"] - plain["forward"])
        shares.append(beside / refined["seconds"])
        totals.append(refined["seconds"])
    return {"overhead": statistics.median(shares), "seconds": statistics.median(totals)}


def ratios(subject: Subject, rounds: int) -> dict[str, float]:
    """Time of other settings, each over that of a plain call just before it, medians."""
    cases: dict[str, dict[str, Any]] = {
        "2 passes at 5 steps": {"passes": PLAN},
        "3 passes at 5 steps": {"passes": tuple(1 + 2 * (count > 1) for count in PLAN)},
        "4 passes at 5 steps": {"passes": tuple(1 + 3 * (count > 1) for count in PLAN)},
        "9 passes at 2 steps": {"passes": DEEP},
        "9 passes at 2 steps, certain at once": {"passes": DEEP, "threshold": 1.0},
        "guided": {"passes": None, "guided": True},
        "guided, 2 passes at 5 steps": {"passes": PLAN, "guided": True},
        "guided, 2 passes at 5 steps, reuse": {"passes": PLAN, "guided": True, "guidance": "reuse"},
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, how in cases.items():
            plain = subject.run(None)["seconds"]
            found[name].append(subject.run(**how)["seconds"] / plain)
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def straight(subject: Subject, passes: tuple[int, ...]) -> float:
    """Seconds of a loop as one would write it down: each pass runs every stream, and keeps all that it saw.

    Its calls of the transformer are those of a guided call of the pipeline, caught on the way in.
    """
    import torch

    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    transformer = subject.pipe.transformer

    def catch(_: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught.append((args, keywords))

    handle = transformer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        subject.run(None, steps=1, guided=True)
    finally:
        handle.remove()
    history = []
    began = time.process_time()
    with torch.no_grad():
        for count in passes:
            for _ in range(count):
                seen = [transformer(*args, **keywords) for args, keywords in caught]
                history.append([each[0] if isinstance(each, tuple) else each.sample for each in seen])
    return time.process_time() - began


def memory(kind: str, side: int, frames: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as cache:
        subject = Subject(side, frames, Path(cache))
        loaded = held()
        if kind == "straight":
            straight(subject, PLAN)
        else:
            subject.run(PLAN if kind == "refined" else None, guided=True)
    return {"above": held() - loaded}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.refiner", description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="width and height in pixels (512)")
    parser.add_argument("--frames", type=int, default=49, help="frames (49)")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions, of which the median counts (7)")
    parser.add_argument("--quick", action="store_true", help="128x128, 25 frames, 5 rounds; memory at 256x256")
    parser.add_argument("--memory", choices=("plain", "refined", "straight"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.side, asked.frames, asked.rounds = 128, 25, 5
    if asked.memory:
        return end("refiner_memory", memory(asked.memory, asked.side, asked.frames))
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        subject = Subject(asked.side, asked.frames, Path(cache))
        subject.run(PLAN)
        told = {
            "side": asked.side,
            "frames": asked.frames,
            "overhead": {
                "plain": overhead(subject, asked.rounds, guided=False),
                "guided": overhead(subject, asked.rounds, guided=True),
            },
            "over_plain": ratios(subject, asked.rounds),
            "refined_over_straight": statistics.median(
                subject.run(PLAN, guided=True)["seconds"] / straight(subject, PLAN) for _ in range(asked.rounds)
            ),
        }
    size = ("--side", "256" if asked.quick else str(asked.side), "--frames", str(asked.frames))
    kinds = ("plain", "refined", "straight")
    told["above_loaded"] = {kind: child("bench.refiner", "--memory", kind, *size)["above"] for kind in kinds}
    for name, row in told["overhead"].items():
        print(f"seam beside the forwards, {name}: {100 * row['overhead']:.2f} % of {row['seconds']:.2f} s")
    for name, value in told["over_plain"].items():
        print(f"{name}: {value:.2f} x the plain 8 steps")
    print(f"refined over a loop written down straight, both guided: {told['refined_over_straight']:.2f}")
    for kind, most in told["above_loaded"].items():
        print(f"held above the loaded model, {kind}: {most / 2**20:.0f} MiB")
    beside, most = told["overhead"], told["above_loaded"]
    return end("refiner", told, gates(told["over_plain"], beside, most))


def gates(over: Mapping[str, float], beside: Mapping[str, Any], most: Mapping[str, int]) -> list[Gate]:
    early = over["9 passes at 2 steps, certain at once"] / over["9 passes at 2 steps"]
    return [
        *(Gate(f"seam's share of denoising, {name}", row["overhead"], SEAM) for name, row in beside.items()),
        Gate("2 passes at 5 steps over plain; evaluations 13 / 8", over["2 passes at 5 steps"], 1.1 * 13 / 8),
        Gate("certain at once over 9 passes; evaluations 10 / 24", early, 1.15 * 10 / 24),
        Gate("memory, refined over a loop written down straight", most["refined"] / most["straight"], 1.05),
    ]


if __name__ == "__main__":
    sys.exit(main())
