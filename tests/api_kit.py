"""The embedded app for tests of the API: one server object, requests to it, and the end of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from modules.ltx.guard import Trust
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_api import PREFIX
from modules.ltx.ltx_problems import Rate
from modules.ltx.serve import App
from modules.ltx.serve_jobs import Jobs
from tests.conftest import SMALL

API = PREFIX
HERE = "http://127.0.0.1:7860"
LONG = SMALL | {"frames": 97, "steps": 200, "width": 128, "height": 128}


def app_of(
    cache: Path, outputs: Path, kind: type[EmbeddedHost] = EmbeddedHost, loras: Path | None = None, most: int = 1000
) -> Iterator[App]:
    """The app of an output folder; its worker is stopped afterwards."""
    settings = Settings(outputs, cache=cache, device="cpu", offline=True)
    jobs = Jobs(lambda on_event: kind(settings, on_event), outputs, most=most)
    yield App(jobs, outputs, cache, Trust(), loras, Rate(10_000, 10_000))
    jobs.close()
    jobs.wait()


def told(client: TestClient, job: str, since: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """A job's events with their numbers, to the last."""
    headers = {} if since is None else {"last-event-id": str(since)}
    with client.stream("GET", f"{API}/jobs/{job}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith(("id: ", "data: "))]
    return [(int(n[4:]), json.loads(data[6:])) for n, data in zip(lines[::2], lines[1::2], strict=True)]


def ended(client: TestClient, job: str) -> dict[str, Any]:
    """A job when it is over."""
    told(client, job)
    found: dict[str, Any] = client.get(f"{API}/jobs/{job}").json()
    return found


def made(client: TestClient, values: dict[str, object]) -> dict[str, Any]:
    """A job of these values when it is over."""
    answer = client.post(f"{API}/jobs", json=values)
    assert answer.status_code == 202, answer.text
    return ended(client, answer.json()["id"])


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def files(app: App) -> set[Path]:
    return {path for path in app.outputs.rglob("*") if path.is_file() and "queue.db" not in path.name}


def upload(client: TestClient, data: Any, kind: str = "image/png") -> Any:
    return client.post(f"{API}/media", content=data, headers={"content-type": kind})


def refused(answer: Any, status: int, kind: str) -> str:
    """The sentence of a problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["status"], told["type"]) == (status, f"urn:ltx:problem:{kind}")
    assert "\n" not in told["detail"]
    return str(told["detail"])
