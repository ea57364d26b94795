"""Something is raised at every seam of a run, once; everything is as it was, and the next job is the undisturbed one's.

Every call of every seam with every exception takes minutes: `python -m bench.faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from modules.ltx.ltx_process import run
from tests.faults.conftest import Undisturbed
from tests.faults.kit import Place, strike
from tests.faults.queue_kit import queue_job, strike_queue
from tests.faults.seams import COMMIT, FAULTS, LOAD, Call, Fault, Wire, wired

pytestmark = pytest.mark.library

Job = Callable[[], str]

# What a run of two stages crosses; a seam that is gone is a seam that nobody tests any more.
SAMPLING = {
    *("prompt encode", "connectors", "denoise", "refiner pass", "scheduler step", "set the sigmas"),
    *("swap the scheduler", "hook", "unhook", "LoRA: load_lora_weights", "LoRA: set_adapters", "LoRA layers"),
    *("LoRA weights", "LoRA: removal", "LoRA: unload_lora_weights", "upsample", "keep the state"),
}
DECODING = {
    *("decode a tile", "set the tiles", "decode sound", "vocoder", "encode a frame", "encode sound", "hook", "unhook"),
    *("frame's pictures", "finish the file", "sync", "rename"),
}


def crossed(place: Place, job: Job) -> list[Call]:
    """The calls of an undisturbed run."""
    wire = Wire()
    with wired(wire, place.host):
        job()
    return wire.calls


def last_of_each(calls: list[Call], seams: set[str]) -> list[Call]:
    """The last call of each seam, when most has been borrowed."""
    found = {call.seam: call for call in calls if call.seam in seams}
    assert set(found) == seams
    return list(found.values())


def survived(place: Place, job: Job, wanted: str, calls: list[Call]) -> None:
    for call, fault in zip(calls, cycle(FAULTS), strict=False):
        found = strike(place, job, call, fault, wanted)
        assert found.struck, found
        assert not found.wrong, found
    assert job() == wanted


def test_at_every_seam_up_to_the_latents(place: Place, undisturbed: Undisturbed) -> None:
    calls = crossed(place, place.sampled)
    survived(place, place.sampled, undisturbed.latents, last_of_each(calls, SAMPLING))


def test_at_every_seam_from_the_latents_to_the_file(place: Place, undisturbed: Undisturbed) -> None:
    """From the latents that are kept: a fault while they are decoded costs no sampling."""

    def job() -> str:
        return place.job(keep=undisturbed.kept)

    calls = crossed(place, job)
    assert "denoise" not in {call.seam for call in calls}
    survived(place, job, undisturbed.video, last_of_each(calls, DECODING))


def test_a_lora_that_got_half_way_leaves_no_layer_wrapped(place: Place, undisturbed: Undisturbed) -> None:
    """Memory that runs out between the layers and their weights: the adapter is in no list, its layers are there."""
    oom = next(fault for fault in FAULTS if fault.name == "OutOfMemoryError")
    found = strike(place, lambda: place.job(until="refine"), Call("LoRA weights", 1), oom, undisturbed.latents)
    assert (found.struck, found.raised, found.wrong) == (True, "OutOfMemory", ())


def test_while_the_model_is_loaded(place: Place, undisturbed: Undisturbed) -> None:
    def job() -> str:
        place.host._drop()
        return place.job(keep=undisturbed.kept, until="refine")

    for seam, fault in zip((LOAD[0], LOAD[1]), (FAULTS[1], FAULTS[2]), strict=True):
        place.host._drop()
        found = strike(place, job, Call(seam, 1), fault, undisturbed.latents)
        assert (found.struck, found.wrong) == (True, ())
        assert place.pipes() == []  # no half of a model
    assert place.job(keep=undisturbed.kept) == undisturbed.video


@pytest.mark.parametrize("statement", ["begin immediate", "commit"])
def test_the_queue_loses_no_job_to_its_own_file(
    place: Place, undisturbed: Undisturbed, tmp_path: Path, statement: str
) -> None:
    """A disk that is full while the name is written down, and while the end is."""
    wanted = queue_job(place, tmp_path / "undisturbed", undisturbed.kept)
    wire = Wire()
    with wired(wire, place.host):
        assert queue_job(place, tmp_path / "counted", undisturbed.kept) == wanted
    numbers = [call.number for call in wire.calls if call.seam == f"{COMMIT}: {statement}"]
    faults: list[Fault] = [fault for fault in FAULTS if fault.name.startswith(("OSError", "KeyboardInterrupt"))]
    for number, fault in zip((numbers[1], numbers[-1], numbers[len(numbers) // 2]), faults, strict=True):
        call = Call(f"{COMMIT}: {statement}", number)
        found = strike_queue(place, tmp_path / f"{number}", undisturbed.kept, call, fault, wanted)
        assert (found.struck, found.wrong) == (True, ()), found


def test_a_run_that_was_struck_is_the_same_in_its_own_words(place: Place, undisturbed: Undisturbed) -> None:
    """The plan is untouched by all of that."""
    assert run(place.plan, place.host, until="encode").notes == ()
