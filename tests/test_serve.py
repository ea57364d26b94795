"""The web app: its routes as a browser uses them, what it refuses, and one real process from start to Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from starlette.testclient import TestClient

from modules.ltx import serve as web
from modules.ltx.errors import RequestError
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.serve_jobs import MAX_IMAGES, Images, Jobs
from modules.ltx.serve_request import in_words
from modules.ltx.state import Event
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent
HERE = "http://127.0.0.1:7860"
LONG = SMALL | {"frames": 97, "steps": 200, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def app(cache: Path, outputs: Path, uploads: Path) -> web.App:
    settings = Settings(outputs, cache=cache, device="cpu", offline=True)
    jobs = Jobs(lambda on_event: EmbeddedHost(settings, on_event))
    return web.App(jobs, Images(uploads), outputs, cache)


@pytest.fixture(scope="module")
def client(app: web.App) -> Iterator[TestClient]:
    with TestClient(app.asgi, base_url=HERE, raise_server_exceptions=False) as client:
        yield client
    app.jobs.close()
    app.jobs.wait()


@pytest.fixture
def idle(app: web.App) -> web.App:
    """The app with no job running, whatever the test before left."""
    if app.jobs.running:
        app.jobs.cancel(app.jobs.running)
    app.jobs.wait()
    return app


def told(client: TestClient, job: str, since: str = "") -> list[dict[str, Any]]:
    """A job's events, to the last."""
    headers = {"last-event-id": since} if since else {}
    with client.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def made(client: TestClient, values: dict[str, object]) -> tuple[str, list[dict[str, Any]]]:
    answer = client.post("/jobs", json=values)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"], told(client, answer.json()["id"])


def png(size: tuple[int, int] = (120, 80)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "orange").save(buffer, "PNG")
    return buffer.getvalue()


def upload(client: TestClient, data: bytes | Iterator[bytes], kind: str = "image/png") -> Any:
    return client.post("/images", content=data, headers={"content-type": kind})


def test_the_page_is_served_under_a_policy_that_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "LTX video" in answer.text
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert not any(":/" in value or "*" in value for value in policy.values())
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_variants_say_what_they_take_and_what_they_need(client: TestClient) -> None:
    found = client.get("/variants").json()
    rows = {row["id"]: row for row in found["variants"]}
    assert list(rows) == [caps.id for caps in all_caps()]
    assert rows[found["default"]]["generation"] == "LTX-Nano 2.3"
    assert [rows[f"nano-2.3-dev-{mode}"]["takes"] for mode in ("t2v", "i2v", "condition")] == [
        *("text", "image", "images")
    ]
    assert rows["nano-2.3-dev-t2v"]["on_this_machine"] is True
    assert rows["2.3-dev-t2v"]["memory"]["weights"] > 10
    assert rows["0.9.0-t2v"]["two_stages"] is False
    assert rows["0.9.0-t2v"]["two_stages_why"]
    assert all(row["ready"] or row["why"] for row in rows.values())


def test_a_plan_is_the_command_lines_with_words_for_a_page(client: TestClient) -> None:
    plan = client.post("/plan", json={"model": "2.3-dev-t2v", "prompt": "x", "refine": True, "seed": "7"}).json()
    assert [row["stage"] for row in plan["table"]] == ["stage1", "upsample", "stage2"]
    assert plan["table"][0]["guidance"].startswith("cfg 3")
    assert plan["evaluations"] == 33
    assert plan["seed"] == 7
    assert not any("--" in note for note in plan["notes"])


BAD: list[tuple[dict[str, object], str]] = [
    ({"width": "wide"}, "width 'wide': not valid; it takes a whole number"),
    ({"model": "nano-2.3-dev-i2v"}, "add an image or take T2V"),
    ({"model": "0.9.0-t2v", "refine": True}, "two stages: LTXVideo 0.9.0 T2V has no second stage"),
    ({"bogus": 1}, "unknown option"),
    ({"model": "/etc"}, "not in the list of variants"),
    ({"model": "../models"}, "not in the list of variants"),
    ({"model": "Lightricks/LTX-2"}, "not in the list of variants"),
    ({"model": ["nano"]}, "not in the list of variants"),
    ({"variant": "2.3-dev-t2v"}, "for the command line"),
    ({"loras": [{"source": "/etc/passwd"}]}, "LoRA files are for the command line"),
    ({"images": "x"}, "list of objects"),
    ({"images": ["x"]}, "a path is not taken"),
    ({"images": [{"path": "/etc/passwd"}]}, "a path is not taken"),
    ({"images": [{"id": "/etc/passwd"}]}, "choose it again"),
    ({"images": [{"id": "../../etc/passwd"}]}, "choose it again"),
    ({"images": [{"id": ["x"]}]}, "choose it again"),
]


@pytest.mark.parametrize("route", ["/plan", "/jobs"])
@pytest.mark.parametrize(("values", "sentence"), BAD, ids=lambda x: str(x)[:40])
def test_what_cannot_be_done_is_one_sentence(
    client: TestClient, outputs: Path, route: str, values: dict[str, object], sentence: str
) -> None:
    before = list(outputs.iterdir())
    answer = client.post(route, json=values)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert list(outputs.iterdir()) == before


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/plan", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_job_runs_to_a_video_that_streams(client: TestClient, idle: web.App) -> None:
    job, events = made(client, SMALL | {"refine": True, "seed": 2**62 + 1})
    assert {e["state"] for e in events[:-1]} == {"running"}
    phases = [e["phase"] for e in events[:-1]]
    assert list(dict.fromkeys(phases)) == ["load", "encode", "sample", "upsample", "refine", "decode"]
    counted = [e["evaluations"] for e in events[:-1] if e["phase"] != "load"]
    assert counted == sorted(counted)
    assert counted[-1] == events[-2]["planned"] == 5
    done = events[-1]
    assert (done["state"], done["seed"], done["seed_text"]) == ("done", 2**62 + 1, str(2**62 + 1))
    assert [row["phase"] for row in done["seconds"]][-5:] == ["encode", "sample", "upsample", "refine", "decode"]
    whole = client.get(done["video"])
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-disposition"].startswith("inline")
    with av.open(io.BytesIO(whole.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    part = client.get(done["video"], headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert client.get("/job").json()["job"]["last"] == done  # a page that is opened now finds it
    assert client.get("/job").json()["job"]["request"]["seed"] == str(2**62 + 1)
    assert told(client, job, since=str(len(events) - 3)) == events[-2:]  # a stream that broke off goes on


def test_an_uploaded_image_is_used_by_its_id(client: TestClient, idle: web.App, uploads: Path) -> None:
    kept = upload(client, png()).json()
    assert (kept["width"], kept["height"]) == (120, 80)
    image = {"id": kept["id"], "frame": 0, "strength": 1}
    asked = SMALL | {"model": "nano-2.3-distilled-i2v", "images": [image]}
    plan = client.post("/plan", json=asked)
    assert plan.json()["images"] == [image]
    assert str(uploads) not in plan.text
    assert made(client, asked)[1][-1]["state"] == "done"


def test_cancelling_leaves_nothing_and_a_second_job_has_to_wait(
    client: TestClient, idle: web.App, outputs: Path
) -> None:
    before = set(outputs.iterdir())
    job = client.post("/jobs", json=LONG).json()["id"]
    second = client.post("/jobs", json=SMALL)
    assert second.status_code == 409
    assert "wait for it or cancel it" in second.json()["error"]
    wait_for(lambda: any(e.get("phase") == "sample" for e in idle.jobs.get(job).events))  # type: ignore[union-attr]
    assert client.get("/job").json()["job"]["last"]["state"] == "running"
    assert client.get(f"/jobs/{job}/video").status_code == 404
    assert client.post(f"/jobs/{job}/cancel", json={}).status_code == 200
    end = told(client, job)[-1]
    assert (end["state"], end["message"]) == ("cancelled", "cancelled; nothing was written")
    assert set(outputs.iterdir()) == before
    assert made(client, SMALL)[1][-1]["state"] == "done"  # and the next one runs


def test_a_cancel_before_the_run_has_begun_is_not_forgotten(client: TestClient, idle: web.App) -> None:
    job = client.post("/jobs", json=LONG).json()["id"]
    client.post(f"/jobs/{job}/cancel", json={})
    assert told(client, job)[-1]["state"] == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unknown_error_is_one_sentence(cache: Path, tmp_path: Path, idle: web.App) -> None:
    class Broken(EmbeddedHost):
        def output_path(self, *_: object) -> Path:
            raise ZeroDivisionError("secret")

    settings = Settings(tmp_path, cache=cache, device="cpu", offline=True)
    app = web.App(Jobs(lambda on_event: Broken(settings, on_event)), idle.images, tmp_path, cache)
    with TestClient(app.asgi, base_url=HERE) as client:
        end = made(client, SMALL)[1][-1]
    assert end["state"] == "failed"
    assert "terminal of the server" in end["message"]
    assert "secret" not in str(end)


@pytest.mark.parametrize("data", [b"", b"not an image", png()[:60]], ids=["empty", "text", "cut"])
def test_what_is_no_image_is_not_kept(client: TestClient, uploads: Path, data: bytes) -> None:
    before = len(list(uploads.iterdir()))
    answer = upload(client, data)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("the image ")
    assert len(list(uploads.iterdir())) == before


def test_an_image_that_never_ends_is_cut_off(client: TestClient, uploads: Path) -> None:
    before = len(list(uploads.iterdir()))
    answer = upload(client, (b"x" * (1 << 20) for _ in range(60)))
    assert answer.status_code == 413
    assert "50 MB" in answer.json()["error"]
    assert len(list(uploads.iterdir())) == before


def test_old_images_make_room(client: TestClient, uploads: Path) -> None:
    ids = [upload(client, png((8, 8)), "application/octet-stream").json()["id"] for _ in range(MAX_IMAGES + 2)]
    assert len(list(uploads.iterdir())) == MAX_IMAGES
    assert client.post("/plan", json={"images": [{"id": ids[0]}]}).status_code == 422
    assert client.post("/plan", json={"images": [{"id": ids[-1]}]}).status_code == 200


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
    answer = client.post("/plan", content=b"{}", headers={"content-type": "application/json", **headers})
    assert answer.status_code == status
    assert (status == 200) == ("error" not in answer.json())
    if "host" in headers:
        assert client.get("/", headers=headers).status_code == status


def test_images_and_unknown_jobs_are_refused_in_words(client: TestClient) -> None:
    assert upload(client, png(), "text/plain").status_code == 415
    for answer in (client.get("/jobs/x/events"), client.get("/jobs/x/video"), client.post("/jobs/x/cancel", json={})):
        assert answer.status_code == 404
        assert "no such job" in answer.json()["error"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_only_loopback_addresses_are_listened_on(address: str) -> None:
    with pytest.raises(RequestError, match="SSH tunnel"):
        web.listen(address, 0)


def test_a_port_in_use_is_said_with_a_way_out() -> None:
    with web.listen("127.0.0.1", 0) as taken, pytest.raises(RequestError, match="--port 0"):
        web.listen("localhost", taken.getsockname()[1])
    with pytest.raises(RequestError, match="0 .any free one. to 65535"):
        web.listen("127.0.0.1", 70_000)


def test_sentences_lose_the_flags_of_the_command_line() -> None:
    assert in_words("--guidance-scale 99: out of range.") == "guidance scale 99: out of range."
    assert in_words("--last-image: X takes one.\n") == "last image: X takes one."
    assert in_words("or try --offload sequential") == "or start the server with --offload sequential"


def test_events_after_the_end_are_nobodys(idle: web.App) -> None:
    idle.jobs._show(Event("decode"))  # must not raise, and must not bring an ended job back
    assert idle.jobs.running is None


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def posted(url: str, values: dict[str, object]) -> Any:
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(url, json.dumps(values).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_the_program_from_start_to_ctrl_c(cache: Path, tmp_path: Path, busy: bool) -> None:
    environment = {**os.environ, "LTX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--device", "cpu", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    guard = threading.Timer(60, running.kill)
    guard.start()
    assert running.stdout is not None
    address = json.loads(running.stdout.readline())["address"]
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert b"LTX video" in answer.read()
    stream: Any = None
    if busy:
        job = posted(f"{address}/jobs", LONG)["id"]
        stream = urllib.request.urlopen(f"{address}/jobs/{job}/events", timeout=30)
        assert any(b'"sample"' in line for line in stream)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    guard.cancel()
    if stream is not None:
        stream.close()
    assert (running.returncode, out, err.splitlines()[-1]) == (0, "", "stopped")
    assert "Traceback" not in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass  # and its port is free again
