"""Asks OSV (https://osv.dev) which of the pinned versions have known vulnerabilities. One request, names and versions.

    python -m bench.audit [--strict]

Prints a line for each, or one that says why nobody could be asked: a test run does not fail for want of a network, nor
because something became known over night. With `--strict`, both are exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
OSV = "https://api.osv.dev/v1/querybatch"
PATIENCE = 20.0  # seconds


class Unanswered(Exception):
    """Nobody answered, or not in a way that is understood; the text says why."""


def pinned(file: Path) -> list[tuple[str, str]]:
    """(name, version) of every pin, those for other Pythons included."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    wanted = map(Requirement, lines)
    return [(one.name, specifier.version) for one in wanted for specifier in one.specifier]


def known(pins: Sequence[tuple[str, str]], address: str = OSV) -> dict[str, list[str]]:
    """The ids of what is known against each pin that has any, as "name version". Raises Unanswered."""
    asked = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins]
    body = json.dumps({"queries": asked}).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            results: Any = json.load(answer)["results"]
        told = [[str(one["id"]) for one in result.get("vulns", ())] for result in results]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unanswered(str(error) or type(error).__name__) from error
    if len(told) != len(pins):
        raise Unanswered(f"{len(told)} answers to {len(pins)} questions")
    return {f"{name} {version}": ids for (name, version), ids in zip(pins, told, strict=True) if ids}


def main(arguments: Sequence[str], address: str = OSV, file: Path = PINS) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true")
    strict = parser.parse_args(arguments).strict
    pins = pinned(file)
    try:
        found = known(pins, address)
    except Unanswered as error:
        print(f"audit: not made, OSV could not be asked ({error}); the pins stay as they are")
        return int(strict)
    for pin, ids in found.items():
        print(f"audit: {pin}: {', '.join(ids)}; see https://osv.dev/vulnerability/{ids[0]}")
    print(f"audit: of {len(pins)} pins, {len(found)} have known vulnerabilities")
    return int(strict and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
