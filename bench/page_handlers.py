"""`python -m bench.page_handlers`: what the web app's events cost before anything is loaded, in milliseconds.

A change of model (goal 5 ms) and the plan panel (goal 50 ms), over every variant, medians and worst; as JSON last.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.kit import Gate, end
from modules.ltx import ltx_ui
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.serve_jobs import Jobs
from modules.ltx.web.desk import Desk, Form
from modules.ltx.web.page import Page

REPEATS = 20


def measured(call: Callable[[str], object], names: list[str]) -> dict[str, float]:
    times = []
    for name in names:
        for _ in range(REPEATS):
            began = time.perf_counter()
            call(name)
            times.append((time.perf_counter() - began) * 1000)
    return {"median_ms": round(statistics.median(times), 2), "worst_ms": round(max(times), 2)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page_handlers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds")
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), device="cpu", offline=True)
        jobs = Jobs(lambda on_event: EmbeddedHost(settings, on_event), Path(folder))
        desk = Desk(jobs, Path(folder), Path(folder))
        page = Page(desk)

        def plan(name: str) -> object:
            caps = desk.rows[name]
            values = {one.control.name: one.value for one in ltx_ui.shown(caps)} | {"self_refine": "p1"}
            return desk.planned(Form(name, "a red ball", "", caps.default_fps, values))

        names = list(desk.rows)
        told = {"change of model": measured(page._changed, names), "plan panel": measured(plan, names)}
    assert "torch" not in sys.modules, "the events loaded torch"
    for name, figures in told.items():
        print(f"{name}: median {figures['median_ms']} ms, worst {figures['worst_ms']} ms")
    limits = {"change of model": 5.0, "plan panel": 50.0}
    gates = [Gate(f"{name}, median", told[name]["median_ms"], limit, "ms") for name, limit in limits.items()]
    return end("page_handlers", told, gates)


if __name__ == "__main__":
    sys.exit(main())
