"""The client against a real server on loopback: ten lines to a video, one job however often a request is repeated."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import uvicorn

from modules.ltx.client import Client, ClientError, JobFailed
from modules.ltx.serve import listen
from tests.api_kit import app_of
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent
ASKED: dict[str, Any] = dict(SMALL)


@pytest.fixture(scope="module")
def address(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for app in app_of(cache, tmp_path_factory.mktemp("client")):
        with listen("127.0.0.1", 0) as listening:
            config = uvicorn.Config(app.asgi, log_config=None, access_log=False, ws="none")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_a_video_is_asked_for_followed_and_fetched(client: Client, tmp_path: Path, picture: Path) -> None:
    image = client.upload(picture)
    job = client.submit(**ASKED, model="nano-2.3-distilled-i2v", images=[{"id": image}], seed=3)
    events = list(client.events(job["id"]))
    assert [event["state"] for event in events][:: len(events) - 1] == ["queued", "done"]
    assert client.wait(job["id"])["result"]["seed"] == "3"
    path = client.video(job["id"], tmp_path / "video.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]
    assert client.report(job["id"])["timings"]
    assert client.preview(job["id"])[:2] == b"\xff\xd8"
    assert job["id"] in [row["id"] for row in client.jobs(state="done")]
    client.delete(job["id"])
    with pytest.raises(ClientError, match="deleted") as caught:
        client.job(job["id"])
    assert caught.value.status == 410


def test_refusals_and_failures_are_raised_with_their_problem(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="out of range") as caught:
        client.plan(width=9999)
    assert (caught.value.status, caught.value.problem["field"]) == (422, "width")
    job = client.submit(**(ASKED | {"frames": 97, "steps": 200}))
    client.cancel(job["id"])
    with pytest.raises(JobFailed, match="cancelled"):
        client.wait(job["id"], timeout=60)
    with pytest.raises(ClientError):
        client.video(job["id"], tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not a kind"):
        client.upload(tmp_path / "x.svg")
    assert client.plan(prompt="x")["evaluations"] > 0
    assert client.models()["default"]


class Flaky(BaseHTTPRequestHandler):
    """Passes a request on to `behind`, and answers every other one as a web UI may that has done it all the same."""

    behind = ""
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name: self.headers[name] for name in ("content-type", "idempotency-key")}
        answer = httpx.post(self.behind + self.path, content=body, headers=headers)
        self.seen.append((self.path, headers["idempotency-key"]))
        status = {1: 429, 2: 308, 3: 0}.get(len(self.seen), answer.status_code)
        if status == 0:  # the connection breaks off
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        if status == 308:
            self.send_header("location", self.path)
        if status == 429:
            self.send_header("retry-after", "0")
        data = answer.content if status == answer.status_code else b"{}"
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence."""


def test_a_server_that_does_it_and_answers_otherwise_gets_one_job(address: str, client: Client) -> None:
    Flaky.behind, before = address, len(client.jobs())
    Flaky.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as flaky:
        job = flaky.submit(**ASKED)
    server.shutdown()
    assert len(Flaky.seen) == 4
    assert len(set(Flaky.seen)) == 1
    assert len(client.jobs()) == before + 1
    client.wait(job["id"])


def test_the_examples_of_the_page_run(address: str, tmp_path: Path) -> None:
    """Every block of docs/api.md, in order, in one shell; each must succeed."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    assert shell.count("curl") >= 10
    script = f"set -eu\nURL={address}/sdapi/v1/ltx\n{shell}"
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    assert (tmp_path / "ball.mp4").read_bytes()[4:8] == b"ftyp"
    [python] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(python.strip().splitlines()) <= 10
    began = time.monotonic()
    scope: dict[str, Any] = {}
    exec(python.replace("http://127.0.0.1:7860", address).replace('"ball.mp4"', repr(str(tmp_path / "b.mp4"))), scope)
    assert (tmp_path / "b.mp4").is_file(), time.monotonic() - began
    assert json.dumps(scope["job"]["state"]) == '"done"'
