"""The prompt enhancer of LTX 2.5, as a very small Gemma 4 beside LTX-Nano."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2 import utils
from PIL import Image

from modules.ltx.errors import Cancelled, RequestError
from modules.ltx.front import request_of_file, settle
from modules.ltx.hosts import extras, nano, nano_text
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.ltx_process import run
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from tests.conftest import SMALL
from tests.library_kit import needs_25

pytestmark = [pytest.mark.library, needs_25]

VARIANT = "LTXVideo 2.5 22B {} Distilled"
# Gemma's own template in little: a turn a message, pictures as their one token.
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image_soft_token>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}"
)


def save_enhancer(place: Path) -> None:
    """A Gemma 4 of 0.8 million parameters that reads the tokens of LTX-Nano, and what it reads with."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    tokenizer = nano_text.gemma_tokenizer()
    tokenizer.chat_template = TEMPLATE
    pictures = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer.save_pretrained(place / "processor")
    config = place / "processor" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"extra_special_tokens": pictures}))
    Gemma4ImageProcessorPil().save_pretrained(place / "processor")
    words = len(tokenizer)
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = small | {"num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "vocab_size": words}
    text |= {"vocab_size_per_layer_input": words, "hidden_size_per_layer_input": 8, "initializer_range": 0.3}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    seen = small | {"num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 1}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in pictures.items()}
    torch.manual_seed(4)
    config = Gemma4Config(text_config=text, vision_config=seen, audio_config=None, **ids)
    Gemma4ForConditionalGeneration(config).eval().save_pretrained(place / "prompt_enhancer")


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-Nano 2.3 Distilled with a prompt enhancer, named in its model_index.json as Lightricks' may be."""
    place = Path(shutil.copytree(nano.ensure("2.3-distilled", cache), tmp_path_factory.mktemp("25") / "model"))
    save_enhancer(place)
    index = json.loads((place / "model_index.json").read_text())
    index |= {"prompt_enhancer": ["transformers", "Gemma4ForConditionalGeneration"]}
    index |= {"processor": ["transformers", "Gemma4Processor"]}
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def planned(host: EmbeddedHost, folder: Path, mode: str = "T2V", **options: object) -> Plan:
    asked = {**SMALL, "model": str(folder), "variant": VARIANT.format(mode), "seed": 1, "sampler": "euler", **options}
    return settle(Request.parse({"enhance_prompt": True, **asked}), host)


def by_diffusers(folder: Path, prompt: str, system: str, image: Any = None) -> str:
    """What diffusers' own method makes of the prompt, with parts that were read here."""
    from transformers import Gemma4ForConditionalGeneration

    pipe = LTX2Pipeline.from_pretrained(folder, prompt_enhancer=None, processor=None)
    pipe.prompt_enhancer = Gemma4ForConditionalGeneration.from_pretrained(folder / "prompt_enhancer")
    pipe.processor = extras.Reader(folder / "processor")
    return str(pipe.enhance_prompt(prompt, system, image=image)[0]).strip()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tokens of answer instead of 600: nobody waits here for a caption of a random model."""
    from diffusers.pipelines.ltx2 import pipeline_ltx2

    short = replace(pipeline_ltx2.GEMMA4_PROMPT_ENHANCEMENT_CONFIG, max_new_tokens=12)
    monkeypatch.setattr(pipeline_ltx2, "GEMMA4_PROMPT_ENHANCEMENT_CONFIG", short)


def test_only_25_has_one() -> None:
    for caps in all_caps():
        assert caps.supports_prompt_enhancer == (caps.generation == "2.5")
    with pytest.raises(RequestError, match=r"--enhance-prompt: LTX-Nano 2.3 T2V Distilled does not have it"):
        settle(Request.parse({**SMALL, "enhance_prompt": True}), EmbeddedHost(Settings(device="cpu", offline=True)))


@pytest.mark.usefixtures("brief")
def test_the_prompt_is_what_diffusers_makes_of_it(host: EmbeddedHost, folder: Path, tmp_path: Path) -> None:
    run(planned(host, folder, enhance_prompt=False), host, path=tmp_path / "loaded.mp4")
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    state = run(planned(host, folder), host)
    assert torch.equal(torch.random.get_rng_state(), before)
    wanted = by_diffusers(folder, str(SMALL["prompt"]), utils.LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT)
    assert state.plan.prompt == wanted
    assert wanted
    assert wanted != SMALL["prompt"]
    assert f"prompt, written out: {wanted}" in state.notes
    # It is what was encoded: the same video comes of asking for it outright.
    outright = run(planned(host, folder, prompt=wanted, enhance_prompt=False), host, path=tmp_path / "outright.mp4")
    assert state.media is not None
    assert outright.media is not None
    assert outright.media.video_latents_sha256 == state.media.video_latents_sha256
    # The file repeats, and holds both: what was asked and what was made of it.
    values = request_of_file(state.media.path)
    assert values["prompt"] == SMALL["prompt"]
    told = read_metadata(state.media.path)["plan"]
    assert isinstance(told, dict)
    assert told["prompt"] == wanted
    again = run(settle(Request.parse(values), host), host, path=tmp_path / "again.mp4").media
    assert again is not None
    assert again.video_latents_sha256 == state.media.video_latents_sha256


@pytest.mark.usefixtures("brief")
def test_it_is_shown_the_first_image(host: EmbeddedHost, folder: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (96, 64), "red")
    picture.save(tmp_path / "red.png")
    images = [{"path": str(tmp_path / "red.png"), "frame": 0}]
    state = run(planned(host, folder, "I2V", images=images), host)
    seen = picture.crop((16, 0, 80, 64))  # as the square first stage shows it
    wanted = by_diffusers(folder, str(SMALL["prompt"]), utils.LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT, seen)
    assert state.plan.prompt == wanted
    blue = by_diffusers(
        folder, str(SMALL["prompt"]), utils.LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT, Image.new("RGB", (64, 64), "blue")
    )
    assert blue != wanted


def test_a_cancel_is_seen_between_two_tokens(host: EmbeddedHost, folder: Path) -> None:
    plan = planned(host, folder)
    polls = 0
    real = host.poll

    def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 8:
            host.cancel()
        real()

    host.poll = poll  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        run(plan, host)
    assert polls == 8


@pytest.mark.usefixtures("brief")
def test_a_copy_without_one_takes_googles(
    host: EmbeddedHost, folder: Path, cache: Path, repos: Callable[..., None], tmp_path: Path
) -> None:
    bare = nano.ensure("2.3-distilled", cache)
    with pytest.raises(RequestError, match="google/gemma-4-E2B-it: not downloaded yet and offline mode is on"):
        run(planned(host, bare), host)
    flat = tmp_path / "flat"
    for part in ("processor", "prompt_enhancer"):
        shutil.copytree(folder / part, flat, dirs_exist_ok=True)
    repos("google/gemma-4-E2B-it", flat)
    state = run(planned(host, bare), host)
    assert state.plan.prompt == by_diffusers(folder, str(SMALL["prompt"]), utils.LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT)


def test_a_picture_stands_where_gemma_has_it(folder: Path) -> None:
    """Against the method of transformers' own processor, which cannot be built without torchvision."""
    from transformers import Gemma4Processor

    reader = extras.Reader(folder / "processor")
    read = reader("<image_soft_token>a ball", images=Image.new("RGB", (896, 512)))
    tokens = read.input_ids[0].tolist()
    count = tokens.count(reader.tokenizer.image_token_id)
    wanted = Gemma4Processor.replace_image_token(reader.tokenizer, {"num_soft_tokens_per_image": [count]}, 0)
    assert tokens == reader.tokenizer(wanted + "a ball").input_ids
    assert read["pixel_values"].shape[0] == 1
    # Nine patches of the picture make one token (pooling 3x3); the rest of the row is padding.
    assert int((read["image_position_ids"][0, :, 0] >= 0).sum()) == 9 * count
