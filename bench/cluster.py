"""`python -m bench.cluster [JOBS]`: the queue on a Ray cluster of this machine, with one worker, with two, and killed.

Each time the same small jobs; every file must have the bytes that this process makes alone, no job be lost and nothing
be left behind, also where workers are killed in the middle of a job. Seconds are from the first job's end to the last's
(models are in memory then) and of all; core seconds are of the same time and do not count who else is busy. Prints
JSON; the exit code is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.queue_kills import undisturbed, wrong
from modules.ltx.cluster import Cluster, Ray
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import Row, Store
from modules.ltx.request import Request
from modules.ltx.submit import several, submit
from modules.ltx.uploads import Uploads

ASKED: Mapping[str, object] = {"prompt": "a red ball", "width": 128, "height": 128, "frames": 9, "steps": 4}


def done(outputs: Path, jobs: int, workers: int, kills: int) -> tuple[Store, list[Row], dict[str, Any]]:
    """The jobs by a cluster of `workers`, of which some are killed; the rows, and what was measured."""
    settings = Settings(outputs, device="cpu", offline=True)
    store, uploads = Store(outputs), Uploads(outputs / ".ltx" / "media")
    rows = submit(store, uploads, EmbeddedHost(settings), several(Request.parse(dict(ASKED)), seeds=list(range(jobs))))
    began, left = time.monotonic(), kills
    cluster = Cluster(store, uploads, settings, Ray(workers=workers))
    cluster.start()
    warm: list[float] = []
    while not all(row.over for row in store.rows(limit=-1)) and cluster.broken is None:
        left -= left > 0 and _killed(store, (kills - left) * jobs // (kills + 1))
        if not warm and store.counts()["done"] >= workers:
            warm = [*_cpu(store), store.counts()["done"]]
        time.sleep(0.1)
    wall = time.monotonic() - began
    if cluster.broken is not None:
        raise cluster.broken
    spent = [(after - before) / (jobs - warm[2]) for before, after in zip(warm[:2], _cpu(store), strict=True)]
    cluster.close()
    while not cluster.join(1.0):
        pass
    ended = [store.get(row.id) for row in rows]
    times = sorted(row.ended or 0.0 for row in ended)
    told = {"workers": workers, "kills": kills - left, "wall": round(wall, 1), "steady": round(times[-1] - times[0], 1)}
    told |= {"core seconds a job": round(spent[0], 2), "of this process": round(spent[1], 3)}
    return store, ended, {**told, "attempts": sum(row.attempts for row in ended)}


def _cpu(store: Store) -> tuple[float, float]:
    """Core seconds that the workers have taken so far, those that live, and this process."""
    rows = store.rows(limit=-1)
    pids = {event["worker"]["pid"] for row in rows for _, event in store.events(row.id) if "worker" in event}
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            total += sum(psutil.Process(pid).cpu_times()[:2])
    return total, time.process_time()


def _killed(store: Store, behind: int) -> bool:
    """Whether a worker that samples was killed, once more than `behind` jobs are done."""
    if store.counts()["done"] <= behind:
        return False
    for row in store.rows(state="running"):
        told = [event for _, event in store.events(row.id)]
        pids = [event["worker"]["pid"] for event in told if "worker" in event]
        if pids and told[-1].get("phase") == "sample":
            os.kill(pids[-1], signal.SIGKILL)
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=int, nargs="?", default=40)
    parser.add_argument("--kills", type=int, default=3)
    import torch

    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted: dict[int, bytes] | None = None
        for workers, kills in ((1, 0), (2, 0), (2, given.kills)):
            store, rows, told = done(Path(folder) / f"{workers}-{kills}", given.jobs, workers, kills)
            if wanted is None:
                began = time.monotonic()
                torch.set_num_threads(1)  # as a worker of Ray has: some processors' sums depend on it
                wanted = undisturbed(Path(folder) / "undisturbed", rows)
                found.append({"workers": "this process", "wall": round(time.monotonic() - began, 1)})
            found.append({**told, "wrong": wrong(store, rows, wanted)})
            print(json.dumps(found[-1]), file=sys.stderr)
    ratio = found[1]["steady"] / max(found[2]["steady"], 0.1)  # of jobs a second, one worker to two
    print(json.dumps({"jobs": given.jobs, "runs": found, "two_to_one": round(ratio, 2)}, indent=1))
    return 1 if any(run.get("wrong") for run in found) else 0


if __name__ == "__main__":
    sys.exit(main())
