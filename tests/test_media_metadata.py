"""Settings in the file: exact, shown by other tools, and refused where there are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.ltx.errors import RequestError
from modules.ltx.ltx_util import file_digest
from modules.ltx.media import (
    read_metadata,
    write_video,
)
from modules.ltx.media_in import load_image
from tests.media_kit import (
    FAST,
    moving,
    names,
    refusal,
    tone,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(st.text(), json_values, max_size=6))
def test_metadata_comes_back_exactly(tmp_path: Path, metadata: dict[str, object]) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, moving(1, size=(32, 32)), fps=24, sound=None, metadata=metadata, encoding=FAST)
    assert read_metadata(path) == metadata


def test_metadata_is_shown_by_other_tools(tmp_path: Path) -> None:
    metadata: dict[str, object] = {
        "title": 'Ein "Über"-Titel 🎬',
        "prompt": "line one\nline two\ttab \\ 'q' \"q\" \x00 \u2028 日本語 " + "x" * 100_000,
        "lone": "\ud83d",
        "seed": 2**63,
        "nested": {"list": [1, 2.5, None, True]},
    }
    path = tmp_path / "clip.mp4"
    write_video(path, moving(2), fps=24, sound=tone(1, 16000), metadata=metadata, encoding=FAST)
    assert read_metadata(path) == metadata
    with av.open(str(path)) as file:
        assert json.loads(file.metadata["comment"]) == metadata
        assert file.metadata["title"] == metadata["title"]
        assert "日本語" in file.metadata["comment"]


def test_a_title_that_is_no_text_or_no_unicode_does_not_matter(tmp_path: Path) -> None:
    for title, shown in (("a\ud83db", "a?b"), (7, None), ("", None)):
        path, metadata = tmp_path / "clip.mp4", {"title": title}
        write_video(path, moving(1), fps=24, sound=None, metadata=metadata, encoding=FAST)
        assert read_metadata(path) == metadata
        with av.open(str(path)) as file:
            assert file.metadata.get("title") == shown


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, b"bytes", "x" * (17 << 20)])
def test_metadata_that_cannot_be_stored_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(RequestError, match="metadata"):
        write_video(tmp_path / "clip.mp4", moving(1), fps=24, sound=None, metadata={"key": value})
    assert names(tmp_path) == []


def test_truncated_videos_are_refused_at_any_length(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving(3), fps=24, sound=None, metadata={"a": 1}, encoding=FAST)
    whole = (tmp_path / "clip.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        assert "mp4 that this program wrote" in refusal(read_metadata, cut)


def foreign_mp4(path: Path, comment: str | None) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        if comment is not None:
            file.metadata["comment"] = comment
        frame = av.VideoFrame.from_ndarray(next(moving(1))[0], format="rgb24")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("comment", [None, "hello", "[1, 2]", "3", "[" * 100_000])
def test_videos_without_our_metadata_are_refused(tmp_path: Path, comment: str | None) -> None:
    foreign_mp4(tmp_path / "other.mp4", comment)
    assert "mp4 that this program wrote" in refusal(read_metadata, tmp_path / "other.mp4")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 4096, os.urandom(5000), b"\x89PNG\r\n\x1a\n" * 9])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.mp4").write_bytes(content)
    assert "mp4 that this program wrote" in refusal(read_metadata, tmp_path / "other.mp4")


def test_a_crafted_file_is_given_up_early(tmp_path: Path) -> None:
    boxes = b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x08free" * 100_000
    (tmp_path / "other.mp4").write_bytes(boxes)
    assert "not an mp4 of this program" in refusal(read_metadata, tmp_path / "other.mp4")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for call in (read_metadata, load_image, file_digest):
        refusal(call, tmp_path / "absent")
        refusal(call, tmp_path)
