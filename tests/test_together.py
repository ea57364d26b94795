"""One video by two processes: what they make is what one makes, but for the last bits of float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from modules.ltx.__main__ import main
from modules.ltx.errors import OutOfMemory, RequestError
from modules.ltx.hosts import ranks
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.hosts.machine import Machine
from modules.ltx.hosts.splitting import check_heads
from tests.together_kit import CASES, COMMAND, latents_of

pytestmark = pytest.mark.library

# Sums in another order: 1e-5 of latents whose spread is 1 was the most that was seen, in 2 to 8 steps.
TOLERANCE = 1e-4


def launched(folder: Path, picture: Path) -> list[dict[str, Any]]:
    """What each of two processes has to tell, and that the failure of the second one reaches who started them."""
    (folder / "picture.png").write_bytes(picture.read_bytes())
    with pytest.raises(OutOfMemory, match="as the test wants it"):
        ranks.launch(2, [str(folder)], module="tests.together_kit")
    return [torch.load(folder / f"told-{rank}.pt") for rank in (0, 1)]


def test_two_processes_make_what_one_makes(
    host: EmbeddedHost,
    cache: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LTX_CACHE", str(cache))
    alone = {name: latents_of(name, host, picture) for name in CASES}  # which builds the models for all
    capfd.readouterr()
    two = launched(tmp_path, picture)
    said = capfd.readouterr()
    _the_video(tmp_path, said.out, [told["code"] for told in two])
    assert said.err == ""
    for told in two:
        for name in CASES:
            for one, other in zip(alone[name], told["cases"][name], strict=True):
                assert (one - other).abs().max() < TOLERANCE, name
        for name, model in told["models"].items():
            for one, other, apart in zip(model["alone"], model["together"], model["apart"], strict=True):
                assert (one - other).abs().max() < TOLERANCE, name
                assert (one - apart).abs().max() > 10 * TOLERANCE, name  # or nothing is tested
        assert (told["machine"]["processes"], told["same"]) == ("2", 7)
    for name in CASES:  # whatever is decided by them must be decided alike
        assert all(map(torch.equal, two[0]["cases"][name], two[1]["cases"][name]))


def _the_video(folder: Path, out: str, codes: list[int]) -> None:
    """One process alone shows and writes; frames and sound are those of a process of its own."""
    assert codes == [0, 0]
    told = json.loads(out)  # one document
    assert told["path"] == str(folder / "video.mp4")
    assert sorted(path.name for path in folder.glob("video*")) == ["video-frames", "video.jpg", "video.mp4"]
    assert main([*COMMAND, "-o", str(folder / "alone.mp4"), "--outputs", str(folder)]) == 0
    # Of the frames as they were before the encoder, which makes much of little; a level of 255 is a rounding.
    assert np.abs(frames(folder / "video-frames") - frames(folder / "alone-frames")).max() <= 1
    assert np.abs(sound(folder / "video.mp4") - sound(folder / "alone.mp4")).mean() < 1e-3


def frames(folder: Path) -> Any:
    """Levels of 255."""
    return np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted(folder.glob("*.png"))])


def sound(file: Path) -> Any:
    """Samples, from -1 to 1."""
    with av.open(str(file)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def test_what_cannot_be_shared_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--nproc", "0"], ["--nproc", "2", "--compare"], ["--nproc", "2", "--frames", "x"]):
        assert main([*COMMAND, "--outputs", str(tmp_path / "outputs"), *words]) == 2
        assert words[-1].split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    offloaded = Machine("cuda:0", "bfloat16", "model", 1 << 30)
    with pytest.raises(RequestError, match="--quantize"):
        ranks.check_whole(offloaded)


def test_heads_are_given_out_to_as_many_processes_as_have_some() -> None:
    """Of 32 heads 12 processes get 3 each, of which the last one would hold 4 too many."""
    for count in (2, 3, 5, 6, 7, 8, 16, 32):
        check_heads(32, count)
    for count in (12, 20, 33):
        with pytest.raises(RequestError, match=r"32 attention heads; take one of 2, 3, .*32"):
            check_heads(32, count)
