"""Where the files of this project are, what pyproject.toml and pins/ ask for, and how programs are started.

Standard library only, and no syntax newer than Python 3.8: an old Python gets a sentence, no traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Runner = Callable[[Sequence[str], Path, Mapping[str, str]], int]

FAILED, BAD_USAGE, CANCELLED = 1, 2, 3


class SetupError(Exception):
    """Something is in the way; the message is one sentence with what to do next."""


class UsageError(SetupError):
    """The arguments are wrong; the message is one sentence with what is allowed."""


def say(text: str) -> None:
    """Flushed, because child processes write to the same stdout."""
    print(text, flush=True)


def launcher() -> str:
    return f"{Path(sys.executable).name} install.py"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_child(command: Sequence[str], cwd: Path, more: Mapping[str, str]) -> int:
    """Run a program to its end, with `more` in its environment; return its exit code, the way a shell counts it."""
    with subprocess.Popen(command, cwd=cwd, env={**os.environ, **more}) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            # The terminal sent Ctrl-C to the child as well: give it time to clean up after itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=20)
            child.terminate()  # does nothing to one that has ended
            raise
    return code if code >= 0 else 128 - code


def output_of(command: Sequence[str], more: Mapping[str, str] | None = None) -> str:
    """What a program printed; empty when it failed or could not be started."""
    with contextlib.suppress(OSError):
        environment = {**os.environ, **(more or {})}
        done = subprocess.run(
            command, check=False, capture_output=True, encoding="utf-8", errors="replace", env=environment
        )
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

    @property
    def pip(self) -> list[str]:
        """How pip of .venv is started. -I: what happens to be on PYTHONPATH must not count as installed."""
        return [str(self.python), "-I", "-m", "pip"]

    def run(self, *command: str, more: Mapping[str, str] | None = None) -> int:
        """Start a program in the project's folder, with `more` in its environment; return its exit code."""
        return self.start(command, self.root, more or {})

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


def parsed(requirement: str) -> Any:
    """A requirement line as packaging's `Requirement`. Raises ValueError for what is none."""
    return first_module("packaging.requirements", "pip._vendor.packaging.requirements").Requirement(requirement)


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


def pins(file: Path) -> list[tuple[str, list[str]]]:
    """(requirement line, its options --hash=) of every pin in a file of pins/ or in constraints.txt."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    pinned = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.partition(" --hash=")[0].strip(), re.findall(r"--hash=\S+", line)) for line in pinned]


def is_fresh(stamp: Path, wanted: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stamp.read_text(encoding="utf-8") == wanted
    return False


def write_stamp(stamp: Path, content: str) -> None:
    """All or nothing: a stamp that exists is complete."""
    draft = stamp.with_suffix(".tmp")
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, stamp)
