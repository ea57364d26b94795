#!/usr/bin/env python3
"""Sets this project up and starts it; also the installer that a web UI runs for its extensions.

Knows the commands and the installer for a host; what they consist of is in setup_tools/. Deliberately knows nothing
of torch, models or GPUs, or how a host works: it only looks at what is installed.

Standard library only, and no syntax newer than Python 3.8: an old Python gets a sentence, no traceback.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # not every Python puts the folder of a script there: -P, the embeddable one of Windows
    sys.path.insert(0, str(HERE))

from setup_tools.checks import run_library_tests, run_tests
from setup_tools.environment import OLDEST_PYTHON, setup
from setup_tools.host_test import run_host_test
from setup_tools.project import (
    BAD_USAGE,
    CANCELLED,
    FAILED,
    Project,
    SetupError,
    UsageError,
    dependencies,
    launcher,
    say,
)
from setup_tools.releases import named
from setup_tools.survey import Distributions, Survey, survey

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PROMPT = "a small red ball moving right on black"

TEST_USAGE = "install.py test [--with NAME==VERSION]... [--short] [PYTEST_ARGS...]"
HOST_USAGE = "install.py host-test --host-root PATH [--python PATH] [--with NAME==VERSION]... [PYTEST_ARGS...]"
PASSING_ON = ("serve", "test", "host-test")

HELP = """\
Sets the LTX video project up and starts it.

commands you run (everything is installed into .venv in this folder, nothing outside it):
  setup                     install what the project needs; quick when nothing changed
  demo [PROMPT] [--seed N]  set up, then make a short video with the tiny built-in model
  test [PYTEST_ARGS...]     set up with the test tools, then run ruff, mypy, an audit, pytest, and a short suite with
                            the oldest diffusers that this project supports
  test --with NAME==VERSION [--short] [PYTEST_ARGS...]
                            only the tests that use the model libraries, with another release of one of them
  host-test --host-root PATH [--python PATH] [--with NAME==VERSION] [PYTEST_ARGS...]
                            test in the SD.Next at PATH with its own Python, to which nothing is installed
  serve [ARGS...]           set up, then start the web page; ARGS go to the server

without a command: the extension installer that a web UI runs with its own Python. It adds what is
missing there and never changes anything that is already installed.

exit codes: 0 done, 1 something failed, 2 bad usage or too old a Python, 3 stopped with Ctrl-C"""

HINTS = """\
Making a short video with the tiny built-in model; the last line will be its path. How to go on:
  another video     {launcher} demo "a green square moving left" --seed 7
  all models        {python} -m modules.ltx models
  a dry run         {python} -m modules.ltx plan --help
  the web page      {launcher} serve"""


def version_problem(version: tuple[int, ...]) -> str:
    """Why this Python will not do, or an empty string."""
    if version[:2] >= OLDEST_PYTHON:
        return ""
    advice = "run it with a newer one, for example `python3.12 install.py setup` (https://www.python.org)"
    return f"install.py needs Python 3.10 or newer, this is {'.'.join(map(str, version))}: {advice}."


def run_ltx(project: Project, *arguments: str) -> int:
    return project.run(str(project.python), "-m", "modules.ltx", *arguments)


def run_demo(project: Project, prompt: str, seed: int | None) -> int:
    setup(project)
    say(HINTS.format(launcher=launcher(), python=project.python.relative_to(project.root)))
    chosen = [] if seed is None else [f"--seed={seed}"]
    return run_ltx(project, "generate", "--model", "nano", "--refine", f"--prompt={prompt}", *chosen)


def report(found: Survey) -> int:
    for note in found.unusual.values():
        say(f"LTX video: {note}")
    if found.protected:
        say(
            f"LTX video: {', '.join(found.protected)} missing, left to the web UI's own installer; "
            f"to use this project without a web UI run `{launcher()} setup`"
        )
    return FAILED if found.protected else 0


def run_host(project: Project, here: Distributions) -> int:
    """Add what is missing and nothing else. Hosts show what was printed only for a nonzero exit code."""
    # Never with pip's resolver: many a host holds packages that contradict each other, which pip would
    # repair or refuse. Without it, only what is named is touched, and that is not there yet.
    pip = [sys.executable, "-m", "pip", "install", "--no-input", "--no-deps", "-c", "constraints.txt"]
    tried: set[str] = set()
    found = survey(dependencies(project.root, page=False), here)
    while found.missing and "torch" not in found.protected:  # without torch it is not a host's Python
        say(f"LTX video: installing {', '.join(found.missing)}")
        if found.missing.keys() <= tried or project.run(*pip, *found.missing.values()) != 0:
            say("LTX video: pip could not install that, see its own message; nothing else was changed")
            return FAILED
        tried |= found.missing.keys()
        found = survey(dependencies(project.root, page=False), here)  # what was added may need more
    if not tried and not found.protected:
        say("LTX video: nothing to install")
    return report(found)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="install.py [-h] [COMMAND ...]",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", prog="install.py", metavar="COMMAND")
    commands.add_parser("setup", description="Install what the project needs into .venv.")
    demo = commands.add_parser("demo", description="Set up, then make a video with the built-in model.")
    demo.add_argument("prompt", nargs="?", default=DEFAULT_PROMPT, help="default: %(default)s")
    demo.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same video")
    commands.add_parser("test", usage=TEST_USAGE, parents=[test_options()], description="Run all checks, or some.")
    commands.add_parser("host-test", usage=HOST_USAGE, parents=[host_options()], description="Test in a real SD.Next.")
    commands.add_parser("serve", usage="install.py serve [ARGS...]", description="Start the web page.")
    return parser


def test_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="install.py test", usage=TEST_USAGE, add_help=False, allow_abbrev=False)
    options.add_argument(
        "--with", dest="releases", metavar="NAME==VERSION", action="append", default=[], help="a release to test with"
    )
    options.add_argument("--short", action="store_true", help="at most 20 s of the tests that use the model libraries")
    return options


def host_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="install.py host-test", usage=HOST_USAGE, add_help=False, allow_abbrev=False)
    options.add_argument("--host-root", metavar="PATH", required=True, help="a checkout of SD.Next")
    options.add_argument("--python", metavar="PATH", help="the Python that it runs with; without it PATH/venv's")
    options.add_argument(
        "--with", dest="releases", metavar="NAME==VERSION", action="append", default=[], help="a release to test with"
    )
    return options


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows `serve` and the test commands is not ours, leading dashes included; argparse cannot say that."""
    passes_on = arguments[:1] and arguments[0] in PASSING_ON and arguments[1:2] not in (["-h"], ["--help"])
    ours = 1 if passes_on else len(arguments)
    return list(arguments[:ours]), list(arguments[ours:])


def dispatch(arguments: Sequence[str], project: Project) -> int:
    ours, theirs = split_arguments(arguments)
    if ours == ["test"]:
        return test(theirs, project)
    if ours == ["host-test"]:
        chosen, theirs = host_options().parse_known_args(theirs)
        releases = [named(text) for text in chosen.releases]
        return run_host_test(project, chosen.host_root, chosen.python, releases, theirs)
    options = build_parser().parse_args(ours)
    if options.command is None:
        return run_host(project, Distributions())
    if options.command == "demo":
        return run_demo(project, options.prompt, options.seed)
    setup(project)
    if options.command == "serve":
        return run_ltx(project, "serve", *theirs)
    say(f"Ready. Try: {launcher()} demo")
    return 0


def test(arguments: Sequence[str], project: Project) -> int:
    chosen, theirs = test_options().parse_known_args(arguments)
    if chosen.releases or chosen.short:
        return run_library_tests(project, [named(text) for text in chosen.releases], chosen.short, theirs)
    return run_tests(project, theirs)


def main(arguments: Sequence[str], project: Project) -> int:
    problem = version_problem(sys.version_info[:3])
    if problem:
        print(problem, file=sys.stderr)
        return BAD_USAGE
    try:
        return dispatch(arguments, project)
    except (SetupError, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        print("install.py: stopped", file=sys.stderr)
        return CANCELLED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Project(Path(__file__).resolve().parent)))
