"""Kill -9 while jobs are done: none is lost, none is done twice, no half file stands, and the bytes are the same."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bench.queue_kills import ASKED, kill_at, start, undisturbed, wrong
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.job import STATE
from modules.ltx.jobs import Store
from modules.ltx.kept import Kept
from modules.ltx.ltx_process import run
from modules.ltx.media_files import withdraw
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.submit import several, submit
from modules.ltx.uploads import Uploads
from modules.ltx.worker import Worker


@pytest.fixture
def store(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("LTX_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Store(tmp_path / "outputs")


def add(store: Store, host: EmbeddedHost, seeds: list[int]) -> None:
    asked = several(Request.parse(dict(ASKED)), seeds=seeds)
    submit(store, Uploads(store.folder / "media"), host, asked)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_after_three_kills_every_job_is_done_once_and_the_same(
    store: Store, host: EmbeddedHost, tmp_path: Path
) -> None:
    add(store, host, [1, 2])
    rows = store.rows()
    for moment in ("sample", "refine", "decode"):
        assert kill_at(store, start(store.folder.parent), moment, random.Random(moment).random() * 0.05)
    assert start(store.folder.parent).wait() == 0
    ended = [store.get(row.id) for row in rows]
    assert sum(row.attempts for row in ended) >= len(rows) + 2  # the kills were felt
    assert wrong(store, ended, undisturbed(tmp_path / "undisturbed", rows)) == []


def test_a_video_that_was_finished_but_not_written_down_is_not_made_again(
    store: Store, host: EmbeddedHost, tmp_path: Path
) -> None:
    """Killed between the file's name and the queue's commit."""
    add(store, host, [1])
    row = store.claim()
    assert row is not None
    from modules.ltx.front import settle

    plan: Plan = settle(Request.parse(row.request), host)
    path = store.folder.parent / "video.mp4"
    keep = Kept(store.folder_of(row.id) / STATE, lambda path: store.named(row.id, path))
    made = run(plan, host, path=path, keep=keep)
    before = path.stat().st_mtime_ns
    (path.with_name(".video.0123456789ab.part.mp4")).touch()
    worker = Worker(store, Uploads(store.folder / "media"), lambda heard: host)
    store.recover(worker._made)
    done = store.get(row.id)
    assert (done.state, path.stat().st_mtime_ns) == ("done", before)
    assert made.media is not None
    assert done.result is not None
    assert done.result["files"] == made.media.to_json()
    assert [one["phase"] for one in done.result["timings"]][1:] == ["encode", "sample", "upsample", "refine"]


def test_another_video_of_that_name_is_not_taken_for_it(store: Store, host: EmbeddedHost, tmp_path: Path) -> None:
    add(store, host, [1])
    row = store.claim()
    assert row is not None
    path = store.folder.parent / "video.mp4"
    store.named(row.id, path)
    path.write_bytes(b"another")
    worker = Worker(store, Uploads(store.folder / "media"), lambda heard: host)
    store.recover(worker._made)
    assert store.get(row.id).state == "queued"
    assert path.read_bytes() == b"another"


def test_what_a_killed_writer_left_is_withdrawn_and_nothing_else(tmp_path: Path) -> None:
    ours = ["clip.jpg", ".clip.0123456789ab.part.mp4", ".clip.0123456789ab.part", "clip-stage1-uncertainty.png"]
    theirs = ["clip-2.mp4", "clip-2.jpg", ".clip-2.0123456789ab.part.mp4", "clip.txt", "clip-notes.png"]
    for name in (*ours, *theirs):
        (tmp_path / name).touch()
    withdraw(tmp_path / "clip.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clip.jpg").touch()
    withdraw(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.jpg").is_file()
