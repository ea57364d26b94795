"""How long the web app takes from the command to its page: `python -m bench.serve_start`.

With `--cold` the files that Linux keeps in memory are dropped before each start (as root). Goal: under 6 s on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from bench.kit import Gate, end

GOAL = 6.0


def started(folder: str) -> tuple[float, float]:
    """Seconds until the address is printed, and until the page is answered."""
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--json", "--outputs", folder]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            address = json.loads(server.stdout.readline())["address"]
            said = time.perf_counter() - began
            httpx.get(address, timeout=120).raise_for_status()
            return said, time.perf_counter() - began
        finally:
            server.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve_start", description=__doc__)
    parser.add_argument("--cold", action="store_true", help="drop the files in memory before each start (Linux, root)")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds")
    asked = parser.parse_args(argv)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.starts):
            if asked.cold:
                subprocess.run(["sync"], check=True)
                Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
            seconds.append(started(folder))
    said, shown = ([round(one, 2) for one in several] for several in zip(*seconds, strict=True))
    told = {"cold": asked.cold, "address": said, "page": shown}
    return end("serve_start", told, [Gate("from the command to the page, the slowest", max(shown), GOAL, "s")])


if __name__ == "__main__":
    sys.exit(main())
