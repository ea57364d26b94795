"""The API of the embedded app as programs use it: jobs, media, drafts, the queue, and what each refusal is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from starlette.testclient import TestClient

from modules.ltx.jobs import FOLDER
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.serve import App
from tests.api_kit import API, LONG, app_of, ended, files, made, refused, told, wait_for
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    (folder / "style.safetensors").write_bytes(b"no LoRA")
    return folder


@pytest.fixture(scope="module")
def app(cache: Path, tmp_path_factory: pytest.TempPathFactory, loras: Path) -> Iterator[App]:
    yield from app_of(cache, tmp_path_factory.mktemp("served"), loras=loras)


def test_variants_say_what_they_take_and_what_they_need(client: TestClient) -> None:
    found = client.get(f"{API}/models").json()
    rows = {row["id"]: row for row in found["variants"]}
    assert list(rows) == [caps.id for caps in all_caps()]
    assert rows[found["default"]]["generation"] == "LTX-Nano 2.3"
    assert [rows[f"nano-2.3-dev-{mode}"]["takes"] for mode in ("t2v", "i2v", "condition")] == [
        *("text", "image", "images")
    ]
    assert rows["nano-2.3-dev-t2v"]["on_this_machine"] is True
    assert rows["2.3-dev-t2v"]["memory"]["weights"] > 10
    assert rows["0.9.0-t2v"]["two_stages"] is False
    assert all(row["ready"] or row["why"] for row in rows.values())
    assert found["loras"] == ["style.safetensors"]


def test_a_plan_is_the_command_lines_with_words_for_a_page(client: TestClient) -> None:
    asked = {"model": "2.3-dev-t2v", "prompt": "x", "refine": True, "seed": "7"}
    plan = client.post(f"{API}/plan", json=asked).json()
    assert [row["stage"] for row in plan["table"]] == ["stage1", "upsample", "stage2"]
    assert plan["table"][0]["guidance"].startswith("cfg 3")
    assert (plan["evaluations"], plan["seed"]) == (33, 7)
    assert not any("--" in note for note in plan["notes"])


BAD: list[tuple[dict[str, object], str, str | None]] = [
    ({"width": "wide"}, "width 'wide': not valid; it takes a whole number", "width"),
    ({"width": 9999}, "out of range", "width"),
    ({"model": "nano-2.3-dev-i2v"}, "add an image or take T2V", None),
    ({"model": "0.9.0-t2v", "refine": True}, "two stages: LTXVideo 0.9.0 T2V has no second stage", "refine"),
    ({"bogus": 1}, "unknown option", "bogus"),
    ({"model": "/etc"}, "not in the list of variants", "model"),
    ({"model": "../models"}, "not in the list of variants", "model"),
    ({"model": "Lightricks/LTX-2"}, "not in the list of variants", "model"),
    ({"model": ["nano"]}, "not in the list of variants", "model"),
    ({"variant": "2.3-dev-t2v"}, "for the command line", "variant"),
    ({"loras": [{"source": "/etc/passwd"}]}, "a path is not taken", "loras"),
    ({"loras": [{"name": "/etc/passwd"}]}, "not in the server's folder", "loras"),
    ({"loras": [{"name": "../loras/style.safetensors"}]}, "not in the server's folder", "loras"),
    ({"images": "x"}, "list of objects", "images"),
    ({"images": ["x"]}, "a path is not taken", "images"),
    ({"images": [{"path": "/etc/passwd"}]}, "a path is not taken", "images"),
    ({"images": [{"id": "/etc/passwd"}]}, "upload it", "images"),
    ({"images": [{"id": "../../etc/passwd"}]}, "upload it", "images"),
    ({"images": [{"id": "\\\\host\\share\\x.png"}]}, "upload it", "images"),
    ({"images": [{"id": "http://example.com/x.png"}]}, "upload it", "images"),
    ({"images": [{"id": ["x"]}]}, "upload it", "images"),
    ({"prefix": {"path": "/etc/passwd"}}, "a path is not taken", "prefix"),
    ({"prefix": {"id": "0" * 32}}, "upload it", "prefix"),
]


@pytest.mark.parametrize("route", ["plan", "jobs"])
@pytest.mark.parametrize(("values", "sentence", "field"), BAD, ids=lambda x: str(x)[:40])
def test_what_cannot_be_done_is_one_sentence_and_nothing_is_written(
    client: TestClient, app: App, route: str, values: dict[str, object], sentence: str, field: str | None
) -> None:
    before, jobs = files(app), len(client.get(f"{API}/jobs").json()["jobs"])
    answer = client.post(f"{API}/{route}", json=values)
    assert sentence in refused(answer, 422, "request")
    assert answer.json().get("field") == field
    assert answer.json()["instance"] == f"{API}/{route}"
    assert files(app) == before
    assert len(client.get(f"{API}/jobs").json()["jobs"]) == jobs


@pytest.mark.parametrize("body", [b"x", b"[]", b"\xff", b"[" * 100_000, b'{"seed": NaN}', b"null"])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(f"{API}/plan", content=body, headers={"content-type": "application/json"})
    refused(answer, 400, "not-json")


def test_a_job_runs_to_a_video_that_streams(client: TestClient) -> None:
    answer = client.post(f"{API}/jobs", json=SMALL | {"refine": True, "seed": 2**62 + 1})
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.headers["location"] == f"{API}/jobs/{job}"
    events = told(client, job)
    numbers = [number for number, _ in events]
    assert numbers == sorted(set(numbers))
    assert [event["state"] for _, event in events][:2] == ["queued", "running"]
    shown = [event for _, event in events if "phase" in event]
    phases = ["load", "encode", "sample", "upsample", "refine", "decode"]
    assert [phase for phase in dict.fromkeys(event["phase"] for event in shown) if phase != "load"] == phases[1:]
    assert shown[-1]["evaluations"] == shown[-1]["planned"] == 5
    done = client.get(answer.headers["location"]).json()
    assert (done["state"], done["result"]["seed"], done["request"]["seed"]) == ("done", *[str(2**62 + 1)] * 2)
    assert events[-1][1]["state"] == "done"
    whole = client.get(done["links"]["video"])
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-disposition"].startswith("inline")
    with av.open(io.BytesIO(whole.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    assert told(client, job, since=numbers[-3]) == events[-2:]  # a stream that broke off goes on
    report = client.get(done["links"]["report"]).json()
    assert [row["phase"] for row in report["timings"]] == phases
    assert not any("--" in note for note in report["notes"])
    assert client.get(done["links"]["preview"]).headers["content-type"] == "image/jpeg"
    for name, value in {"bytes=4-7": whole.content[4:8], "bytes=-5": whole.content[-5:]}.items():
        part = client.get(done["links"]["video"], headers={"range": name})
        assert (part.status_code, part.content) == (206, value)
        assert part.headers["content-range"].endswith(f"/{len(whole.content)}")
    answer = client.get(done["links"]["video"], headers={"range": f"bytes={len(whole.content)}-"})
    refused(answer, 416, "range")
    assert client.get(done["links"]["video"], headers={"range": "lines=1-2"}).content == whole.content
    assert str(Path("outputs").absolute().parent) not in str(done)
    assert client.delete(f"{API}/jobs/{job}").status_code == 204
    assert "deleted" in refused(client.get(f"{API}/jobs/{job}"), 410, "gone")
    assert client.delete(f"{API}/jobs/{job}").status_code == 410


def test_cancelling_leaves_nothing_and_the_next_job_runs(client: TestClient, app: App) -> None:
    before = set(app.outputs.glob("*"))
    job = client.post(f"{API}/jobs", json=LONG).json()["id"]
    waiting = client.post(f"{API}/jobs", json=SMALL).json()["id"]
    wait_for(lambda: (client.get(f"{API}/jobs/{job}").json()["progress"] or {}).get("phase") == "sample")
    refused(client.get(f"{API}/jobs/{job}/video"), 409, "conflict")
    refused(client.get(f"{API}/jobs/{job}/report"), 409, "conflict")
    refused(client.delete(f"{API}/jobs/{job}"), 409, "conflict")
    wait_for(lambda: client.get(f"{API}/jobs/{job}/preview").status_code == 200)
    assert client.get(f"{API}/health").json()["running"] == job
    assert client.post(f"{API}/jobs/{job}/cancel", json={}).status_code == 200
    over = ended(client, job)
    assert (over["state"], over["error"]["message"]) == ("cancelled", "cancelled; nothing was written")
    assert ended(client, waiting)["state"] == "done"
    assert len(set(app.outputs.glob("*")) - before) == 2  # its video and thumbnail
    assert not (app.outputs / FOLDER / "jobs" / job).exists()


def test_a_job_that_waits_is_cancelled_moved_and_given_priority(held: TestClient) -> None:
    ids = [held.post(f"{API}/jobs", json=SMALL).json()["id"] for _ in range(3)]

    def order() -> list[str]:
        return [job["id"] for job in held.get(f"{API}/jobs", params={"state": "queued"}).json()["jobs"]]

    assert order() == ids
    held.post(f"{API}/jobs/{ids[2]}/move", json={"place": 0})
    assert order() == [ids[2], ids[0], ids[1]]
    held.post(f"{API}/jobs/{ids[1]}/priority", json={"priority": 3})
    assert order() == [ids[1], ids[2], ids[0]]
    refused(held.post(f"{API}/jobs/{ids[1]}/priority", json={"priority": 300}), 422, "request")
    refused(held.post(f"{API}/jobs/{ids[1]}/move", json={"where": 3}), 422, "request")
    assert held.post(f"{API}/jobs/{ids[0]}/cancel", json={}).json()["state"] == "cancelled"
    assert told(held, ids[0])[-1][1]["state"] == "cancelled"
    refused(held.post(f"{API}/jobs/{ids[0]}/move", json={"place": 0}), 409, "conflict")
    assert held.get(f"{API}/queue").json()["paused"] is True


def test_a_batch_is_every_prompt_with_every_seed(held: TestClient) -> None:
    asked = {"request": SMALL, "prompts": ["a", "b"], "seeds": [1, "2"], "priority": 2}
    batch = held.post(f"{API}/batches", json=asked).json()
    found = [(job["request"]["prompt"], job["request"]["seed"], job["priority"]) for job in batch["jobs"]]
    assert found == [("a", "1", 2), ("a", "2", 2), ("b", "1", 2), ("b", "2", 2)]
    listed = held.get(f"{API}/jobs", params={"batch": batch["batch"]}).json()["jobs"]
    assert [job["id"] for job in listed] == [job["id"] for job in batch["jobs"]]
    drawn = held.post(f"{API}/batches", json={"request": SMALL | {"seed": 5}, "count": 3}).json()["jobs"]
    seeds = [job["request"]["seed"] for job in drawn]
    assert seeds[0] == "5"
    assert len(set(seeds)) == 3
    wrong: Any
    for wrong in ({"count": 101}, {"seeds": list(range(101))}, {"seeds": [1], "count": 2}, {"request": []}, {"x": 1}):
        refused(held.post(f"{API}/batches", json=wrong), 422, "request")
    for wrong in ({"seeds": [-1]}, {"prompts": [5]}, {"seeds": [1] * 11, "prompts": ["x"] * 10}):
        refused(held.post(f"{API}/batches", json={"request": SMALL} | wrong), 422, "request")


def test_how_a_file_is_written_goes_with_the_job(client: TestClient, app: App) -> None:
    job = client.post(f"{API}/jobs", json=SMALL | {"output": {"codec": "av1", "crf": 40, "thumbnail": False}}).json()
    assert ended(client, job["id"])["state"] == "done"
    with av.open(io.BytesIO(client.get(job["links"]["video"]).content)) as file:
        assert file.streams.video[0].codec_context.codec_tag == "av01"
    assert not (app.outputs / ended(client, job["id"])["result"]["video"]["name"]).with_suffix(".jpg").exists()
    before = len(client.get(f"{API}/jobs").json()["jobs"])
    wrong: Any
    for wrong in ([], {"codec": "vp9"}, {"crf": 99}, {"png_frames": 5}, {"path": "/tmp/x.mp4"}):
        refused(client.post(f"{API}/jobs", json=SMALL | {"output": wrong}), 422, "request")
        refused(client.post(f"{API}/batches", json={"request": SMALL, "output": wrong}), 422, "request")
    refused(client.post(f"{API}/plan", json=SMALL | {"output": {}}), 422, "request")
    assert len(client.get(f"{API}/jobs").json()["jobs"]) == before


def test_a_draft_is_finished_to_the_same_file_as_in_one_go(client: TestClient, app: App) -> None:
    asked = SMALL | {"refine": True, "steps": None}
    drafts = client.post(f"{API}/drafts", json={"request": asked, "seeds": [3, 4]}).json()["jobs"]
    drafts = [ended(client, draft["id"]) for draft in drafts]
    for draft in drafts:
        assert (draft["state"], draft["result"]["video"]) == ("done", None)
        with Image.open(io.BytesIO(client.get(draft["links"]["preview"]).content)) as picture:
            assert picture.format == "PNG"
    refused(client.get(drafts[1]["links"]["video"]), 409, "conflict")
    answer = client.post(f"{API}/jobs/{drafts[1]['id']}/finish", json={})
    assert answer.status_code == 202
    phases = {event["phase"] for _, event in told(client, answer.json()["id"]) if not event.get("message", "x")}
    assert phases >= {"upsample", "refine", "decode"}
    assert "sample" not in phases
    finished = client.get(answer.headers["location"]).json()
    assert finished["source"] == drafts[1]["id"]
    at_once = made(client, asked | {"seed": 4})
    both = [(app.outputs / job["result"]["video"]["name"]).read_bytes() for job in (finished, at_once)]
    assert both[0] == both[1]
    refused(client.post(f"{API}/jobs/{at_once['id']}/finish", json={}), 409, "conflict")
    said = refused(client.post(f"{API}/drafts", json={"request": SMALL}), 422, "request")
    assert "no other to finish with" in said


def test_retention_is_a_setting_and_never_silent(client: TestClient, capfd: pytest.CaptureFixture[str]) -> None:
    first = made(client, SMALL)
    before = client.get(f"{API}/queue").json()["retention"]
    assert client.post(f"{API}/queue/retention", json={"count": 1}).json()["retention"] == before | {"count": 1}
    made(client, SMALL)
    wait_for(lambda: client.get(f"{API}/jobs/{first['id']}").status_code == 410)
    assert "more than 1 ended jobs" in client.get(f"{API}/jobs/{first['id']}").json()["detail"]
    said: list[str] = []

    def told_so() -> bool:
        said.append(capfd.readouterr().err)
        return f"job {first['id']} was forgotten" in "".join(said)

    wait_for(told_so)
    refused(client.post(f"{API}/queue/retention", json={"count": -1}), 422, "request")
    client.post(f"{API}/queue/retention", json=before)


def test_unknown_jobs_addresses_and_methods_are_refused_in_words(client: TestClient) -> None:
    for name in ("", "/events", "/video", "/preview", "/report"):
        assert "no such job" in refused(client.get(f"{API}/jobs/x{name}"), 404, "not-found")
    for name in ("cancel", "finish", "move", "priority"):
        values = {"move": {"place": 0}, "priority": {"priority": 0}}.get(name, {})
        refused(client.post(f"{API}/jobs/x/{name}", json=values), 404, "not-found")
    refused(
        client.post(f"{API}/jobs/x/cancel", content=b"", headers={"content-type": "text/plain"}), 415, "content-type"
    )
    answer = client.put(f"{API}/jobs", json={})
    assert answer.headers["allow"] == "GET, HEAD, POST"
    refused(answer, 405, "method")
    refused(client.get(f"{API}/jobs", params={"state": "odd"}), 422, "request")
    refused(client.get(f"{API}/jobs", params={"limit": "0"}), 422, "request")
