"""What `install.py test` runs: every check of this project, or its library-facing tests against other releases."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from setup_tools.environment import setup
from setup_tools.project import FAILED, Project, SetupError, say
from setup_tools.releases import NotFetched, Release, declared, in_front, unpacked
from setup_tools.survey import Elsewhere, look_into

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEST_STEPS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("bench.audit",), ("pytest",))
BROWSERS = ("chromium", "google-chrome", "chromium-browser")  # what the tests of a page look for
LIBRARY = "diffusers"  # its oldest and newest declared release are tested too
# pytest's cache is for the whole suite, where `--last-failed` looks. The short suite takes a single process: a second
# one would spend its time on loading torch again.
CHOICES = {"library": ("-p", "no:cacheprovider"), "short": ("-p", "no:cacheprovider", "-n", "0")}


def name_tests(project: Project, arguments: Sequence[str]) -> bool:
    """Whether arguments of pytest name files or tests in files."""
    return any((project.root / one.partition("::")[0]).is_file() for one in arguments)


def chosen(project: Project, mark: str, arguments: Sequence[str] = ()) -> list[str]:
    """pytest for the tests with a mark. Only their files are read, unless the arguments name some."""
    files = [] if name_tests(project, arguments) else sorted((project.root / "tests").rglob("test_*.py"))
    with_mark = [file for file in files if f"mark.{mark}" in file.read_text(encoding="utf-8")]
    paths = [file.relative_to(project.root).as_posix() for file in with_mark]
    return ["pytest", "-m", mark, *CHOICES[mark], *paths, *arguments]


def browser() -> str | None:
    """A Chromium of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def ensure_browser(project: Project) -> None:
    """A Chromium for the tests of the page, where apt has one and may be asked; without one they are skipped."""
    may = shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0
    if may and browser() is None:
        apt = "apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=10"
        project.run("sh", "-c", f"{apt} update; {apt} install -y --no-install-recommends chromium")


def run_tests(project: Project, pytest_arguments: Sequence[str]) -> int:
    """Every step runs, whatever the others said; the verdict is the last line."""
    setup(project, "test")
    ensure_browser(project)
    outcomes: dict[str, bool | None] = {}
    for step in TEST_STEPS:
        command = [*step, *(pytest_arguments if step[0] == "pytest" else ())]
        say(f"== {' '.join(command)}")
        outcomes[" ".join(step)] = project.run(str(project.python), "-m", *command) == 0
    if not pytest_arguments:  # who chooses among the tests does not want others
        outcomes.update(run_short_tests(project))
    return verdict(outcomes)


def run_short_tests(project: Project) -> dict[str, bool | None]:
    """The short tests with the other releases that are declared: passed or not; None where one cannot be fetched."""
    outcomes: dict[str, bool | None] = {}
    there = look_into(project.python) or Elsewhere({"markers": {}, "packages": {}})
    for release in declared(project, LIBRARY, there):
        step = f"short tests with {release}"
        say(f"== {step}")
        try:
            place = unpacked(project, release, project.venv / "releases", project.pip)
            command = chosen(project, "short")
            outcomes[step] = project.run(str(project.python), "-m", *command, more=in_front([place])) == 0
        except SetupError as error:
            say(str(error))
            outcomes[step] = None if isinstance(error, NotFetched) else False
    return outcomes


def verdict(outcomes: Mapping[str, bool | None]) -> int:
    """Says as the last line how the steps ended; returns the exit code."""
    failed = [step for step, passed in outcomes.items() if passed is False]
    left_out = [step for step, passed in outcomes.items() if passed is None]
    ended = f"failed: {', '.join(failed)}" if failed else f"all {len(outcomes) - len(left_out)} steps passed"
    say(f"== {ended}{''.join(f'; not run: {step}' for step in left_out)}")
    return FAILED if failed else 0


def run_library_tests(project: Project, releases: Sequence[Release], short: bool, arguments: Sequence[str]) -> int:
    """The tests that face the libraries, or the short choice of them, with other releases in front."""
    setup(project, "test")
    places = [unpacked(project, release, project.venv / "releases", project.pip) for release in releases]
    mark = "short" if short else "library"
    step = f"{mark} tests{''.join(f' with {release}' for release in releases)}"
    say(f"== {step}")
    command = chosen(project, mark, arguments)
    code = project.run(str(project.python), "-m", *command, more=in_front(places))
    say(f"== {'failed' if code else 'passed'}: {step}")
    return FAILED if code else 0
