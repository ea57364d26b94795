"""`python -m bench.growth [--picture FILE]`: time and memory against frames, pixels, steps and passes, with exponents.

Each row is a clip of LTX-Nano Distilled, sampled and decoded, one axis growing while the others stay. An exponent is
the slope of the logarithms; beside it stands the ideal one. With `--picture` the curves are drawn (needs the extra
`bench`). Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.kit import Gate, child, end, held, most


@dataclass(frozen=True)
class Axis:
    """What grows, over which values, and the exponents that work in proportion would give."""

    name: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    ideal: float  # of time; memory's is 0 for steps and passes
    asked: Mapping[str, Any] = field(default_factory=dict)

    def request(self, value: int) -> dict[str, Any]:
        size = {"width": 128, "height": 128, "frames": 25} | dict(self.asked)
        if self.name == "frames":
            return size | {"frames": value}
        if self.name == "pixels":
            return size | {"width": value, "height": value}
        if self.name == "steps":
            return size | {"steps": value}
        return size if value == 1 else size | {"self_refine": "p1", "self_refine_plan": f"1-8:{value}"}

    def x(self, value: int) -> float:
        return float(value * value) if self.name == "pixels" else float(value)


AXES = (
    Axis("frames", (25, 49, 97, 193, 481), (49, 97, 193), 1.0),
    Axis("pixels", (128, 192, 256, 384, 512), (128, 256, 384), 1.0, {"frames": 49}),
    Axis("steps", (4, 8, 16, 32), (8, 32), 1.0),
    Axis("passes", (1, 2, 3, 4), (1, 4), 1.0),
)
# Attention is quadratic in tokens: an exponent between 1 and 2 is the model's own, above it would be ours.
STEEPEST = {"frames": 1.6, "pixels": 1.6, "steps": 1.1, "passes": 1.1}


def measure(axis: Axis, value: int) -> dict[str, float]:
    """Seconds of sampling and of decoding with encoding, the faster of two jobs behind a first; the most bytes above
    the loaded model."""
    from modules.ltx.front import settle
    from modules.ltx.hosts.embedded import EmbeddedHost, Settings
    from modules.ltx.ltx_process import run
    from modules.ltx.request import Request

    with tempfile.TemporaryDirectory() as folder:
        host = EmbeddedHost(Settings(Path(folder), device="cpu", offline=True))
        asked = {"model": "nano-2.3-distilled-t2v", "prompt": "a red ball moving right", "seed": 1}
        plan = settle(Request.parse(asked | axis.request(value)), host)
        with host.pipeline(plan.caps, plan.caps.pipeline):
            loaded = held()
        peak = most(run(plan, host))
        runs = [{one.phase: one.seconds for one in run(plan, host).timings} for _ in range(2)]
        timings = {phase: min(one[phase] for one in runs) for phase in ("sample", "decode")}  # the less disturbed
    return {"sample": timings["sample"], "decode": timings["decode"], "bytes": float(peak - loaded)}


def once(made: dict[str, dict[str, float]], axis: Axis, value: int) -> dict[str, float]:
    """`measure` in a process of its own, unless the same clip was made for another axis."""
    name = json.dumps({"steps": 8} | axis.request(value), sort_keys=True)
    if name not in made:
        made[name] = child("bench.growth", "--one", axis.name, str(value))
    return made[name]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of log y over log x, by least squares."""
    lx, ly = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    mx, my = sum(lx) / len(lx), sum(ly) / len(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly, strict=True)) / sum((a - mx) ** 2 for a in lx)


def draw(told: Mapping[str, Any], file: Path) -> None:
    """Time on the left, memory on the right, a line an axis, both scales logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for name, row in told.items():
        xs = [x / row["x"][0] for x in row["x"]]
        for phase, style in (("sample", "o-"), ("decode", "s--")):
            label = f"{name}, {phase} ({row['exponents'][phase]:.2f})"
            left.loglog(xs, [y / row[phase][0] for y in row[phase]], style, label=label, alpha=0.8)
        right.loglog(xs, [y / 2**20 for y in row["bytes"]], "o-", label=f"{name} ({row['exponents']['bytes']:.2f})")
    most = max(x / row["x"][0] for row in told.values() for x in row["x"])
    left.loglog([1, most], [1, most], color="gray", linewidth=1, label="in proportion (1)")
    left.set(xlabel="times the smallest", ylabel="times its time", title="time (exponent)")
    right.set(xlabel="times the smallest", ylabel="MiB above the loaded model", title="memory (exponent)")
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller values")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves as a PNG")
    parser.add_argument("--one", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.one:
        axis = next(axis for axis in AXES if axis.name == asked.one[0])
        return end("growth_one", measure(axis, int(asked.one[1])))
    told: dict[str, Any] = {}
    made: dict[str, dict[str, float]] = {}  # by request: where axes cross, they share a clip
    print(f"{'axis':8} {'value':>6} {'sample s':>9} {'decode s':>9} {'MiB':>7}")
    for axis in AXES:
        values = axis.quick if asked.quick else axis.values
        rows = [once(made, axis, value) for value in values]
        for value, row in zip(values, rows, strict=True):
            print(f"{axis.name:8} {value:6} {row['sample']:9.2f} {row['decode']:9.2f} {row['bytes'] / 2**20:7.0f}")
        xs = [axis.x(value) for value in values]
        columns = {name: [row[name] for row in rows] for name in ("sample", "decode", "bytes")}
        exponents = {name: round(slope(xs, column), 3) for name, column in columns.items()}
        print(f"{axis.name:8} exponents {exponents}, ideal {axis.ideal:g}")
        told[axis.name] = {"x": xs, **columns, "exponents": exponents}
    if asked.picture:
        draw(told, asked.picture)
    gates = [
        Gate(f"exponent of sampling time, {name}", row["exponents"]["sample"], STEEPEST[name])
        for name, row in told.items()
    ]
    return end("growth", {"axes": told}, gates)


if __name__ == "__main__":
    sys.exit(main())
