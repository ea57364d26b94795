"""Previews: the linear map from latents to colours, and which latents are shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.ltx import preview
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan
from modules.ltx.state import Event
from nano import world

pytestmark = pytest.mark.library


def likeness(seen: Any, meant: Any) -> float:
    """The cosine between two colours: their hue, whatever their brightness."""
    return float(np.dot(seen, meant) / np.linalg.norm(seen) / np.linalg.norm(meant))


def test_a_preview_shows_the_object_where_it_is_in_its_colour(host: EmbeddedHost, planned: Callable[..., Plan]) -> None:
    plan = planned("nano")
    with host.pipeline(plan.caps, plan.caps.pipeline) as pipe, torch.no_grad():
        colours = preview.fit(pipe.vae)
        mean, deviation = (v.view(1, -1, 1, 1, 1) for v in (pipe.vae.latents_mean, pipe.vae.latents_std))
        for colour, ground in itertools.product(("red", "green", "blue", "yellow"), ("black", "white")):
            scene = world.Scene("ball", colour, "big", "still", ground, along=0.0, across=0.5)
            clip = torch.from_numpy(world.render(scene, 9, width=256, height=256)).permute(3, 0, 1, 2)[None] * 2 - 1
            latents = (pipe.vae.encode(clip).latent_dist.mode() - mean) / deviation
            frame = preview.middle_frame(latents, (2, 8, 8), extra_in_front=False)
            pixels = np.asarray(colours.picture(frame, 256), np.float32) / 255
            x, y = world.path(scene, 9)[4] * 256
            middle = pixels[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8].mean((0, 1))
            assert max(world.COLOURS, key=lambda name: likeness(middle, world.RGB[name])) == colour
            assert (pixels[:, -16:].mean() > 0.8) == (ground == "white")


def test_the_middle_frame_of_packed_latents_is_the_clips_own() -> None:
    clip = torch.randn(2, 5, 3, 2, 4)
    packed = clip.flatten(2).transpose(1, 2)
    extra = torch.randn(2, 8, 5)
    for front in (True, False):
        tokens = torch.cat([extra, packed] if front else [packed, extra], dim=1)
        assert torch.equal(preview.middle_frame(tokens, (3, 2, 4), extra_in_front=front), clip[0, :, 1])
    assert torch.equal(preview.middle_frame(clip, (3, 2, 4), extra_in_front=False), clip[0, :, 1])


@pytest.mark.parametrize("model", ["nano-2.3-distilled-t2v", "nano-2.3-distilled-condition", "nano-0.9-condition"])
def test_every_step_tells_what_it_looks_like(
    cache: Any, planned: Callable[..., Plan], picture: Any, tmp_path: Any, model: str
) -> None:
    seen: list[Event] = []
    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=seen.append)
    images = [{"path": str(picture), "frame": frame} for frame in (0, -1)] if "condition" in model else []
    state = run(planned(model, images=images, width=128), host)
    frames = [event.preview for event in seen if event.phase == "sample" and event.step > 0]
    assert frames
    assert all(frame is not None and frame.shape[1:] == (2, 4) for frame in frames)
    assert state.video_latents is not None
    last = frames[-1]
    assert last is not None
    # Behind the last step nothing is noise any more: it is the clip's middle frame, but for the normalisation.
    final = state.video_latents[0, :, state.video_latents.shape[2] // 2]
    assert torch.corrcoef(torch.stack([final.flatten(1).mean(1), last.float().flatten(1).mean(1)]))[0, 1] > 0.5


def test_a_preview_shows_the_clip_and_not_its_noise(cache: Path, planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Where three quarters are noise and more, in both stages: what is shown is where the clip is going."""
    seen: list[Event] = []
    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=seen.append)
    asked = {"prompt": "a big green square still on black", "width": 256, "height": 256, "frames": 25, "steps": 8}
    state = run(planned("nano-2.3-distilled-t2v", refine=True, **asked), host)
    assert state.video_latents is not None
    final = state.video_latents[0, :, state.video_latents.shape[2] // 2]
    small = torch.nn.functional.adaptive_avg_pool2d(final, (4, 4))
    for phase, meant, steps in (("sample", small, (3, 4, 5, 6)), ("refine", final, (1, 2))):
        shown = [event.preview for event in seen if event.phase == phase and event.step in steps]
        assert len(shown) == len(steps)
        for frame in shown:
            assert frame is not None
            assert torch.corrcoef(torch.stack([frame.float().flatten(), meant.flatten()]))[0, 1] > 0.8
