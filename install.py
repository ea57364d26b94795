#!/usr/bin/env python3
"""Sets this project up and starts it; also the installer that a web UI runs for its extensions.

Knows: where the virtual environment is, what pyproject.toml, constraints.txt and pins/ ask for, how pip
and this project's own commands are started. Deliberately knows nothing of torch, models, GPUs, package
indexes (pip's own configuration decides) or how a host works: it only looks at what is installed.

Standard library only, and no syntax newer than Python 3.8: an old Python gets a sentence, no traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Runner = Callable[[Sequence[str], Path], int]

OLDEST_PYTHON = (3, 10)
FAILED, BAD_USAGE, CANCELLED = 1, 2, 3
DEFAULT_PROMPT = "a small red ball moving right on black"
TEST_STEPS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("bench.audit",), ("pytest",))

# What a host chose for its own good reasons (its GPU, its user interface): never installed, never changed.
PROTECTED = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "av", "numpy", "pillow"}
PROTECTED |= {"gradio", "gradio-client"}

HELP = """\
Sets the LTX video project up and starts it.

commands you run (everything is installed into .venv in this folder, nothing outside it):
  setup                     install what the project needs; quick when nothing changed
  demo [PROMPT] [--seed N]  set up, then make a short video with the tiny built-in model
  test [PYTEST_ARGS...]     set up with the test tools, then run ruff, mypy, an audit and pytest
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


class SetupError(Exception):
    """Something is in the way; the message is one sentence with what to do next."""


def say(text: str) -> None:
    """Flushed, because child processes write to the same stdout."""
    print(text, flush=True)


def version_problem(version: tuple[int, ...]) -> str:
    """Why this Python will not do, or an empty string."""
    if version[:2] >= OLDEST_PYTHON:
        return ""
    advice = "run it with a newer one, for example `python3.12 install.py setup` (https://www.python.org)"
    return f"install.py needs Python 3.10 or newer, this is {'.'.join(map(str, version))}: {advice}."


def run_child(command: Sequence[str], cwd: Path) -> int:
    """Run a program to its end and return its exit code, the way a shell counts it."""
    with subprocess.Popen(command, cwd=cwd) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            # The terminal sent Ctrl-C to the child as well: give it time to clean up after itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=20)
            child.terminate()  # does nothing to one that has ended
            raise
    return code if code >= 0 else 128 - code


def output_of(command: Sequence[str]) -> str:
    """What a program printed; empty when it failed or could not be started."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, check=False, capture_output=True, encoding="utf-8", errors="replace")
        return done.stdout if done.returncode == 0 else ""
    return ""


@dataclass(frozen=True)
class Project:
    """Where everything is, and the one way programs are started."""

    root: Path
    start: Runner = run_child

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(self, *command: str) -> int:
        return self.start(command, self.root)

    def stamp(self, extra: str) -> Path:
        """Holds the fingerprint of what was last installed completely."""
        return self.venv / f".installed-{extra or 'runtime'}"


def first_module(*names: str) -> Any:
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise SetupError(
        f"This Python has neither {' nor '.join(names)}: give it pip (`python3 -m ensurepip`, on Debian or "
        "Ubuntu `apt install python3-pip`), then run this again."
    )


def dependencies(root: Path, extra: str = "", *, page: bool = True) -> list[str]:
    """The requirement lines of the project, of its page (a host has its own) and of one optional group."""
    toml = first_module("tomllib", "pip._vendor.tomli")
    try:
        table = toml.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        groups = table.get("optional-dependencies", {})
        own = groups.get("page", ()) if page else ()
        return [*table["dependencies"], *own, *(groups[extra] if extra else ())]
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(
            f"pyproject.toml in {root} could not be read ({error}): get a complete copy of this project."
        ) from error


def locks(extra: str) -> list[str]:
    """The files with the versions and hashes of everything but torch's own build, which is for pip to choose."""
    return [f"pins/{group}.txt" for group in ("setup", extra) if group]


def fingerprint(root: Path, extra: str, python: str) -> str:
    """Changes whenever .venv has to be installed again."""
    pins = [(root / name).read_bytes() for name in ("constraints.txt", *locks(extra))]
    return hashlib.sha256(repr((dependencies(root, extra), pins, python)).encode()).hexdigest()


def is_fresh(stamp: Path, wanted: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stamp.read_text(encoding="utf-8") == wanted
    return False


def write_stamp(stamp: Path, content: str) -> None:
    """All or nothing: a stamp that exists is complete."""
    draft = stamp.with_suffix(".tmp")
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, stamp)


def venv_version(python: Path) -> str:
    """The full version of a working .venv's Python; empty when .venv is missing, broken or too old."""
    # A python in .venv without its pyvenv.cfg acts as the system's: pip would install there.
    usable = f"sys.prefix != sys.base_prefix and sys.version_info >= {OLDEST_PYTHON}"
    probe = f"import sys; print(sys.version if {usable} else '')"
    return output_of([str(python), "-I", "-c", probe]).strip()


def create_venv(project: Project, needed_module: str = "ensurepip") -> str:
    """Replaces whatever .venv was, and returns its full Python version."""
    if importlib.util.find_spec(needed_module) is None:
        raise SetupError(
            f"This Python cannot make a virtual environment, its {needed_module} is missing: on Debian or "
            "Ubuntu run `apt install python3-venv`, then run this again."
        )
    say(f"Creating .venv with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", "--clear", str(project.venv)]
    version = venv_version(project.python) if project.run(*command) == 0 else ""
    if not version:
        raise SetupError(
            f"{project.venv} could not be created with {sys.executable}, see the message above: move away "
            "what is in its place or free the disk, then run this again."
        )
    return version


def install_into_venv(project: Project, extra: str) -> None:
    for stamp in project.venv.glob(".installed-*"):
        stamp.unlink()  # from here on .venv is half-made until the new stamp is written
    say("Installing the dependencies into .venv; the first time this downloads torch and takes minutes")
    # -I: what happens to be on PYTHONPATH must not count as installed.
    pip = [str(project.python), "-I", "-m", "pip", "install"]
    hashed = ["--require-hashes", "--no-deps", *(f"--requirement={lock}" for lock in locks(extra))]
    # Behind the others, so that of what torch needs only the parts of its own build come without a hash.
    torch = [line for line in dependencies(project.root) if re.match(r"torch\b", line)]
    if project.run(*pip, *hashed) != 0 or project.run(*pip, "-c", "constraints.txt", *torch) != 0:
        raise SetupError(
            "pip could not install the dependencies, its own message is above (what differs from its hash was not "
            "taken): check network and disk space, then run the same command again; it continues where it stopped."
        )


def setup(project: Project, extra: str = "") -> None:
    """Make .venv hold what pyproject.toml asks for; does nothing when it already does."""
    version = venv_version(project.python)
    if version and is_fresh(project.stamp(extra), fingerprint(project.root, extra, version)):
        return
    # `help install` imports nearly all of pip, so a half-unpacked pip is noticed too.
    if not version or not output_of([str(project.python), "-I", "-m", "pip", "help", "install"]):
        version = create_venv(project)
    install_into_venv(project, extra)
    for group in {"", extra}:
        write_stamp(project.stamp(group), fingerprint(project.root, group, version))


def launcher() -> str:
    return f"{Path(sys.executable).name} install.py"


def run_ltx(project: Project, *arguments: str) -> int:
    return project.run(str(project.python), "-m", "modules.ltx", *arguments)


def run_demo(project: Project, prompt: str, seed: int | None) -> int:
    setup(project)
    say(HINTS.format(launcher=launcher(), python=project.python.relative_to(project.root)))
    chosen = [] if seed is None else [f"--seed={seed}"]
    return run_ltx(project, "generate", "--model", "nano", "--refine", f"--prompt={prompt}", *chosen)


def ensure_browser(project: Project) -> None:
    """A Chromium for the tests of the page, where apt has one and may be asked; without one they are skipped."""
    may = shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0
    if may and not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        apt = "apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=10"
        project.run("sh", "-c", f"{apt} update; {apt} install -y --no-install-recommends chromium")


def run_tests(project: Project, pytest_arguments: Sequence[str]) -> int:
    """Every step runs, whatever the others said; the verdict is the last line."""
    setup(project, "test")
    ensure_browser(project)
    failed = []
    for step in TEST_STEPS:
        command = [*step, *(pytest_arguments if step[0] == "pytest" else ())]
        say(f"== {' '.join(command)}")
        if project.run(str(project.python), "-m", *command) != 0:
            failed.append(" ".join(step))
    say(f"== failed: {', '.join(failed)}" if failed else f"== all {len(TEST_STEPS)} steps passed")
    return FAILED if failed else 0


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Distributions:
    """What is installed in the Python that runs this file."""

    def version(self, name: str) -> str | None:
        # Leftovers of an aborted uninstall have no version: None or KeyError, by Python version.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, KeyError):
            return importlib.metadata.version(name)
        return None

    def requires(self, name: str) -> list[str]:
        importlib.invalidate_caches()  # pip has just added it
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.requires(name) or []
        return []


@dataclass
class Survey:
    """How a host's Python meets some requirements, by name."""

    missing: dict[str, str] = field(default_factory=dict)  # what pip may be given
    protected: dict[str, str] = field(default_factory=dict)  # missing, but the host's business
    unusual: dict[str, str] = field(default_factory=dict)  # there, in a version nobody asked for


def survey(requirements: Sequence[str], here: Distributions) -> Survey:
    """Look at the requirements, and at what those need that are there and not the host's own choice."""
    parse = first_module("packaging.requirements", "pip._vendor.packaging.requirements").Requirement
    found, seen, waiting = Survey(), set(PROTECTED), [parse(line) for line in requirements]
    while waiting:
        wanted = waiting.pop(0)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, version = canonical(wanted.name), here.version(wanted.name)
        if version is None:
            (found.protected if name in PROTECTED else found.missing)[name] = f"{name}{wanted.specifier}"
        elif not wanted.specifier.contains(version, prereleases=True):
            found.unusual[name] = f"{name} {version} is kept, although {wanted.specifier} is asked for"
        if version is not None and name not in seen:
            seen.add(name)
            waiting += [parse(line) for line in here.requires(name)]
    return found


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
    commands.add_parser("test", usage="install.py test [PYTEST_ARGS...]", description="Run all checks.")
    commands.add_parser("serve", usage="install.py serve [ARGS...]", description="Start the web page.")
    return parser


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows `test` or `serve` is not ours, leading dashes included; argparse cannot say that."""
    passes_on = arguments[:1] in (["test"], ["serve"]) and arguments[1:2] not in (["-h"], ["--help"])
    ours = 1 if passes_on else len(arguments)
    return list(arguments[:ours]), list(arguments[ours:])


def dispatch(arguments: Sequence[str], project: Project) -> int:
    ours, theirs = split_arguments(arguments)
    options = build_parser().parse_args(ours)
    if options.command is None:
        return run_host(project, Distributions())
    if options.command == "demo":
        return run_demo(project, options.prompt, options.seed)
    if options.command == "test":
        return run_tests(project, theirs)
    setup(project)
    if options.command == "serve":
        return run_ltx(project, "serve", *theirs)
    say(f"Ready. Try: {launcher()} demo")
    return 0


def main(arguments: Sequence[str], project: Project) -> int:
    problem = version_problem(sys.version_info[:3])
    if problem:
        print(problem, file=sys.stderr)
        return BAD_USAGE
    try:
        return dispatch(arguments, project)
    except (SetupError, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("install.py: stopped", file=sys.stderr)
        return CANCELLED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Project(Path(__file__).resolve().parent)))
