"""The command line as a user meets it, by exit code, stdout and files: in processes of its own, and where that shows
nothing more, in this one, which has imported torch already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from modules.ltx.__main__ import main
from modules.ltx.ltx_capabilities import all_caps

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--width", "64", "--height", "64", "--frames", "9", "--steps", "2"]


class Result:
    """What a finished command left: exit code, stdout, stderr."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "LTX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def ltx(environment: dict[str, str], tmp_path: Path) -> Any:
    """`ltx(*arguments)`: the command run in an empty folder."""

    def call(*arguments: object) -> Result:
        command = [sys.executable, "-m", "modules.ltx", *map(str, arguments)]
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        return Result(done)

    return call


@pytest.fixture
def here(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """`here(*arguments)`: the same in this process."""
    monkeypatch.setenv("LTX_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([*map(str, arguments)])
        return Result(subprocess.CompletedProcess([], code, *capfd.readouterr()))

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_models_lists_every_variant_with_its_capabilities(ltx: Any) -> None:
    rows = ltx("models", "--json").json()
    assert [row["label"] for row in rows] == [caps.label for caps in all_caps()]
    row = next(r for r in rows if r["label"] == "LTXVideo 2.3 22B T2V")
    assert row["stg_default_blocks"] == [28]
    assert row["supports_two_stage_refine"] is True
    assert row["ready"] is True
    shown = ltx("models").out
    assert all(caps.id in shown for caps in all_caps())


def test_plan_prints_the_whole_plan_without_loading_anything(ltx: Any, tmp_path: Path) -> None:
    made = ltx("plan", "--model", "LTXVideo 2.3 22B T2V", "--prompt", "x", "--refine", "--json").json()
    first, up, second = made["stages"]
    assert (first["width"], first["height"], len(first["sigmas"])) == (384, 256, 30)
    assert first["guidance"]["stg_blocks"] == [28]
    assert up["upsample_passes"] == 1
    assert second["sigmas"] == [0.909375, 0.725, 0.421875]
    assert second["lora"]["strength"] == 1.0
    assert (made["audio_from"], made["evaluations"]) == ("stage1", 33)
    assert files(tmp_path) == set()
    shown = ltx("plan", "--model", "2.3-dev-t2v", "--refine").out
    assert "you get 768x512" in shown
    assert "384x256" in shown


def test_generate_prints_the_path_last_and_nothing_else(ltx: Any, tmp_path: Path) -> None:
    done = ltx("generate", "--prompt", "a red ball", "--seed", 5, *TINY)
    assert (done.code, done.err) == (0, "")
    path = tmp_path / done.out.strip()
    assert path.parent.name == "outputs"
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]


def test_from_repeats_a_video_and_options_override_it(ltx: Any, here: Any, tmp_path: Path) -> None:
    first = here("generate", "--prompt", "a red ball", "--refine", "--json", *TINY).json()
    again = ltx("generate", "--from", first["path"], "--json").json()
    other = here("generate", "--from", first["path"], "--seed", 99, "-o", "named/other.mp4", "--json").json()
    assert (tmp_path / first["path"]).read_bytes() == (tmp_path / again["path"]).read_bytes()
    assert again["seed"] == first["seed"]
    assert other["video_latents_sha256"] != first["video_latents_sha256"]
    assert other["path"] == str(Path("named") / "other.mp4")
    assert (tmp_path / "named" / "other.mp4").is_file()


def test_png_frames_and_no_thumbnail(here: Any, tmp_path: Path) -> None:
    done = here("generate", "--png", "--no-thumbnail", "--no-audio", "-o", "v.mp4", *TINY)
    assert done.code == 0
    assert files(tmp_path) == {"v.mp4", "v-frames", *(f"v-frames/{n:05}.png" for n in range(9))}


def test_a_prompt_cannot_choose_a_path(here: Any, tmp_path: Path) -> None:
    done = here("generate", "--prompt", "../../evil/../x\n; rm -rf /", "--seed", 1, *TINY)
    assert done.code == 0
    assert all(name == "outputs" or name.startswith("outputs/2") for name in files(tmp_path))
    assert not any("evil" in name for name in files(tmp_path))


BAD: list[tuple[list[str], str]] = [
    (["--model", "LTXVideo 2.3 T2V"], "nearest are: LTXVideo 2.3 22B T2V"),
    (["--width", "wide"], "a whole number from 32 to 4096"),
    (["--width", "0"], "from 32 to 4096"),
    (["--height", "-8"], "from 32 to 4096"),
    (["--height", "1000000"], "from 32 to 4096"),
    (["--frames", "0"], "from 1 to 2401"),
    (["--model", "nano-2.3-dev-i2v"], "add --image"),
    (["--image", "missing.png"], "missing.png"),
    (["--image", "text.png"], "text.png"),
    (["--model", "./no-such-folder"], "does not exist"),
    (["--model", "some-org/some-repo"], "offline"),
    (["--model", "Lightricks/LTX-2"], "offline"),
    (["--image", "missing.png", "--condition-strength", "nan"], "--condition-strength"),
    (["--lora", "x.safetensors:nan"], "--lora"),
    (["--lora", "missing.safetensors"], "no such file"),
    (["--stg-scale", "inf"], "--stg-scale"),
    (["--outputs", "text.png/x"], "cannot be written"),
    (["-o", "text.png/x.mp4"], "cannot be written"),
    (["-o", "video.avi"], ".mp4"),
    (["--from", "text.png"], "text.png"),
    (["--device", "tpu"], "it has: "),
    (["--dtype", "int3"], "float32"),
    (["--offload", "model", "--device", "cpu"], "no other device"),
    (["--bogus"], "--help"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_one_line_and_changes_nothing(
    ltx: Any, here: Any, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    call = ltx if arguments[0] in ("--device", "--bogus", "--lora") else here
    done = call("generate", "--prompt", "x", *TINY, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert sentence in done.err
    assert files(tmp_path) == {"text.png"}


def test_errors_are_json_too(ltx: Any) -> None:
    done = ltx("plan", "--width", "x", "--json")
    assert done.json()["error"] == {
        "type": "RequestError",
        "message": done.err.removeprefix("error: ").strip(),
        "exit_code": 2,
    }


def test_an_empty_prompt_and_a_huge_one_are_allowed_with_a_note(here: Any) -> None:
    assert any("empty" in note for note in here("plan", "--json").json()["notes"])
    huge = here("generate", "--prompt", "red ball " * 11_000, "--json", *TINY)
    assert huge.code == 0
    assert any("64 tokens" in note for note in huge.json()["plan"]["notes"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        *((phase, signal.SIGINT) for phase in ("loading the model", "stage 1", "stage 2")),
        ("stage 1", signal.SIGTERM),
    ],
)
def test_ctrl_c_in_any_phase_leaves_nothing_behind(
    environment: dict[str, str], tmp_path: Path, kind: signal.Signals, phase: str
) -> None:
    arguments = ["--prompt", "x", "--refine", "--frames", "97", "--steps", "60", "--stage2-steps", "60"]
    size = ["--width", "64", "--height", "64"] if phase == "stage 2" else []
    command = [sys.executable, "-m", "modules.ltx", "generate", *arguments, *size]
    terminal, theirs = os.openpty()
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = read_until(terminal, phase)
    assert "you get" in shown  # on a terminal the plan is shown first
    running.send_signal(kind)
    ended = read_until(terminal, None)
    out, _ = running.communicate(timeout=120)
    os.close(terminal)
    assert (running.returncode, out) == (3, "")
    assert "cancelled; nothing was written" in ended
    assert "Traceback" not in ended
    assert files(tmp_path) == set()


def read_until(terminal: int, text: str | None) -> str:
    """What a terminal shows until `text` appears; None: until the other side is closed."""
    shown = b""
    while text is None or text.encode() not in shown:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux tells the end of a pseudo-terminal this way
            chunk = b""
        if not chunk:
            break
        shown += chunk
    return shown.decode("utf-8", "replace")


def test_help_is_for_newcomers_and_quick_to_import(ltx: Any) -> None:
    for arguments in (["--help"], ["generate", "--help"], ["plan", "--help"], ["models", "--help"]):
        done = ltx(*arguments)
        assert done.code == 0
        assert "usage: python -m modules.ltx" in done.out
    text = ltx("generate", "--help").out
    for flag in (
        "--refine",
        "--image",
        "--stg-scale",
        "--audio-guidance-rescale",
        "--no-dynamic-shift",
        "-o",
    ):
        assert flag in text
