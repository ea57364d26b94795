"""Kills the one who works on a queue, at moments drawn by chance and in every phase, until all its jobs are over.

    python -m bench.queue_kills [KILLS] [--seed N]

Every job must be done once, its file be the one that an undisturbed run writes, and no half file stand anywhere. Prints
what was found as JSON; the exit code is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import ATTEMPTS, FOLDER, Row, Store
from modules.ltx.media_in import top_level_boxes
from modules.ltx.request import Request
from modules.ltx.submit import several, submit
from modules.ltx.uploads import Uploads

ROOT = Path(__file__).resolve().parents[1]
ASKED: Mapping[str, object] = {"prompt": "a red ball", "width": 64, "height": 64, "frames": 9, "refine": True}
# Where a kill is aimed at: what the newest event of the running job must say.
MOMENTS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "idle": lambda event: event["state"] == "queued",
    "begun": lambda event: event["state"] == "running" and "phase" not in event,
    **{
        phase: (lambda event, phase=phase: event.get("phase") == phase)  # type: ignore[misc]
        for phase in ("encode", "sample", "upsample", "refine", "decode")
    },
    "done": lambda event: event["state"] == "done",
}


def start(outputs: Path) -> subprocess.Popen[bytes]:
    """A process that does what waits."""
    command = [sys.executable, "-m", "modules.ltx", "queue", "run", "--device", "cpu", "--outputs", str(outputs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_at(store: Store, worker: subprocess.Popen[bytes], moment: str, delay: float) -> bool:
    """Kill `worker` `delay` seconds after some job comes to the moment; False where it ended before."""
    while worker.poll() is None:
        rows = store.rows(limit=3)
        spent = any(row.state == "running" and row.attempts >= ATTEMPTS for row in rows)  # it would fail, as it should
        told = [event for row in rows for _, event in store.events(row.id)[-1:]]
        if not spent and any(MOMENTS[moment](event) for event in told):
            time.sleep(delay)
            worker.kill()
            break
        time.sleep(0.005)
    return worker.wait() != 0


def wrong(store: Store, rows: Sequence[Row], wanted: Mapping[int, bytes]) -> list[str]:
    """What is not as it must be, once all is over."""
    outputs, said = store.folder.parent, []
    videos = sorted(outputs.glob("*.mp4"))
    for row in rows:
        path = Path(((row.result or {}).get("files") or {}).get("path", ""))
        if row.state != "done" or not path.is_file():
            said.append(f"{row.id} is {row.state}: {row.error}")
        elif path.read_bytes() != wanted[row.request["seed"]]:
            said.append(f"{row.id}: not the bytes of an undisturbed run")
    if len(videos) != len(rows):
        said.append(f"{len(videos)} videos of {len(rows)} jobs: {[path.name for path in videos]}")
    said += [f"half a file: {path.name}" for path in videos if not whole(path)]
    left = {path.name for path in outputs.iterdir()} - {path.name for path in videos} - {FOLDER}
    strange = left - {path.with_suffix(".jpg").name for path in videos}
    kept = [str(path.relative_to(outputs)) for path in (store.folder / "jobs").rglob("*")]
    return said + [f"left behind: {name}" for name in (*strange, *kept)]


def whole(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return b"moov" in top_level_boxes(file)
        except ValueError:
            return False


def undisturbed(outputs: Path, rows: Sequence[Row]) -> dict[int, bytes]:
    """The bytes of each job's video by its seed, made in this process."""
    from modules.ltx.ltx_process import run

    host, found = EmbeddedHost(Settings(outputs, device="cpu", offline=True)), {}
    for row in rows:
        media = run(settle(Request.parse(row.request), host), host).media
        assert media is not None
        found[int(row.request["seed"])] = media.path.read_bytes()
    return found


def trial(folder: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kills at every moment in turn, with two jobs to do at least, and then all jobs to their end."""
    outputs = folder / "outputs"
    store, host = Store(outputs), EmbeddedHost(Settings(outputs, device="cpu", offline=True))
    uploads = Uploads(store.folder / "media")
    struck: Counter[str] = Counter()
    tries, added = 0, 0
    while sum(struck.values()) < kills:
        while sum(not row.over for row in store.rows(limit=-1)) < 2:
            added += 1
            submit(store, uploads, host, several(Request.parse(dict(ASKED)), seeds=[added]))
        moment = list(MOMENTS)[tries % len(MOMENTS)]
        tries += 1
        struck[moment] += kill_at(store, start(outputs), moment, chance.random() * 0.15)
    while any(not row.over for row in store.rows(limit=-1)):
        start(outputs).wait()
    ended = store.rows(limit=-1)
    found = wrong(store, ended, undisturbed(folder / "undisturbed", ended))
    told = {"kills": sum(struck.values()), "at": dict(struck), "jobs": added}
    return {**told, "attempts": sum(row.attempts for row in ended), "wrong": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = trial(Path(folder), given.kills, chance)
    print(json.dumps(found, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
