"""What the installed diffusers does when it is not told: each trap on a bare pipeline, and our arguments out of it.

A test that fails at "the trap" tells that diffusers has changed and an argument may be dropped; one that fails at
"ours" tells that we stopped saying what must be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from modules.ltx import borrow
from modules.ltx.errors import RequestError
from modules.ltx.hosts import nano
from modules.ltx.library_features import IMAGE_CRF, has
from modules.ltx.ltx_capabilities import all_caps, caps_for
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request
from modules.ltx.scheduler import planned as plan_scheduler
from modules.video_models import video_overrides
from modules.video_models.video_overrides import Given, Start, call_args
from tests.guidance_kit import GUIDED, UNGUIDED
from tests.library_kit import condition as conditioned
from tests.library_kit import default_of, first_image
from tests.test_equivalence import SIZE, bare

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
SIGMAS = [1.0, 0.6]


@pytest.fixture(scope="module")
def dev(cache: Path) -> Any:
    return bare("LTX2Pipeline", "2.3-dev", cache)


@pytest.fixture(scope="module")
def condition(cache: Path) -> Any:
    return bare("LTX2ConditionPipeline", "2.3-dev", cache)


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The batch size of every forward of the transformer."""
    seen: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def made(pipe: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    given = {**SIZE, "sigmas": SIGMAS, "output_type": "latent", "return_dict": False, **arguments}
    video, sound = pipe(generator=torch.Generator().manual_seed(1), **given)
    return video, sound


def said(settled: Plan, number: int = 0, start: Start | None = None) -> dict[str, Any]:
    """What we pass for a stage."""
    stage = [s for s in settled.stages if s.sigmas][number]
    images = tuple(Image.new("RGB", (64, 64)) for _ in settled.images)
    return call_args(settled, stage, Given(images), start)


def test_e1_a_guidance_scale_of_one_alone_still_runs_every_guidance(dev: Any, planned: Planned) -> None:
    if default_of("LTX2Pipeline", "stg_scale") > 0:  # not before diffusers 0.40
        with counted(dev) as seen:
            made(dev, guidance_scale=1.0)
        assert seen == [2, 1, 1] * 2, "the trap"
    with counted(dev) as seen:
        made(dev, **UNGUIDED)
    assert seen == [1] * 2
    ours = said(planned("nano-2.3-distilled-t2v"))
    assert {name: ours[name] for name in UNGUIDED} == UNGUIDED, "ours"
    with counted(dev) as seen:
        made(dev, **GUIDED)
    assert seen == [2, 1, 1] * 2, "Dev: three calls, four streams an evaluation"


def test_e2_an_audio_scale_of_zero_becomes_the_videos(dev: Any, planned: Planned) -> None:
    def sound(video: float, audio: float) -> torch.Tensor:
        rescaled = {"guidance_rescale": video, "audio_guidance_rescale": audio}
        return made(dev, **UNGUIDED | {"audio_guidance_scale": 3.0} | rescaled)[1]

    assert torch.equal(sound(0.7, 0.0), sound(0.7, 0.7)), "the trap"
    torch.testing.assert_close(sound(0.7, 1e-30), sound(0.0, 0.0), atol=1e-4, rtol=0)
    assert float((sound(0.7, 0.7) - sound(0.0, 0.0)).abs().max()) > 1e-2
    ours = said(planned("nano-2.3-dev-t2v", guidance_rescale=0.7, audio_guidance_rescale=0.0))
    assert 0 < ours["audio_guidance_rescale"] < 1e-20, "ours"


def test_e3_a_block_that_does_not_exist_costs_a_call_and_does_nothing(dev: Any, planned: Planned) -> None:
    stg = UNGUIDED | {"stg_scale": 1.0, "audio_stg_scale": 1.0}
    with counted(dev) as seen:
        missing = made(dev, **stg | {"spatio_temporal_guidance_blocks": [28]})
    assert seen == [1, 1] * 2, "the trap: the price is paid"
    assert torch.allclose(missing[0], made(dev, **UNGUIDED)[0], atol=1e-5), "and nothing is had for it"
    with pytest.raises(RequestError, match="blocks 0 to 5"):
        planned("nano-2.3-dev-t2v", stg_blocks="28")
    wanted = {"2.0": [29], "2.3": [28], "2.5": [28]}
    for caps in all_caps():
        if caps.supports_stg and not caps.is_distilled and not caps.source.startswith("nano"):
            media = [{"path": "x.png"}] if caps.is_i2v else []
            settled = plan(Request.parse({"prompt": "x", "images": media}), replace(caps, unavailable=()))
            assert said(settled)["spatio_temporal_guidance_blocks"] == wanted[caps.generation], "ours"


def test_e4_cross_timestep_is_on_unless_told(cache: Path, planned: Planned) -> None:
    """It shows where video tokens have other levels than the sound: with an image."""
    pipe = bare("LTX2ConditionPipeline", "2.0-dev", cache)
    rest = {**UNGUIDED, "conditions": [conditioned(Image.new("RGB", (64, 64), "red"), 0, 1.0, 0)]}
    on, off = (made(pipe, **rest, use_cross_timestep=wanted)[1] for wanted in (True, False))
    assert not torch.equal(on, off)
    default = default_of("LTX2ConditionPipeline", "use_cross_timestep")  # off before diffusers 0.40
    assert torch.equal(made(pipe, **rest)[1], on if default else off), "the trap"
    assert said(planned("nano-2.0-dev-t2v"))["use_cross_timestep"] is False, "ours"
    assert said(planned("nano-2.3-dev-t2v"))["use_cross_timestep"] is True


def test_p5_connectors_keep_the_order_of_words(cache: Path) -> None:
    """Git builds of May and June 2026 reversed it. A word changed at its end must not move the first tokens' rows."""
    pipe = bare("LTX2Pipeline", "2.3-dev", cache)
    width = pipe.connectors.config.caption_channels * pipe.connectors.config.text_proj_in_factor
    states = torch.randn(1, 64, width)
    mask = torch.ones(1, 64)
    mask[:, :32] = 0  # padded on the left, as the tokenizer does

    class Noted(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(hidden_states)
            return hidden_states

    seen: list[torch.Tensor] = []
    block = pipe.connectors.video_connector.transformer_blocks
    kept = list(block)
    with torch.no_grad():
        try:
            for index in range(len(block)):
                block[index] = Noted()
            pipe.connectors(states, mask)
            other = states.clone()
            other[:, -1] += 1.0
            pipe.connectors(other, mask)
        finally:
            for index, module in enumerate(kept):
                block[index] = module
    moved = (seen[0] != seen[len(kept)]).any(-1)[0]
    assert torch.nonzero(moved).flatten().tolist() == [31], "the last of 32 words, in front of the registers"


def test_e6_latents_from_a_pipeline_are_not_normalised_and_the_upsampler_must_know(cache: Path, dev: Any) -> None:
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    model = LTX2LatentUpsamplerModel.from_pretrained(nano.ensure("2.3-upsampler", cache), subfolder="latent_upsampler")
    up = diffusers.LTX2LatentUpsamplePipeline(vae=dev.vae, latent_upsampler=model)
    up.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 32, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    rest = {"output_type": "latent", "return_dict": False}
    told = up(latents=latents, latents_normalized=False, **rest)[0]
    default = up(latents=latents, **rest)[0]
    taken = up(latents=latents, latents_normalized=True, **rest)[0]
    assert torch.equal(default, told) or torch.equal(default, taken)
    assert not torch.equal(told, taken), "it makes a difference which"
    assert {caps.latents_normalized for caps in all_caps() if caps.family == "2.x"} == {False}, "ours"
    assert {caps.latents_normalized for caps in all_caps() if caps.family == "0.9"} == {True}


def test_e6_tokens_of_the_plain_09_classes_are_unpacked_before_the_upsampler(cache: Path) -> None:
    pipe = bare("LTXPipeline", "0.9", cache)
    tokens = pipe(
        **SIZE,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="latent",
        return_dict=False,
        generator=torch.Generator().manual_seed(1),
    )[0]
    assert tokens.ndim == 3, "the trap: latents of LTXPipeline are tokens"


def test_e7_stage_2_must_be_told_its_length(dev: Any, planned: Planned) -> None:
    latents = torch.randn(1, 32, 2, 2, 2)
    size = {name: value for name, value in SIZE.items() if name != "num_frames"}
    rest = {**size, **UNGUIDED, "latents": latents, "sigmas": SIGMAS, "output_type": "latent", "return_dict": False}
    _, sound = dev(**rest, generator=torch.Generator().manual_seed(1))
    told = made(dev, **UNGUIDED, latents=latents)[1]
    assert sound.shape[2] > 8 * told.shape[2], "the trap: sound of 121 frames"
    settled = planned("nano-2.3-dev-t2v", refine=True, width=128, height=128)
    ours = said(settled, 1, Start(latents, told))
    assert ours["num_frames"] == 9, "ours"
    assert ours["audio_latents"] is told


def test_e8_adapters_set_without_weights_are_back_at_one(dev: Any, cache: Path) -> None:
    folder = str(nano.ensure("2.3-lora", cache))

    def strength() -> set[float]:
        layers = [module for module in dev.transformer.modules() if hasattr(module, "scaling")]
        return {round(float(value), 4) for layer in layers for value in layer.scaling.values()}

    with borrow.adapters(dev, [(folder, {}, 0.25)]) as names:
        assert strength() == {0.25}, "ours"
        dev.set_adapters(list(names))
        assert strength() == {1.0}, "the trap"
    assert strength() == set()


def test_p10_a_cancel_is_polled_once_a_forward_not_once_a_step(dev: Any) -> None:
    polls = []
    with borrow.forward_hook(dev.transformer, lambda: polls.append(1)), counted(dev) as seen:
        made(dev, **GUIDED)
    assert len(polls) == len(seen) == 6
    assert len(SIGMAS) == 2


def test_e11_image_compression_is_ours_not_asked_of_a_text_encoder(
    planned: Planned, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has(IMAGE_CRF):
        from diffusers.pipelines.ltx2.utils import resolve_default_image_crf

        assert resolve_default_image_crf(None) == 33, "the trap: once 2.5's text encoder is freed"
    crfs: list[int] = []

    def noted(image: Image.Image, crf: int) -> Image.Image:
        crfs.append(crf)
        return image

    monkeypatch.setattr(video_overrides, "compressed", noted)
    wanted = {"2.0": 33, "2.3": 33, "2.5": 18}
    for caps in all_caps():
        if caps.family != "2.x" or not caps.supports_input_media:
            continue
        request = Request.parse({"prompt": "x", "images": [{"path": str(picture)}]})
        ours = said(plan(request, replace(caps, unavailable=())))
        assert crfs == [wanted[caps.generation]], "ours"
        crfs.clear()
        told = [getattr(one, "crf", 0) for one in ours.get("conditions") or ()]
        assert {*told, ours.get("image_crf", 0)} == {0}, "and not a second time"


def test_p12_a_half_given_token_is_taken_for_as_noisy_as_the_others(condition: Any) -> None:
    """diffusers' Condition reads x0 = x - sigma v with the step's sigma, though the token's own is (1 - strength) of
    it. Upstream reads it with the token's. So a condition of strength 0.5 holds less than it says."""
    inputs: list[torch.Tensor] = []
    answers: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        inputs.append(kwargs["hidden_states"].clone())
        answers.append(output[0].clone())

    handle = condition.transformer.register_forward_hook(look, with_kwargs=True)
    given = [conditioned(Image.new("RGB", (64, 64), "red"), 0, 0.5, 0)]
    try:
        made(condition, **UNGUIDED, conditions=given, noise_scale=1.0)
        clean = [conditioned(Image.new("RGB", (64, 64), "red"), 0, 1.0, 0)]
        made(condition, **UNGUIDED, conditions=clean, noise_scale=1.0)
    finally:
        handle.remove()
    x, v, after, image = inputs[0][:, :4], answers[0][:, :4], inputs[1][:, :4], inputs[2][:, :4]

    def stepped(level: float) -> torch.Tensor:
        x0 = 0.5 * (x - level * v) + 0.5 * image
        return x + (SIGMAS[1] - SIGMAS[0]) * (x - x0) / SIGMAS[0]

    torch.testing.assert_close(after, stepped(SIGMAS[0]), atol=1e-4, rtol=0)
    assert float((after - stepped(0.5 * SIGMAS[0])).abs().max()) > 1e-2


def test_e13_latents_are_not_noised_unless_told(dev: Any, planned: Planned) -> None:
    latents = torch.randn(1, 32, 2, 2, 2)
    default = made(dev, **UNGUIDED, latents=latents)[0]
    assert torch.equal(default, made(dev, **UNGUIDED, latents=latents, noise_scale=0.0)[0]), "the trap"
    assert not torch.equal(default, made(dev, **UNGUIDED, latents=latents, noise_scale=SIGMAS[0])[0])
    settled = planned("nano-2.3-dev-t2v", refine=True, width=128, height=128)
    assert [said(settled, number)["noise_scale"] for number in (0, 1)] == [1.0, 0.909375], "ours"


def test_p14_a_borrowed_scheduler_leaves_the_pipelines_config_as_it_was(dev: Any) -> None:
    before = dev.config["scheduler"]
    with borrow.scheduler(dev, plan_scheduler(dev.scheduler, SIGMAS)):
        assert dev.config["scheduler"] != before, "the trap"
    assert dev.config["scheduler"] == before
    assert type(dev.scheduler) is FlowMatchEulerDiscreteScheduler


def test_stage_2_of_i2v_runs_through_the_condition_class(cache: Path, planned: Planned, picture: Path) -> None:
    pipe = bare("LTX2ImageToVideoPipeline", "2.3-distilled", cache)
    latents = torch.randn(1, 32, 2, 2, 2)
    rest = {**UNGUIDED, "latents": latents, "noise_scale": 0.9}
    red, blue = (made(pipe, **rest, **first_image(Image.new("RGB", (64, 64), c)))[0] for c in ("red", "blue"))
    assert torch.equal(red, blue), "the trap: the image is ignored"
    settled = planned("nano-2.3-distilled-i2v", refine=True, width=128, height=128, images=[{"path": str(picture)}])
    assert settled.stages[-1].pipeline == "LTX2ConditionPipeline", "ours"


def test_09_pins_dynamic_shift_off_at_load_and_only_09() -> None:
    for caps in all_caps():
        assert caps.forced_no_dynamic_shift == (caps.family == "0.9")
    assert caps_for("nano-0.9-t2v")[0].forced_no_dynamic_shift
