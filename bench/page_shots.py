"""`python -m bench.page_shots FOLDER`: pictures of the web app for the docs, made by using it in a headless Chromium.

Starts a server of its own with LTX-Nano; writes web-plan.png, web-running.png, web-result.png, web-compare.png,
web-drafts.png and web-phone.png. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

PROMPT = "a big yellow triangle bouncing on gray"
_SWITCHES = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server that keeps its videos in a folder of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-m", "modules.ltx", "serve", "--port", "0", "--device", "cpu", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        try:
            yield json.loads(running.stdout.readline())["address"]
        finally:
            running.terminate()
            running.wait()


def choose(page: Any, name: str, text: str) -> None:
    page.click(f"#ltx_{name} input")
    page.click(f"[role=option]:has-text('{text}')")


def ended(page: Any) -> None:
    page.wait_for_selector("#ltx_cancel:not([disabled])")
    page.wait_for_selector("#ltx_generate:not([disabled])", timeout=180_000)
    page.wait_for_timeout(2500)  # the player shows its first picture


def shoot(page: Any, folder: Path, name: str) -> None:
    path = folder / f"web-{name}.png"
    page.screenshot(path=str(path))
    picture = Image.open(path).convert("RGB")
    picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def make(address: str, browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector("#ltx_plan >> text=you get")
    page.fill("#ltx_prompt textarea", PROMPT)
    page.fill("#ltx_seed input", "3")
    page.click("#ltx_generate")
    page.wait_for_selector("#ltx_preview img")
    shoot(page, folder, "running")
    page.wait_for_selector("#ltx_generate:not([disabled])", timeout=180_000)
    page.wait_for_timeout(2500)
    shoot(page, folder, "result")
    page.click("button[role=tab]:has-text('Before you run')")
    choose(page, "self_refine", "p1")
    page.wait_for_selector("#ltx_plan .again", state="attached")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    shoot(page, folder, "plan")
    page.click("#ltx_both")
    ended(page)
    shoot(page, folder, "compare")
    page.click("button[role=tab]:has-text('Drafts')")
    page.click("#ltx_draft")
    page.wait_for_function("document.querySelectorAll('#ltx_sketches img').length === 4", timeout=180_000)
    page.click("#ltx_sketches button:has(img) >> nth=2")
    page.wait_for_selector("#ltx_finish:not([disabled])")
    page.wait_for_timeout(1000)
    shoot(page, folder, "drafts")
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.goto(f"{address}/?__theme=dark")
    phone.wait_for_selector("#ltx_plan >> text=you get", state="attached")
    phone.wait_for_timeout(1000)
    shoot(phone, folder, "phone")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.page_shots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    asked = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with serving() as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=[f"--{name}" for name in _SWITCHES])
        make(address, browser, asked.folder)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
