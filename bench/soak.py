"""One process, many jobs of the queue one behind the other: every variant of LTX-Nano, sizes, the self-refiner, images,
second stages, cancels and failures, drawn by chance. What may not grow is counted behind each.

    python -m bench.soak [JOBS] [--seed N] [--picture FILE.png]

Memory may grow by GROWTH bytes in all behind the first WARM jobs; no open file, thread, hook or temporary file may be
left. Prints what was found as JSON, draws the curve of memory where a file is named; the exit code is 1 where anything
is wrong. For Linux, which tells what a process holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from modules.ltx.errors import LTXError
from modules.ltx.hosts import nano
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.hosts.places import cache_folder
from modules.ltx.jobs import FOLDER, Row
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.request import Request
from modules.ltx.serve_jobs import Jobs
from modules.ltx.submit import submit

GROWTH = 50 << 20
WARM = 40  # jobs in which every library and every size has been met
WINDOW = 20  # jobs whose median is compared, since one job holds more than another
PHASES = ("encode", "sample", "refine", "decode")
MIB = 1 << 20


@dataclass(frozen=True)
class Count:
    """What the process holds: bytes, open files and running threads by name, hooks on the model, temporary files."""

    memory: int
    files: Counter[str]
    threads: Counter[str]
    hooks: Counter[str]
    temporary: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a trial is: outputs, temporary files, a picture, and what does not work."""

    outputs: Path
    temporary: Path
    picture: Path
    lora: Path
    broken: Path


def prepared(folder: Path) -> Place:
    """The files of a trial: a picture, a LoRA of another model, a model whose weights are cut short."""
    import torch
    from safetensors.torch import save_file

    place = Place(*(folder / name for name in ("outputs", "temporary", "red.png", "other.safetensors", "broken")))
    place.temporary.mkdir()
    Image.new("RGB", (96, 64), "red").save(place.picture)
    save_file({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 7)}, place.lora)
    shutil.copytree(nano.ensure("2.3-distilled", cache_folder()), place.broken)
    weights = place.broken / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return place


def drawn(place: Place, chance: random.Random, model: str, models: str) -> tuple[str, dict[str, Any]]:
    """How a job is to end (done, cancelled, or by which failure), and its request: of `model`, or of another of those
    whose ids begin with `models`."""
    every = [caps for caps in all_caps() if caps.id.startswith(models)]
    same = [caps for caps in every if caps.id == model and chance.random() < 0.75]
    caps = chance.choice(same or every)
    asked: dict[str, Any] = {
        "model": caps.id,
        "prompt": f"a red ball {chance.random()}",
        "seed": chance.getrandbits(31),
    }
    asked |= {
        "width": 32 * chance.randint(2, 3),
        "height": 32 * chance.randint(2, 3),
        "frames": chance.choice((9, 17)),
    }
    asked |= {"refine": chance.random() < 0.4}
    if not caps.is_distilled:
        asked["steps"] = 3
    if chance.random() < 0.4:
        asked |= {"self_refine": "p1", "self_refine_plan": "1-2:2"}
    if caps.mode != "T2V":
        asked["images"] = [{"path": str(place.picture)}]
    ends = ("done",) * 14 + ("cancelled",) * 3 + ("another model's LoRA", "a picture that is gone", "a broken model")
    end = chance.choice(ends)
    if end == "another model's LoRA":
        asked |= {"loras": [{"source": str(place.lora)}]}
    if end == "a picture that is gone":
        asked |= {"model": "nano-2.3-distilled-i2v", "images": [{"path": str(place.picture)}]}
    if end == "a broken model":
        asked |= {"model": str(place.broken), "variant": "nano-2.3-distilled-t2v", "images": []}
    return end, asked


def over(jobs: Jobs, end: str, asked: dict[str, Any], chance: random.Random) -> Row:
    """The job's row when it is over."""
    jobs.store.pause(True)
    row = submit(jobs.store, jobs.uploads, jobs.host, [Request.parse(asked)])[0]
    if end == "a picture that is gone":
        Path(row.request["images"][0]["path"]).unlink()
    jobs.store.pause(False)
    jobs.worker.wake()
    phase = chance.choice(PHASES)
    while not row.over or jobs.worker.live is not None:
        live = jobs.worker.live
        if end == "cancelled" and live is not None and live.last.get("phase") == phase:
            jobs.store.cancel(row.id)
        time.sleep(0.01)
        row = jobs.store.get(row.id)
    _tidied(jobs)
    return row


def _tidied(jobs: Jobs) -> None:
    """The worker clears up behind a job that is over already."""
    end = time.monotonic() + 30
    while any((jobs.store.folder / "jobs").glob("*")) and time.monotonic() < end:
        time.sleep(0.01)


def count(host: Any, place: Place) -> Count:
    """What the process holds now."""
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    hidden = [path for path in place.outputs.iterdir() if path.name.startswith(".") and path.name != FOLDER]
    kept = [path for path in (place.outputs / FOLDER / "jobs").rglob("*") if path.is_file()]
    return Count(
        memory,
        Counter(map(_open_file, Path("/proc/self/fd").iterdir())),
        Counter(thread.name for thread in threading.enumerate()),
        _hooks(host),
        tuple(sorted(str(path) for path in (*place.temporary.iterdir(), *hidden, *kept))),
    )


def _open_file(link: Path) -> str:
    try:
        return os.readlink(link).partition(":")[0]  # sockets and pipes are numbered
    except OSError:
        return "(the listing itself)"


def _hooks(host: Any) -> Counter[str]:
    """Forward hooks on the modules of the model in memory, but for those that transformers puts there for good when a
    text encoder is first asked for its hidden states."""
    pipes = [] if host._resident is None else host._resident.pipes.values()
    parts = {id(part): part for pipe in pipes for part in pipe.components.values() if hasattr(part, "modules")}
    modules = [(type(part).__name__, name, module) for part in parts.values() for name, module in part.named_modules()]
    return Counter(
        f"{part}.{name}: {getattr(hook, '__qualname__', hook)}"
        for part, name, module in modules
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if "output_capturing_hook" not in getattr(hook, "__qualname__", "")
    )


def wrong(ends: Sequence[tuple[str, Row]], counts: Sequence[Count], warm: int, window: int) -> list[str]:
    """What is not as it must be, once all is over."""
    expected = {"done": ("done",), "cancelled": ("done", "cancelled")}
    said = [
        f"job {number} ({end}) is {row.state}: {row.error}"
        for number, (end, row) in enumerate(ends)
        if row.state not in expected.get(end, ("failed",)) or "no words for" in str(row.error)
    ]
    first, last = counts[warm : warm + window], counts[-window:]
    if growth(counts, warm, window) > GROWTH:
        said.append(f"memory grew by {growth(counts, warm, window) / MIB:.0f} MiB")
    said += [f"left open: {name} ({more})" for name, more in _more([c.files for c in first], [c.files for c in last])]
    said += [f"left running: {name} ({n})" for name, n in _more([c.threads for c in first], [c.threads for c in last])]
    said += [f"behind job {number}: hook {name}" for number, one in enumerate(counts) for name in one.hooks]
    return said + [f"left behind: {name}" for name in last[-1].temporary if name not in first[0].temporary]


def _more(first: Sequence[Counter[str]], last: Sequence[Counter[str]]) -> list[tuple[str, int]]:
    """Of what there is more at every moment of the last ones than at any of the first, and how much more: a file of
    the queue may be open at the moment of counting."""
    least = {name: min(one[name] for one in last) for name in set().union(*last)}
    more = {name: count - max(one[name] for one in first) for name, count in least.items()}
    return [(name, count) for name, count in sorted(more.items()) if count > 0]


def growth(counts: Sequence[Count], warm: int, window: int) -> int:
    """Bytes between the medians of the first jobs behind the warm ones and of the last ones."""
    begin, end = counts[warm : warm + window], counts[-window:]
    return round(statistics.median(one.memory for one in end) - statistics.median(one.memory for one in begin))


def trial(
    folder: Path, jobs_: int, chance: random.Random, *, warm: int = WARM, window: int = WINDOW, models: str = "nano-"
) -> dict[str, Any]:
    """`jobs_` jobs in this process; what went wrong stands under "wrong", memory in MiB behind each under "curve"."""
    place = prepared(folder)
    before, tempfile.tempdir = tempfile.tempdir, str(place.temporary)
    ends: list[tuple[str, Row]] = []
    counts: list[Count] = []
    asked: dict[str, Any] = {"model": ""}
    jobs = Jobs(lambda heard: EmbeddedHost(Settings(place.outputs, device="cpu", offline=True), heard), place.outputs)
    began = time.monotonic()
    try:
        while len(ends) < jobs_:
            end, asked = drawn(place, chance, asked["model"], models)
            try:
                ends.append((end, over(jobs, end, asked, chance)))
            except LTXError:  # a combination that no plan can have: another is drawn
                jobs.store.pause(False)
                continue
            counts.append(count(jobs.host, place))
            told = f"{len(ends)}: {end}, {ends[-1][1].state}, {counts[-1].memory // MIB} MiB, {asked['model']}"
            print(told, *counts[-1].hooks, file=sys.stderr, flush=True)
    finally:
        jobs.close()
        jobs.wait(60)
        tempfile.tempdir = before
    found: dict[str, Any] = {"jobs": len(ends), "seconds": round(time.monotonic() - began)}
    found |= {"ended": dict(Counter(f"{end}: {row.state}" if end != row.state else end for end, row in ends))}
    found |= {"growth_mib": round(growth(counts, warm, window) / MIB, 1)}
    found |= {"files": sum(counts[-1].files.values()), "threads": sum(counts[-1].threads.values())}
    return {**found, "wrong": wrong(ends, counts, warm, window), "curve": [round(one.memory / MIB) for one in counts]}


def draw(curve: Sequence[int], warm: int, file: Path) -> None:
    """Memory in MiB over jobs, as a picture."""
    width, height, left, below, top = 900, 360, 60, 40, 20
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    most = 200 * (max(curve) // 200 + 1)

    def at(job: float, memory: float) -> tuple[float, float]:
        across, up = (width - left - 20) / max(len(curve) - 1, 1), (height - below - top) / most
        return left + job * across, height - below - memory * up

    for memory in range(0, most + 1, 200):
        pen.line([at(0, memory), at(len(curve) - 1, memory)], fill="#dddddd")
        pen.text((10, at(0, memory)[1] - 6), f"{memory}", fill="black")
    for job in range(0, len(curve) + 1, 20):
        pen.text((at(job, 0)[0] - 6, height - below + 6), f"{job}", fill="black")
    pen.line([at(warm, 0), at(warm, most)], fill="#cc8800", width=1)
    pen.line([at(job, memory) for job, memory in enumerate(curve)], fill="#2255cc", width=2)
    pen.text(
        (left + 4, 4), "resident memory in MiB behind each job; the warm-up ends at the upright line", fill="black"
    )
    image.save(file, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(Path(folder), given.jobs, random.Random(given.seed))
    if given.picture is not None:
        draw(found["curve"], WARM, given.picture)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
