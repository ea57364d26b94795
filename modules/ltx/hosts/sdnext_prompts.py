"""Words of the tab as the web UI expands them: styles, `{a|b}`, wildcards, and networks in angle brackets."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.hosts.sdnext import ui

_NETWORK = re.compile(r"<lora:([^:>]+)(?::([^:>]+))?[^>]*>")


def expanded(prompt: str, negative: str, styles: Any, seed: int) -> tuple[str, str]:
    """Prompt and negative prompt with alternatives drawn, styles added and wildcards replaced, in the web UI's order.

    What is drawn depends on `seed` alone. The web UI's own function for all of this counts as a job of its own, which
    would clear the state of one that is running.
    """
    known, chosen = ui("shared").prompt_styles, list(styles or [])
    wildcards = [known.find_style(name).wildcards for name in chosen]
    merge = (known.apply_styles_to_prompt, known.apply_negative_styles_to_prompt)
    made = [
        _drawn(words, wildcards, seed, lambda drawn, add=add: add(drawn, chosen, wildcards=False))
        for words, add in zip((prompt, negative), merge, strict=True)
    ]
    return made[0], made[1]


def _drawn(words: str, wildcards: Sequence[str], seed: int, styled: Any) -> str:
    """One prompt. The web UI draws from Python's own generator, which is afterwards as it was."""
    theirs, before = ui("styles"), random.getstate()
    try:
        random.seed(seed)
        words = styled(theirs.apply_curly_braces_to_prompt(words, seed))
        return str(theirs.apply_wildcards_to_prompt(words, wildcards, seed))
    finally:
        random.setstate(before)


def networks(prompt: str) -> tuple[str, list[dict[str, object]]]:
    """The prompt without its <lora:NAME:STRENGTH>, and those as LoRAs of the request: they act in both stages.

    Raises RequestError that names all that is wrong with one of them.
    """
    found = [_network(name.strip(), strength.strip()) for name, strength in _NETWORK.findall(prompt)]
    return _NETWORK.sub("", prompt).strip(), found


def _network(name: str, strength: str) -> dict[str, object]:
    known, wrong = ui("lora.lora_load").available_networks, []
    if name not in known:
        wrong.append(f"the web UI lists no network {name!r} (refresh its networks, or check the name)")
    try:
        number = float(strength or 1.0)
    except ValueError:
        wrong.append(f"the strength {strength!r} is not a number (write it as 0.8)")
    if wrong:
        raise RequestError(f"<lora:{name}{':' if strength else ''}{strength}>: {', and '.join(wrong)}.")
    return {"source": str(known[name].filename), "strength": number}
