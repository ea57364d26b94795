"""The web app as a process and behind its guard: who may ask, what an unknown error is, from start to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from modules.ltx import serve as web
from modules.ltx.errors import RequestError
from modules.ltx.guard import COOKIE, Trust
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.jobs import FOLDER
from modules.ltx.ltx_routes import ROUTES
from modules.ltx.serve_request import in_words
from tests.api_kit import API, HERE, LONG, app_of, made, wait_for
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def app(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[web.App]:
    yield from app_of(cache, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def locked(app: web.App) -> Iterator[TestClient]:
    """The same behind a token, on an address that others reach."""
    other = web.App(app.jobs, app.outputs, app.learned, Trust(("video.example",), ("proxy.example",), TOKEN))
    with TestClient(other.asgi, base_url="http://video.example:7860", follow_redirects=False) as client:
        yield client


def test_the_page_is_served_under_a_policy_that_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "LTX video" in answer.text
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert not any(":/" in value or "*" in value for value in policy.values())
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_the_queue_keeps_is_not_handed_out_as_a_file(client: TestClient, app: web.App) -> None:
    job = made(client, SMALL)
    video = app.outputs / job["result"]["video"]["name"]
    assert client.get(f"/gradio_api/file={video}").status_code == 200
    for kept in (app.outputs / FOLDER / "queue.db", app.outputs / FOLDER / ".." / FOLDER / "queue.db"):
        assert kept.is_file()
        assert client.get(f"/gradio_api/file={kept}").status_code == 403


FOREIGN: list[tuple[dict[str, str], int]] = [
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1.evil.example:7860"}, 403),
    ({"host": "192.168.1.5:7860"}, 403),
    ({"host": ""}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://127.0.0.1:3000"}, 403),
    ({"origin": "null"}, 403),
    ({"content-type": "text/plain"}, 415),
    ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ({"content-type": "image/png"}, 415),
    ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # through a tunnel
    ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
    ({"content-type": "application/json; charset=utf-8"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), FOREIGN, ids=str)
def test_other_pages_and_other_names_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    answer = client.post(f"{API}/plan", content=b"{}", headers={"content-type": "application/json", **headers})
    assert answer.status_code == status
    assert (answer.headers["content-type"] == "application/problem+json") == (status != 200)
    if "host" in headers:
        assert client.get("/", headers=headers).status_code == status


def test_a_page_may_be_opened_from_a_link_but_not_used_by_its_page(client: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get(f"{API}/jobs", headers=link).status_code == 403


def test_without_the_token_every_route_is_shut(locked: TestClient) -> None:
    for route in ROUTES:
        path = API + route.path.replace("{id}", "x")
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            answer = locked.request(route.method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["type"] == "urn:ltx:problem:unauthorized"
    for path in ("/", "/?token=wrong", "/config", "/gradio_api/file=/etc/passwd", f"{API}/jobs?token={TOKEN}"):
        assert locked.get(path).status_code == 401


def test_the_token_opens_the_api_and_a_cookie_the_page(locked: TestClient) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert locked.get(f"{API}/health", headers=bearer).status_code == 200
    assert locked.get(f"{API}/health", headers=bearer | {"host": "other.example"}).status_code == 403
    proxied = bearer | {"host": "proxy.example", "origin": "https://proxy.example"}
    assert locked.get(f"{API}/health", headers=proxied).status_code == 200
    assert locked.get(f"{API}/health", headers=bearer | {"origin": "https://video.example:7860"}).status_code == 403
    answer = locked.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert locked.get("/").status_code == 200
    locked.cookies.clear()
    assert locked.get("/", headers={"cookie": f"{COOKIE}=wrong"}).status_code == 401
    assert TOKEN not in repr(Trust(token=TOKEN))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unknown_error_is_one_sentence_and_the_next_job_runs(cache: Path, tmp_path: Path) -> None:
    class Broken(EmbeddedHost):
        broken = True

        def output_path(self, *given: Any) -> Path:
            if self.broken:
                self.broken = False
                raise ZeroDivisionError("secret")
            return super().output_path(*given)

    for app in app_of(cache, tmp_path, Broken):
        with TestClient(app.asgi, base_url=HERE) as client:
            job = made(client, SMALL)
            assert job["state"] == "failed"
            assert "terminal of the server" in job["error"]["message"]
            assert "secret" not in str(job)
            assert made(client, SMALL)["state"] == "done"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_addresses_that_others_reach_need_a_token(address: str) -> None:
    with pytest.raises(RequestError, match="LTX_TOKEN"):
        web.listen(address, 0)
    with pytest.raises(RequestError, match="too short"):
        web.listen(address, 0, "secret")


def test_with_a_token_they_are_listened_on() -> None:
    with web.listen("0.0.0.0", 0, TOKEN) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"


def test_a_port_in_use_is_said_with_a_way_out() -> None:
    with web.listen("127.0.0.1", 0) as taken, pytest.raises(RequestError, match="--port 0"):
        web.listen("localhost", taken.getsockname()[1])
    with pytest.raises(RequestError, match="0 .any free one. to 65535"):
        web.listen("127.0.0.1", 70_000)


def test_no_answer_waits_for_the_acknowledgement_of_its_headers() -> None:
    with web.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sentences_lose_the_flags_of_the_command_line() -> None:
    assert in_words("--guidance-scale 99: out of range.") == "guidance scale 99: out of range."
    assert in_words("--last-image: X takes one.\n") == "last image: X takes one."
    assert in_words("or try --offload sequential") == "or start the server with --offload sequential"


def posted(url: str, values: dict[str, object]) -> Any:
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(url, json.dumps(values).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


def started(cache: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server as a user starts it, and its address."""
    environment = {**os.environ, "LTX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--device", "cpu", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    assert running.stdout is not None
    return running, json.loads(running.stdout.readline())["address"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_the_program_from_start_to_ctrl_c_and_a_job_that_goes_on_when_it_is_started_again(
    cache: Path, tmp_path: Path
) -> None:
    running, address = started(cache, tmp_path)
    guard = threading.Timer(120, running.kill)
    guard.start()
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert b"LTX video" in answer.read()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # nothing before something is asked
    job = posted(f"{address}{API}/jobs", LONG | {"steps": 8, "frames": 49})["id"]
    with urllib.request.urlopen(f"{address}{API}/jobs/{job}/events", timeout=30) as stream:
        assert any(b'"sample"' in line for line in stream)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, out, err.splitlines()[-1]) == (0, "", "stopped")
    assert "jobs are waiting" in err
    assert "Traceback" not in err
    assert list((tmp_path / "outputs").glob("*")) == [tmp_path / "outputs" / FOLDER]
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass  # its port is free again
    running, address = started(cache, tmp_path)
    done = json.loads("null")

    def over() -> bool:
        nonlocal done
        with urllib.request.urlopen(f"{address}{API}/jobs/{job}", timeout=30) as answer:
            done = json.load(answer)
        return bool(done["state"] == "done")

    wait_for(over)
    assert done["attempts"] == 1  # to be told to stop is no failed attempt
    assert (tmp_path / "outputs" / done["result"]["video"]["name"]).is_file()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    guard.cancel()
    assert err.splitlines()[-1] == "stopped"
    assert "waiting" not in err
