"""Runs tests/host_contract in a real SD.Next with that host's own Python, to which nothing is installed.

What the tests need and the host does not have goes to .host-test/ and is importable after everything of the host. It
ends with a table of the versions that were found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from setup_tools.checks import browser, name_tests
from setup_tools.environment import OLDEST_PYTHON
from setup_tools.project import (
    BAD_USAGE,
    CANCELLED,
    FAILED,
    Project,
    SetupError,
    UsageError,
    canonical,
    dependencies,
    is_fresh,
    output_of,
    parsed,
    pins,
    say,
    write_stamp,
)
from setup_tools.releases import Release, hashed, in_front, install_pinned, unpacked
from setup_tools.survey import Elsewhere, look_into, survey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHECKOUT = ("launch.py", "installer.py", "webui.py", "modules/modeldata.py")  # what the tests start it with
NEEDED = ("torch", "diffusers", "transformers", "gradio")  # without them it is not a host's Python
TOOLS = ("pytest",)  # what the tests import; playwright too, where there is a Chromium
SHOWN = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "gradio", "av"),
    *("numpy", "safetensors", "sdnq", "optimum-quanto"),
)
ABSENT = "not there"
MODERN = "extensions-builtin/sdnext-modernui"
ENDS = {0: 0, 2: CANCELLED, 4: BAD_USAGE}  # pytest's exit codes that are not simply failures


@dataclass(frozen=True)
class HostPython:
    """A host's checkout, its Python, and what that has."""

    root: Path
    python: Path
    has: Elsewhere

    @property
    def pip(self) -> list[str]:
        """How pip is started for it: its own, or where it has none, that of the Python which runs this."""
        if self.has.version("pip"):
            return [str(self.python), "-I", "-m", "pip"]
        return [sys.executable, "-I", "-m", "pip", "--python", str(self.python)]

    def folder(self, project: Project) -> Path:
        """Where what it lacks is kept: one folder for each Python."""
        return project.root / ".host-test" / hashlib.sha256(str(self.python).encode()).hexdigest()[:12]


def checkout(text: str) -> Path:
    """The folder of a host. Raises UsageError where it is none."""
    root = Path(text).expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"--host-root {text}: no such folder; name the folder that SD.Next was cloned into.")
    missing = [name for name in CHECKOUT if not (root / name).is_file()]
    if missing:
        raise UsageError(
            f"--host-root {text}: not a checkout of SD.Next, {', '.join(missing)} is missing; name the folder that "
            "its webui.sh is in."
        )
    return root


def python_of(root: Path, named: str | None) -> Path:
    """The Python of a host: the one that is named, else that of its venv. Raises UsageError where there is none."""
    if named is not None:
        # Not resolved: a venv's python is a link, and its target has none of the venv's packages.
        python = Path(os.path.abspath(os.path.expanduser(named)))
        if not python.is_file():
            raise UsageError(f"--python {named}: no such file; name the Python that SD.Next runs with.")
        return python
    for python in (root / "venv/bin/python", root / "venv/Scripts/python.exe"):
        if python.is_file():
            return python
    raise UsageError(f"{root} has no venv/bin/python: name the Python that SD.Next runs with by --python PATH.")


def found_host(root: Path, python: Path) -> HostPython:
    """Look at what the Python has. Raises UsageError where SD.Next cannot run with it."""
    has = look_into(python)
    if has is None:
        raise UsageError(f"--python {python}: it does not start as a Python; name the Python that SD.Next runs with.")
    version = has.markers["python_full_version"]
    if tuple(map(int, version.split(".")[:2])) < OLDEST_PYTHON:
        raise UsageError(f"--python {python}: it is Python {version}, SD.Next and this project need 3.10 or newer.")
    missing = [name for name in NEEDED if has.version(name) is None]
    if missing:
        raise UsageError(
            f"--python {python}: it has no {', no '.join(missing)}; name the Python that SD.Next runs with, after "
            "SD.Next has been started with it once."
        )
    return HostPython(root, python, has)


def behind(folder: Path, releases: Sequence[Path] = ()) -> dict[str, str]:
    """The environment of every program in which a folder is importable after everything else, releases before it."""
    return {**in_front([*releases, Path(__file__).with_name("behind")]), "LTX_BEHIND": str(folder)}


def wanted(project: Project, names: Sequence[str]) -> list[str]:
    """What the host must have: what this project needs in a host, and the named tools."""
    ours = dependencies(project.root, page=False)
    tests = dependencies(project.root, "test", page=False)[len(ours) :]
    return [*ours, *(line for line in tests if canonical(parsed(line).name) in names)]


def pinned(project: Project, has: Elsewhere, names: Iterable[str]) -> str:
    """The lines with versions and hashes for some names and that Python. Raises SetupError for a name without."""
    lines = {}
    for group in ("setup", "test"):
        for pin, _ in pins(project.root / f"pins/{group}.txt"):
            line = parsed(pin)
            if line.marker is None or line.marker.evaluate({**has.markers, "extra": ""}):
                release = Release(canonical(line.name), next(iter(line.specifier)).version)
                lines[release.name] = hashed([project.root / f"pins/{group}.txt"], release)
    unknown = [name for name in names if name not in lines]
    if unknown:
        raise SetupError(
            f"The host's Python lacks {', '.join(unknown)}, of which pins/ has no hash: add it there first."
        )
    return "".join(lines[name] for name in names)


def with_tools(project: Project, host: HostPython, names: Sequence[str]) -> None:
    """Make what the host lacks importable after what it has. Quick when nothing changed.

    Raises SetupError where pip cannot, UsageError where what is missing is for SD.Next's own installer to bring.
    """
    folder, lines = host.folder(project), wanted(project, names)
    locks = [(project.root / f"pins/{group}.txt").read_bytes() for group in ("setup", "test")]
    content = hashlib.sha256(repr((host.has.told["packages"], lines, locks)).encode()).hexdigest()
    if is_fresh(folder / "stamp", content):
        return
    packages = folder / "packages"
    (folder / "stamp").unlink(missing_ok=True)  # from here on it is half-made
    shutil.rmtree(packages, ignore_errors=True)  # the host may have by now what it lacked
    packages.mkdir(parents=True)
    tried: set[str] = set()
    while True:
        now = look_into(host.python, behind(packages)) or host.has
        found = survey(lines, now)
        if found.protected:
            raise UsageError(
                f"--python {host.python}: it has no {', no '.join(found.protected)}, which SD.Next's own installer "
                "brings; start SD.Next once, then run this again."
            )
        if not found.missing:
            break
        if found.missing.keys() <= tried:
            raise SetupError(f"pip put {', '.join(found.missing)} into {packages}, but it is not found there.")
        say(f"Adding {', '.join(found.missing)} in {packages}; the host's Python is not changed")
        install_pinned(project, host.pip, pinned(project, now, found.missing), packages)
        tried |= found.missing.keys()
    write_stamp(folder / "stamp", content)


def run_host_test(
    project: Project, named_root: str, named_python: str | None, releases: Sequence[Release], arguments: Sequence[str]
) -> int:
    """See the module's docstring. Raises UsageError for a wrong folder or Python, SetupError where pip cannot."""
    root = checkout(named_root)
    host = found_host(root, python_of(root, named_python))
    add_tools(project, host)
    folder = host.folder(project)
    places = [unpacked(project, release, folder / "releases", host.pip) for release in releases]
    environment = behind(folder / "packages", places)
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    where = [] if name_tests(project, arguments) else ["tests/host_contract"]
    which = [] if any(one.startswith("-k") for one in arguments) else ["-k", "not embedded"]
    command = [*where, f"--host-root={root}", "-o", "addopts=", "-q", "-rs", f"--junitxml={results}", *which]
    begun = time.monotonic()
    code = project.run(str(host.python), "-m", "pytest", *command, *arguments, more=environment)
    minutes = (time.monotonic() - begun) / 60
    say("\n".join(table(host, look_into(host.python, environment) or host.has)))
    say(f"== {counted(results, code)} in {minutes:.1f} minutes")
    return ENDS.get(code, FAILED)


def add_tools(project: Project, host: HostPython) -> None:
    """The tools, and playwright where there is a browser to drive; without it the tests of the page are skipped."""
    if browser() is None:
        say("No Chromium or Chrome on this machine: the tests of SD.Next's page are skipped.")
        return with_tools(project, host, TOOLS)
    try:
        with_tools(project, host, (*TOOLS, "playwright"))
    except UsageError:
        raise
    except SetupError as error:
        say(f"{error} Without playwright, the tests of SD.Next's page are skipped.")
        with_tools(project, host, TOOLS)


def table(host: HostPython, now: Elsewhere) -> list[str]:
    """A line for each version that was found: of the host, of its Python, of the libraries."""
    found = {"Python": now.markers["python_full_version"], "SD.Next": commit_of(host.root)}
    for name in SHOWN:
        mine, theirs = shown(now, name), shown(host.has, name)
        before = "" if mine == theirs else " (added for the tests)" if theirs == ABSENT else f" (the host has {theirs})"
        found[name] = f"{mine}{before}"
    modern = host.root / MODERN
    there = (modern / "javascript").is_dir()
    found["theme"] = f"Standard, Modern ({commit_of(modern)})" if there else f"Standard; no Modern in {MODERN}"
    width = max(map(len, found))
    return [f"{name:{width}}  {value}" for name, value in found.items()]


def shown(has: Elsewhere, name: str) -> str:
    commit = has.commit(name)
    return f"{has.version(name) or ABSENT}{f' at {commit[:8]}' if commit else ''}"


def commit_of(folder: Path) -> str:
    """Commit, branch and date of a checkout."""
    git = ["git", "-C", str(folder)]
    # Without its own .git, git would tell of a repository that the folder happens to be in.
    commit = output_of([*git, "log", "-1", "--format=%h"]).strip() if (folder / ".git").exists() else ""
    branch = output_of([*git, "branch", "--show-current"]).strip() or "no branch"
    date = output_of([*git, "log", "-1", "--format=%cs"]).strip()
    return f"{commit}, {branch}, {date}" if commit else "not known: no git, or no git checkout"


def counted(results: Path, code: int) -> str:
    """How many tests passed, failed and were skipped, from what pytest wrote."""
    with contextlib.suppress(OSError, ElementTree.ParseError):
        suites = ElementTree.parse(results).getroot().iter("testsuite")
        counts = [
            [int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")] for suite in suites
        ]
        tests, failures, errors, skipped = (sum(column) for column in zip(*counts))
        if tests == 0:
            return f"no test was chosen (pytest ended with code {code})"
        told = f"{tests - failures - errors - skipped} passed, {failures} failed, {skipped} skipped"
        return f"{told}, {errors} errors" if errors else told
    return f"pytest ended with code {code} before it wrote its results"
