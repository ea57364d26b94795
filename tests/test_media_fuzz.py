"""Damaged images, videos and sounds by both roads, a few hundred; `python -m bench.media_fuzz` asks for many more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import media_fuzz
from bench.media_corpus import damaged, originals
from bench.media_fuzz import corpus, pick, trial
from modules.ltx.errors import RequestError
from modules.ltx.media_clip import load_clip
from modules.ltx.request import Prefix
from tests.media_kit import moving, posix_only, write

INPUTS = 500


@posix_only
def test_whatever_is_read_is_taken_or_refused_in_words(tmp_path: Path) -> None:
    found = trial(tmp_path, INPUTS, seed=7)
    assert found["wrong"] == []
    assert found["inputs"] == INPUTS
    assert all(road["taken"] > 0 and road["refused"] > 0 for road in found["roads"].values())  # it looks at both


@posix_only
def test_a_reader_that_dies_or_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges must be able to say no: the reader of two inputs is stopped, and that of a third killed."""
    monkeypatch.setattr(media_fuzz, "SECONDS", 3.0)
    started: list[Any] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *told: Any, **more: Any) -> None:
            super().__init__(*told, **more)
            os.kill(self.pid, [signal.SIGSTOP, signal.SIGKILL, 0][min(len(started), 2)])
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    found = trial(tmp_path, 3, seed=7)
    assert [said.partition("): ")[2].partition(";")[0] for said in found["wrong"]] == [
        "no answer within 3 s",
        "the reader died (-9)",
    ]


def test_an_input_is_told_by_its_number(tmp_path: Path) -> None:
    files = originals()
    assert pick(files, 3, 5) == pick(files, 3, 5)
    assert len({pick(files, 3, number)[2] for number in range(50)}) == 50
    whole = {file.data for file in files}
    assert all(damaged(file.data, random.Random(1), b"x") not in whole for file in files)
    assert corpus(tmp_path) == []


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat"])
def test_a_playlist_is_no_video_whatever_it_names(tmp_path: Path, name: str) -> None:
    """FFmpeg would follow it to the files of its list."""
    write(tmp_path / "clip.mp4", moving(5))
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{tmp_path / 'clip.mp4'}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    }
    (tmp_path / name).write_text(lists[name])
    assert len(load_clip(Prefix(str(tmp_path / "clip.mp4"), 1))) == 1
    with pytest.raises(RequestError, match=f"{name} cannot be read as a video"):
        load_clip(Prefix(str(tmp_path / name), 1))
