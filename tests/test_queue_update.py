"""A queue that an earlier version of this program left: its jobs are listed, taken and planned by this one."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from modules.ltx.errors import HostError
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.jobs import FOLDER, Store
from modules.ltx.media import Encoding
from modules.ltx.request import Request

# As written by the version of 2026-11-22, the first with a queue. Not to be changed with the program.
TABLES = """
create table jobs (
    id text primary key, kind text not null, state text not null, request text not null,
    output text not null, source text,
    priority integer not null, position real not null, batch text not null, attempts integer not null default 0,
    cancelling integer not null default 0, told integer not null default 0, path text,
    created real not null, started real, ended real, error text, result text);
create index jobs_in_order on jobs (state, priority desc, position);
create table keys (key text primary key, digest text not null, batch text not null);
create table events (job text not null, n integer not null, kept integer not null, body text not null,
    primary key (job, n)) without rowid;
create table settings (name text primary key, value text not null);
create table removed (id text primary key, at real not null, why text not null);
"""
REQUEST = {
    "model": "nano-2.3-distilled-t2v",
    "prompt": "a small red ball",
    "enhance_prompt": False,
    "seed": 3,
    "width": 64,
    "height": 64,
    "frames": 9,
    "refine": False,
    "make_room": False,
    "audio": True,
    "self_refine_map": False,
}
OUTPUT = {
    "codec": "h264",
    "crf": None,
    "preset": "medium",
    "pix_fmt": "yuv420p",
    "audio_bitrate": 192000,
    "png_frames": False,
    "thumbnail": True,
}


def left(folder: Path, version: int = 1) -> None:
    """A queue of that version: one job done, one that was running when its process was killed, one queued."""
    (folder / FOLDER).mkdir()
    base = sqlite3.connect(folder / FOLDER / "queue.db")
    base.executescript(TABLES)
    base.execute(f"pragma user_version = {version}")
    columns = "id, kind, state, request, output, priority, position, batch, attempts, created"
    for n, state in enumerate(("done", "running", "queued")):
        job = (
            state,
            "video",
            state,
            json.dumps(REQUEST),
            json.dumps(OUTPUT),
            0,
            float(n),
            "b",
            min(1, 2 - n),
            1.8e9,
        )
        base.execute(f"insert into jobs ({columns}) values ({', '.join('?' * len(job))})", job)
    base.execute("insert into settings values ('paused', 'false')")
    base.commit()
    base.close()


def test_jobs_of_an_earlier_version_are_done(tmp_path: Path, host: EmbeddedHost) -> None:
    left(tmp_path)
    store = Store(tmp_path)
    assert {row.id: row.state for row in store.rows()} == {name: name for name in ("done", "running", "queued")}
    store.recover(lambda _: None)
    taken = [row for _ in range(2) if (row := store.claim()) is not None]
    assert {row.id: row.attempts for row in taken} == {"running": 2, "queued": 1}
    for row in taken:
        plan = settle(Request.parse(row.request), host)
        assert (plan.prompt, plan.seed, plan.stages[0].frames) == ("a small red ball", 3, 9)
        Encoding(**row.output)


def test_a_queue_of_another_format_is_refused_and_left(tmp_path: Path) -> None:
    left(tmp_path, version=99)
    before = (tmp_path / FOLDER / "queue.db").read_bytes()
    with pytest.raises(HostError, match="another version of this program"):
        Store(tmp_path).rows()
    assert (tmp_path / FOLDER / "queue.db").read_bytes()[100:] == before[100:]  # but for the header's journal mode
