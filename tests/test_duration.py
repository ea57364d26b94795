"""The length that LTX 2.5 predicts, on an LTX-Nano with a duration head of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from modules.ltx.errors import RequestError
from modules.ltx.front import request_of_file, settle
from modules.ltx.hosts import nano
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.kept import Kept, header_of
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.ltx_process import run
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from tests.conftest import SMALL
from tests.guidance_kit import UNGUIDED
from tests.library_kit import needs_25

pytestmark = [pytest.mark.library, needs_25]

VARIANT = "LTXVideo 2.5 22B T2V Distilled"


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-Nano 2.3 Distilled with a duration head, which is how 2.5 differs in its parts."""
    place = Path(shutil.copytree(nano.ensure("2.3-distilled", cache), tmp_path_factory.mktemp("25") / "model"))
    torch.manual_seed(2)
    head = diffusers.pipelines.ltx2.LTX2DurationHead(160, 64, pooler_hidden_dim=32, mlp_hidden_dim=32)
    with torch.no_grad():
        head.mlp_out.weight.mul_(4)  # prompts differ visibly
        head.mlp_out.bias.fill_(0.2)
    head.save_pretrained(place / "duration_head")
    index = json.loads((place / "model_index.json").read_text())
    index["duration_head"] = ["ltx2", "LTX2DurationHead"]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def planned(host: EmbeddedHost, folder: Path, **options: object) -> Plan:
    values = {key: value for key, value in SMALL.items() if key != "frames"}
    asked = {**values, "model": str(folder), "variant": VARIANT, "seed": 1, "sampler": "euler", **options}
    return settle(Request.parse(asked), host)


def test_only_25_predicts() -> None:
    for caps in all_caps():
        assert caps.supports_duration_head == (caps.generation == "2.5")


def test_the_plan_says_that_the_length_is_open(host: EmbeddedHost, folder: Path) -> None:
    open_plan = planned(host, folder)
    assert open_plan.predicts_frames
    assert open_plan.to_json()["predicts_frames"] is True
    assert "about 121 frames" in open_plan.notes[0]
    assert any("the model predicts the length" in note for note in open_plan.notes)
    given = planned(host, folder, frames=9)
    assert not given.predicts_frames
    assert "9 frames" in given.notes[0]
    assert "about" not in given.notes[0]


def test_the_length_is_what_the_pipeline_itself_predicts(host: EmbeddedHost, folder: Path, tmp_path: Path) -> None:
    state = run(planned(host, folder), host)
    pipe = diffusers.LTX2Pipeline.from_pretrained(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.set_progress_bar_config(disable=True)
    video, _ = pipe(
        prompt=str(SMALL["prompt"]),
        width=64,
        height=64,
        **UNGUIDED,
        sigmas=list(state.plan.stages[0].sigmas),
        noise_scale=1.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        return_dict=False,
    )
    assert state.video_latents is not None
    assert torch.equal(state.video_latents, video)
    assert state.media is not None
    assert state.media.frames == state.plan.frames == (video.shape[2] - 1) * 8 + 1
    assert 25 <= state.plan.frames <= 481
    assert any("that the model expects of this prompt" in note for note in state.notes)
    # Asked again, it is predicted again, to the same bits.
    values = request_of_file(state.media.path)
    assert "frames" not in values
    told = read_metadata(state.media.path)["plan"]
    assert isinstance(told, dict)
    assert told["frames"] == state.plan.frames
    again = run(settle(Request.parse(values), host), host, path=tmp_path / "again.mp4").media
    assert again is not None
    assert again.video_latents_sha256 == state.media.video_latents_sha256


def test_a_job_that_goes_on_has_the_length_predicted_before(host: EmbeddedHost, folder: Path, tmp_path: Path) -> None:
    plan, file = planned(host, folder, steps=1), tmp_path / "state"
    undisturbed = run(plan, host, path=tmp_path / "a.mp4")
    run(plan, host, keep=Kept(file), until="sample")
    state = run(plan, host, path=tmp_path / "b.mp4", keep=Kept(file))
    assert state.plan.frames == (header_of(file) or {})["frames"] != plan.frames
    assert state.plan == undisturbed.plan
    assert state.timings[1].seconds > 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_two_stages_are_both_of_the_predicted_length(
    host: EmbeddedHost, folder: Path, cache: Path, repos: Callable[..., None]
) -> None:
    with pytest.raises(RequestError, match="LTX-2.5-Diffusers: not downloaded yet and offline mode is on"):
        run(planned(host, folder, refine=True), host)
    repos("Lightricks/LTX-2.5-Diffusers", nano.ensure("2.3-upsampler", cache))
    state = run(planned(host, folder, refine=True), host)
    assert {stage.frames for stage in state.plan.stages} == {state.plan.frames}
    assert state.media is not None
    assert state.media.frames == state.plan.frames


def test_a_copy_without_the_head_says_so_and_takes_the_default(host: EmbeddedHost, cache: Path) -> None:
    bare = nano.ensure("2.3-distilled", cache)
    state = run(planned(host, bare, width=32, height=32, steps=1), host)
    assert state.plan.frames == 121
    assert any("has no duration head; 121 are made" in note for note in state.notes)
