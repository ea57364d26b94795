"""The diffusion decoder of LTX 2.5, as a very small one beside LTX-Nano, and the VAE in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from modules.ltx.decode import to_uint8
from modules.ltx.errors import Cancelled, RequestError
from modules.ltx.front import settle
from modules.ltx.hosts import extras, nano
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.ltx_process import run
from modules.ltx.ltx_util import seed_for
from modules.ltx.media import Encoding
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import State
from tests.conftest import SMALL
from tests.library_kit import needs_25

pytestmark = [pytest.mark.library, needs_25]

VARIANT = "LTXVideo 2.5 22B T2V Distilled"
REAL = {  # the defaults of LTX2VideoDiffusionDecoderModel, which are 2.5's
    "decoder_stage_kernels": [[3, 7, 7], [3, 7, 7], [3, 5, 5], [3, 5, 5]],
    "decoder_stage5_kernel": [11, 11, 11],
    "decoder_upsample_strides": [[1, 2, 2], [2, 1, 1], [2, 2, 2], [2, 2, 2]],
    "decoder_stage_channels": [2048, 1024, 512, 512, 256],
    "decoder_head_dim": 64,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-Nano 2.3 Distilled with a random diffusion decoder of its latents."""
    place = Path(shutil.copytree(nano.ensure("2.3-distilled", cache), tmp_path_factory.mktemp("25") / "model"))
    torch.manual_seed(6)
    diffusers.LTX2VideoDiffusionDecoderModel(
        latent_channels=32,
        decoder_head_dim=16,
        decoder_stage_channels=(64, 32, 16, 16, 16),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((1, 1, 1), (1, 3, 3), (1, 3, 3), (3, 3, 3)),
        decoder_upsample_channel_reductions=(2, 2, 1, 1),
        decoder_stage5_kernel=(3, 3, 3),
        decoder_t_emb_dim=32,
    ).save_pretrained(place / "diffusion_decoder")
    return place


def planned(host: EmbeddedHost, folder: Path, **options: object) -> Plan:
    asked = {**SMALL, "model": str(folder), "variant": VARIANT, "seed": 1, "sampler": "euler", **options}
    return settle(Request.parse({"decoder": "diffusion", **asked}), host)


def pixels(state: State) -> np.ndarray:
    assert state.media is not None
    assert state.media.frames_folder is not None
    files = sorted(state.media.frames_folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_only_25_has_one() -> None:
    for caps in all_caps():
        assert caps.supports_diffusion_decoder == (caps.generation == "2.5")
    host = EmbeddedHost(Settings(device="cpu", offline=True))
    with pytest.raises(RequestError, match="--decoder: LTX-Nano 2.3 T2V Distilled does not have it"):
        settle(Request.parse({**SMALL, "decoder": "diffusion"}), host)
    assert settle(Request.parse({**SMALL, "decoder": "vae"}), host).decode.decoder == "vae"


def test_frames_are_what_the_decoder_itself_makes(host: EmbeddedHost, folder: Path, tmp_path: Path) -> None:
    plan = planned(host, folder)
    assert any("diffusion decoder: its fast kernel needs an NVIDIA GPU" in note for note in plan.notes)
    state = run(plan, host, path=tmp_path / "video.mp4", encoding=Encoding(png_frames=True))
    assert not any("instead of the diffusion decoder" in note for note in state.notes)
    model = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(folder, subfolder="diffusion_decoder")
    generator = torch.Generator().manual_seed(seed_for(1, "decode"))
    with torch.no_grad():
        wanted = model.decode(state.video_latents, generator=generator).sample
    assert np.array_equal(pixels(state), to_uint8(wanted))
    by_vae = run(
        planned(host, folder, decoder="vae"), host, path=tmp_path / "vae.mp4", encoding=Encoding(png_frames=True)
    )
    assert not np.array_equal(pixels(state), pixels(by_vae))


def test_a_cancel_is_seen_in_it(host: EmbeddedHost, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(host, folder)
    real = host.free
    # The decoder polls, then gives memory back, before its first tile.
    monkeypatch.setattr(host, "free", lambda phase: host.cancel() if phase == "tile" else real(phase))
    with pytest.raises(Cancelled):
        run(plan, host)


def test_without_one_the_vae_decodes_and_says_why(host: EmbeddedHost, cache: Path, tmp_path: Path) -> None:
    bare = nano.ensure("2.3-distilled", cache)
    state = run(planned(host, bare), host, path=tmp_path / "a.mp4", encoding=Encoding(png_frames=True))
    assert any("this copy of the model has no diffusion_decoder" in note for note in state.notes)
    by_vae = run(planned(host, bare, decoder="vae"), host, path=tmp_path / "b.mp4", encoding=Encoding(png_frames=True))
    assert np.array_equal(pixels(state), pixels(by_vae))


def test_the_vae_takes_over_when_memory_runs_out(
    host: EmbeddedHost, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(diffusers.LTX2VideoDiffusionDecoderModel, "decode", full)
    state = run(planned(host, folder), host, path=tmp_path / "a.mp4")
    assert any("the device has too little memory for it" in note for note in state.notes)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 128, 3, 7, 7), ""),
        ((1, 128, 3, 6, 7), "it needs about 224x224 pixels and 17 frames"),
        ((1, 128, 2, 16, 24), "it needs about 224x224 pixels and 17 frames"),
    ],
)
def test_a_clip_smaller_than_its_windows_is_told(shape: tuple[int, ...], said: str) -> None:
    assert said in extras.too_small(REAL, shape)
    assert bool(extras.too_small(REAL, shape)) == bool(said)


def test_p9_without_its_kernel_it_wants_the_scores_of_all_pairs() -> None:
    """diffusers' docstring: the mask of 69x64x96 tokens is 167 GiB; with four heads' scores it is 17 times that."""
    config = {**REAL, "patch_size": 4}
    told = extras.too_large(config, (1, 128, 16, 16, 24), 80 * 2**30, "needs X")
    assert told.startswith("without its fast kernel, which needs X, it would take about ")
    # 80 frames of 512x768 in tiles of 768 pixels: 80 x 128 x 192 tokens.
    assert f"about {(80 * 128 * 192) ** 2 * 17 / 2**30:.0f} GiB" in told
    assert extras.too_large(config, (1, 128, 2, 2, 2), 2**30, "needs X") == ""


def test_the_grids_are_those_of_the_decoder(folder: Path) -> None:
    model = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(folder, subfolder="diffusion_decoder")
    config = json.loads((folder / "diffusion_decoder" / "config.json").read_text())
    seen: list[tuple[int, ...]] = []
    blocks = [stage[0] for stage in model.decoder.det_stages] + [model.decoder.diff_blocks[0]]
    for block in blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:4])))
    latents = torch.zeros(1, 32, 2, 2, 3)
    with torch.no_grad():
        model.decode(latents)
    assert seen == extras.grids(
        latents.shape, config["decoder_upsample_strides"], model.decoder.trailing_pad_latent_frames
    )
