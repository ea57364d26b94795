"""A job that was cut off goes on where it was, and the file it makes is the undisturbed one's, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modules.ltx.errors import HostError
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.kept import Kept, embeds_of, header_of
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event, State
from tests.conftest import SMALL

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
PHASES = ["encode", "sample", "upsample", "refine"]


class Cut(Kept):
    """Ends the run behind a phase, once what it has is kept."""

    def __init__(self, file: Path, behind: str) -> None:
        super().__init__(file)
        self._behind = behind

    def save(self, phase: str, state: State) -> None:
        super().save(phase, state)
        if phase == self._behind:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def job(host: EmbeddedHost, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, State]:
    """Two stages, sound, an image, the self-refiner in both with its pictures; and what comes of it undisturbed."""
    refined = {"self_refine": "p1", "self_refine_plan": "1-2:2;1-2:2", "self_refine_map": True}
    asked = SMALL | refined | {"model": "nano-2.3-distilled-i2v", "steps": None, "seed": 5, "refine": True}
    plan = settle(Request.parse(asked | {"images": [{"path": str(picture)}]}), host)
    return plan, run(plan, host, path=tmp_path_factory.mktemp("undisturbed") / "video.mp4")


def phases_of(host: EmbeddedHost, call: Callable[[], State]) -> tuple[State, list[str]]:
    """What a run returned, and the phases in which something was done."""
    seen: list[Event] = []
    before, host._on_event = host._on_event, seen.append
    try:
        state = call()
    finally:
        host._on_event = before
    return state, list(dict.fromkeys(event.phase for event in seen if not event.message.startswith("taken up")))


@pytest.mark.parametrize("behind", PHASES)
def test_a_run_cut_off_behind_any_phase_goes_on_to_the_same_files(
    host: EmbeddedHost, job: tuple[Plan, State], tmp_path: Path, behind: str
) -> None:
    plan, undisturbed = job
    with pytest.raises(KeyboardInterrupt):
        run(plan, host, path=tmp_path / "video.mp4", keep=Cut(tmp_path / "kept" / "state", behind))
    assert not (tmp_path / "video.mp4").exists()
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"state", "state-embeds"}
    named: list[Path] = []
    again = Kept(tmp_path / "kept" / "state", named.append)
    state, phases = phases_of(host, lambda: run(plan, host, path=tmp_path / "video.mp4", keep=again))
    assert phases == [phase for phase in [*PHASES, "decode"] if phase not in PHASES[: PHASES.index(behind) + 1]]
    assert named == [tmp_path / "video.mp4"]
    assert state.media is not None
    assert undisturbed.media is not None
    assert state.media.path.read_bytes() == undisturbed.media.path.read_bytes()
    assert [path.read_bytes() for path in state.media.maps] == [path.read_bytes() for path in undisturbed.media.maps]
    assert [timing.phase for timing in state.timings] == ["load", *PHASES, "decode"]
    assert [done.rows for done in state.refined] == [done.rows for done in undisturbed.refined]


def test_a_run_until_a_phase_makes_no_video_and_is_finished_later(
    host: EmbeddedHost, job: tuple[Plan, State], tmp_path: Path
) -> None:
    plan, undisturbed = job
    file = tmp_path / "kept" / "state"
    draft = run(plan, host, path=tmp_path / "video.mp4", keep=Kept(file), until="sample")
    assert draft.media is None
    assert draft.video_latents is not None
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    _, phases = phases_of(host, lambda: run(plan, host, keep=Kept(file), until="sample"))
    assert phases == []  # all of it is there
    assert (header_of(file) or {})["phase"] == "sample"
    done = run(plan, host, path=tmp_path / "video.mp4", keep=Kept(file)).media
    assert done is not None
    assert undisturbed.media is not None
    assert done.path.read_bytes() == undisturbed.media.path.read_bytes()


def test_what_is_kept_of_another_job_or_is_damaged_is_not_taken_up(
    host: EmbeddedHost, planned: Planned, tmp_path: Path
) -> None:
    plan, file = planned("nano-2.3-distilled-t2v"), tmp_path / "state"
    run(plan, host, keep=Kept(file), until="sample")

    def phases(plan: Plan) -> list[str]:
        return phases_of(host, lambda: run(plan, host, keep=Kept(file), until="sample"))[1]

    assert phases(plan) == []
    for other in (planned("nano-2.3-distilled-t2v", seed=2), planned("nano-2.3-distilled-t2v", prompt="a square")):
        assert "sample" in phases(other)
    for damaged in (file, embeds_of(file)):
        whole = damaged.read_bytes()
        for broken in (b"", whole[:100], whole[:-100], b"\x10" + whole[1:], b"x" * 500):
            damaged.write_bytes(broken)
            assert "sample" in phases(plan)
    assert phases(plan) == []
    run(planned("nano-2.3-distilled-t2v", prompt="a square"), host, keep=Kept(tmp_path / "other"), until="encode")
    shutil.copyfile(embeds_of(tmp_path / "other"), embeds_of(file))
    assert "sample" in phases(plan)


def test_what_was_encoded_is_written_once(host: EmbeddedHost, planned: Planned, tmp_path: Path) -> None:
    """It is the largest of what is kept."""
    plan, file = planned("nano-2.3-distilled-t2v", refine=True), tmp_path / "state"
    run(plan, host, keep=Kept(file), until="encode")

    def written() -> tuple[int, int, int]:  # not when it was read
        told = embeds_of(file).stat()
        return told.st_ino, told.st_mtime_ns, told.st_size

    first = written()
    run(plan, host, keep=Kept(file), until="upsample")
    assert written() == first


def test_a_disk_that_takes_nothing_is_said(host: EmbeddedHost, planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be kept"):
        run(planned("nano-2.3-distilled-t2v"), host, keep=Kept(tmp_path / "file" / "state"), until="encode")


def test_an_image_that_was_changed_begins_anew(host: EmbeddedHost, picture: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(picture.read_bytes())
    asked: dict[str, Any] = SMALL | {"model": "nano-2.3-distilled-i2v", "seed": 1, "images": [{"path": str(image)}]}
    plan = settle(Request.parse(asked), host)
    run(plan, host, keep=Kept(tmp_path / "state"), until="sample")
    Image.new("RGB", (64, 64), "blue").save(image)
    _, phases = phases_of(host, lambda: run(plan, host, keep=Kept(tmp_path / "state"), until="sample"))
    assert "sample" in phases
