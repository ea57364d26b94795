"""Another release of a library beside .venv: in a folder of its own, without its dependencies, checked by its hash.

A folder that exists is complete. On PYTHONPATH it stands before what is installed.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from setup_tools.project import (
    Project,
    SetupError,
    UsageError,
    canonical,
    dependencies,
    first_module,
    parsed,
    pins,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from setup_tools.survey import Distributions


class NotFetched(SetupError):
    """The package index could not be reached, or does not have the release."""


@dataclass(frozen=True)
class Release:
    """A library and its exact version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


def named(text: str) -> Release:
    """The release that `--with` names. Raises UsageError."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.!+_-]*)", text.strip())
    if match is None:
        raise UsageError(f"--with {text}: it takes a name and one exact version, for example diffusers==0.40.0.")
    return Release(canonical(match[1]), match[2])


def version(text: str) -> Any:
    """A version that can be compared."""
    return first_module("packaging.version", "pip._vendor.packaging.version").Version(text)


def hashed(files: Sequence[Path], release: Release) -> str:
    """A release with its hashes as a requirement line, for whatever Python; empty where none of the files has it."""
    for file in files:
        for pin, hashes in pins(file):
            one = parsed(pin)
            if canonical(one.name) == release.name and one.specifier == parsed(str(release)).specifier and hashes:
                return f"{release} {' '.join(hashes)}\n"
    return ""


def declared(project: Project, library: str, there: Distributions) -> list[Release]:
    """The oldest and the newest release of a library that this project declares, without the one installed `there`."""

    def holds(line: str) -> bool:
        marker = parsed(line).marker
        return marker is None or marker.evaluate({**there.markers, "extra": ""})

    def versions(file: str, *, every: bool = False) -> list[str]:
        """The exact versions of the library that a file of pins has, the oldest first."""
        found = [parsed(pin) for pin, _ in pins(project.root / file) if every or holds(pin)]
        return sorted(
            (next(iter(one.specifier)).version for one in found if canonical(one.name) == library), key=version
        )

    wanted = [parsed(line) for line in dependencies(project.root) if holds(line)]
    range_of = {canonical(one.name): one.specifier for one in wanted}[library]
    oldest = [one for one in versions("pins/releases.txt", every=True) if range_of.contains(one)][:1]
    chosen = dict.fromkeys([*oldest, *versions("constraints.txt")])
    return [Release(library, one) for one in chosen if one != there.version(library)]


def unpacked(project: Project, release: Release, folder: Path, pip: Sequence[str]) -> Path:
    """Where a release lies in `folder`; fetched by `pip` unless it is there.

    Raises NotFetched where pip cannot get it, SetupError where it cannot be installed or differs from its hash.
    """
    place, draft = folder / release.folder, folder / f"draft-{release.folder}"
    if place.is_dir():
        return place
    say(f"Fetching {release} into {place}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    # In two steps, so that no network and a wrong file are different faults. Only wheels: nothing runs before its
    # hash is checked.
    fetch = [
        "download",
        "-qq",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=1",
        "--timeout=15",
        f"--dest={draft / 'wheels'}",
    ]
    if project.run(*pip, *fetch, str(release)) != 0:
        shutil.rmtree(draft)
        raise NotFetched(
            f"{release} could not be fetched, pip's own message is above: check the network and that the index has "
            f"this release (`pip index versions {release.name}`)."
        )
    lines = hashed(sorted((project.root / "pins").glob("*.txt")), release)
    if not lines:
        say(f"{release} has no hash in pins/: what the index sent is taken unchecked")
    install_pinned(
        project, pip, lines or str(release), draft / "files", f"--find-links={draft / 'wheels'}", "--no-index"
    )
    os.replace(draft / "files", place)
    shutil.rmtree(draft)
    return place


def install_pinned(project: Project, pip: Sequence[str], lines: str, target: Path, *more: str) -> None:
    """Have pip unpack requirement lines into a folder, checked where they bring hashes. Raises SetupError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_suffix(".txt")
    file.write_text(lines, encoding="utf-8")
    options = ["-qq", "--no-input", "--no-deps", "--no-compile", f"--target={target}", *more]
    options += ["--require-hashes"] if "--hash=" in lines else []
    if project.run(*pip, "install", *options, f"--requirement={file}") != 0:
        raise SetupError(
            f"pip could not install what {file} lists, its own message is above (what differs from its hash was not "
            "taken): check network and disk space, then run the same command again."
        )


def in_front(folders: Iterable[Path]) -> dict[str, str]:
    """The environment in which these folders stand before what is installed."""
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
