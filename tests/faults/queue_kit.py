"""A job of the queue, done by a worker in this thread, with faults in the queue's own file.

What must hold: the job ends, once; its video is whole and the undisturbed one's, or it failed with a sentence.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.ltx.job import STATE
from modules.ltx.jobs import New, Row, Store
from modules.ltx.kept import embeds_of
from modules.ltx.uploads import Uploads
from modules.ltx.worker import Worker
from tests.faults.kit import RAISED, Found, Place, digest
from tests.faults.seams import Call, Fault, Wire, wired


class Queue:
    """A queue of its own, for one job."""

    def __init__(self, place: Place, folder: Path, kept: Path) -> None:
        self.place, self.folder = place, folder
        self.store = Store(folder)
        self.worker = Worker(self.store, Uploads(self.store.folder / "media"), lambda heard: place.host)
        self.kept = kept

    def fill(self) -> None:
        """Add the job; its latents are there already."""
        [row] = self.store.add([New(self.place.plan.request.to_json())])
        state = self.store.folder_of(row.id) / STATE
        state.parent.mkdir(parents=True)
        for source, copy in ((self.kept, state), (embeds_of(self.kept), embeds_of(state))):
            shutil.copyfile(source, copy)

    def turn(self) -> None:
        """What the worker does: recover, claim, work, tidy up."""
        self.store.recover(self.worker._made)
        row = self.store.claim()
        if row is not None:
            self.worker._work(row)
        self.worker._tidy()

    @property
    def row(self) -> Row:
        [row] = self.store.rows()
        return row

    def videos(self) -> list[Path]:
        return sorted(self.folder.glob("*.mp4"))


@contextmanager
def into(place: Place, folder: Path) -> Iterator[None]:
    """The place's host writes to `folder`."""
    before = place.host.settings
    place.host.settings = type(before)(**{**vars(before), "outputs": folder})
    try:
        yield
    finally:
        place.host.settings = before


def queue_job(place: Place, folder: Path, kept: Path) -> str:
    """The digest of the video of an undisturbed job."""
    with into(place, folder):
        queue = Queue(place, folder, kept)
        queue.fill()
        queue.turn()
    assert queue.row.state == "done", queue.row.error
    return digest(queue.videos()[0])


def strike_queue(place: Place, folder: Path, kept: Path, call: Call, fault: Fault, wanted: str) -> Found:
    """One job with `fault` at `call`; turns until it is over, as the worker has them."""
    wire, raised = Wire(call, fault), ""
    with into(place, folder), wired(wire, place.host):
        queue = Queue(place, folder, kept)
        try:
            queue.fill()
            queue.turn()
        except RAISED as error:
            raised = type(error).__name__
        if not queue.store.rows():  # it was never taken in, and whoever added it was told so
            return Found(call, fault.name, wire.struck, raised, () if raised else ("a job is lost",))
        for _ in range(3):
            if not queue.row.over:
                queue.turn()
    return Found(call, fault.name, wire.struck, raised, tuple(_wrong(queue, wanted)))


def _wrong(queue: Queue, wanted: str) -> list[str]:
    row, videos = queue.row, queue.videos()
    if not row.over:
        return [f"the job is {row.state}"]
    if row.state == "failed":
        return [] if (row.error or {}).get("message") and len(videos) <= 1 else ["it failed without a word"]
    found = [] if [digest(path) for path in videos] == [wanted] else [f"{len(videos)} videos, or another one"]
    left = {path.name for path in queue.folder.iterdir()} - {path.name for path in videos} - {".ltx"}
    return found + [f"left behind: {name}" for name in left - {path.with_suffix(".jpg").name for path in videos}]
