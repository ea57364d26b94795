"""Styles: words that are added to prompts by name, from a `styles.csv` as many web UIs keep one.

Its columns are name, prompt and negative_prompt; others are not looked at. `{prompt}` in a style stands for the words
it is added to; a style without it goes behind them. Knows no page.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.ltx.errors import RequestError

NAME = "styles.csv"


@dataclass(frozen=True)
class Style:
    """Words for the prompt and the negative prompt."""

    name: str
    prompt: str = ""
    negative: str = ""


def read(file: Path) -> dict[str, Style]:
    """The styles of a file, by name, in its order; none where there is no such file, or it holds no such table."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    made = [Style(row.get("name", "").strip(), row.get("prompt", ""), row.get("negative_prompt", "")) for row in rows]
    return {style.name: style for style in made if style.name}


def styled(prompt: str, negative: str, names: Sequence[str], known: dict[str, Style]) -> tuple[str, str]:
    """Both prompts with the styles of these names added, in their order. Raises RequestError for an unknown name."""
    for name in names:
        if name not in known:
            raise RequestError(f"style {name!r}: not in {NAME} any more; choose another, or load the page again.")
        prompt = _added(prompt, known[name].prompt)
        negative = _added(negative, known[name].negative)
    return prompt, negative


def _added(words: str, style: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", words)
    return ", ".join(part for part in (words.strip(), style.strip()) if part)
