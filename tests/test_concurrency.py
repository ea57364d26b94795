"""Several at once on one output folder, a clock that jumps, disks that take nothing, and folders of unusual names."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modules.ltx.errors import HostError, LTXError
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import New, Row, Store
from modules.ltx.ltx_process import run
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.serve_jobs import Jobs
from modules.ltx.submit import submit
from tests.conftest import SMALL
from tests.media_kit import posix_only

ROOT = Path(__file__).resolve().parents[1]
Planned = Callable[..., Plan]

# A front door that adds jobs, and then a worker that takes what it gets: what a process does, without the models.
ADD = """
import sys
from pathlib import Path
from modules.ltx.jobs import New, Store
store, name = Store(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
for number in range(10):
    store.add([New({"prompt": f"{name}{number}"})], key=f"{name}{number}", digest="d")
    store.add([New({"prompt": f"{name}{number}"})], key=f"{name}{number}", digest="d")
print("added", flush=True)
sys.stdin.readline()
while (row := store.claim()) is not None:
    print(row.id, flush=True)
"""


def test_three_processes_and_two_threads_add_at_once_and_each_job_is_taken_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ADD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    doors = [subprocess.Popen([*command, name], **pipes) for name in "abc"]  # type: ignore[call-overload]
    store = Store(tmp_path)

    def add(name: str) -> None:
        for number in range(10):
            store.add([New({"prompt": f"{name}{number}"})])

    threads = [threading.Thread(target=add, args=(name,)) for name in "de"]
    for door in doors:
        door.stdin.write("go\n")
        door.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [door.stdout.readline() for door in doors] == ["added\n"] * 3
    rows = store.rows()
    assert sorted(row.request["prompt"] for row in rows) == sorted(f"{a}{n}" for a in "abcde" for n in range(10))
    assert len({row.position for row in rows}) == len({row.id for row in rows}) == 50
    taken = "".join(door.communicate("go\n", timeout=60)[0] for door in doors).split()
    assert sorted(taken) == sorted(row.id for row in rows)


def worker(cache: Path, outputs: Path) -> Jobs:
    settings = Settings(outputs, cache=cache, device="cpu", offline=True)
    return Jobs(lambda heard: EmbeddedHost(settings, heard), outputs)


def added(jobs: Jobs, seed: int) -> Row:
    asked = SMALL | {"model": "nano-2.3-distilled-t2v", "seed": seed, "steps": None}
    return submit(jobs.store, jobs.uploads, jobs.host, [Request.parse(asked)])[0]


def test_of_two_servers_one_works_and_the_other_takes_over(cache: Path, tmp_path: Path) -> None:
    """On a folder with spaces and letters of other scripts in its name."""
    outputs = tmp_path / "Meine Videos é 動画 🎞"
    one, other = worker(cache, outputs), worker(cache, outputs)
    try:
        rows = [added(jobs, seed) for seed, jobs in enumerate((one, other))]
        assert one.wait(60)
        assert one.worker.working + other.worker.working == 1
        first, second = (one, other) if one.worker.working else (other, one)
        first.close()
        assert first.wait(30)
        rows.append(added(second, 9))
        assert second.wait(60)
        ended = [second.store.get(row.id) for row in rows]
    finally:
        one.close()
        other.close()
    assert [(row.state, row.attempts) for row in ended] == [("done", 1)] * 3
    videos = sorted(outputs.glob("*.mp4"))
    assert sorted((row.result or {})["files"]["path"] for row in ended) == [str(path) for path in videos]
    assert len(videos) == 3
    assert read_metadata(videos[0])["request"]


def test_two_that_begin_within_a_second_have_two_names(cache: Path, planned: Planned, tmp_path: Path) -> None:
    plan = planned("nano-2.3-distilled-t2v")
    hosts = [EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True)) for _ in range(3)]
    while time.time() % 1 > 0.8:
        time.sleep(0.01)
    with hosts[0].lock(), hosts[1].lock():
        names = [host.output_path(plan).name for host in hosts[:2]]
        assert names[1] == names[0].replace(".mp4", "-2.mp4")
    with hosts[2].lock():
        assert hosts[2].output_path(plan).name == names[0]  # given back, since neither made it


def test_a_clock_that_jumps_loses_no_job_and_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    now = iter([1e9, 2e9, 5.0, 4e9, 0.0, 3e9, *([1.0, 5e9] * 50)])
    monkeypatch.setattr(time, "time", lambda: next(now))
    rows = [store.add([New({"prompt": name})])[0] for name in "abc"]
    for row in rows:
        claimed = store.claim()
        assert claimed is not None
        assert claimed.id == row.id
        store.recover(lambda row: None)  # as behind a kill
        again = store.claim()
        assert again is not None
        assert again.id == row.id
        store.end(row.id, "done")
    assert store.retain() == []
    assert {row.state for row in store.rows()} == {"done"}
    assert store.claim() is None


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes: what a full disk does to a writer."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@posix_only
def test_a_full_disk_is_one_sentence_and_the_next_job_runs(
    host: EmbeddedHost, planned: Planned, tmp_path: Path
) -> None:
    plan = planned("nano-2.3-distilled-t2v")
    with pytest.raises(LTXError) as caught, files_of(2000):
        run(plan, host, path=tmp_path / "x.mp4")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert run(plan, host, path=tmp_path / "x.mp4").media is not None


@posix_only
def test_a_queue_that_cannot_grow_says_so_and_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = store.add([New({"prompt": "a"})])[0]
    size = max(path.stat().st_size for path in store.folder.iterdir())
    large = [New({"prompt": "b" * 4000})] * 200
    with pytest.raises(HostError, match="check its disk and permissions"), files_of(size):
        store.add(large)
    assert [one.id for one in store.rows()] == [row.id]
    assert store.add([New({"prompt": "c"})])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody may write to")
def test_a_folder_that_takes_nothing_is_named() -> None:
    with pytest.raises(HostError, match="/proc/self/.ltx/queue.db cannot be used"):
        Store(Path("/proc/self")).add([New({"prompt": "a"})])
