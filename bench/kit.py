"""What the benches share: gates, calls in turn, what a process holds, and the last line of JSON.

Knows no figure of its own. A gate is a limit that a bench must keep: one that does not makes it end with 1.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Gate:
    """`value` may be `limit` at most, or with `least` at least."""

    what: str
    value: float
    limit: float
    unit: str = ""
    least: bool = False

    @property
    def ok(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def line(self) -> str:
        sign, word = (">=" if self.least else "<="), ("ok  " if self.ok else "FAIL")
        return f"{word} {self.what}: {self.value:.4g} {sign} {self.limit:g} {self.unit}".rstrip()

    def told(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "limit": self.limit, "least": self.least, "ok": self.ok}


def end(name: str, told: Mapping[str, Any], gates: Sequence[Gate] = ()) -> int:
    """Print the gates and, as the last line, JSON; the exit status is 1 where a gate fails."""
    for gate in gates:
        print(gate.line())
    print(json.dumps({"name": name, **told, "gates": [gate.told() for gate in gates]}))
    return 0 if all(gate.ok for gate in gates) else 1


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turn(cases: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, the order turned round every time: neighbours alone can be compared on a
    machine that others use. A case is given the number of the round."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        names = list(cases) if number % 2 == 0 else list(cases)[::-1]
        for name in names:
            began = time.perf_counter()
            cases[name](number)
            found[name].append(time.perf_counter() - began)
    return found


def ratio(found: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """The median over rounds of `one` over `other`."""
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def held() -> int:
    """The most bytes that this process has held (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def most(state: Any) -> int:
    """The most bytes held in a run, by its phases: each begins the system's count anew, so `held` knows the last."""
    return max(held(), *(one.peak or 0 for one in state.timings))


def child(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON of the last line of `python -m module arguments`, in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last
