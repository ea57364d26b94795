"""`python -m bench.host_stops --host-root PATH [--count 50]`: stops of a real SD.Next's jobs at random moments.

Run with the Python of that SD.Next. Each round starts a job and stops it after a random share of its usual time, from
another thread, by one of four roads: the state's method as a button calls it, the API's route, a bound method that was
taken before the job (the Process tab), and a pause that is followed by such an interrupt. Counts the forwards of any
model that begin after the stop (one is allowed), and times how long the job goes on; then a job runs undisturbed and
must give the same latents as ever. Prints the longest wait of each phase and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kit import Gate, end

JOBS: tuple[tuple[str, dict[str, object]], ...] = (
    ("nano-2.3-distilled-t2v", {"refine": True, "width": 256, "height": 256, "frames": 49}),
    ("nano-2.3-dev-t2v", {"width": 128, "height": 128, "frames": 25, "steps": 8}),
    ("nano-0.9-t2v", {"width": 128, "height": 128, "frames": 25, "steps": 8}),
)
PAUSED = 0.5  # seconds between a pause and the interrupt after it


@dataclass
class Round:
    """One stopped job: by which road, in which phase, how long it went on, and how many forwards began meanwhile."""

    road: str
    phase: str = ""
    waited: float = 0.0
    forwards: int = 0
    stopped: bool = False


class Bench:
    """A host's process, its roads to a stop, and what is counted while a job runs."""

    def __init__(self) -> None:
        import importlib

        self.state = importlib.import_module("modules.shared").state
        api: Any = importlib.import_module("modules.api.server")
        bound = {name: getattr(self.state, name) for name in ("interrupt", "skip", "pause")}
        self.roads: dict[str, Callable[[], object]] = {
            "button": bound["interrupt"],
            "button, skip": bound["skip"],
            "API": api.post_interrupt,
            "bound before the job": bound["interrupt"],
            "bound before the job, skip": bound["skip"],
            "paused, then bound": self._paused(bound),
        }
        self.phase, self.forwards, self.fired = "", 0, 0.0

    @staticmethod
    def _paused(bound: dict[str, Callable[[], object]]) -> Callable[[], None]:
        def stop() -> None:
            bound["pause"]()
            time.sleep(PAUSED)
            bound["interrupt"]()

        return stop

    def plan(self, number: int) -> Any:
        from modules.ltx.front import settle
        from modules.ltx.hosts.sdnext import SDNextHost
        from modules.ltx.request import Request

        model, options = JOBS[number]
        asked = {"model": model, "prompt": f"a red ball moving right {number}", "seed": 1, **options}
        return settle(Request.parse(asked), SDNextHost())

    def run(self, plan: Any) -> Any:
        """The job, with its forwards counted from the stop on."""
        from modules.ltx.hosts.sdnext import SDNextHost
        from modules.ltx.ltx_process import run

        def on_event(event: Any) -> None:
            self.phase = event.phase

        self.phase, self.forwards, self.fired = "load", 0, 0.0
        with ExitStack() as undo:
            shared: Any = sys.modules["modules.shared"]
            pipe = shared.sd_model if shared.sd_loaded else None
            for name in ("text_encoder", "transformer", "vae.decoder"):
                module = pipe
                for part in name.split("."):
                    module = getattr(module, part, None)
                if module is not None:
                    undo.callback(module.register_forward_pre_hook(self._count).remove)
            return run(plan, SDNextHost("task(bench)", on_event))

    def _count(self, *_: object) -> None:
        self.forwards += self.fired > 0

    def stopped(self, plan: Any, road: str, delay: float) -> Round:
        from modules.ltx.errors import Cancelled

        found = Round(road)

        def fire() -> None:
            found.phase = self.phase
            self.roads[road]()
            self.fired, self.forwards = time.perf_counter(), 0

        timer = threading.Timer(delay, fire)
        timer.start()
        try:
            self.run(plan)
        except Cancelled:
            found.stopped = True
        finally:
            timer.join()
        found.waited, found.forwards = time.perf_counter() - self.fired, self.forwards
        return found


def measured(bench: Bench, count: int, seed: int) -> tuple[list[Round], int]:
    """The rounds, and how many jobs after a stop did not give the latents that they always give."""
    chance, rounds, wrong = random.Random(seed), list[Round](), 0
    roads = list(bench.roads)
    usual: dict[int, tuple[float, str]] = {}
    for number in range(count):
        job = number * len(JOBS) // count  # one after the other: a model in memory stays
        if job not in usual:
            bench.run(bench.plan(job))  # loads the model
            began = time.perf_counter()
            state = bench.run(bench.plan(job))
            usual[job] = time.perf_counter() - began, state.media.video_latents_sha256
        elif number % 5 == 0:
            wrong += bench.run(bench.plan(job)).media.video_latents_sha256 != usual[job][1]
        delay = chance.uniform(0.0, 0.9 * usual[job][0])
        rounds.append(bench.stopped(bench.plan(job), roads[number % len(roads)], delay))
        print(rounds[-1], flush=True)
    for job, (_, digest) in usual.items():
        wrong += bench.run(bench.plan(job)).media.video_latents_sha256 != digest
    return rounds, wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.host_stops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host-root", type=Path, required=True, metavar="PATH", help="a checkout of SD.Next")
    parser.add_argument("--count", type=int, default=50, help="how many jobs are stopped (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default %(default)s)")
    asked = parser.parse_args(argv)
    from tests.host_contract.boot import boot

    boot(asked.host_root.resolve(), Path(tempfile.mkdtemp(prefix="ltx-stops-")))
    rounds, wrong = measured(Bench(), asked.count, asked.seed)
    ended = [one for one in rounds if one.stopped]
    print("| phase | stops | longest wait, s | most forwards after the stop |\n|---|---|---|---|")
    for phase in dict.fromkeys(one.phase for one in rounds):
        those = [one for one in rounds if one.phase == phase]
        print(f"| {phase} | {len(those)} | {max(o.waited for o in those):.2f} | {max(o.forwards for o in those)} |")
    gates = [
        Gate("stops that were lost", len(rounds) - len(ended), 0),
        Gate("forwards that began after a stop", max(one.forwards for one in rounds), 1),
        Gate("later jobs with other latents", wrong, 0),
    ]
    return end("host_stops", {"count": len(rounds), "rounds": [vars(one) for one in rounds]}, gates)


if __name__ == "__main__":
    sys.exit(main())
