"""`python -m bench all [--quick]`: every bench that has gates, one after the other, each in a process of its own.

`python -m bench NAME ...` runs those named. Prints what each prints, then all gates, and as the last line one JSON
document. Ends with 1 where a gate fails or a bench breaks. What each figure means: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.kit import ROOT

# In the order they run: what is waited for first, then what a job costs, then the long ones.
GATED = ("start", "page_handlers", "serve_start", "residency", "two_stage", "decoding", "refiner", "growth")


def run(name: str, *, quick: bool) -> Iterator[str]:
    """What a bench prints, line by line; as the last line always JSON."""
    command = [sys.executable, "-m", f"bench.{name}", *(["--quick"] if quick else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said, errors = process.communicate()
    lines = said.splitlines()
    try:
        json.loads(lines[-1])
    except (IndexError, ValueError):
        lines.append(json.dumps({"name": name, "broken": errors[-1000:], "gates": []}))
    yield from lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=("all", *GATED), metavar="NAME", help=f"all, or {', '.join(GATED)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller clips: minutes in all")
    asked = parser.parse_args(argv)
    names = GATED if "all" in asked.names else tuple(dict.fromkeys(asked.names))
    told: dict[str, Any] = {}
    for name in names:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        *lines, last = run(name, quick=asked.quick)
        print("\n".join(lines))
        told[name] = json.loads(last) | {"took": round(time.perf_counter() - began, 1)}
    print("== gates")
    for name, one in told.items():
        failed = [gate["what"] for gate in one["gates"] if not gate["ok"]]
        state = "broken: " + one["broken"] if "broken" in one else "FAIL: " + "; ".join(failed) if failed else "ok"
        print(f"{name}: {state} ({len(one['gates'])} gates, {one['took']:.0f} s)")
    good = all("broken" not in one and all(gate["ok"] for gate in one["gates"]) for one in told.values())
    print(json.dumps({"quick": asked.quick, "ok": good, "benches": told}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
