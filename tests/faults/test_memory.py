"""Memory that runs out: told in figures, made room for where that is asked, and nothing sampled twice. And numbers that
are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modules.ltx import decode, relief, savings, tiles
from modules.ltx.errors import NotFinite, OutOfMemory
from modules.ltx.front import settle
from modules.ltx.hosts import loading, machine
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.jobs import Conflict, Row, Store
from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.ltx_process import run
from modules.ltx.media import Encoding
from modules.ltx.plan import DecodePlan, Plan
from modules.ltx.plan import plan as make_plan
from modules.ltx.request import Request
from modules.ltx.state import State
from modules.ltx.submit import finish, several, submit
from modules.ltx.uploads import Uploads
from modules.ltx.worker import Worker
from tests.faults.kit import PLAIN, Place

pytestmark = pytest.mark.library


def planned(model: str, **options: object) -> Plan:
    caps = caps_for(model)[0]
    return make_plan(Request.parse({"model": caps.id, "prompt": "a ball", **options}), caps)


@pytest.fixture(autouse=True)
def _read(place: Place) -> None:
    """The model is in memory, to be looked into."""
    caps = place.plan.caps
    with place.host.pipeline(caps, caps.pipeline):
        pass


@contextmanager
def room_for(place: Place, latents: int) -> Iterator[list[int]]:
    """A VAE that runs out of memory where a tile has more latent frames than that; what it was given."""
    seen: list[int] = []

    def full(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].shape[2])
        if args[0].shape[2] > latents:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with _hooked(place.pipes()[0].vae.decoder, full):
        yield seen


@contextmanager
def _hooked(module: Any, hook: Callable[..., Any], *, behind: bool = False) -> Iterator[None]:
    handle = module.register_forward_hook(hook) if behind else module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def counted(place: Place) -> Iterator[list[int]]:
    calls: list[int] = []
    with _hooked(place.pipes()[0].transformer, lambda *_: calls.append(1)):
        yield calls


def of(place: Place, **options: object) -> Plan:
    return settle(Request.parse({**PLAIN, **options}), place.host)


# Figures.


@pytest.mark.parametrize("phase", ["sample", "refine", "decode"])
@pytest.mark.parametrize("model", ["2.3-dev-t2v", "2.3-distilled-i2v", "0.9.7-dev"])
def test_a_saving_holds_what_its_settings_hold(model: str, phase: str) -> None:
    """Planned again with its values, the estimate is the one it promised."""
    asked: dict[str, object] = {"width": 1280, "height": 768, "frames": 121, "refine": True}
    asked |= {"images": [{"path": "a.png"}]} if "i2v" in model else {}
    made = planned(model, **asked)
    found = savings.savings(made, phase)
    assert found
    assert [one.worth for one in found] == sorted((one.worth for one in found), reverse=True)
    for one in found:
        again = planned(model, **{**asked, **one.values})
        assert savings.held(again, phase) == pytest.approx(one.holds, rel=0.03)
        assert one.holds + one.saves == savings.held(made, phase)


def test_the_estimates_are_those_of_the_published_models() -> None:
    """bench.guidance --memory: 1.6 GiB for 4096 tokens of 2.x in two streams. bench.decode_memory: 43 numbers a pixel
    and frame of 2.x, half as much again on top."""
    made = planned("2.3-dev-t2v", width=512, height=512, frames=121)  # 16 x 16 x 16 tokens
    assert made.stages[0].tokens == 4096
    assert savings.held(made, "sample") / 2**30 == pytest.approx(1.62, rel=0.02)
    one_tile = planned("2.3-dev-t2v", width=512, height=512, frames=49)
    assert savings.held(one_tile, "decode") == pytest.approx(2 * 43 * 1.5 * 512 * 512 * 49, rel=0.2)


def test_the_sentence_says_what_to_do_and_how_much_that_saves() -> None:
    made = planned("2.3-dev-t2v", width=1280, height=704, frames=121)
    told = savings.said(made, "decode", {"device": "cuda", "offload": "none"})
    assert told.startswith("out of memory in decode: it holds about 1.93 GB beside 68 GB of weights; try ")
    assert "--tile-size 384 --tile-frames 32 (about 0.73 GB instead of 1.93)" in told
    assert "or --offload model (44 GB of weights at a time)" in told
    assert "--offload" not in savings.said(made, "sample", {"device": "cpu", "offload": "none"})
    assert "--guided-batch one (about 3 GB instead of 6)" in savings.said(made, "sample", {})
    alone = planned("2.3-dev-t2v", width=1280, height=704, frames=121, guided_batch="one")
    assert "--width 896 --height 480" in savings.said(alone, "sample", {})


def test_what_is_decoded_twice_is_counted_by_the_tiles_themselves() -> None:
    for one in tiles.LADDER:
        plan = DecodePlan(tile_frames=one.frames, overlap_frames=one.shared_frames)
        runs = decode.tiles(16, plan, 8)
        frames = sum(8 * (end - start - 1) + 1 for start, end in runs)
        estimate = savings.decoded(one, (one.size, one.size, 121))
        assert frames / 121 == pytest.approx(estimate, rel=0.1)


# Making room.


def test_decoding_takes_smaller_tiles_until_they_fit_and_samples_once(place: Place, tmp_path: Path) -> None:
    encoding = Encoding(png_frames=True, thumbnail=False)

    def frames_of(state: State) -> list[np.ndarray[Any, Any]]:
        assert state.media is not None
        assert state.media.frames_folder is not None
        return [np.asarray(Image.open(path)) for path in sorted(state.media.frames_folder.iterdir())]

    plan = of(place, make_room=True)
    with room_for(place, 4) as given, counted(place) as calls:
        eased = run(plan, place.host, path=tmp_path / "eased.mp4", encoding=encoding)
    assert len(calls) == plan.evaluations == 1
    assert (given[0], max(given[1:])) == (7, 4)
    assert eased.notes == ("out of memory in decode, done again with tiles of 256 pixels and 24 frames",)
    asked = of(place, tile_size=256, tile_frames=24)
    wanted = run(asked, place.host, path=tmp_path / "asked.mp4", encoding=encoding)
    assert all(np.array_equal(a, b) for a, b in zip(frames_of(eased), frames_of(wanted), strict=True))


def test_tiles_become_smaller_as_often_as_they_can() -> None:
    made, sizes = planned("2.3-dev-t2v", width=1280, height=704, frames=121), []
    while (smaller := savings.next_tiles(made)) is not None:
        assert replace(smaller, tiles_given=False) != made.decode
        made = replace(made, decode=smaller)
        sizes.append((smaller.tile_size, smaller.tile_frames))
    assert sizes == [(384, 32), (256, 24)]


def test_without_being_asked_nothing_is_tried_and_nothing_left_says_so(place: Place, tmp_path: Path) -> None:
    for make_room, most in ((False, 4), (True, 0)):
        with (
            room_for(place, most) as given,
            pytest.raises(OutOfMemory, match="out of memory in decode: it holds about"),
        ):
            run(of(place, make_room=make_room), place.host, path=tmp_path / "video.mp4")
        assert len(given) == (2 if make_room else 1)
        assert not list(tmp_path.iterdir())


def test_the_rungs_of_the_ladder() -> None:
    """On an accelerator: from nothing by one component to one layer at a time."""
    assert [machine.more_offload(now, "cuda") for now in machine.OFFLOADS] == ["model", "sequential", None, None]
    assert {machine.more_offload(now, "cpu") for now in machine.OFFLOADS} == {None}
    assert [rung.__name__ for rung in relief.LADDER] == ["smaller_tiles", "more_offload", "one_prediction"]


def test_more_offload_is_for_the_job_alone(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real host with the real ladder, but on a CPU, which is told that there is something to offload from."""
    wanted = run(of(place), place.host, path=tmp_path / "wanted.mp4")
    monkeypatch.setattr(machine, "more_offload", lambda offload, device: {"none": "model"}.get(offload))
    monkeypatch.setattr(machine, "choose_offload", lambda asked, *_: asked or "none")
    monkeypatch.setattr(loading, "place", lambda pipe, where: pipe.to(where.device))
    host: EmbeddedHost = place.host
    told: list[object] = []

    def full(*_: object) -> None:
        told.append(host.machine()["offload"])
        if told == ["none"]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with _hooked_class(place.pipes()[0].transformer, full):
        state = run(of(place, make_room=True), host, path=tmp_path / "video.mp4")
    assert (told[0], set(told[1:])) == ("none", {"model"})
    assert state.notes == ("out of memory in sample, done again with offload model instead of none",)
    assert state.media is not None
    assert wanted.media is not None
    assert state.media.video_latents_sha256 == wanted.media.video_latents_sha256
    assert (host._resident, host._relieved) == (None, None)
    run(of(place), host, path=tmp_path / "next.mp4")
    assert host.machine()["offload"] == "none"


def test_where_two_predictions_are_too_many_they_are_made_one_at_a_time(place: Place, tmp_path: Path) -> None:
    guided = {"guidance_scale": 3.0}
    wanted = run(of(place, **guided), place.host, path=tmp_path / "wanted.mp4")

    def full(module: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if keywords["hidden_states"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = place.pipes()[0].transformer.register_forward_pre_hook(full, with_kwargs=True)
    try:
        state = run(of(place, make_room=True, **guided), place.host, path=tmp_path / "video.mp4")
    finally:
        handle.remove()
    assert state.notes == ("out of memory in sample, done again with one prediction of guidance at a time",)
    assert state.video_latents is not None
    assert wanted.video_latents is not None
    torch.testing.assert_close(state.video_latents, wanted.video_latents, rtol=1e-4, atol=1e-4)


@contextmanager
def _hooked_class(module: Any, look: Callable[..., None]) -> Iterator[None]:
    """Every forward of the module's class: the model is read anew on the way."""
    kind = type(module)
    theirs = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        look()
        return theirs(self, *args, **kwargs)

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = theirs


def test_a_job_of_the_queue_that_ran_out_while_decoding_is_finished_without_sampling(
    place: Place, tmp_path: Path
) -> None:
    store = Store(tmp_path / "queue")
    uploads = Uploads(store.folder / "media")
    worker = Worker(store, uploads, lambda heard: place.host)
    [row] = submit(store, uploads, place.host, several(Request.parse(dict(PLAIN))))

    def turn() -> Row:
        claimed = store.claim()
        assert claimed is not None
        worker._work(claimed)
        worker._tidy()
        return store.get(claimed.id)

    with room_for(place, 4), counted(place) as calls:
        failed = turn()
        assert failed.error is not None
        assert (failed.state, failed.error["type"], failed.error["phase"]) == ("failed", "OutOfMemory", "decode")
        sampled = len(calls)
        again = finish(store, row.id)
        done = turn()
        assert (done.id, done.state, len(calls)) == (again.id, "done", sampled)
    assert done.result is not None
    assert any("done again with tiles of 256 pixels" in note for note in done.result["notes"])
    with pytest.raises(Conflict, match="ran out of memory"):
        finish(store, done.id)


# What is no number.


@pytest.mark.parametrize(
    ("part", "phase", "tensor"),
    [
        ("transformer", "sample", "video latents"),
        ("vae.decoder", "decode", "pixels"),
        ("vocoder", "decode", "sound samples"),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_never_written(
    place: Place, tmp_path: Path, part: str, phase: str, tensor: str, number: float
) -> None:
    run(of(place), place.host, until="encode")
    module = place.pipes()[0]
    for name in part.split("."):
        module = getattr(module, name)

    def spoil(_: Any, __: Any, made: Any) -> None:
        first = made[0] if isinstance(made, tuple) else getattr(made, "sample", made)
        first.view(-1)[3] = number

    said = f"{phase}: the {tensor} are not finite"
    with _hooked(module, spoil, behind=True), pytest.raises(NotFinite, match=said) as caught:
        run(of(place), place.host, path=tmp_path / "video.mp4")
    assert (caught.value.phase, caught.value.tensor) == (phase, tensor)
    assert not list(tmp_path.iterdir())
