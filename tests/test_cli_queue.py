"""The queue from the command line: the same jobs as the API's, done here or by whoever works on the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modules.ltx.__main__ import main
from modules.ltx.jobs import Store

ASKED = ["--prompt", "a red ball", "--width", "64", "--height", "64", "--frames", "9"]


@pytest.fixture
def outputs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTX_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "outputs"


def said(capsys: pytest.CaptureFixture[str], outputs: Path, *words: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main([*words, "--outputs", str(outputs), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_jobs_are_added_moved_listed_and_cancelled(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = said(capsys, outputs, "queue", "add", *ASKED, "--seeds", "1,2,3")["jobs"]
    ids = [job["id"] for job in jobs]
    assert [job["request"]["seed"] for job in jobs] == [1, 2, 3]
    said(capsys, outputs, "queue", "move", ids[2], "0")
    said(capsys, outputs, "queue", "priority", ids[1], "7")
    listed = said(capsys, outputs, "queue", "list")
    assert ([job["id"] for job in listed["jobs"]], listed["paused"]) == ([ids[1], ids[2], ids[0]], False)
    assert said(capsys, outputs, "queue", "cancel", *ids[:2])["jobs"][0]["state"] == "cancelled"
    said(capsys, outputs, "queue", "pause")
    assert said(capsys, outputs, "queue", "list", "--state", "queued")["paused"] is True
    said(capsys, outputs, "queue", "resume")
    said(capsys, outputs, "queue", "delete", ids[0])
    assert [job["id"] for job in said(capsys, outputs, "queue", "list")["jobs"]] == [ids[2], ids[1]]
    assert main(["queue", "list", "--outputs", str(outputs)]) == 0
    assert f"{ids[2]}  queued" in capsys.readouterr().out


def test_what_cannot_be_done_is_said_as_everywhere(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["queue", "cancel", "x"], ["finish", "x"], ["queue", "watch", "x"]):
        assert "no such job" in said(capsys, outputs, *words, code=2)["error"]["message"]
    for words in (["queue", "add", "--width", "9999"], ["draft", *ASKED], ["queue", "add", *ASKED, "--count", "0"]):
        assert said(capsys, outputs, *words, code=2)["error"]["type"] == "RequestError"
    assert not outputs.exists()
    [job] = said(capsys, outputs, "queue", "add", *ASKED)["jobs"]
    assert "only a draft" in said(capsys, outputs, "finish", job["id"], code=2)["error"]["message"]
    for words in (["move", job["id"], "x"], ["priority", job["id"], "500"]):
        said(capsys, outputs, "queue", *words, code=2)


def test_what_waits_is_run_and_an_image_is_kept_with_the_queue(
    outputs: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(picture.read_bytes())
    words = ["--model", "nano-2.3-distilled-i2v", "--image", str(image), "--steps", "1"]
    [job] = said(capsys, outputs, "queue", "add", *ASKED, *words)["jobs"]
    image.unlink()  # it was taken in
    [done] = said(capsys, outputs, "queue", "run", "--device", "cpu")["jobs"]
    assert (done["id"], done["state"]) == (job["id"], "done")
    assert Path(done["result"]["files"]["path"]).is_file()
    [watched] = said(capsys, outputs, "queue", "watch", job["id"])["jobs"]
    assert watched == done


def test_drafts_are_made_and_one_is_finished(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drafts = said(capsys, outputs, "draft", *ASKED, "--refine", "--seeds", "1,2", "--device", "cpu")["jobs"]
    assert [draft["state"] for draft in drafts] == ["done", "done"]
    assert all(Path(draft["preview"]).is_file() for draft in drafts)
    assert list(outputs.glob("*.mp4")) == []
    capsys.readouterr()
    assert main(["finish", drafts[1]["id"], "--outputs", str(outputs), "--device", "cpu"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.is_file()
    assert [row.kind for row in Store(outputs).rows()] == ["finish", "draft", "draft"]
