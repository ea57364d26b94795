"""The sampler entry on models that are not LTX, through SD.Next's processing; and its quantization on ours."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from modules.ltx.front import settle
from modules.ltx.hosts import nano
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.hosts.sdnext_settings import SAMPLER
from modules.ltx.ltx_process import run
from modules.ltx.request import Request
from tests.conftest import SMALL
from tests.host_contract.kit import SDNext
from tests.others_kit import flux, wan

STEPS = 8
_PROMPTS = ("prompt", "negative_prompt")


@contextmanager
def resident(sdnext: SDNext, pipe: Any) -> Iterator[list[int]]:
    """The pipeline as the UI's model; yields a list that grows by one a forward."""
    shared, models = sdnext.ui("shared"), sdnext.ui("sd_models")
    if shared.sd_loaded:
        models.unload_model_weights()
    pipe.default_scheduler = copy.deepcopy(pipe.scheduler)
    pipe.sd_checkpoint_info, pipe.sd_model_hash = sdnext.ui("sd_checkpoint").CheckpointInfo("small"), None
    # The embeddings are given: the UI's prompt must not reach the pipeline too.
    pipe.preprocess = lambda _p, args: [args.pop(name) for name in list(args) if name.split("_2")[0] in _PROMPTS]
    forwards: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    shared.sd_model = pipe
    try:
        yield forwards
    finally:
        models.unload_model_weights()


def made(sdnext: SDNext, pipe: Any, asked: dict[str, Any], sampler: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the pipeline returned within a job of the UI, and what the UI notes of the job."""
    processing, kept = sdnext.ui("processing"), []
    video = "num_frames" in asked
    kind = processing.StableDiffusionProcessingVideo if video else processing.StableDiffusionProcessingTxt2Img
    p = kind(sd_model=pipe, prompt="a", seed=3, sampler_name=sampler, steps=STEPS, cfg_scale=asked["guidance_scale"])
    p.width, p.height, p.scripts, p.script_args = asked["width"], asked["height"], None, None
    p.do_not_save_grid = p.do_not_save_samples = True
    if video:
        p.frames = asked["num_frames"]
        p.ops.append("video")
    p.task_args.update({**asked, "output_type": "latent"})

    def keep(_p: Any, output: Any) -> Any:
        kept.append(output)
        return output

    pipe.postprocess = keep
    try:
        processing.process_images(p)
    finally:
        del pipe.postprocess
    output = kept[-1]
    latents = output.frames if hasattr(output, "frames") else output.images
    return latents.clone(), dict(p.extra_generation_params)


@pytest.mark.parametrize(("make", "calls"), [(wan, 2), (flux, 1)])
def test_the_sampler_entry_refines_other_models(sdnext: SDNext, make: Callable[[], Any], calls: int) -> None:
    pipe, asked = make()
    with resident(sdnext, pipe) as forwards:
        plain, told = made(sdnext, pipe, asked, "Euler FlowMatch")
        assert (len(forwards), told) == (STEPS * calls, {})
        before = sorted(vars(pipe))
        forwards.clear()
        refined, told = made(sdnext, pipe, asked, SAMPLER)  # 2-6:2 is the setting's default
        assert len(forwards) == (STEPS + 5) * calls
        assert told == {"Self-refiner": "p1 2-6:2"}
        assert float((refined - plain).abs().max()) > 1e-3
        assert sorted(vars(pipe)) == before
        forwards.clear()
        again, told = made(sdnext, pipe, asked, "Euler FlowMatch")
        assert (len(forwards), told) == (STEPS * calls, {})
        assert torch.equal(again, plain)


def test_the_uis_quantization_holds_for_rows_that_we_added(sdnext: SDNext) -> None:
    opts = sdnext.opts
    plan = settle(Request.parse(SMALL | {"model": "nano-2.3-distilled-t2v", "seed": 1}), sdnext.host())
    before = dict(opts.data)
    try:
        sdnext.ui("sd_models").unload_model_weights()
        opts.data.update(sdnq_quantize_weights=["Model"], sdnq_quantize_mode="pre")
        assert run(plan, sdnext.host()).media is not None
        kind = type(sdnext.pipes()[0].transformer.transformer_blocks[0].attn1.to_q).__name__
    finally:
        opts.data.clear()
        opts.data.update(before)
        sdnext.ui("sd_models").unload_model_weights()
    assert kind == "SDNQLinear"
    run(plan, sdnext.host())
    assert type(sdnext.pipes()[0].transformer.transformer_blocks[0].attn1.to_q) is torch.nn.Linear


def test_a_folder_that_is_quantized_already(sdnext: SDNext, host: EmbeddedHost, cache: Path, tmp_path: Path) -> None:
    """Loaded as such, and with the embedded host's latents."""
    import diffusers

    config = sdnext.ui("sdnq.quantizer").SDNQConfig(weights_dtype="int8", group_size=32)
    folder = tmp_path / "sdnq"
    shutil.copytree(nano.ensure("2.3-distilled", cache), folder)
    part = diffusers.LTX2VideoTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", quantization_config=config
    )
    shutil.rmtree(folder / "transformer")
    part.save_pretrained(folder / "transformer")
    asked = SMALL | {"model": str(folder), "variant": "nano-2.3-distilled-t2v", "seed": 1}
    plan = settle(Request.parse(asked), sdnext.host())
    media = run(plan, sdnext.host()).media
    assert media is not None
    assert type(sdnext.pipes()[0].transformer.transformer_blocks[0].attn1.to_q).__name__ == "SDNQLinear"
    wanted = run(plan, host, path=tmp_path / "wanted.mp4").media
    assert wanted is not None
    assert media.video_latents_sha256 == wanted.video_latents_sha256


@pytest.mark.parametrize("mode", ["T2V", "I2V"])
def test_the_generic_tab_runs_our_rows(sdnext: SDNext, picture: Path, mode: str) -> None:
    """At sizes the model takes; and the same seed is the same video, with a picture too."""

    def clip(seed: int) -> np.ndarray[Any, Any]:
        before = set(sdnext.outputs.rglob("*.mp4"))
        image = Image.open(picture) if mode == "I2V" else None
        asked: list[Any] = [
            "task(generic)",
            "",
            "LTX Video",
            f"LTX-Nano 2.3 {mode} Distilled",
            "a small red ball",
            "",
            [],
        ]
        asked += [80, 80, 10, 2, 0, -1.0, True, seed, 1.0, -1.0, image, 0.8, None, "Default", 0]
        asked += [24, 0, "libx264", "mp4", "crf:16", True, False, False, False, False, None, "", []]
        sdnext.ui("video_models.video_run").generate(*asked)
        (path,) = set(sdnext.outputs.rglob("*.mp4")) - before
        with av.open(str(path)) as made:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)]).astype(int)

    first, again, other = clip(3), clip(3), clip(4)
    assert first.shape == (9, 64, 64, 3)
    assert np.abs(first - again).mean() < 1
    assert np.abs(first - other).mean() > 1
