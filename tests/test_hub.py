"""Hub repos: which files a variant needs of one, what variants share, and what offline mode finds in the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modules.ltx import stages
from modules.ltx.errors import RequestError
from modules.ltx.front import settle
from modules.ltx.hosts import hub, nano
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import all_caps, caps_for
from modules.ltx.request import Request
from modules.ltx.state import State
from tests.conftest import SMALL

DEV, DISTILLED = "LTXVideo 2.3 22B T2V", "LTXVideo 2.3 22B T2V Distilled"
Repos = Callable[..., None]

FILES = [
    "README.md",
    "model_index.json",
    "ltx-2.3-22b-dev.safetensors",
    "connectors/config.json",
    "connectors/diffusion_pytorch_model.safetensors",
    "connectors/diffusion_pytorch_model.safetensors.index.json",
    "connectors/diffusion_pytorch_model-00001-of-00002.safetensors",
    "connectors/diffusion_pytorch_model-00002-of-00002.safetensors",
    "latent_upsampler/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer_full/config.json",
    "transformer_full/diffusion_pytorch_model.safetensors",
]


def test_shards_not_the_whole_file_beside_them_and_no_twins() -> None:
    taken = hub.needed(FILES, ["connectors", "scheduler", "text_encoder", "tokenizer", "transformer"])
    assert taken == [
        "model_index.json",
        "connectors/config.json",
        "connectors/diffusion_pytorch_model-00001-of-00002.safetensors",
        "connectors/diffusion_pytorch_model-00002-of-00002.safetensors",
        "connectors/diffusion_pytorch_model.safetensors.index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]


def test_half_precision_is_taken_where_there_is_nothing_else() -> None:
    files = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert hub.needed(files, ["vae"]) == files


def test_a_borrowed_part_and_the_other_transformer_are_not_downloaded(cache: Path) -> None:
    folder = nano.ensure("2.3-dev", cache)
    dev25, _ = caps_for("LTXVideo 2.5 22B T2V")
    parts = hub.parts_of(folder, dev25, ["text_encoder"])
    assert "transformer_full" in parts
    assert not {"transformer", "text_encoder"} & set(parts)
    assert "transformer_full/config.json" in hub.needed(FILES, parts)
    assert "transformer/config.json" not in hub.needed(FILES, parts)


def test_what_variants_share() -> None:
    for caps in all_caps():
        if caps.source.startswith("nano:"):
            assert caps.shared_parts == {}
        elif caps.family == "0.9":
            assert caps.shared_parts == {"text_encoder": "Lightricks/LTX-Video"}
        elif caps.generation == "2.3":
            repo = "OzzyGT/LTX-2.3-sdnq-dynamic-int4" if caps.quantization == "sdnq-int4" else "OzzyGT/LTX-2.3"
            assert caps.shared_parts == {"text_encoder": repo, "connectors": repo}
        else:
            assert caps.shared_parts == {}, "2.0's Gemma is not known to be 2.3's; 2.5 has another"


def latents(host: EmbeddedHost, label: str) -> torch.Tensor:
    settled = settle(Request.parse(SMALL | {"model": label, "seed": 1, "guidance_scale": 1, "stg_scale": 0}), host)
    short = replace(settled, caps=replace(settled.caps, max_sequence_length=64))
    state = State(short, seed=1)
    for _, stage in stages.ordered(short):
        state = stage(state, host)
    assert state.video_latents is not None
    return state.video_latents


def offline(tmp_path: Path, *, share: bool = True) -> EmbeddedHost:
    return EmbeddedHost(Settings(tmp_path, device="cpu", offline=True, share=share))


def test_variants_share_what_is_the_same_in_memory_and_on_disk(cache: Path, repos: Repos, tmp_path: Path) -> None:
    repos("OzzyGT/LTX-2.3", nano.ensure("2.3-dev", cache))
    repos("OzzyGT/LTX-2.3-Distilled", nano.ensure("2.3-distilled", cache), ("text_encoder", "connectors"))
    host = offline(tmp_path)
    made = latents(host, DISTILLED)
    distilled, _ = caps_for(DISTILLED)
    dev, _ = caps_for(DEV)
    with host.pipeline(distilled, distilled.pipeline) as pipe:
        shared, own = (pipe.text_encoder, pipe.connectors), pipe.transformer
    with host.pipeline(dev, dev.pipeline) as pipe:
        assert (pipe.text_encoder, pipe.connectors) == shared
        assert pipe.transformer is not own
    whole = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True))
    reference = settle(
        Request.parse(SMALL | {"model": "nano-2.3-distilled-t2v", "seed": 1, "guidance_scale": 1}), whole
    )
    state = State(reference, seed=1)
    for _, stage in stages.ordered(reference):
        state = stage(state, whole)
    assert state.video_latents is not None
    assert torch.equal(made, state.video_latents), "the same as from one folder"


def test_not_shared_it_wants_its_own_and_says_what_is_missing(cache: Path, repos: Repos, tmp_path: Path) -> None:
    repos("OzzyGT/LTX-2.3", nano.ensure("2.3-dev", cache))
    repos("OzzyGT/LTX-2.3-Distilled", nano.ensure("2.3-distilled", cache), ("text_encoder",))
    distilled, _ = caps_for(DISTILLED)
    with (
        pytest.raises(RequestError, match="text_encoder not downloaded yet and offline mode is on"),
        offline(tmp_path, share=False).pipeline(distilled, distilled.pipeline),
    ):
        pass


def test_25_dev_loads_its_own_transformer_from_the_repo_of_both(cache: Path, repos: Repos, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(nano.ensure("2.3-distilled", cache), tmp_path / "both"))
    shutil.copytree(nano.ensure("2.3-dev", cache) / "transformer", folder / "transformer_full")
    repos("Lightricks/LTX-2.5-Diffusers", folder)
    host = offline(tmp_path)
    for label, wanted in (("LTXVideo 2.5 22B T2V", "2.3-dev"), ("LTXVideo 2.5 22B T2V Distilled", "2.3-distilled")):
        caps, _ = caps_for(label)
        with host.pipeline(caps, caps.pipeline) as pipe:
            weight = pipe.transformer.proj_out.weight.clone()
        plain, _ = caps_for(f"nano-{wanted}-t2v")
        own = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True))
        with own.pipeline(plain, plain.pipeline) as pipe:
            assert torch.equal(weight, pipe.transformer.proj_out.weight)


def test_a_model_is_on_this_machine_when_all_its_shards_are(tmp_path: Path) -> None:
    caps = caps_for(DEV)[0]
    part = tmp_path / f"models--{caps.source.replace('/', '--')}" / "snapshots" / "abc" / caps.transformer
    part.mkdir(parents=True)
    other = tmp_path / "other"
    assert not hub.cached(caps, [tmp_path])
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (part / shards[0]).touch()
    assert not hub.cached(caps, [other, tmp_path])  # an interrupted download
    (part / shards[1]).symlink_to(tmp_path / "gone")
    assert not hub.cached(caps, [tmp_path])
    (tmp_path / "gone").touch()
    assert hub.cached(caps, [other, tmp_path])
    assert not hub.cached(caps, [other])


def test_a_model_in_one_file_is_on_this_machine(tmp_path: Path) -> None:
    caps = caps_for(DEV)[0]
    part = tmp_path / f"models--{caps.source.replace('/', '--')}" / "snapshots" / "abc" / caps.transformer
    part.mkdir(parents=True)
    (part / "diffusion_pytorch_model.safetensors").touch()
    assert hub.cached(caps, [tmp_path])
