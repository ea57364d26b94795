"""All or nothing on disk: failures, kills, full disks, names, and what it costs."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.ltx.errors import Cancelled, HostError, RequestError
from modules.ltx.ltx_util import file_digest
from modules.ltx.media import (
    AHEAD,
    Encoding,
    read_metadata,
    require_encoder,
    write_video,
)
from modules.ltx.media_files import require_whole, sweep_partials
from tests.media_kit import (
    ALL_PARTS,
    FAST,
    Frames,
    decoded_frames,
    moving,
    names,
    output,
    posix_only,
    python,
    tone,
    write,
)


def failing(error: BaseException, after: int) -> Iterator[Frames]:
    yield from moving(after, chunk=2)
    raise error


STOPS = [
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    Cancelled("stopped"),
    OSError("model file gone"),
    MemoryError(),
]


@pytest.mark.parametrize("after", [0, 2, 60])
@pytest.mark.parametrize("error", STOPS, ids=lambda error: type(error).__name__)
def test_a_failing_decoder_leaves_nothing(tmp_path: Path, error: BaseException, after: int) -> None:
    with pytest.raises(type(error)) as caught:
        write(tmp_path / "clip.mp4", failing(error, after), sound=tone(1, 16000), encoding=ALL_PARTS)
    assert caught.value is error, "errors of the decoder are passed on as they are"
    assert names(tmp_path) == []


@pytest.mark.parametrize("at", [1, 3, 60])
@pytest.mark.parametrize("error", STOPS, ids=lambda error: type(error).__name__)
def test_a_cancel_leaves_nothing(tmp_path: Path, error: BaseException, at: int) -> None:
    seen: list[int] = []

    def on_frame(count: int) -> None:
        seen.append(count)
        if count == at:
            raise error

    with pytest.raises(type(error)) as caught:
        write(tmp_path / "clip.mp4", moving(60), encoding=ALL_PARTS, on_frame=on_frame)
    assert caught.value is error
    assert seen[-1] == at
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files")
def test_a_failed_writer_holds_no_file_open(tmp_path: Path) -> None:
    with pytest.raises(Cancelled) as caught:
        write(tmp_path / "clip.mp4", failing(Cancelled(), 60), sound=tone(1, 16000), encoding=ALL_PARTS)
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert caught.tb is not None, "whatever the traceback still refers to is closed too"
    assert not [link for link in links if str(tmp_path) in link]


def test_an_incomplete_file_is_not_published(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", moving(3))
    with (tmp_path / "clip.mp4").open("r+b") as file:
        file.truncate((tmp_path / "clip.mp4").stat().st_size - 1)
    with pytest.raises(HostError, match="incomplete"):
        require_whole(tmp_path / "clip.mp4")


def test_nothing_stands_under_the_final_names_before_the_end(tmp_path: Path) -> None:
    seen: list[str] = []
    write(
        tmp_path / "clip.mp4",
        moving(4),
        encoding=ALL_PARTS,
        on_frame=lambda _: seen.extend(names(tmp_path)),
    )
    assert len(set(seen)) == 3
    assert all(name.startswith(".clip.") and ".part" in name for name in seen)
    assert names(tmp_path) == ["clip-frames", "clip.jpg", "clip.mp4"]


def test_an_earlier_video_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    encoding = Encoding(preset="ultrafast")
    write(tmp_path / "clip.mp4", moving(5), encoding=encoding)
    before = {name: file_digest(tmp_path / name) for name in names(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "clip.mp4", failing(KeyboardInterrupt(), 9), encoding=encoding)
    assert {name: file_digest(tmp_path / name) for name in names(tmp_path)} == before
    assert write(tmp_path / "clip.mp4", moving(7), encoding=encoding).frames == 7
    assert len(decoded_frames(tmp_path / "clip.mp4")) == 7


def test_frames_are_let_go_as_they_are_encoded(tmp_path: Path) -> None:
    alive: list[weakref.ref[Frames]] = []
    most = 0

    def watched() -> Iterator[Frames]:
        nonlocal most
        for chunk in moving(160, chunk=4):
            gc.collect(0)
            most = max(most, sum(ref() is not None for ref in alive))
            copy = chunk.copy()
            alive.append(weakref.ref(copy))
            yield copy
            del copy

    write(tmp_path / "clip.mp4", watched())
    assert most <= AHEAD // 4 + 2  # of 40


@posix_only
def test_a_killed_writer_leaves_no_video(tmp_path: Path) -> None:
    process = python(
        """
        import sys; from pathlib import Path; import numpy as np
        from modules.ltx.media import Encoding, write_video
        def endless():
            while True:
                yield np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), dtype=np.uint8)
        def tell(count):
            if count == 100: print("writing", flush=True)
        encoding = Encoding(preset="ultrafast", png_frames=True)
        settings = dict(fps=24, sound=None, metadata={}, encoding=encoding)
        write_video(Path(sys.argv[1]), endless(), on_frame=tell, **settings)
        """,
        tmp_path / "clip.mp4",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    left = names(tmp_path)
    assert len(left) == 3
    assert all(name.startswith(".clip.") and ".part" in name for name in left)
    assert sweep_partials(tmp_path, 3600) == 0
    assert names(tmp_path) == left
    assert sweep_partials(tmp_path, 0) == 3
    assert names(tmp_path) == []


def test_sweeping_touches_only_old_partials_of_ours(tmp_path: Path) -> None:
    ours = [".clip.0123456789ab.part.mp4", ".a.b.0123456789ab.part.jpg", ".x\ny.0123456789ab.part"]
    others = ["clip.mp4", ".clip.part.mp4", "clip.0123456789ab.part.mp4", ".clip.0123456789ab.part.mov"]
    for name in [*ours, *others]:
        (tmp_path / name).write_bytes(b"x")
    fresh = tmp_path / ".fresh.0123456789ab.part.mp4"
    fresh.write_bytes(b"x")
    old = time.time() - 1000
    for name in [*ours, *others]:
        os.utime(tmp_path / name, (old, old))
    assert sweep_partials(tmp_path, 500) == 3
    assert names(tmp_path) == sorted([*others, fresh.name])
    assert sweep_partials(tmp_path / "absent", 0) == 0


@posix_only
@pytest.mark.parametrize("limit", [1, 5_000, 40_000, 120_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A size limit on files fails like a full disk does: at one of the encoder's writes, or at its last."""
    message = output(
        """
        import resource, signal, sys; from pathlib import Path; import numpy as np
        from modules.ltx.errors import HostError
        from modules.ltx.media import Encoding, Sound, write_video
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        noise = np.random.default_rng(0)
        frames = (noise.integers(0, 255, (1, 64, 64, 3), dtype=np.uint8) for _ in range(40))
        sound = Sound(noise.uniform(-1, 1, (1, 40000)).astype(np.float32), 16000)
        encoding = Encoding(preset="ultrafast", png_frames=True)
        try:
            write_video(Path(sys.argv[1]), frames, fps=24, sound=sound, metadata={}, encoding=encoding)
        except HostError as error:
            print(error)
        """,
        tmp_path / "clip.mp4",
        limit,
    )
    assert str(tmp_path) in message
    assert "\n" not in message
    assert names(tmp_path) == []


def test_folders_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(HostError, match=folder.name):
            write(folder / "clip.mp4", moving(1))
    with pytest.raises(HostError, match="written"):
        write(tmp_path / ("n" * 300 + ".mp4"), moving(1))
    assert names(tmp_path) == ["file"]


@posix_only
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HostError, match=tmp_path.name):
        write(tmp_path / "clip.mp4", moving(1), encoding=ALL_PARTS)
    tmp_path.chmod(0o700)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder nobody may write to")
def test_a_folder_nobody_may_write_to_is_named() -> None:
    with pytest.raises(HostError, match="/proc"):
        write(Path("/proc/clip.mp4"), moving(1))


def test_png_frames_are_exact_and_the_thumbnail_is_the_first(tmp_path: Path) -> None:
    written = write(tmp_path / "a.b.mp4", moving(11, size=(640, 320), chunk=4), encoding=ALL_PARTS)
    assert written.frames_dir == tmp_path / "a.b-frames"
    assert written.thumbnail == tmp_path / "a.b.jpg"
    assert names(written.frames_dir) == [f"{index:05d}.png" for index in range(11)]
    sent = np.concatenate(list(moving(11, size=(640, 320))))
    for index, frame in enumerate(sent):
        with Image.open(written.frames_dir / f"{index:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), frame)
    with Image.open(written.thumbnail) as small:
        assert (small.format, small.size) == ("JPEG", (512, 256))
        first = Image.fromarray(sent[0]).resize((512, 256))
        assert np.abs(np.asarray(small).astype(int) - np.asarray(first)).mean() < 4


@pytest.mark.parametrize("taken", ["clip-frames", "clip.jpg"])
def test_what_is_not_ours_is_not_replaced(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir() if taken.endswith("frames") else (tmp_path / taken).write_bytes(b"mine")
    with pytest.raises(RequestError, match=taken):
        write(tmp_path / "clip.mp4", moving(1), encoding=ALL_PARTS)
    assert names(tmp_path) == [taken]


@pytest.mark.parametrize("name", ["clip.mkv", "clip", ".mp4"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"\.mp4"):
        write(tmp_path / name, moving(1))


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(RequestError, match=r"clip\.mp4"):
        write(tmp_path / "clip.mp4", moving(1))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["file:clip.mp4", "%03d 日本 'q\".MP4", "ü" * 120 + ".mp4"])
def test_unusual_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path(name), moving(2), fps=24, sound=None, metadata={"a": 1}, encoding=FAST)
    assert names(tmp_path) == [name]
    assert read_metadata(Path(name)) == {"a": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "vp9"},
        {"crf": -1},
        {"crf": 52},
        {"preset": "placebo9"},
        {"pix_fmt": "rgb24"},
        {"audio_bitrate": 0},
    ],
)
def test_encodings_are_checked(wrong: dict[str, int | str]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Encoding(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("crf", [0, 51])
def test_the_ends_of_crf_work(tmp_path: Path, crf: int) -> None:
    write(tmp_path / "clip.mp4", moving(3), encoding=Encoding(crf=crf, thumbnail=False))
    assert len(decoded_frames(tmp_path / "clip.mp4")) == 3


def test_a_missing_encoder_is_one_sentence() -> None:
    with pytest.raises(HostError, match="no libnothing encoder"):
        require_encoder("libnothing")
    require_encoder("libx264")


@posix_only
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    code = """
        import resource, sys; from pathlib import Path; import numpy as np
        from modules.ltx.media import Encoding, Sound, write_video
        base = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        base = base.repeat(8, 0).repeat(8, 1)
        count = int(sys.argv[2])
        frames = (np.roll(base, 3 * index, 1)[None] for index in range(count))
        sound = Sound(np.zeros((1, 16000 * 11), np.float32), 16000)
        write_video(Path(sys.argv[1]), frames, fps=24, sound=sound, metadata={})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    unit = 1 if sys.platform == "darwin" else 1024
    few, many = (int(output(code, tmp_path / f"{n}.mp4", n)) * unit for n in (25, 241))
    assert many - few < 40_000_000


def test_torch_is_not_imported() -> None:
    loaded = output("import sys, modules.ltx.media; print('torch' in sys.modules)")
    assert loaded == "False"
