"""What the API costs while a job runs: latencies, the server's CPU time a request, and how much slower the job becomes.

    python -m bench.api_load [SECONDS] [--clients N] [--rate N]

Two equal jobs are done by a server of its own, first alone, then under requests (plan, status, events) from many
clients at a steady rate. Prints what was found as JSON; the exit code is 1 where any request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from modules.ltx.client import PREFIX, Client

ROOT = Path(__file__).resolve().parents[1]
ASKED: dict[str, Any] = {"model": "nano-2.3-dev-t2v", "prompt": "a red ball", "width": 128, "height": 128, "steps": 100}


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--device", "cpu", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


async def asked(http: httpx.AsyncClient, kind: str, job: str) -> None:
    """One request. Raises httpx.HTTPError for anything but success."""
    if kind == "plan":
        answer = await http.post(f"{PREFIX}/plan", json=ASKED)
    elif kind == "status":
        answer = await http.get(f"{PREFIX}/jobs/{job}")
    else:
        async with http.stream("GET", f"{PREFIX}/jobs/{job}/events") as stream:
            stream.raise_for_status()
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    return
            return
    answer.raise_for_status()


async def load(url: str, job: str, seconds: float, clients: int, rate: float) -> dict[str, Any]:
    """`rate` requests a second in all, shared by `clients` connections."""
    times: dict[str, list[float]] = {"plan": [], "status": [], "events": []}
    failed: list[str] = []
    chance, end = random.Random(0), time.monotonic() + seconds

    async def one(http: httpx.AsyncClient) -> None:
        await asyncio.sleep(chance.random() * clients / rate)
        while time.monotonic() < end:
            kind, began = chance.choice(list(times)), time.monotonic()
            try:
                await asked(http, kind, job)
                times[kind].append(time.monotonic() - began)
            except httpx.HTTPError as error:
                failed.append(f"{kind}: {error!r}")
            await asyncio.sleep(max(began + clients / rate - time.monotonic(), 0))

    several = [httpx.AsyncClient(base_url=url, timeout=30) for _ in range(clients)]
    await asyncio.gather(*(one(http) for http in several))
    await asyncio.gather(*(http.aclose() for http in several))
    told = {kind: _latency(values) for kind, values in times.items()}
    return {"requests": sum(map(len, times.values())), "failed": failed, "latency_ms": told}


def _latency(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    shown = {"median": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)], "worst": ordered[-1]}
    return {name: round(value * 1000, 1) for name, value in shown.items()}


def sampling(client: Client, job: str) -> float:
    """Seconds of the job's stage 1."""
    return float(next(one["seconds"] for one in client.report(job)["timings"] if one["phase"] == "sample"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=20.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder))
        with Client(url) as client:
            client.submit(**(ASKED | {"steps": 2}), wait=True)  # the model is in memory from here on
            alone = sampling(client, client.submit(**ASKED, seed=1, wait=True)["id"])
            job = client.submit(**ASKED, seed=1)["id"]
            while (client.job(job)["progress"] or {}).get("phase") != "sample":
                time.sleep(0.05)
            server = psutil.Process(process.pid)
            found = asyncio.run(load(url, job, min(given.seconds, alone), given.clients, given.rate))
            client.wait(job)
            under = sampling(client, job)
            time.sleep(1)  # what is tidied up behind a job
            before = sum(server.cpu_times()[:2])
            idle = asyncio.run(load(url, job, 10, given.clients, given.rate))
            found["cpu_seconds_per_request"] = round((sum(server.cpu_times()[:2]) - before) / idle["requests"], 4)
        found |= {"seconds_alone": alone, "seconds_under_load": under, "slow_down": round(under / alone - 1, 3)}
        process.terminate()
        process.wait()
    print(json.dumps(found, indent=1))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
