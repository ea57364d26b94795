"""What a clip is made around: galleries, images at a frame, and a video that it begins with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

from modules.ltx import __main__ as command_line
from modules.ltx import stages
from modules.ltx.errors import RequestError
from modules.ltx.front import mode_of, request_of_file, settle
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.ltx_process import run
from modules.ltx.media import write_video
from modules.ltx.media_clip import load_clip
from modules.ltx.plan import Plan
from modules.ltx.request import Prefix, Request
from modules.ltx.serve_request import request_of
from modules.ltx.state import State
from modules.ltx.uploads import Uploads
from tests.conftest import SMALL
from tests.guidance_kit import UNGUIDED
from tests.library_kit import condition
from tests.test_equivalence import SIZE, bare, generator, sigmas_of

pytestmark = pytest.mark.library

CONDITION = "nano-2.3-distilled-condition"
Planned = Callable[..., Plan]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames, 96x64, whose gray tells the frame."""
    path = tmp_path_factory.mktemp("clips") / "gray.mp4"
    frames = (np.full((1, 64, 96, 3), 20 + 5 * number, np.uint8) for number in range(40))
    write_video(path, frames, fps=24.0, sound=None, metadata={})
    return path


def grays(frames: tuple[Image.Image, ...]) -> list[int]:
    return [round((float(np.asarray(frame).mean()) - 20) / 5) for frame in frames]


def test_frames_are_read_from_where_they_are_asked(clip: Path) -> None:
    assert grays(load_clip(Prefix(str(clip), 9))) == list(range(9))
    assert grays(load_clip(Prefix(str(clip), 17, skip=20))) == list(range(20, 37))
    assert load_clip(Prefix(str(clip), 1))[0].size == (96, 64)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (Prefix("nothing.mp4"), "does not exist"),
        (Prefix("CLIP", 41), "41 frames from frame 0 on were asked, and it has 40 in all"),
        (Prefix("CLIP", 9, skip=35), "it has 40 in all"),
        (Prefix("CLIP", 9, skip=400), "it has fewer in all"),
        (Prefix("TEXT"), "cannot be read as a video"),
        (Prefix("CUT"), "cannot be read as a video"),
        (Prefix("EMPTY"), "is empty"),
    ],
)
def test_what_is_no_video_is_one_sentence(clip: Path, tmp_path: Path, prefix: Prefix, said: str) -> None:
    files = {"TEXT": b"not a video at all " * 50, "CUT": clip.read_bytes()[:900], "EMPTY": b""}
    if prefix.path in files:
        path = tmp_path / "file.mp4"
        path.write_bytes(files[prefix.path])
        prefix = replace(prefix, path=str(path))
    with pytest.raises(RequestError, match=said) as caught:
        load_clip(replace(prefix, path=str(clip)) if prefix.path == "CLIP" else prefix)
    assert "\n" not in str(caught.value)


def test_a_gallery_is_spread_over_the_clip(planned: Planned, picture: Path) -> None:
    def frames_of(count: int, **options: object) -> list[int | None]:
        images = [{"path": str(picture), "frame": None}] * count
        return [image.frame for image in planned(CONDITION, images=images, **options).images]

    assert frames_of(1) == [0]
    assert frames_of(2, frames=25) == [0, 24]
    assert frames_of(3, frames=25) == [0, 12, 24]
    assert frames_of(4, frames=49) == [0, 16, 32, 48]
    with pytest.raises(RequestError, match="fall on one latent frame"):
        frames_of(5, frames=9)
    mixed = planned(
        CONDITION, frames=25, images=[{"path": str(picture), "frame": 8}, {"path": str(picture), "frame": None}]
    )
    assert [image.frame for image in mixed.images] == [8, 0]


def test_a_prefix_is_whole_latent_frames_and_says_so(planned: Planned, clip: Path) -> None:
    made = planned(CONDITION, frames=49, prefix={"path": str(clip), "frames": 20, "skip": 3, "strength": 0.5})
    assert made.prefix == Prefix(str(clip), 17, 3, 0.5)
    said = " ".join(made.notes)
    assert "the first 17 frames are those of" in said
    assert "20 frames asked, 17 held" in said
    assert "its sound is not used" in said
    assert json.loads(json.dumps(made.to_json()))["prefix"]["frames"] == 17
    again = Request.parse(json.loads(json.dumps(made.request.to_json())))
    assert again == made.request


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("nano-2.3-distilled-t2v", {}, "takes no video to begin with; take a Condition variant"),
        ("nano-2.3-distilled-i2v", {}, "takes no video to begin with"),
        (CONDITION, {"frames": 17}, "some must be left to make"),
        (CONDITION, {"frames": 25, "images": [{"path": "IMAGE"}]}, "--prefix holds the first 17 frames"),
        (CONDITION, {"frames": 25, "images": [{"path": "IMAGE", "frame": 16}]}, "place it behind them"),
    ],
)
def test_what_a_prefix_cannot_go_with(
    planned: Planned, clip: Path, picture: Path, model: str, options: dict[str, Any], said: str
) -> None:
    for image in options.get("images", []):
        image["path"] = str(picture)
    with pytest.raises(RequestError, match=said):
        planned(model, prefix={"path": str(clip)}, **options)


def test_nano_takes_its_condition_class_for_a_prefix(planned: Planned, clip: Path) -> None:
    asked = Request.parse({"prefix": {"path": str(clip)}})
    assert mode_of(asked) == "Condition"
    assert planned("nano", frames=25, prefix={"path": str(clip)}).caps.mode == "Condition"


def test_a_page_cannot_name_a_file(clip: Path) -> None:
    with pytest.raises(RequestError, match="a path is not taken"):
        request_of({"prompt": "x", "prefix": {"path": str(clip)}}, Uploads(clip.parent))


def sampled(made: Plan, host: EmbeddedHost) -> State:
    assert made.prefix is not None
    state = State(made, seed=1, prefix=load_clip(made.prefix))
    for _, stage in stages.ordered(made):
        state = stage(state, host)
    return state


def square(clip: Path, count: int) -> list[Image.Image]:
    """The 96x64 frames at the aspect ratio of a square clip."""
    return [frame.crop((16, 0, 80, 64)) for frame in load_clip(Prefix(str(clip), count))]


@pytest.mark.short
def test_a_prefix_is_what_diffusers_is_given_2x(host: EmbeddedHost, cache: Path, planned: Planned, clip: Path) -> None:
    made = planned(CONDITION, frames=17, prefix={"path": str(clip), "frames": 9, "strength": 0.8})
    pipe = bare("LTX2ConditionPipeline", "2.3-distilled", cache)
    video, _ = pipe(
        **(SIZE | {"num_frames": 17}),
        **UNGUIDED,
        conditions=[condition(square(clip, 9), 0, 0.8, 33)],
        sigmas=sigmas_of(made),
        use_cross_timestep=True,
        noise_scale=1.0,
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )
    latents = sampled(made, host).video_latents
    assert latents is not None
    assert torch.equal(latents, video)


@pytest.mark.short
def test_a_prefix_is_what_diffusers_is_given_09(host: EmbeddedHost, cache: Path, planned: Planned, clip: Path) -> None:
    made = planned("nano-0.9-condition", frames=17, prefix={"path": str(clip), "frames": 9})
    pipe: Any = bare("LTXConditionPipeline", "0.9", cache)
    assert isinstance(pipe, diffusers.LTXConditionPipeline)
    video = pipe(
        **(SIZE | {"num_frames": 17}),
        conditions=[LTXVideoCondition(video=square(clip, 9), frame_index=0)],
        image_cond_noise_scale=0.15,
        num_inference_steps=2,
        negative_prompt="",
        guidance_scale=3.0,
        generator=generator("stage1"),
        output_type="latent",
        return_dict=False,
    )[0]
    latents = sampled(made, host).video_latents
    assert latents is not None
    torch.testing.assert_close(latents, video, rtol=1e-5, atol=1e-5)


def test_the_file_repeats_with_its_prefix_and_notices_another(host: EmbeddedHost, clip: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    asked = Request.parse(
        SMALL | {"model": CONDITION, "frames": 17, "seed": 3, "prefix": {"path": str(own), "frames": 9}}
    )
    media = run(settle(asked, host), host).media
    assert media is not None
    assert Request.parse(request_of_file(media.path)) == asked
    own.write_bytes(b"another")
    with pytest.raises(RequestError, match="missing or was changed"):
        request_of_file(media.path)


def test_the_command_line(capsys: pytest.CaptureFixture[str], clip: Path, picture: Path) -> None:
    def planned_by(*more: str) -> dict[str, Any]:
        small = ("--prompt", "x", "--width", "64", "--height", "64", "--frames", "49", "--json")
        assert command_line.main(["plan", *small, *more]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    begun = planned_by(
        "--prefix", str(clip), "--prefix-frames", "9", "--prefix-skip", "2", "--image-at", "24", str(picture)
    )
    assert begun["prefix"] == {"path": str(clip), "frames": 9, "skip": 2, "strength": 1.0}
    assert [image["frame"] for image in begun["images"]] == [24]
    spread = planned_by("--gallery", str(picture), str(picture), "--condition-strength", "0.7")
    assert [(image["frame"], image["strength"]) for image in spread["images"]] == [(0, 0.7), (48, 0.7)]
    for wrong, said in (
        (["--prefix-skip", "3"], "add --prefix FILE"),
        (["--condition-strength", "0.5"], "add --image, --last-image or --prefix"),
        (["--image-at", "first", str(picture)], "a whole number"),
        (["--prefix", str(clip), "--prefix-frames", "0"], "from 1 to"),
    ):
        assert command_line.main(["plan", "--prompt", "x", *wrong]) == 2
        assert said in capsys.readouterr().err
