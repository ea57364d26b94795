"""`python -m bench.start`: what is waited for before anything runs.

The entry script in the start of a web UI (a make-believe one, with torch, diffusers and gradio loaded as a UI has
them), the command line's `--help` and `plan` in new processes, and a plan in one that has planned before. Processor
time, because a busy machine would be measured otherwise; with Python's bytecode on disk, as every start has it but the
first behind an update, which is told beside. Prints a table and, as its last line, JSON. `bench.page_handlers` and
`bench.serve_start` measure the page.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.kit import ROOT, Gate, end

ENTRY = """
import time
import gc
import torch, diffusers, gradio, PIL.Image, numpy, av, rich.console, huggingface_hub
gc.disable()  # whether a collection of all of torch falls into this part of a start or into another is chance
began = time.process_time()
start()
import modules.ltx.ltx_ui
took = time.process_time() - began
assert not any("keeps its own" in line for line in lines), lines
print(json.dumps(took))
"""


def entry(starts: int) -> list[float]:
    """Seconds that the entry script and the tab's module take in the UI's start."""
    from tests.ui_kit import in_ui

    found = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            found.append(float(in_ui(Path(folder), ENTRY)))
    return found


def command(*arguments: str) -> float:
    """Processor seconds of one call of the command line."""

    def used() -> float:
        told = resource.getrusage(resource.RUSAGE_CHILDREN)
        return told.ru_utime + told.ru_stime

    began = used()
    subprocess.run([sys.executable, "-m", "modules.ltx", *arguments], cwd=ROOT, check=True, capture_output=True)
    return used() - began


def warm_plans(count: int) -> list[float]:
    """Seconds of one plan each, of different prompts, in a process that has planned before."""
    from modules.ltx.front import sketch
    from modules.ltx.hosts.embedded import EmbeddedHost, Settings
    from modules.ltx.request import Request

    host = EmbeddedHost(Settings(device="cpu", offline=True))
    asked = {"model": "2.3-dev-t2v", "refine": True}
    times = []
    for number in range(count):
        began = time.process_time()
        sketch(Request.parse({**asked, "prompt": f"a ball {number}"}), host)
        times.append(time.process_time() - began)
    return times[1:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer starts")
    asked = parser.parse_args(argv)
    starts = 3 if asked.quick else 7
    plan = ("plan", "--prompt", "a red ball", "--model", "2.3-dev-t2v")
    first, *others = entry(1 + starts)
    command(*plan)
    print(f"the first entry, which may have to write bytecode: {1000 * first:.0f} ms")
    found = {
        "entry script in a UI's start": (others, 150),
        "--help": ([command("--help") for _ in range(starts)], 300),
        "plan, cold": ([command(*plan) for _ in range(starts)], 500),
        "plan, warm": (warm_plans(50), 1),
    }
    gates = []
    for name, (times, limit) in found.items():
        gates.append(Gate(name, round(1000 * statistics.median(times), 2), limit, "ms"))
    return end("start", {"first_entry": first, "seconds": {name: times for name, (times, _) in found.items()}}, gates)


if __name__ == "__main__":
    sys.exit(main())
