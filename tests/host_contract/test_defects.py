"""What SD.Next's own LTX tab gets wrong is right here: one test a defect, on a real SD.Next."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from modules.ltx.errors import Cancelled
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event
from tests.conftest import SMALL
from tests.host_contract.kit import SDNext


def plan_of(sdnext: SDNext, model: str, **options: object) -> Plan:
    return settle(Request.parse(SMALL | {"model": model, "seed": 1} | options), sdnext.host())


def latents(sdnext: SDNext, model: str, **options: object) -> str:
    media = run(plan_of(sdnext, model, **options), sdnext.host()).media
    assert media is not None
    return media.video_latents_sha256


def timesteps(sdnext: SDNext, model: str, **options: object) -> list[float]:
    """Those that the transformer is told, without repeats."""
    plan = plan_of(sdnext, model, **options)
    run(plan, sdnext.host())
    seen: list[float] = []

    def note(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        seen.append(round(float(kwargs["timestep"].max()), 2))

    handle = sdnext.pipes()[0].transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run(plan, sdnext.host())
    finally:
        handle.remove()
    return sorted(set(seen), reverse=True)


def test_1_a_changed_negative_prompt_changes_the_video(sdnext: SDNext) -> None:
    made = {text: latents(sdnext, "nano-2.3-dev-t2v", negative=text) for text in ("green", "a big square")}
    assert made["green"] != made["a big square"]
    assert latents(sdnext, "nano-2.3-dev-t2v", negative="green") == made["green"]


def test_2_shift_and_dynamic_shift_act(sdnext: SDNext) -> None:
    plain, shifted, still = (
        timesteps(sdnext, "nano-2.3-dev-t2v", steps=4, stg_scale=0, modality_scale=1, **more)
        for more in ({}, {"sampler_shift": 5.0}, {"dynamic_shift": False})
    )
    assert plain != shifted
    assert plain != still


def test_3_upsampling_alone_keeps_the_sound_and_two_stages_take_the_planned_one(sdnext: SDNext) -> None:
    upsampled = run(plan_of(sdnext, "nano-2.3-distilled-t2v", upsample=2.0), sdnext.host())
    assert upsampled.media is not None
    with av.open(str(upsampled.media.path)) as made:
        assert len(made.streams.audio) == 1
    plan = plan_of(sdnext, "nano-2.3-dev-t2v", refine=True, width=128, height=128)
    assert plan.audio_from == "stage1"
    state = run(plan, sdnext.host())
    alone = run(plan_of(sdnext, "nano-2.3-dev-t2v", width=64, height=64), sdnext.host())
    assert state.media is not None
    assert alone.media is not None
    assert state.media.audio_latents_sha256 == alone.media.audio_latents_sha256


def test_4_every_generation_gets_its_own_upsampler(sdnext: SDNext, host: EmbeddedHost, tmp_path: Path) -> None:
    for number, model in enumerate(("nano-2.0-distilled-t2v", "nano-2.3-distilled-t2v", "nano-2.0-distilled-t2v")):
        plan = plan_of(sdnext, model, upsample=2.0)
        wanted = run(plan, host, path=tmp_path / f"{number}.mp4").media
        made = run(plan, sdnext.host()).media
        assert made is not None
        assert wanted is not None
        assert made.video_latents_sha256 == wanted.video_latents_sha256


def test_5_an_interrupt_leaves_no_video_of_one_frame(sdnext: SDNext) -> None:
    before = sorted(sdnext.outputs.rglob("*.mp4"))

    def stop(event: Event) -> None:
        if event.phase == "sample" and event.step == 1:
            sdnext.interrupt()

    with pytest.raises(Cancelled, match="interrupted"):
        run(plan_of(sdnext, "nano-2.3-distilled-t2v"), sdnext.host(stop))
    assert sorted(sdnext.outputs.rglob("*.mp4")) == before


def watched(sdnext: SDNext, look: Callable[[Event], Any], phases: Sequence[str]) -> list[Any]:
    seen: list[Any] = []

    def listen(event: Event) -> None:
        if event.phase in phases and event.step > 0:
            seen.append(look(event))

    run(plan_of(sdnext, "nano-2.3-distilled-t2v", refine=True, width=128, height=128, steps=None), sdnext.host(listen))
    return seen


def test_6_the_status_says_running_and_counts_every_evaluation(sdnext: SDNext) -> None:
    state = sdnext.ui("shared").state

    def look(event: Event) -> tuple[str, float, int, int]:
        status = state.status()
        return status.status, status.progress, event.evaluations, event.planned

    seen = watched(sdnext, look, ("sample", "refine"))
    assert {status for status, *_ in seen} == {"running"}
    assert [progress for _, progress, *_ in seen] == [round(done / of, 2) for _, _, done, of in seen]
    assert seen[-1][1] == 1.0
    assert state.status().status == "idle"


def test_7_frame_rates_are_not_rounded(sdnext: SDNext) -> None:
    media = run(plan_of(sdnext, "nano-2.3-distilled-t2v", fps=23.976), sdnext.host()).media
    assert media is not None
    with av.open(str(media.path)) as made:
        assert made.streams.video[0].average_rate == Fraction(24000, 1001)


def test_8_there_is_a_live_preview(sdnext: SDNext) -> None:
    progress = sdnext.ui("progress")

    def look(_: Event) -> tuple[bool, bool]:
        told = progress.api_progress(progress.ProgressRequest(id_task="task(contract)", id_live_preview=0))
        return told.active, bool(told.live_preview and told.live_preview.startswith("data:image/jpeg"))

    assert set(watched(sdnext, look, ("sample", "refine"))) == {(True, True)}


def test_9_an_unknown_model_ends_its_task(sdnext: SDNext) -> None:
    from modules.ltx import ltx_ui
    from modules.ltx.hosts import sdnext_tab

    controls = [None for _ in ltx_ui.CONTROLS]
    output = [24, 0, "libx264", "mp4", "crf:16", True, False, False, True]
    said = list(sdnext_tab.run("task(nothing)", "", "no such model", "a", "", [], *output, *controls))
    assert "no model is selected" in said[-1][1]
    progress = sdnext.ui("progress")
    assert "task(nothing)" in progress.finished_tasks
    assert "task(nothing)" not in progress.pending_tasks
    assert progress.current_task is None


def test_10_the_video_has_sound_with_the_av_at_hand(sdnext: SDNext) -> None:
    media = run(plan_of(sdnext, "nano-2.3-distilled-t2v"), sdnext.host()).media
    assert media is not None
    with av.open(str(media.path)) as made:
        assert len(made.streams.audio) == 1
        assert sum(frame.samples for frame in made.decode(audio=0)) > 0


def test_an_interrupt_between_two_stages_is_not_forgotten(sdnext: SDNext) -> None:
    """The UI's nested jobs would reset its flag: it is set here while nobody polls, and one such job follows."""
    state = sdnext.ui("shared").state

    def stop(event: Event) -> None:
        if event.phase == "upsample" and event.step == event.of:
            state.interrupt()
            state.end(state.begin("Nested"))
            assert state.interrupted

    with pytest.raises(Cancelled):
        run(plan_of(sdnext, "nano-2.3-distilled-t2v", refine=True, width=128, height=128), sdnext.host(stop))


def test_a_skip_is_a_skip_and_a_pause_waits(sdnext: SDNext) -> None:
    state = sdnext.ui("shared").state

    def skip(event: Event) -> None:
        if event.phase == "sample" and event.step == 1:
            state.skip()

    with pytest.raises(Cancelled, match="skipped"):
        run(plan_of(sdnext, "nano-2.3-distilled-t2v"), sdnext.host(skip))
    import threading

    def pause(event: Event) -> None:
        if event.phase == "sample" and event.step == 1 and not state.paused:
            state.pause()
            threading.Timer(1.5, state.pause).start()

    began = time.monotonic()
    assert run(plan_of(sdnext, "nano-2.3-distilled-t2v", steps=None), sdnext.host(pause)).media is not None
    assert time.monotonic() - began > 1.5


def test_memory_is_given_back_where_it_counts_and_nothing_is_collected(
    sdnext: SDNext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before stage 2 and after decoding; the UI collects itself where its threshold of used memory is passed."""
    devices, told, forced = sdnext.ui("devices"), [], []
    theirs = devices.torch_gc

    def counted(*args: Any, **kwargs: Any) -> Any:
        told.append(kwargs.get("reason"))
        forced.append(kwargs.get("force", args[0] if args else False))
        return theirs(*args, **kwargs)

    plan = plan_of(sdnext, "nano-2.3-distilled-t2v", refine=True, width=128, height=128)
    run(plan, sdnext.host())
    monkeypatch.setattr(devices, "torch_gc", counted)
    collected: list[Any] = []
    monkeypatch.setattr(gc, "collect", lambda *args: collected.append(args))
    run(plan, sdnext.host())
    assert [reason for reason in told if (reason or "").startswith("ltx:")] == ["ltx:upsample", "ltx:decode"]
    assert not any(forced)
    assert not collected


def test_the_files_carry_the_uis_infotext_and_are_listed(sdnext: SDNext) -> None:
    media = run(plan_of(sdnext, "nano-2.3-distilled-t2v"), sdnext.host()).media
    assert media is not None
    with av.open(str(media.path)) as made:
        told = made.metadata.get("description", "")
    assert told.startswith(str(SMALL["prompt"]))
    assert "Seed: 1" in told
    outputs = [name for job in sdnext.ui("shared").state.state_history for name in job["outputs"]]
    assert str(media.path) in outputs


def generated(output: Sequence[object]) -> str:
    """The last line below the player of a job started with the tab's button; `output` as on the Output tab."""
    from modules.ltx import ltx_ui
    from modules.ltx.hosts import sdnext_tab

    small = {"width": 64, "height": 64, "frames": 9, "seed": 1, "refine": False}
    controls = [small.get(control.name) for control in ltx_ui.CONTROLS]
    model = "LTX-Nano 2.3 T2V Distilled"
    return list(sdnext_tab.run("task(tab)", "", model, "a red ball", "", [], *output, *controls))[-1][1]


def test_the_tab_says_what_of_the_output_tab_it_does_not_follow(sdnext: SDNext) -> None:
    said = generated([24, 0, "prores_ks", "mkv", "crf:30,preset:fast,tune:film", True, False, False, False])
    assert ", seed 1<" in said
    assert (
        "<li>Output tab: codec prores_ks is not available here (H.264, H.265 and AV1 are), the file is H.264; " in said
    )
    assert "format mkv is not available here, the file is mp4; video options tune are not used" in said
    for codec in ("libx264", "libx265", "libsvtav1"):
        assert "Output tab:" not in generated([24, 0, codec, "mp4", "crf:30", True, False, False, False])
    assert "nothing would be saved" in generated([24, 0, "none", "mp4", "", True, False, False, False])


def test_the_settings_act(sdnext: SDNext) -> None:
    from modules.ltx.hosts import sdnext_form, sdnext_settings
    from modules.ltx.ltx_capabilities import caps_for

    opts, caps = sdnext.opts, caps_for("nano")[0]
    before = dict(opts.data)

    def starts() -> dict[str, Any]:
        return {one.control.name: one.value for one in sdnext_form.shown(caps)}

    assert (sdnext_settings.crf(""), sdnext_settings.crf("crf:20"), sdnext_settings.memory()) == (18, 20, {})
    assert (starts()["self_refine"], starts()["audio"]) == ("off", True)
    try:
        memory = "tiles of 256 pixels and 24 frames"
        opts.data.update(ltx_output_crf=25, ltx_memory=memory, ltx_tab_self_refine="p1", ltx_tab_audio=False)
        assert (sdnext_settings.crf(""), sdnext_settings.crf("crf:20")) == (25, 20)
        assert sdnext_settings.memory() == {"tile_size": 256, "tile_frames": 24}
        assert (starts()["self_refine"], starts()["audio"]) == ("p1", False)
    finally:
        opts.data.clear()
        opts.data.update(before)


def test_the_tab_shows_a_plan_of_what_is_in_it(sdnext: SDNext) -> None:
    from modules.ltx import ltx_ui
    from modules.ltx.hosts import sdnext_asked

    def planned(model: str, **moved: object) -> str:
        controls = [moved.get(control.name) for control in ltx_ui.CONTROLS]
        output = [24, 0, "libx264", "mp4", "crf:16", True, False, False, True]
        return sdnext_asked.planned(model, "a red ball", "", [], *output, *controls)

    model = "LTX-Nano 2.3 T2V Distilled"
    assert "11 evaluations" in planned(model, refine=True)
    assert planned(model, self_refine="p1", self_refine_plan="2-6:2").count("class='again'") == 5
    assert "role='alert'" in planned(model, self_refine="p1", self_refine_plan="2-x")
    assert "no model is selected" in planned("─── Base ───")
