"""The documents against the code: the generated table, the version, the example, the promises of length."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from modules.ltx.cli_show import models_markdown
from modules.ltx.library_features import FEATURES, has
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.recipes_page import page
from modules.ltx.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_table_of_variants_is_the_codes() -> None:
    shown = README.split("checked by a test -->\n")[1].split("\n<!-- end of variants")[0]
    assert shown == models_markdown(all_caps()), "run `python -m modules.ltx models --markdown` and put it in"


def test_architecture_is_short() -> None:
    assert len(ARCHITECTURE.splitlines()) < 150


def test_every_file_that_is_named_exists() -> None:
    inside = [ROOT, ROOT / "modules", ROOT / "modules" / "ltx", ROOT / "modules" / "video_models"]
    inside += [ROOT / "modules" / "ltx" / "hosts", ROOT / "extensions" / "selfrefiner"]
    for name in re.findall(r"[\w/-]+\.(?:py|md|txt|toml)\b", README + ARCHITECTURE):
        assert any((folder / name).exists() for folder in inside), name


def test_one_version() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{VERSION}"' in pyproject
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_example_in_python_runs_as_it_stands(cache: Path, tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    environment = {**os.environ, "LTX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (tmp_path / done.stdout.splitlines()[-1]).is_file()
    assert "you get 256x256" in done.stdout


def test_the_recipes_are_the_codes() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = text.split("<!-- rows -->\n")[1].split("\n<!-- end of rows -->")[0]
    assert shown == "\n".join(page()), "run `python -m modules.ltx.recipes_page` and put it in"


def test_a_document_for_each_link() -> None:
    for source in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", source.read_text(encoding="utf-8")):
            assert (source.parent / link).exists(), f"{source.name}: {link}"


def test_the_table_of_features_is_that_of_the_installed_diffusers() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    head, _, *rows = text.split("checked by a test -->\n")[1].split("\n<!-- end of features")[0].splitlines()
    column = [cell.strip() for cell in head.split("|")].index(importlib.metadata.version("diffusers"))
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [row[1] for row in cells] == [feature.name for feature in FEATURES]
    assert [row[column] for row in cells] == ["yes" if has(feature) else "no" for feature in FEATURES]
    assert [row[-2] for row in cells] == [feature.without for feature in FEATURES]
