"""A real SD.Next as its users start it: its page in a headless Chromium, and what it offers with us and without us."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import av
import pytest

from setup_tools.checks import browser
from tests.host_contract.boot import PROJECT, arguments
from tests.host_contract.conftest import needs_sdnext

# Where the page's prompt is, and where its LTX tab.
THEMES = {
    "standard/black-teal": (["#tabs > .tab-nav button:text-is('Video')"], "#tab_video .tab-nav button:text-is('LTX')"),
    "modern/Default": (["#video_nav"], "#video_params_ltx"),
}
MODERN = "extensions-builtin/sdnext-modernui/javascript"
QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
BOOT = 300.0  # seconds
# How the names of what we add begin.
OURS = {
    "options": ("ltx_",),
    "samplers": ("Euler FlowMatch Self-Refine",),
    "paths": ("/sdapi/v1/ltx",),
    "elements": (
        "ltx_",
        "setting_ltx_",
        "modification_indicator_ltx",
        "settings_section_row_ltx",
        "settings_section_tab_ltx",
    ),
}


@contextmanager
def serving(
    root: Path, data: Path, *, theme: str = "standard/black-teal", extension: bool = True, more: Sequence[str] = ()
) -> Iterator[str]:
    """The address of a server of its own; `data` is where it keeps its files, `more` are further arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments(data, extension=extension), "--port", str(port), "--theme", theme, *more]
    url = f"http://127.0.0.1:{port}"
    with (data / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, cwd=root, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + BOOT
        while not answers(url):
            assert process.poll() is None, (data / "said.txt").read_text()[-3000:]
            assert time.monotonic() < until, (data / "said.txt").read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/sdapi/v1/status", timeout=5) as reply:
            return bool(reply.status == 200)
    except HTTPError as error:
        return error.code == 401  # it asks for a password
    except (URLError, TimeoutError, ConnectionError):
        return False


def read(url: str) -> Any:
    with urlopen(url, timeout=120) as reply:
        return json.load(reply)


@contextmanager
def opened(url: str, errors: list[str]) -> Iterator[Any]:
    """The page in a browser; what its scripts complain of goes to `errors`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    executable = browser()
    if executable is None:
        pytest.skip("no Chromium on this machine")

    def note(message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    with playwright.sync_playwright() as started:
        switches = [f"--{name}" for name in ("no-sandbox", *QUIET)]
        chromium = started.chromium.launch(executable_path=executable, args=switches)
        page = chromium.new_page(viewport={"width": 1500, "height": 1200})
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        page.goto(url)
        page.wait_for_selector("#ltx_settings", state="attached")
        page.wait_for_timeout(8000)  # the page's own scripts wait for each other
        yield page
        chromium.close()


def choose(page: Any, model: str) -> None:
    page.fill("#ltx_model input", model)
    page.keyboard.press("Enter")


def generate(page: Any) -> None:
    """Press the button, and wait for the name of a new video below the player."""

    def names() -> list[str]:
        return re.findall(r"\S+\.mp4", page.inner_text("#ltx_generation_info"))

    before, end = names(), time.monotonic() + 180
    page.locator("#video_generate").click()
    while not set(names()) - set(before):
        assert time.monotonic() < end, page.inner_text("#ltx_generation_info")
        assert "Error" not in page.inner_text("#ltx_generation_info")
        page.wait_for_timeout(500)


@pytest.mark.parametrize("theme", THEMES)
def test_the_tab_makes_a_video_with_sound(theme: str, tmp_path: Path, picture: Path) -> None:
    root = needs_sdnext()
    if theme.startswith("modern") and not (root / MODERN).is_dir():
        pytest.skip("this SD.Next has no Modern theme: its submodule extensions-builtin/sdnext-modernui is empty")
    errors: list[str] = []
    with serving(root, tmp_path / "data", theme=theme) as url, opened(url, errors) as page:
        ways, tab = THEMES[theme]
        for place in ways:
            page.locator(place).first.click()
        page.fill("#video_prompt textarea", "a small red ball moving right on gray")
        page.locator(tab).first.click()
        assert page.is_visible("#ltx_model")
        assert not page.is_visible("#ltx_first_image")
        for model, uploads in (("LTX-Nano 2.3 T2V Distilled", 0), ("LTX-Nano 2.3 I2V Distilled", 1)):
            choose(page, model)
            if uploads:
                page.wait_for_selector("#ltx_first_image", state="visible")
                page.set_input_files("#ltx_first_image input[type=file]", str(picture))
                page.wait_for_selector("#ltx_first_image img")
            generate(page)
        page.wait_for_function("document.querySelector('#ltx_output_video video').readyState >= 2")
        page.screenshot(path=str(tmp_path / "page.png"))
    assert errors == []
    made = sorted((tmp_path / "data").rglob("outputs/**/*.mp4"))
    assert len(made) == 2
    for path in made:
        with av.open(str(path)) as clip:
            assert clip.streams.video[0].frames == 25
            assert len(clip.streams.audio) == 1


def offered(url: str, data: Path) -> dict[str, dict[str, Any]]:
    """What the server has for its users, by kind and name; `data` is its folder."""
    components = read(f"{url}/config")["components"]
    names = {str(one["props"].get("elem_id")): one["type"] for one in components if one["props"].get("elem_id")}
    return {
        "options": json.loads(json.dumps(read(f"{url}/sdapi/v1/options")).replace(str(data), "")),
        "samplers": {one["name"]: one["options"] for one in read(f"{url}/sdapi/v1/samplers")},
        "paths": read(f"{url}/openapi.json")["paths"],
        "elements": {name: kind for name, kind in names.items() if not name.startswith("component-")},
    }


def test_nothing_else_of_the_host_is_changed(tmp_path: Path) -> None:
    root = needs_sdnext()
    with serving(root, tmp_path / "plain", extension=False) as url:
        plain = offered(url, tmp_path / "plain")
    with serving(root, tmp_path / "ours") as url:
        ours = offered(url, tmp_path / "ours")
    for kind, had in plain.items():
        added = {name for name in ours[kind] if name not in had}
        gone = {name for name in had if name not in ours[kind]}
        changed = {name for name in had if name in ours[kind] and had[name] != ours[kind][name]}
        assert {name for name in added if not name.startswith(OURS[kind])} == set(), kind
        if kind == "elements":  # the host's own tab is not there
            gone = {name for name in gone if not name.startswith("ltx_")} - {"video_model_load_ltx"}
        assert gone == set(), kind
        assert changed == set(), kind


def test_the_installer_adds_only_what_is_missing() -> None:
    """Run as the host runs it for its extensions; this Python has all that is wanted."""
    root = needs_sdnext()
    freeze = [sys.executable, "-m", "pip", "freeze"]
    before = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    command, environment = [sys.executable, str(PROJECT / "install.py")], os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "LTX video: nothing to install")
    assert subprocess.run(freeze, capture_output=True, text=True, check=True).stdout == before
