"""What the tab takes from a real SD.Next: words drawn by the seed, its interpolation, its safetensors, its loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors import safe_open

from modules.ltx import ltx_ui
from tests.host_contract.kit import SDNext

NANO = "LTX-Nano 2.3 T2V Distilled"
SMALL = {"width": 64, "height": 64, "frames": 9, "seed": 1, "refine": False}
OUTPUT = [24, 0, "libx264", "mp4", "crf:16", True, False, False, False]


def controls(**moved: object) -> list[object]:
    given = SMALL | moved
    return [given.get(control.name) for control in ltx_ui.CONTROLS]


def made(output: Sequence[object], prompt: str = "a red ball") -> tuple[str | None, str]:
    """The last of what the tab's Generate button shows."""
    from modules.ltx.hosts import sdnext_tab

    return list(sdnext_tab.run("task(tab)", "", NANO, prompt, "", [], *output, *controls()))[-1]


@pytest.fixture
def random_rife(sdnext: SDNext) -> Any:
    """The host's interpolation with weights at random: its real one is a download."""
    import torch

    rife = sdnext.ui("rife")
    torch.manual_seed(0)
    rife.model = sdnext.ui("rife.model_rife").RifeModel()
    rife.model.eval()
    yield rife
    rife.model = None


@pytest.mark.filterwarnings("ignore:rich is experimental")  # the host's progress bar
def test_interpolation_and_safetensors_are_those_of_the_output_tab(sdnext: SDNext, random_rife: Any) -> None:
    plain, _ = made(OUTPUT)
    path, said = made([24, 2, "libx264", "mp4", "crf:16", True, False, True, False])
    assert plain is not None
    assert path is not None
    assert "interpolation: 27 frames at 72 fps, the duration stays the same" in said
    with av.open(path) as clip, av.open(plain) as before:
        assert (clip.streams.video[0].frames, before.streams.video[0].frames) == (27, 9)
        lengths = [float(file.duration or 0) for file in (clip, before)]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.02)
        pictures = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        own = [frame.to_ndarray(format="rgb24") for frame in before.decode(video=0)]
    tensors = Path(path).with_suffix(".safetensors")
    with safe_open(str(tensors), "np") as file:
        frames, told = file.get_tensor("frames"), file.metadata()
    assert (frames.shape, frames.dtype) == ((27, 64, 64, 3), np.uint8)
    assert {"format": "video", "frames": "27", "fps": "72", "interpolate": "2"}.items() <= told.items()
    for k, picture in enumerate(own):  # each frame is where it was in time
        assert np.abs(pictures[3 * k].astype(int) - picture.astype(int)).mean() < 4
        assert np.abs(frames[3 * k].astype(int) - picture.astype(int)).mean() < 4
    outputs = [name for job in sdnext.ui("shared").state.state_history for name in job["outputs"]]
    assert {path, str(tensors)} <= set(outputs)


def test_interpolation_without_its_model_is_one_sentence(sdnext: SDNext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdnext.ui("rife"), "model_url", "http://127.0.0.1:9/none.pkl")
    path, said = made([24, 1, *OUTPUT[2:]])
    assert path is None
    assert "role='alert'" in said
    assert "RIFE model cannot be loaded" in said
    assert "Traceback" not in said


def test_words_are_drawn_by_the_seed_as_the_host_draws_them(sdnext: SDNext, tmp_path: Path) -> None:
    from modules.ltx.hosts.sdnext_prompts import expanded

    opts, before = sdnext.opts, dict(sdnext.opts.data)
    (tmp_path / "colour.txt").write_text("red\nyellow\nblue\ngreen\n")
    prompt, negative = "a {big|small} __colour__ ball, {left|right}", "{grey|white} __colour__"
    try:
        opts.data.update(wildcards_dir=str(tmp_path), wildcards_enabled=True)
        drawn = {seed: expanded(prompt, negative, [], seed) for seed in range(1, 20)}
        theirs = sdnext.ui("shared").prompt_styles
        for seed, words in drawn.items():
            assert words == expanded(prompt, negative, [], seed)
            one, other = theirs.apply_styles_to_prompts([prompt], [negative], [], [seed])
            assert words == (one[0], other[0])
        assert len({words for words, _ in drawn.values()}) > 5
        path, _ = made(OUTPUT, prompt)
    finally:
        opts.data.clear()
        opts.data.update(before)
    assert path is not None
    with av.open(path) as clip:
        title, told = clip.metadata["title"], clip.metadata["description"]
    assert title == drawn[1][0]
    assert told.startswith(title)


def test_the_load_button_loads_the_row(sdnext: SDNext) -> None:
    from modules.ltx.hosts import sdnext_tab

    said = list(sdnext_tab.load("LTX-Nano 2.3 I2V Dev"))
    assert "loading LTX-Nano 2.3 I2V Dev" in said[0]
    assert "is loaded" in said[-1]
    assert sdnext.ui("video_models.video_load").loaded_model == "LTX-Nano 2.3 I2V Dev"
    assert "no model is selected" in list(sdnext_tab.load("─── LTX 2.3 ───"))[-1]
