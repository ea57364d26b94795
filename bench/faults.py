"""Raises at every call that a run makes across a seam, every kind of error in turn, and looks at what is lost.

    python -m bench.faults [--scene NAME] [--every N] [--only SEAM]

The run: LTX-Nano 2.3 Dev in two stages with its LoRA, the self-refiner in both, sound and two tiles; up to the
latents, from the latents that are kept to the file, while the model is read, and as a job of the queue. An undisturbed
process of its own says what must come out. Behind each fault everything that a run borrows must be as it was, and
behind the faults at each call the next job must make the undisturbed one's bytes. Prints the matrix (survived / raised,
and how often something was lost) as the table of docs/reliability.md and, as its last line, JSON; the exit code is 1
where anything was lost.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.kit import Found, Place, strike, temporary
from tests.faults.queue_kit import queue_job, strike_queue
from tests.faults.seams import COMMIT, FAULTS, LOAD, Call, Fault, Wire, wired

ROOT = Path(__file__).resolve().parents[1]
Struck = Callable[[Call, Fault], Found]


@dataclass(frozen=True)
class Scene:
    """A way to run the job: `job` makes it, `wanted` is what comes out undisturbed, `chosen` which seams are struck in
    it, `strike` how."""

    name: str
    job: Callable[[], str]
    wanted: str
    chosen: Callable[[str], bool]
    strike: Struck


def undisturbed(folder: Path, cache: Path | None) -> dict[str, str]:
    """What a process makes in which nothing was ever raised."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.faults", "--undisturbed", str(folder)]
    command += ["--cache", str(cache)] if cache is not None else []
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


def made(place: Place) -> dict[str, str]:
    kept = place.kept / "refine.safetensors"
    latents = place.job(keep=kept, until="refine")
    return {"latents": latents, "video": place.job(keep=kept)}


def scenes(place: Place, wanted: Mapping[str, str]) -> Iterator[Scene]:
    kept = place.kept / "refine.safetensors"

    def decoded() -> str:
        return place.job(keep=kept)

    def loaded() -> str:
        place.host._drop()
        return place.sampled()

    def warm(job: Callable[[], str], digest: str) -> Struck:
        return lambda call, fault: strike(place, job, call, fault, digest)

    def not_upsampled() -> str:
        place.host._upsamplers.clear()
        return place.sampled()

    def cold(call: Call, fault: Fault) -> Found:
        if call.seam not in LOAD[:2]:  # it is read into a model that is there, and stays
            return strike(place, not_upsampled, call, fault, wanted["latents"])
        place.host._drop()
        return strike(place, loaded, call, fault, wanted["latents"])

    number = iter(range(1_000_000))

    def in_queue(call: Call, fault: Fault) -> Found:
        return strike_queue(place, place.folder.parent / f"queue-{next(number)}", kept, call, fault, queued)

    queued = queue_job(place, place.folder.parent / "queue", kept)
    every = dict.fromkeys(LOAD)
    yield Scene(
        "up to the latents",
        place.sampled,
        wanted["latents"],
        lambda seam: seam not in every,
        warm(place.sampled, wanted["latents"]),
    )
    yield Scene("to the file", decoded, wanted["video"], lambda seam: seam not in every, warm(decoded, wanted["video"]))
    yield Scene("loading", loaded, wanted["latents"], lambda seam: seam in every, cold)
    yield Scene(
        "queue",
        lambda: queue_job(place, place.folder.parent / f"counted-{next(number)}", kept),
        queued,
        lambda seam: seam.startswith(COMMIT),
        in_queue,
    )


def crossed(place: Place, scene: Scene) -> list[Call]:
    wire = Wire()
    with wired(wire, place.host):
        scene.job()
    return [call for call in wire.calls if scene.chosen(call.seam)]


def struck(place: Place, scene: Scene, every: int, only: str | None) -> Iterator[Found]:
    """All faults at every call of a scene, each call's last row with what the next job made."""
    calls = [call for call in crossed(place, scene)[::every] if only is None or only in call.seam]
    for number, call in enumerate(calls):
        found = [scene.strike(call, fault) for fault in FAULTS]
        if scene.job() != scene.wanted:
            found[-1] = found[-1].with_wrong("the next job made something else")
        if any(one.wrong for one in found):
            place.host._drop()  # so that what was lost is told once
            scene.job()
        yield from found
        print(f"{scene.name}: {number + 1} of {len(calls)}", file=sys.stderr)


def table(found: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    """A row a seam and a column a kind of error: survived / raised."""
    yield "| | seam | calls | " + " | ".join(fault.name for fault in FAULTS) + " | lost |"
    yield "|---|---|---|" + "---|" * (len(FAULTS) + 1)
    for scene, all_of in found.items():
        for seam in dict.fromkeys(one.call.seam for one in all_of):
            here = [one for one in all_of if one.call.seam == seam]
            cells = [_cell([one for one in here if one.fault == fault.name]) for fault in FAULTS]
            calls, lost = len({one.call for one in here}), sum(bool(one.wrong) for one in here)
            yield f"| {scene} | {seam} | {calls} | {' | '.join(cells)} | {lost} |"


def _cell(found: Sequence[Found]) -> str:
    struck = [one for one in found if one.struck]
    return f"{sum(not one.wrong for one in struck)}/{len(struck)}"


def summed(found: Mapping[str, Iterable[Found]], seconds: float) -> dict[str, Any]:
    flat = [(scene, one) for scene, all_of in found.items() for one in all_of]
    lost = [(scene, one) for scene, one in flat if one.wrong]
    return {
        "calls": len({(scene, one.call) for scene, one in flat}),
        "injected": sum(one.struck for _, one in flat),
        "survived": sum(one.struck and not one.wrong for _, one in flat),
        "not_reached": sum(not one.struck for _, one in flat),
        "lost": [f"{scene}: {one.call.seam} {one.call.number}, {one.fault}: {one.wrong}"[:300] for scene, one in lost],
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="strike at every Nth call only")
    parser.add_argument("--scene", help="of this name alone: up to the latents, to the file, loading, queue")
    parser.add_argument("--only", help="seams whose name has this in it")
    parser.add_argument("--cache", type=Path, help="where LTX-Nano is built")
    parser.add_argument("--undisturbed", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.undisturbed is not None:
        print(json.dumps(made(Place(given.undisturbed, given.cache))))
        return 0
    logging.disable(logging.ERROR)  # libraries log what is raised here on purpose
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wanted = undisturbed(Path(folder) / "undisturbed", given.cache)
        place = Place(Path(folder) / "place", given.cache)
        with temporary(place.temp):
            wrong_at_once = made(place) != wanted
            chosen = [scene for scene in scenes(place, wanted) if given.scene in (None, scene.name)]
            found = {scene.name: [*struck(place, scene, given.every, given.only)] for scene in chosen}
    print("\n".join(table(found)))
    told = summed(found, time.monotonic() - began)
    print(json.dumps({**told, "same_as_another_process": not wrong_at_once}))
    return 1 if told["lost"] or wrong_at_once else 0


if __name__ == "__main__":
    sys.exit(main())
