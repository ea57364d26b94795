"""The API in a real SD.Next with passwords on, as a program uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.ltx.client import PREFIX, Client
from modules.ltx.jobs import FOLDER
from modules.ltx.ltx_routes import ROUTES
from tests.conftest import SMALL
from tests.host_contract.conftest import needs_sdnext
from tests.host_contract.test_page import serving

AUTH = ("somebody", "a-secret-word")
ASKED: dict[str, Any] = SMALL | {"model": "nano-2.3-distilled-t2v", "refine": True, "steps": None, "seed": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host-api")


@pytest.fixture(scope="module")
def address(data: Path) -> Iterator[str]:
    root = needs_sdnext()
    with serving(root, data, more=["--auth", ":".join(AUTH)]) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, auth=AUTH) as client:
        yield client


def test_every_route_answers_401_without_the_password(address: str) -> None:
    for route in ROUTES:
        path = address + PREFIX + route.path.replace("{id}", "x")
        for auth in (None, ("somebody", "wrong")):
            answer = httpx.request(route.method, path, auth=auth, headers={"content-type": "application/json"})
            assert answer.status_code == 401, path


def test_a_job_is_done_and_what_the_queue_keeps_is_no_file_of_the_ui(
    address: str, client: Client, data: Path, tmp_path: Path
) -> None:
    job = client.submit(wait=True, **ASKED)
    video = client.video(job["id"], tmp_path / "video.mp4")
    assert video.read_bytes()[4:8] == b"ftyp"
    draft = client.draft({name: value for name, value in ASKED.items() if name != "seed"}, seeds=[3])[0]
    client.wait(draft["id"])
    done = client.finish(draft["id"], wait=True)
    digests = [one["result"]["video"]["video_latents_sha256"] for one in (job, done)]
    assert digests[0] == digests[1]
    [kept] = [path for path in data.rglob("queue.db") if FOLDER in path.parts]
    with httpx.Client(auth=AUTH) as http:
        assert http.get(f"{address}/file={kept}").status_code in (401, 403)
        assert http.get(f"{address}/file={kept.parent}/media/x.png").status_code in (401, 403)
    long = client.submit(**(ASKED | {"steps": 200, "frames": 97, "width": 128, "height": 128}))
    next(event for event in client.events(long["id"]) if event.get("phase") == "sample")
    client.cancel(long["id"])
    last = list(client.events(long["id"]))[-1]
    assert last["state"] == "cancelled"
    assert client.submit(wait=True, **ASKED)["state"] == "done"


def test_refusals_are_problems_and_other_pages_are_refused(address: str) -> None:
    with httpx.Client(base_url=address + PREFIX, auth=AUTH) as http:
        for body, status in (({"width": 9999}, 422), ({"model": "/etc"}, 422)):
            answer = http.post("/plan", json=body)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert http.get("/jobs/x").json()["type"] == "urn:ltx:problem:not-found"
        assert http.post("/plan", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
        foreign = [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
        for headers in foreign:
            answer = http.post("/plan", json={}, headers=headers)
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:ltx:problem:foreign")
        assert http.post("/plan", json={}, headers={"origin": address}).status_code == 200
        part = http.get("/openapi.json").json()
        assert len(part["paths"]) > 10
