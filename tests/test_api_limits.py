"""What the API takes in and how much of it: media, bodies, keys, rates; and the document that says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from modules.ltx import ltx_problems
from modules.ltx.jobs import FOLDER
from modules.ltx.ltx_problems import KINDS, Problem, Rate, answering, field_of, json_body
from modules.ltx.ltx_routes import ROUTES
from modules.ltx.media_in import read_metadata
from modules.ltx.serve import App
from tests.api_kit import API, HERE, app_of, files, made, refused, upload
from tests.conftest import SMALL
from tests.test_uploads import SVG, huge, png, video


@pytest.fixture(scope="module")
def app(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    yield from app_of(cache, tmp_path_factory.mktemp("served"))


def test_a_body_that_never_ends_is_cut_off(client: TestClient, app: App) -> None:
    before = files(app)
    chunks = (b" " * (1 << 20) for _ in range(20))
    answer = client.post(f"{API}/jobs", content=chunks, headers={"content-type": "application/json"})
    refused(answer, 413, "too-large")
    refused(upload(client, (bytes(1 << 20) for _ in range(60))), 413, "too-large")
    answer = client.post(
        f"{API}/media", content=b"x", headers={"content-type": "image/png", "content-length": "60000000"}
    )
    refused(answer, 413, "too-large")
    assert files(app) == before


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltx_problems, "PATIENCE", 0.1)

    async def never() -> dict[str, object]:
        await anyio.sleep(60)
        return {}

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/slow", "headers": headers, "query_string": b""}

    async def ask() -> Response:
        async def handler(request: Request) -> Response:
            return JSONResponse(await json_body(request))

        return await answering(handler)(Request({**scope, "server": ("x", 1), "scheme": "http"}, never))

    assert anyio.run(ask).status_code == 408


def test_uploads_are_used_by_their_ids(client: TestClient, app: App, tmp_path: Path) -> None:
    image, clip = upload(client, png()).json(), upload(client, video(tmp_path).read_bytes(), "video/mp4").json()
    assert (image["width"], image["height"], clip["frames"]) == (120, 80, 20)
    at = {"id": image["id"], "frame": -1, "strength": 0.5}
    begun = {"id": clip["id"], "frames": 9}
    asked = SMALL | {"model": "nano-2.3-distilled-condition", "images": [at], "prefix": begun, "frames": 17}
    plan = client.post(f"{API}/plan", json=asked)
    assert plan.json()["images"] == [at]
    assert plan.json()["prefix"]["id"] == clip["id"]
    assert str(app.outputs) not in plan.text
    job = made(client, asked)
    assert job["state"] == "done", job
    assert job["request"]["images"] == [at]
    assert str(app.outputs) not in str(job)
    metadata = read_metadata(app.outputs / job["result"]["video"]["name"])
    assert image["id"] in str(metadata["media"])


REFUSED_MEDIA: dict[str, tuple[bytes, str, int, str]] = {
    "empty": (b"", "image/png", 422, "request"),
    "text": (b"not an image", "image/png", 422, "request"),
    "cut short": (png()[:60], "image/png", 422, "request"),
    "400 megapixels": (huge(), "image/png", 422, "request"),
    "SVG by its type": (SVG, "image/svg+xml", 415, "content-type"),
    "SVG by another": (SVG, "image/png", 422, "request"),
    "a page": (b"<html>", "text/html", 415, "content-type"),
    "a form": (b"x", "multipart/form-data", 415, "content-type"),
    "an image that is said to be a video": (png(), "video/mp4", 422, "request"),
    "an mp4 cut short": (b"\0\0\0\x18ftypisom\0\0\0\0isom\0\0\0\0", "video/mp4", 422, "request"),
}


@pytest.mark.parametrize("name", REFUSED_MEDIA)
def test_what_is_wrong_with_media_leaves_nothing(client: TestClient, app: App, name: str) -> None:
    data, content_type, status, kind = REFUSED_MEDIA[name]
    before = files(app)
    said = refused(upload(client, data, content_type), status, kind)
    assert FOLDER not in said
    assert files(app) == before


def test_one_key_makes_one_job_however_often_it_is_sent(held: TestClient) -> None:
    answers: list[Any] = []

    def send(values: dict[str, object] = SMALL, key: str = "one") -> Any:
        answers.append(held.post(f"{API}/jobs", json=values, headers={"idempotency-key": key}))
        return answers[-1]

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.json()["request"]["seed"] for answer in answers}) == 1
    assert "another request" in refused(send({"prompt": "x"}), 422, "key-reused")
    assert send(key="two").json()["id"] != answers[0].json()["id"]
    refused(send(key=""), 422, "request")
    refused(send(key="x" * 256), 422, "request")


def test_a_full_queue_and_too_many_requests_are_told_when_to_come_back(cache: Path, tmp_path: Path) -> None:
    for app in app_of(cache, tmp_path, most=1):
        app.jobs.store.pause(True)
        with TestClient(app.asgi, base_url=HERE) as client:
            assert client.post(f"{API}/jobs", json=SMALL).status_code == 202
            answer = client.post(f"{API}/jobs", json=SMALL)
            assert "1 jobs are waiting" in refused(answer, 429, "too-many")
            assert int(answer.headers["retry-after"]) > 0
    rate = Rate(each=0.001, burst=2)
    for _ in range(2):
        rate.take("me")
    with pytest.raises(Problem, match="wait a little"):
        rate.take("me")
    rate.take("somebody else")


def test_the_document_names_every_route_and_its_problems(client: TestClient) -> None:
    document = client.get(f"{API}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    said = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in said}) == len(said) == len(ROUTES)
    for operation in said:
        assert {"401", "403", "500"} <= set(operation["responses"])
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert answer["content"]["application/problem+json"]["example"]["status"] == int(status)
    known = {kind for kind, (status, _) in KINDS.items() if status != 405}
    assert {kind for kind in known if str(KINDS[kind][0]) not in str(document)} == set()


@pytest.mark.parametrize(
    ("sentence", "field"),
    [
        ("--width 9: out of range.", "width"),
        ("unknown option 'bogus'; known are: model.", "bogus"),
        ("images: not valid.", "images"),
        ("image: 0 is not the id of an image on the server.", "images"),
        ("nothing is known of this.", None),
    ],
)
def test_the_field_of_a_refusal(sentence: str, field: str | None) -> None:
    assert field_of(sentence) == field
