"""Smaller weights: every class still runs, close to what it made, and what cannot be is said before loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modules.ltx import stages
from modules.ltx.errors import RequestError
from modules.ltx.front import settle
from modules.ltx.hosts import quantizing
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import caps_for, effective
from modules.ltx.ltx_process import run
from modules.ltx.media_in import load_image, read_metadata
from modules.ltx.plan import plan
from modules.ltx.request import Request
from modules.ltx.state import State
from tests.conftest import SMALL

pytestmark = pytest.mark.library

HostOf = Callable[..., EmbeddedHost]
# How far latents may be from those of full weights: the norm of the difference, as a share. Measured on these models:
# int8 0.2 to 1.5 %, 4 bits 3 to 13 %, float8 1 to 4 %.
CLOSE = {"sdnq-int8": 0.03, "sdnq-int4": 0.2, "quanto-int8": 0.03, "fp8": 0.08}


@pytest.fixture
def host_of(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostOf:
    """`host_of(kind, parts)`: a fresh host on the session's LTX-Nano models."""
    monkeypatch.setenv("SDNQ_USE_TORCH_COMPILE", "0")  # minutes of compiling for models this small

    def make(kind: str | None, parts: tuple[str, ...] = quantizing.DEFAULT_PARTS) -> EmbeddedHost:
        settings = Settings(tmp_path, cache=cache, device="cpu", offline=True, quantize=kind, quantize_parts=parts)
        return EmbeddedHost(settings)

    return make


def latents(host: EmbeddedHost, model: str, **options: object) -> torch.Tensor:
    """Of all stages, without decoding."""
    settled = settle(Request.parse(SMALL | {"model": model, "seed": 1} | options), host)
    assert settled.seed is not None
    state = State(settled, seed=settled.seed, images=tuple(load_image(Path(image.path)) for image in settled.images))
    for _, stage in stages.ordered(settled):
        state = stage(state, host)
    assert state.video_latents is not None
    return state.video_latents


@pytest.mark.parametrize("kind", sorted(CLOSE))
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("nano-2.3-distilled-t2v", {"width": 128, "height": 128, "steps": 8}),
        ("nano-2.0-dev-i2v", {}),
        ("nano-2.3-distilled-condition", {"width": 128, "height": 128, "refine": True, "steps": 8}),
        ("nano-0.9-t2v", {}),
        ("nano-0.9-i2v", {}),
        ("nano-0.9-condition", {}),
    ],
)
def test_every_class_runs_on_smaller_weights_and_stays_close(
    host_of: HostOf, picture: Path, kind: str, model: str, options: dict[str, object]
) -> None:
    images = [] if model.endswith("t2v") else [{"path": str(picture)}]
    full, smaller, apart = host_of(None), host_of(kind), []
    for seed in (1, 2, 3):
        exact, made = (latents(host, model, images=images, seed=seed, **options) for host in (full, smaller))
        apart.append(float((made - exact).norm() / exact.norm()))
    # Of text alone, about one clip in eight of LTX-Nano stands before a choice, and four bits choose otherwise.
    assert 0 < sorted(apart)[1] < CLOSE[kind]


@pytest.mark.parametrize("kind", ["sdnq-int8", "sdnq-int4", "quanto-int8"])
def test_a_lora_acts_on_smaller_weights_as_on_full_ones(host_of: HostOf, kind: str) -> None:
    """Stage 2 of Dev runs with one."""
    plain = {"guidance_scale": 1, "audio_guidance_scale": 1, "stg_scale": 0, "audio_stg_scale": 0}
    options = {**plain, "modality_scale": 1, "audio_modality_scale": 1, "refine": True, "width": 128, "height": 128}
    exact = latents(host_of(None), "nano-2.3-dev-t2v", **options)
    host = host_of(kind)
    made = latents(host, "nano-2.3-dev-t2v", **options)
    assert float((made - exact).norm() / exact.norm()) < 2 * CLOSE[kind]
    again = latents(host, "nano-2.3-dev-t2v", **options)
    assert torch.equal(made, again), "nothing of it is left behind"


def test_float8_refuses_a_lora_before_anything_is_loaded(host_of: HostOf) -> None:
    request = Request.parse(SMALL | {"model": "nano-2.3-dev-t2v", "refine": True})
    with pytest.raises(
        RequestError, match="stage2 of LTX-Nano 2.3 T2V Dev runs with a LoRA .* take --quantize sdnq-int8"
    ):
        settle(request, host_of("fp8"))
    own = Request.parse(SMALL | {"model": "nano-2.3-distilled-t2v", "loras": [{"source": "nano:2.3-lora"}]})
    with pytest.raises(RequestError, match="--lora: diffusers keeps a LoRA on float8 layers"):
        settle(own, host_of("fp8"))


def test_weights_that_are_quantized_are_not_quantized_twice() -> None:
    caps, _ = caps_for("LTXVideo 2.3 22B T2V SDNQ-4Bit")
    with pytest.raises(RequestError, match="quantized already"):
        plan(Request.parse({}), effective(caps, quantizing.lacks("sdnq-int8")))
    assert not effective(caps, quantizing.lacks(None)).unavailable
    plain, _ = caps_for("LTXVideo 2.3 22B T2V")
    assert not effective(plain, quantizing.lacks("sdnq-int8")).unavailable


@pytest.mark.parametrize(
    ("kind", "parts", "said"),
    [
        ("int3", ("transformer",), "it takes one of: sdnq-int8"),
        ("sdnq-int8", ("transformer", "brain"), "it takes some of: transformer"),
        ("sdnq-int8", (), "it takes some of: transformer"),
        ("quanto-int8", ("vae",), "no 3-D convolutions"),
    ],
)
def test_bad_choices_are_one_sentence(kind: str, parts: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Settings(quantize=kind, quantize_parts=parts)


def test_what_is_chosen_is_what_is_made_smaller(host_of: HostOf) -> None:
    caps, _ = caps_for("nano-2.3-distilled-t2v")
    for parts in (("transformer",), ("text_encoder",), ("vae",), quantizing.PARTS):
        with host_of("sdnq-int8", parts).pipeline(caps, caps.pipeline) as pipe:
            found = {
                part
                for part in quantizing.PARTS
                if any(type(module).__name__.startswith("SDNQ") for module in getattr(pipe, part).modules())
            }
        # The text encoder of LTX-Nano is too small for SDNQ to touch.
        assert found == set(parts) - {"text_encoder"}


def test_sizes_count_for_the_choice_of_offload() -> None:
    sizes = {"transformer": 1000, "text_encoder": 500, "vae": 100}
    assert quantizing.smaller(sizes, None, quantizing.DEFAULT_PARTS) == sizes
    shrunk = quantizing.smaller(sizes, "sdnq-int4", ("transformer",))
    assert shrunk == {"transformer": 300, "text_encoder": 500, "vae": 100}


def test_the_file_says_how_it_was_made(host_of: HostOf) -> None:
    host = host_of("sdnq-int8")
    settled = settle(Request.parse(SMALL | {"model": "nano-2.0-distilled-t2v", "seed": 1}), host)
    media = run(replace(settled, notes=settled.notes), host).media
    assert media is not None
    told = read_metadata(media.path)["machine"]
    assert isinstance(told, dict)
    assert told["quantize"] == "sdnq-int8 of transformer, text_encoder"
