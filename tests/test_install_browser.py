"""The browser that install.py brings for the tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from setup_tools.checks import ensure_browser
from setup_tools.project import Project


@pytest.mark.skipif(os.name != "posix", reason="apt")
@pytest.mark.parametrize(("there", "asked"), [("chromium", 0), ("google-chrome", 0), ("apt-get", 1), ("nothing", 0)])
def test_a_browser_is_installed_where_apt_may_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, asked: int
) -> None:
    have = {"apt-get", there} if there != "nothing" else set()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in have else None)
    started: list[object] = []

    def note(command: Sequence[str], *_: object) -> int:
        started.append(command)
        return 0

    for user, times in ((1000, 0), (0, asked)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        ensure_browser(Project(tmp_path, note))
        assert len(started) == times
