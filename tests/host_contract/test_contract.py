"""What every host does for a job: the same latents, everything given back, true errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.ltx.errors import Cancelled, OutOfMemory
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event
from tests.conftest import SMALL
from tests.host_contract.kit import snapshot

pytestmark = pytest.mark.library

PHASES = ("encode", "sample", "upsample", "refine", "decode")
Under = Any


def asked(under: Under, model: str, **options: object) -> Plan:
    return settle(Request.parse(SMALL | {"model": model, "seed": 1} | options), under.host())


def files(under: Under) -> list[Path]:
    return sorted(under.outputs.rglob("*")) if under.outputs.exists() else []


CASES: dict[str, tuple[str, dict[str, object], int]] = {
    "distilled": ("nano-2.3-distilled-t2v", {}, 0),
    "distilled in two stages": ("nano-2.3-distilled-t2v", {"refine": True, "width": 128, "height": 128}, 0),
    "dev in two stages with its LoRA": (
        "nano-2.3-dev-t2v",
        {"refine": True, "width": 128, "height": 128, "steps": 4},
        0,
    ),
    "first image": ("nano-2.3-distilled-i2v", {"refine": True, "width": 128, "height": 128}, 1),
    "first and last image": ("nano-2.3-distilled-condition", {"refine": True, "width": 128, "height": 128}, 2),
    "0.9": ("nano-0.9-t2v", {"steps": 3}, 0),
    "0.9 with an image, refined": ("nano-0.9-condition", {"refine": True, "width": 128, "height": 128}, 1),
    "upsampled alone": ("nano-2.3-distilled-t2v", {"upsample": 2.0}, 0),
    "self-refined": (
        "nano-2.3-distilled-t2v",
        {"refine": True, "width": 128, "height": 128, "self_refine": "p1", "self_refine_plan": "2-6:2;1-2:2"},
        0,
    ),
}


def plan_of(under: Under, case: str, picture: Path) -> Plan:
    model, options, count = CASES[case]
    images = [{"path": str(picture), "frame": frame} for frame in (0, -1)[:count]]
    extra: dict[str, object] = {"images": images} if images else {}
    return asked(under, model, **options, **extra, **({} if "steps" in options else {"steps": None}))


@pytest.mark.parametrize("case", CASES)
def test_every_host_makes_the_same_latents_and_gives_all_back(
    under_test: Under, host: EmbeddedHost, picture: Path, case: str, tmp_path: Path
) -> None:
    plan = plan_of(under_test, case, picture)
    first = run(plan, under_test.host())
    before = snapshot(under_test)
    second = run(plan, under_test.host())
    assert snapshot(under_test) == before
    wanted = run(plan, host, path=tmp_path / "wanted.mp4") if under_test.name != "embedded" else first
    for state in (first, second):
        assert state.media is not None
        assert wanted.media is not None
        assert state.media.path.is_file()
        assert state.media.video_latents_sha256 == wanted.media.video_latents_sha256
        assert state.media.audio_latents_sha256 == wanted.media.audio_latents_sha256
        assert (state.media.sample_rate is not None) == plan.caps.supports_audio


@pytest.mark.parametrize("model", ["nano-2.3-dev-i2v", "nano-0.9-condition"])
def test_whatever_is_raised_wherever_all_is_given_back(under_test: Under, picture: Path, model: str) -> None:
    """At polls of a two-stage run: stage boundaries, forwards, steps, tiles, frames."""
    options: dict[str, object] = {"refine": True, "images": [{"path": str(picture)}]}
    plan = asked(under_test, model, **options)
    run(plan, under_test.host())
    host = under_test.host()
    undisturbed = run(plan, host)
    polls, before, there = host.count, snapshot(under_test), files(under_test)
    assert polls > 20
    kinds: list[Callable[[], BaseException]] = [
        KeyboardInterrupt,
        lambda: Cancelled("cancelled"),
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("broken"),
        lambda: ValueError("odd"),
    ]
    for number, at in enumerate(range(1 + (model == "nano-0.9-condition"), polls + 1, 3)):
        error = kinds[number % len(kinds)]()
        host = under_test.host()
        host.arm(at, error)
        with pytest.raises(OutOfMemory if isinstance(error, torch.OutOfMemoryError) else type(error)):
            run(plan, host)
        assert snapshot(under_test) == before, (at, error)
        assert files(under_test) == there
    again = run(plan, under_test.host())
    assert again.media is not None
    assert undisturbed.media is not None
    assert again.media.video_latents_sha256 == undisturbed.media.video_latents_sha256


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_in_any_phase_is_a_cancel_and_leaves_no_file(under_test: Under, phase: str) -> None:
    plan = asked(under_test, "nano-2.3-distilled-t2v", refine=True, width=128, height=128, steps=None)
    run(plan, under_test.host())
    there = files(under_test)

    def stop(event: Event) -> None:
        if event.phase == phase:
            under_test.interrupt()

    with pytest.raises(Cancelled):
        run(plan, under_test.host(stop))
    assert files(under_test) == there
    assert run(plan, under_test.host()).media is not None


@pytest.mark.parametrize(
    ("part", "phase"), [("text_encoder", "encode"), ("transformer", "sample"), ("vae.encoder", "sample")]
)
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, ValueError, TypeError])
def test_an_error_inside_a_model_is_told_as_it_is(
    under_test: Under, picture: Path, part: str, phase: str, kind: type[Exception]
) -> None:
    plan = asked(under_test, "nano-2.3-distilled-i2v", images=[{"path": str(picture)}])
    run(plan, under_test.host())
    before, there = snapshot(under_test), files(under_test)
    module = under_test.pipes()[0]
    for name in part.split("."):
        module = getattr(module, name)

    def fail(*_: object) -> None:
        raise kind("the very error")

    handle = module.register_forward_pre_hook(fail)
    plan = asked(under_test, "nano-2.3-distilled-i2v", images=[{"path": str(picture)}], prompt=f"new: {kind.__name__}")
    try:
        if kind is torch.OutOfMemoryError:
            with pytest.raises(OutOfMemory, match=f"out of memory in {phase}"):
                run(plan, under_test.host())
        else:
            with pytest.raises(kind, match="the very error"):
                run(plan, under_test.host())
    finally:
        handle.remove()
    assert files(under_test) == there
    assert snapshot(under_test) == before


@pytest.mark.parametrize("model", ["nano-2.3-dev-t2v", "nano-2.3-distilled-t2v", "nano-0.9-t2v"])
def test_the_transformer_sees_the_sigmas_of_the_plan(under_test: Under, model: str) -> None:
    options: dict[str, object] = {"refine": True} if "2.3" in model else {"steps": 4}
    plan = asked(under_test, model, **{"width": 128, "height": 128, **options})
    run(plan, under_test.host())
    seen: list[float] = []

    def note(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        sigma = round(float(kwargs["timestep"].max()) / 1000, 4)
        if not seen or seen[-1] != sigma:
            seen.append(sigma)

    handle = under_test.pipes()[0].transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run(plan, under_test.host())
    finally:
        handle.remove()
    assert seen == [round(sigma, 4) for stage in plan.stages for sigma in stage.sigmas]


def test_a_lent_pipeline_computes_where_the_host_says(under_test: Under) -> None:
    plan, host = asked(under_test, "nano-2.3-distilled-t2v"), under_test.host()
    with host.lock(), host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
        assert torch.device(host.device(pipe)) == pipe._execution_device


def test_no_latent_is_decoded_before_the_decode_phase(under_test: Under) -> None:
    plan = asked(under_test, "nano-2.3-distilled-t2v", refine=True, width=128, height=128)
    run(plan, under_test.host())
    phase, decoded = [""], []
    decoder = under_test.pipes()[0].vae.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: decoded.append(phase[0]))
    try:
        run(plan, under_test.host(lambda event: phase.__setitem__(0, event.phase)))
    finally:
        handle.remove()
    assert set(decoded) == {"decode"}


def test_both_stages_are_refined(under_test: Under) -> None:
    """8 steps with five of them twice, then 3 with two of them twice, counted at the transformer."""
    plan = asked(under_test, "nano-2.3-distilled-t2v", refine=True, width=128, height=128, steps=None)
    refined = asked(
        under_test,
        "nano-2.3-distilled-t2v",
        **{"refine": True, "width": 128, "height": 128, "steps": None},
        self_refine="p1",
        self_refine_plan="2-6:2;1-2:2",
        self_refine_threshold=0.0,  # no step ends early
    )
    run(plan, under_test.host())
    phase, seen = [""], []
    transformer = under_test.pipes()[0].transformer
    handle = transformer.register_forward_pre_hook(lambda *_: seen.append(phase[0]))
    try:
        for made, counts in ((plan, (8, 3)), (refined, (13, 5)), (plan, (8, 3))):
            seen.clear()
            run(made, under_test.host(lambda event: phase.__setitem__(0, event.phase)))
            assert (seen.count("sample"), seen.count("refine")) == counts
            assert len(seen) == sum(counts)
    finally:
        handle.remove()


def test_memory_is_given_back_behind_every_phase(under_test: Under) -> None:
    plan = asked(under_test, "nano-2.3-distilled-t2v", refine=True, width=128, height=128)
    host, told = under_test.host(), []
    theirs = host.free

    def counted(phase: str) -> None:
        told.append(phase)
        theirs(phase)

    host.free = counted
    try:
        run(plan, host)
    finally:
        del host.free
    assert [phase for phase in told if phase != "tile"] == ["load", "encode", "sample", "upsample", "refine", "decode"]
