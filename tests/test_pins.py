"""The pins: every dependency and what it brings in, at one version in its range; the locks at the same, with hashes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import install
from bench.pins import GROUPS, asked, kept
from setup_tools.checks import LIBRARY
from setup_tools.project import canonical, dependencies
from setup_tools.survey import Distributions

REPO = Path(install.__file__).resolve().parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def blocks(file: str) -> list[list[str]]:
    """Every pin of a file with its hashes, a word each, first the pin itself."""
    text = "".join(
        line for line in (REPO / file).read_text(encoding="utf-8").splitlines(keepends=True) if line[0] != "#"
    )
    return [line.split(" --hash=") for line in text.replace(" \\\n   ", "").splitlines() if line]


def pins(file: str, python: str, system: str = sys.platform) -> dict[str, str]:
    """Name and exact version of each pin that holds for one Python on one system."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": system}
    found: dict[str, str] = {}
    for line, *_ in blocks(file):
        pin = Requirement(line)
        if pin.marker and not pin.marker.evaluate(there):
            continue
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version, "a local build is this machine's business"
        assert canonical(pin.name) not in found
        found[canonical(pin.name)] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    pinned = pins("constraints.txt", python)
    for line in dependencies(REPO, "test"):
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"python_version": python}):
            assert wanted.specifier.contains(pinned[canonical(wanted.name)]), line


@pytest.mark.parametrize("group", GROUPS)
def test_dependencies_of_dependencies_are_pinned_and_locked(group: str) -> None:
    here = ".".join(map(str, sys.version_info[:2]))
    pinned, locked = pins("constraints.txt", here), pins(f"pins/{group}.txt", here)
    waiting, seen = set(asked(group)), set()
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonical(wanted.name)
        if of_the_build(name) or name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        assert name in pinned, wanted
        assert name in locked or name == "torch", wanted
        waiting |= set(requirements_of(name, pinned[name]))


def of_the_build(name: str) -> bool:
    """CUDA libraries are torch's own business: each of its builds names its own, exactly."""
    return name == "triton" or name.startswith(("nvidia-", "cuda-"))


def requirements_of(name: str, pinned: str) -> list[str]:
    """What a distribution needs; nothing when another version than the pinned one is installed."""
    here = Distributions()
    return here.requires(name) if (here.version(name) or "").split("+")[0] == pinned else []


@pytest.mark.parametrize("system", ["linux", "win32", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_lock_has_the_versions_of_the_constraints(group: str, python: str, system: str) -> None:
    locked = pins(f"pins/{group}.txt", python, system)
    assert locked.items() <= pins("constraints.txt", python, system).items()
    assert not [name for name in locked if name == "torch" or of_the_build(name)]
    missing = {canonical(Requirement(line).name) for line in asked(group) if for_python(line, python)} - {*locked}
    assert missing <= {"torch"}


def for_python(line: str, python: str) -> bool:
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"python_version": python})


@pytest.mark.parametrize("group", [*GROUPS, "releases"])
def test_every_pin_of_a_lock_has_its_hashes(group: str) -> None:
    for pin, *hashes in blocks(f"pins/{group}.txt"):
        assert hashes, pin
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), pin


@pytest.mark.parametrize("python", PYTHONS)
def test_the_releases_to_test_with_are_those_that_are_declared(python: str) -> None:
    """From the oldest that pyproject.toml allows to the one that is pinned."""
    [allowed] = [one.specifier for one in map(Requirement, dependencies(REPO)) if one.name == LIBRARY]
    releases = [Version(next(iter(Requirement(pin).specifier)).version) for pin, *_ in blocks("pins/releases.txt")]
    assert all(allowed.contains(one) for one in releases)
    [oldest] = [Version(one.version) for one in allowed if one.operator == ">="]
    assert min(releases) == oldest
    assert Version(pins("constraints.txt", python)[LIBRARY]) in releases


def test_what_belongs_to_the_build_of_torch_is_left_out_of_a_lock() -> None:
    text = ["rich==1 \\", "    --hash=a", "torch==2 \\", "    --hash=b", "nvidia-nccl-cu13==1 \\", "    --hash=c"]
    others = ["js==1 ; sys_platform == 'emscripten' \\", "    --hash=d", "torchless==1 \\", "    --hash=e"]
    assert list(kept([*text, *others])) == [*text[:2], *others[2:]]
