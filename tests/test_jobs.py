"""The queue: what may follow on what, in which order, and that two processes never do one job."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modules.ltx.errors import HostError, RequestError
from modules.ltx.jobs import (
    ATTEMPTS,
    PROGRESS,
    Conflict,
    KeyReused,
    New,
    NoSuchJob,
    QueueFull,
    Removed,
    Row,
    Store,
)
from modules.ltx.jobs_base import FolderLock

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def add(store: Store, *names: str, priority: int = 0) -> list[Row]:
    return store.add([New({"prompt": name}, priority=priority) for name in names])


def waiting(store: Store) -> str:
    return "".join(row.request["prompt"] for row in store.rows(state="queued"))


def states(store: Store, job: str) -> list[str]:
    return [event["state"] for _, event in store.events(job)]


def test_nothing_is_written_until_a_job_is_added(tmp_path: Path) -> None:
    store = Store(tmp_path / "outputs")
    assert store.rows() == []
    assert store.claim() is None
    assert not store.paused
    assert set(store.counts().values()) == {0}
    assert not (tmp_path / "outputs").exists()
    add(store, "a")
    assert oct((tmp_path / "outputs" / ".ltx").stat().st_mode)[-3:] == "700" or os.name == "nt"


def test_jobs_run_by_priority_then_in_order_and_can_be_moved(store: Store) -> None:
    a, _, c = add(store, "a", "b", "c")
    [z] = add(store, "z", priority=5)
    assert waiting(store) == "zabc"
    store.move(c.id, 1)
    assert waiting(store) == "zcab"
    store.move(a.id, 0)
    assert waiting(store) == "azcb"
    assert store.get(a.id).priority == 5
    store.prioritise(z.id, -1)
    assert waiting(store) == "acbz"
    for _ in range(20):  # however often
        store.move(c.id, 2)
        store.move(c.id, 1)
    assert waiting(store) == "acbz"
    add(store, "d")
    assert waiting(store) == "acbdz"
    assert [row.request["prompt"] for row in iter(store.claim, None)] == list("acbdz")
    with pytest.raises(RequestError, match="-100 to 100"):
        store.prioritise(a.id, 101)
    with pytest.raises(Conflict, match="it is running"):
        store.move(a.id, 0)
    with pytest.raises(Conflict, match="it is running"):
        store.prioritise(a.id, 1)


def test_the_states_of_a_job_and_what_is_told_of_it(store: Store) -> None:
    [job] = add(store, "a")
    claimed = store.claim()
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.attempts) == (job.id, "running", 1)
    for step in range(PROGRESS + 30):
        store.tell(job.id, {"state": "running", "step": step}, kept=step == 3)
    done = store.end(job.id, "done", result={"video": "x"})
    assert (done.state, done.result, done.over) == ("done", {"video": "x"}, True)
    told = store.events(job.id)
    numbers = [n for n, _ in told]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 2 + PROGRESS + 30 + 1
    assert [event.get("step") for _, event in told][2] == 3  # what is kept
    assert [event.get("step") for _, event in told][3:-1] == list(range(30, PROGRESS + 30))
    assert told[-1][1]["result"] == {"video": "x"}
    assert store.events(job.id, numbers[-2]) == told[-1:]
    assert store.end(job.id, "failed", error={}).state == "done"  # what is over stays as it is
    assert store.cancel(job.id).state == "done"


def test_waiting_jobs_are_cancelled_at_once_and_running_ones_asked(store: Store) -> None:
    a, b = add(store, "a", "b")
    assert store.cancel(b.id).state == "cancelled"
    assert store.claim() is not None
    assert store.claim() is None
    asked = store.cancel(a.id)
    assert (asked.state, asked.cancelling) == ("running", True)
    assert states(store, b.id) == ["queued", "cancelled"]
    store.release(a.id)
    assert store.get(a.id).attempts == 0


def test_a_held_queue_begins_nothing(store: Store) -> None:
    add(store, "a")
    store.pause(True)
    assert store.claim() is None
    assert Store(store.folder.parent).paused  # for every process
    store.pause(False)
    assert store.claim() is not None


def test_the_same_key_gives_the_same_job_and_another_body_is_refused(store: Store) -> None:
    first = store.add([New({})], key="k", digest="1")
    assert store.add([New({})], key="k", digest="1") == first
    with pytest.raises(KeyReused):
        store.add([New({})], key="k", digest="2")
    assert len(store.rows()) == 1
    store.delete(first[0].id)
    assert store.add([New({})], key="k", digest="2")[0].id != first[0].id


def test_one_key_in_many_threads_makes_one_job(store: Store) -> None:
    found: list[str] = []

    def ask() -> None:
        found.append(store.add([New({})], key="k", digest="1")[0].id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == len(store.rows()) == 1


def test_what_a_dead_process_left_is_tried_again_but_not_forever(store: Store) -> None:
    [job] = add(store, "a")
    for attempt in range(ATTEMPTS):
        claimed = store.claim()
        assert claimed is not None
        assert claimed.attempts == attempt + 1
        store.recover(lambda row: None)
    assert store.get(job.id).state == "failed"
    assert "3 times" in (store.get(job.id).error or {})["message"]
    [made, asked] = add(store, "b", "c")
    store.claim()
    store.claim()
    store.cancel(asked.id)
    store.recover(lambda row: {"video": "found"} if row.id == made.id else None)
    assert store.get(made.id).result == {"video": "found"}
    assert store.get(asked.id).state == "cancelled"


def test_ended_jobs_go_in_words_and_what_they_kept_goes_too(store: Store) -> None:
    rows = add(store, "a", "b", "c")
    for row in rows:
        store.claim()
        store.folder_of(row.id).mkdir(parents=True)
        (store.folder_of(row.id) / "state").write_bytes(b"x" * 100)
        store.end(row.id, "done", result={})
    store.set("retention", {"count": 2, "size": 1000})
    assert [rows[0].id in said for said in store.retain()] == [True]
    with pytest.raises(Removed, match="more than 2 ended jobs"):
        store.get(rows[0].id)
    store.set("retention", {"count": 9, "size": 150})
    assert ["150 bytes" in said for said in store.retain()] == [True]
    assert [path.name for path in (store.folder / "jobs").iterdir()] == [rows[2].id]
    assert store.retain() == []
    with pytest.raises(NoSuchJob, match="no such job"):
        store.get("x" * 500)


def test_a_running_job_cannot_be_deleted_and_a_full_queue_takes_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path, most=2)
    [a] = add(store, "a")
    store.claim()
    with pytest.raises(Conflict, match="cancel it first"):
        store.delete(a.id)
    add(store, "b")
    with pytest.raises(QueueFull):
        add(store, "c", "d")
    assert waiting(store) == "b"
    for row in store.rows(state="queued"):
        store.delete(row.id)
    assert waiting(store) == ""


def test_a_damaged_file_is_said(store: Store) -> None:
    store.folder.mkdir()
    (store.folder / "queue.db").write_bytes(b"no database" * 100)
    with pytest.raises(HostError, match="cannot be used"):
        store.rows()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells what is open")
def test_a_thread_that_ended_holds_no_file_open(store: Store) -> None:
    def opened() -> int:
        names = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
        return sum(name.startswith(str(store.folder)) for name in names)

    add(store, "a")
    found = []
    gc.disable()  # which would close them, some time
    try:
        for _ in range(5):
            thread = threading.Thread(target=store.rows)
            thread.start()
            thread.join()
            found.append(opened())
        assert len(set(found)) == 1, found  # SQLite itself keeps one that was closed, to use it again
    finally:
        gc.enable()


HOLD = "import sys; from pathlib import Path; from modules.ltx.jobs_base import FolderLock; "
HOLD += "lock = FolderLock(Path(sys.argv[1])); print(lock.take(), flush=True); sys.stdin.read()"


def test_the_lock_is_one_processs_and_dies_with_it(tmp_path: Path) -> None:
    file = tmp_path / "worker.lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    assert other.stdout.readline() == "True\n"
    lock = FolderLock(file)
    assert not lock.take()
    other.kill()
    other.communicate()
    assert lock.take()
    assert lock.take()
    lock.give_back()
    assert FolderLock(file).take()
