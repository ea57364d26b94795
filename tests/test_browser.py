"""The web app in a headless Chromium, as a person uses it; no message of its console, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from setup_tools import checks

ROOT = Path(__file__).resolve().parent.parent
QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
PROMPT = "a small red ball moving right on black"
CHROMIUM = checks.browser()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def address(cache: Path, outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server as a user starts it."""
    environment = os.environ | {"LTX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--device", "cpu", "--json"]
    command += ["--outputs", str(outputs)]
    folder = tmp_path_factory.mktemp("server")
    running = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        yield json.loads(running.stdout.readline())["address"]
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as started:
        switches = [f"--{name}" for name in ("no-sandbox", *QUIET)]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield chromium
        chromium.close()


@pytest.fixture
def wrong() -> list[str]:
    """What the page complained of, and what it loaded from elsewhere."""
    return []


@pytest.fixture
def page(browser: Any, address: str, wrong: list[str]) -> Iterator[Any]:
    """The page, opened; whatever is wrong with it fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(own(address)) else None)
    opened(page, address)
    yield page
    page.close()
    assert wrong == []


def own(address: str) -> tuple[str, ...]:
    """What a page may load."""
    return address, "data:", "blob:"


def opened(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#ltx_plan >> text=you get", state="attached")


def done(page: Any) -> str:
    """What is said of the video that was asked for."""
    page.wait_for_selector("#ltx_cancel:not([disabled])")
    ready(page)
    page.wait_for_selector("#ltx_done >> text=in all")
    return str(page.inner_text("#ltx_done"))


def ready(page: Any) -> None:
    page.wait_for_selector("#ltx_generate:not([disabled])")


def set_number(page: Any, name: str, value: float) -> None:
    page.fill(f"#ltx_{name} input[type=number]", str(value))
    page.keyboard.press("Tab")


def open_group(page: Any, name: str, control: str) -> None:
    if not page.is_visible(f"#ltx_{control}"):
        page.click(f"button:has-text('{name}')")
    page.wait_for_selector(f"#ltx_{control}", state="visible")


def choose(page: Any, name: str, text: str) -> None:
    page.click(f"#ltx_{name} input")
    page.click(f"[role=option]:has-text('{text}')")


def test_a_video_is_made_played_and_asked_again(page: Any, outputs: Path) -> None:
    page.fill("#ltx_prompt textarea", PROMPT)
    set_number(page, "seed", 7)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#ltx_state >> text=evaluation")
    assert "seed 7" in done(page)
    page.wait_for_function("document.querySelector('#ltx_video video').readyState >= 2")
    assert len(list(outputs.glob("*.mp4"))) == 1
    page.fill("#ltx_prompt textarea", "something else")
    page.click("#ltx_again")
    page.wait_for_function(f"document.querySelector('#ltx_prompt textarea').value === {PROMPT!r}")
    page.click("button[role=tab]:has-text('Earlier videos')")
    page.click("#ltx_gallery button:has(video), #ltx_gallery button:has(img)")
    page.wait_for_selector("#ltx_chosen >> text=seed")
    page.fill("#ltx_prompt textarea", "something else")
    page.click("#ltx_use:not([disabled])")
    page.wait_for_function(f"document.querySelector('#ltx_prompt textarea').value === {PROMPT!r}")
    page.click("#ltx_folder")
    page.wait_for_selector(f"#ltx_chosen >> text={outputs.name}")


def test_the_plan_follows_what_one_types(page: Any) -> None:
    open_group(page, "Self-refiner", "self_refine")
    choose(page, "self_refine", "p1")
    page.wait_for_selector("#ltx_plan .again", state="attached")
    plain = page.locator("#ltx_plan circle").count()
    page.fill("#ltx_self_refine_plan textarea, #ltx_self_refine_plan input", "2-4:3")
    page.wait_for_function(f"document.querySelectorAll('#ltx_plan circle').length != {plain}")
    assert page.locator("#ltx_plan .again").count() == 6
    page.fill("#ltx_self_refine_plan textarea, #ltx_self_refine_plan input", "2-x:3")
    page.wait_for_selector("#ltx_plan [role=alert]")
    page.wait_for_selector("#ltx_self_refine_plan >> text=2-x")  # beside the field too
    choose(page, "preset", "16:9,")
    page.wait_for_function("document.querySelector('#ltx_width input[type=number]').value === '320'")


def test_another_model_brings_its_controls_and_wants_its_image(page: Any, picture: Path, outputs: Path) -> None:
    before = len(list(outputs.glob("*.mp4")))
    assert not page.is_visible("#ltx_first_image")
    choose(page, "model", "LTX-Nano 2.3 I2V Distilled")
    page.wait_for_selector("#ltx_first_image", state="visible")
    page.wait_for_selector("#ltx_plan >> text=add an image")
    page.click("#ltx_generate")
    page.wait_for_selector("#ltx_state >> text=add an image")
    assert len(list(outputs.glob("*.mp4"))) == before
    page.click("button[role=tab]:has-text('Before you run')")
    page.click("#ltx_help >> text=from text alone")  # what the error advises
    page.wait_for_selector("#ltx_first_image", state="hidden")
    page.wait_for_selector("#ltx_plan >> text=you get")
    assert not page.is_visible("#ltx_help")
    choose(page, "model", "LTX-Nano 2.3 I2V Distilled")
    page.set_input_files("#ltx_first_image input[type=file]", str(picture))
    page.wait_for_selector("#ltx_first_image img")
    page.click("#ltx_generate")
    done(page)
    assert len(list(outputs.glob("*.mp4"))) == before + 1


def test_a_job_is_found_again_paused_and_cancelled(page: Any, address: str, outputs: Path, wrong: list[str]) -> None:
    before = len(list(outputs.glob("*.mp4")))
    open_group(page, "Sampling", "steps")
    set_number(page, "steps", 200)
    set_number(page, "frames", 481)  # stage 1 must outlast a reload: of 121 frames it took a fast machine 6 s
    page.wait_for_selector("#ltx_plan >> text=481 frames", state="attached")
    page.click("#ltx_generate")
    page.wait_for_selector("#ltx_state >> text=evaluation 2")
    opened(page, address)  # reloaded
    page.wait_for_selector("#ltx_state >> text=stage 1")
    wrong.clear()  # the page that was left complains that its stream of events ended
    page.wait_for_selector("#ltx_preview img")
    page.click("#ltx_pause")
    page.wait_for_selector("#ltx_pause >> text=Go on")
    page.wait_for_timeout(1500)
    held = re.search(r"evaluation \d+", page.inner_text("#ltx_state"))
    page.wait_for_timeout(1500)
    assert held is not None
    assert held[0] in page.inner_text("#ltx_state")
    page.keyboard.press("Escape")
    page.wait_for_selector("#ltx_done >> text=cancelled")
    ready(page)
    assert len(list(outputs.glob("*.mp4"))) == before


def test_off_and_on_are_seen_beside_one_another_and_a_file_restores_its_settings(page: Any, outputs: Path) -> None:
    page.fill("#ltx_prompt textarea", PROMPT)
    open_group(page, "Self-refiner", "self_refine")
    choose(page, "self_refine", "p2")
    page.wait_for_selector("#ltx_plan .again", state="attached")
    page.click("#ltx_both")
    page.wait_for_selector("#ltx_state >> text=video 2 of 2")
    done(page)
    page.wait_for_selector("#ltx_other video")
    assert_in_step(page)
    newest = max(outputs.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
    choose(page, "self_refine", "off")
    page.click("button[role=tab]:has-text('Settings of a file')")
    page.set_input_files("#ltx_restore input[type=file]", str(newest))
    page.wait_for_selector("#ltx_told >> text=are in the form now")
    page.wait_for_function("document.querySelector('#ltx_self_refine input').value === 'p2'")


def test_jobs_stand_in_line_and_a_draft_is_chosen(page: Any, outputs: Path) -> None:
    before = len(list(outputs.glob("*.mp4")))
    open_group(page, "Sampling", "steps")
    set_number(page, "steps", 200)
    set_number(page, "frames", 481)  # it must run until it is cancelled
    page.fill("#ltx_prompt textarea", "a big blue square still on white")
    page.click("#ltx_generate")
    page.wait_for_selector("#ltx_state >> text=evaluation")
    set_number(page, "steps", 4)
    set_number(page, "frames", 25)
    page.fill("#ltx_prompt textarea", PROMPT)
    page.click("#ltx_add")
    page.wait_for_selector("#ltx_line >> text=queued")
    page.click("#ltx_job input")
    page.click("[role=option]:has-text('a big blue square')")
    page.click("#ltx_drop")  # the running one; the next is shown where videos are, and one is left where one is
    page.wait_for_selector("#ltx_line >> text=cancelled")
    page.click("button[role=tab]:has-text('Video')")
    page.wait_for_selector("#ltx_done >> text=in all")
    ready(page)
    assert len(list(outputs.glob("*.mp4"))) == before + 1
    page.click("button[role=tab]:has-text('Drafts')")
    page.fill("#ltx_drafts input[type=number]", "2")
    page.keyboard.press("Tab")
    page.click("#ltx_draft")
    page.wait_for_function("document.querySelectorAll('#ltx_sketches img').length === 2")
    page.click("#ltx_sketches button:has(img) >> nth=1")
    page.wait_for_selector("#ltx_drafting >> text=/number 2, seed [0-9]+, is chosen/")
    page.click("#ltx_finish:not([disabled])")
    done(page)
    assert len(list(outputs.glob("*.mp4"))) == before + 2


def assert_in_step(page: Any) -> None:
    """What is done to one of two players the other does too."""
    both = "['ltx_video', 'ltx_other'].map((id) => document.querySelector(`#${id} video`))"
    page.wait_for_function(f"{both}.every((one) => one.readyState >= 2 && !one.paused)")
    for one, other in ((0, 1), (1, 0)):
        page.evaluate(f"{both}[{one}].pause()")
        page.wait_for_function(f"{both}[{other}].paused")
        page.evaluate(f"{both}[{one}].currentTime = 0.5")
        page.wait_for_function(f"Math.abs({both}[{other}].currentTime - 0.5) < 0.05")
        page.evaluate(f"{both}[{one}].play()")
        page.wait_for_function(f"!{both}[{other}].paused")


def test_it_fits_a_phone(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    opened(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.is_visible("#ltx_generate")
    page.close()
