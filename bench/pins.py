"""Writes pins/GROUP.txt: what a group brings in, at the versions of constraints.txt, with the hashes of all files.

    python -m pip install uv
    python -m bench.pins

To move to other versions, change constraints.txt first. `setup` is what everybody gets, the page with it; the others
are the optional groups of pyproject.toml, each by itself. Every file of a version is listed, for all systems and
Pythons. Torch is not, nor the CUDA libraries that its build for the default index names: which build is right is a
matter of the machine.

`releases` is every published release of diffusers that pyproject.toml allows, by itself: the tests run with others than
the pinned one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import install
from setup_tools.checks import LIBRARY
from setup_tools.project import canonical, dependencies, parsed

ROOT = Path(install.__file__).resolve().parent
GROUPS = ("setup", "ray", "bench", "test")
# What belongs to torch's build; what is for browsers alone, which torch is not made for.
LEFT_OUT = re.compile(r"torch==|triton==|nvidia-|cuda-|.* sys_platform == 'emscripten'")
COMPILE = (
    *("pip", "compile", "-", "--universal", "--python-version", "3.10", "--generate-hashes"),
    *("--no-header", "--no-annotate", "--quiet", "--constraint", "constraints.txt"),
)
ALONE = ("pip", "compile", "-", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--quiet")
CHOSEN = "the hashes of every file; versions are chosen in constraints.txt."
HEADER = """\
# {what}
# Written by `python -m bench.pins`; not to be edited. It asks
# `uv {command}`.
"""


def asked(group: str) -> list[str]:
    """The requirement lines of a group alone."""
    base = dependencies(ROOT)
    return base if group == "setup" else dependencies(ROOT, group)[len(base) :]


def kept(lines: Sequence[str]) -> Iterator[str]:
    """The lines of all pins but those left out: a pin begins its line, its hashes follow indented."""
    keeping = True
    for line in lines:
        if not line.startswith(" "):
            keeping = not LEFT_OUT.match(line)
        if keeping:
            yield line


def compiled(command: Sequence[str], requirements: Sequence[str]) -> list[str]:
    done = subprocess.run(
        command, cwd=ROOT, input="\n".join(requirements), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def releases(library: str) -> list[str]:
    """Every published release of a library that this project allows, the newest first, as requirement lines."""
    command = [sys.executable, "-m", "pip", "index", "versions", library]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    [line] = re.findall(r"^Available versions: (.*)$", printed, re.MULTILINE)
    [allowed] = [one.specifier for one in map(parsed, dependencies(ROOT)) if canonical(one.name) == library]
    return [f"{library}=={version}" for version in line.split(", ") if allowed.contains(version)]


def write(name: str, what: str, command: Sequence[str], lines: Sequence[str]) -> None:
    head = HEADER.format(what=what, command=" ".join(command))
    (ROOT / "pins" / f"{name}.txt").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"pins/{name}.txt: {sum('==' in line for line in lines)} pins")


def main(arguments: Sequence[str]) -> int:
    argparse.ArgumentParser(
        prog="bench.pins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    command = shutil.which("uv")
    uv = [command] if command else [sys.executable, "-m", "uv"]
    for group in GROUPS:
        lines = list(kept(compiled([*uv, *COMPILE], asked(group))))
        write(group, f"What {group} needs, with {CHOSEN}", COMPILE, lines)
    found = [line for one in releases(LIBRARY) for line in compiled([*uv, *ALONE], [one])]
    write(
        "releases",
        f"Every release of {LIBRARY} that pyproject.toml allows, with the hashes of its files.",
        ALONE,
        found,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
