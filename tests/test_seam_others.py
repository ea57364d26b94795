"""The self-refiner beyond LTX: a Wan and a Flux pipeline; what it keeps in memory; its guidance reuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions.selfrefiner import seam
from extensions.selfrefiner.refiner import Certainty
from extensions.selfrefiner.seam import Refiner, Session
from modules.ltx.errors import RequestError
from tests.others_kit import flux, wan
from tests.seam_kit import FOUR_WAY, PLAIN, Bench, apart, same

pytestmark = pytest.mark.library

NEVER, ALWAYS = Certainty(threshold=0.0), Certainty(threshold=1e9)


@pytest.fixture(scope="module")
def dev(cache: Path) -> Bench:
    return Bench("LTX2Pipeline", cache)


@pytest.mark.parametrize(("make", "calls"), [(wan, 2), (flux, 1)])
def test_pipelines_of_other_families(make: Any, calls: int) -> None:
    pipe, asked = make()
    pipe.set_progress_bar_config(disable=True)
    forwards = []
    pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))

    def run(refiner: Refiner | None) -> torch.Tensor:
        forwards.clear()
        arguments = {**asked, "num_inference_steps": 8, "output_type": "latent", "return_dict": False}
        arguments["generator"] = torch.Generator().manual_seed(1)
        if refiner is None:
            made: torch.Tensor = pipe(**arguments)[0]
            return made
        with seam.attach(pipe, refiner) as session:
            made = pipe(**arguments)[0]
            assert len(session.finish()) == sum(count > 1 for count in refiner.passes)
        return made

    bare = run(None)
    assert torch.equal(bare, run(Refiner(PLAIN)))
    assert len(forwards) == 8 * calls
    refined = run(Refiner((1, 1, 3, 2, 1, 1, 1, 1), NEVER))
    assert len(forwards) == 11 * calls
    assert float((refined - bare).abs().max()) > 1e-3
    settled = run(Refiner((1, 1, 3, 2, 1, 1, 1, 1), ALWAYS))
    assert len(forwards) == 10 * calls
    assert float((settled - bare).abs().max()) < 0.02 * float(bare.abs().max())


def tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that is reachable from a session."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item, seen)
    elif type(value).__module__.startswith("extensions.selfrefiner"):
        yield from tensors(vars(value), seen)


def kept(bench: Bench, count: int, guidance: str) -> tuple[int, int]:
    """The most storages as large as the video's latents, and as the sound's, held between two passes."""
    most = [0, 0]
    sessions: list[Session] = []

    def look(pipe: Any, index: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        session = pipe.scheduler.session
        sessions.append(session)
        video = given["latents"].numel()
        found = {t.untyped_storage().data_ptr(): t.numel() for t in tensors(session, set())}
        sound = session.streams["sound"].blend
        sizes = (video, None if sound is None else sound.x.numel())
        for place, size in enumerate(sizes):
            most[place] = max(most[place], sum(n == size for n in found.values()))
        return {}

    refiner = Refiner((1, 1, count, 1, 1, 1, 1, 1), NEVER, guidance=guidance)
    bench.run(refiner, guided=True, callback_on_step_end=look)
    return most[0], most[1]


@pytest.mark.parametrize(("guidance", "expected"), [("full", 3), ("reuse", 6)])
def test_what_is_kept_does_not_grow_with_the_passes(dev: Bench, guidance: str, expected: int) -> None:
    assert {kept(dev, count, guidance) for count in (2, 3, 9)} == {(expected, expected)}


def test_reuse_runs_one_forward_a_pass_and_is_nearly_the_full_result(dev: Bench) -> None:
    """At the same input the answers differ by rounding alone: the differences are those of that very input."""
    asked = (1, 1, 3, 2, 1, 1, 1, 1)
    full, _ = dev.run(Refiner(asked, NEVER), guided=True)
    assert dev.forwards == 3 * (8 + 3)
    saved, _ = dev.run(Refiner(asked, NEVER, guidance="reuse"), guided=True)
    assert dev.forwards == 3 * 8 + 3
    assert 0 < apart(full, saved) < 2.0
    with pytest.MonkeyPatch.context() as patch:
        # Passes that see the first one's input again, noise and all.
        patch.setattr(seam.FlowMatchRefiningScheduler, "_perturbed", lambda self, entry, sample: sample)
        exact, _ = dev.run(Refiner(asked, NEVER), guided=True)
        again, _ = dev.run(Refiner(asked, NEVER, guidance="reuse"), guided=True)
    for one, other in zip(exact, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0, "audio_guidance_scale": 1.0}, {"stg_scale": 0.0}])
def test_reuse_with_less_guidance(dev: Bench, changes: dict[str, float]) -> None:
    made, _ = dev.run(Refiner((1, 1, 2, 1, 1, 1, 1, 1), NEVER, guidance="reuse"), **{**FOUR_WAY, **changes})
    assert all(bool(value.isfinite().all()) for value in made)
    plain, _ = dev.run(Refiner(PLAIN, guidance="reuse"), **{**FOUR_WAY, **changes})
    assert same(plain, dev.run(None, **{**FOUR_WAY, **changes})[0])


def test_reuse_is_refused_where_uncond_is_a_call_of_its_own() -> None:
    pipe, _ = wan()
    with (
        pytest.raises(RequestError, match="WanPipeline runs uncond"),
        seam.attach(pipe, Refiner((2,), guidance="reuse")),
    ):
        pass
