"""The virtual environment in .venv: makes it, fills it, and does nothing when it is complete.

Deliberately knows nothing of torch, models, GPUs or package indexes: pip's own configuration decides.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from typing import TYPE_CHECKING

from setup_tools.project import Project, SetupError, dependencies, is_fresh, output_of, say, write_stamp

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_PYTHON = (3, 10)


def locks(extra: str) -> list[str]:
    """The files with the versions and hashes of everything but torch's own build, which is for pip to choose."""
    return [f"pins/{group}.txt" for group in ("setup", extra) if group]


def fingerprint(root: Path, extra: str, python: str) -> str:
    """Changes whenever .venv has to be installed again."""
    pins = [(root / name).read_bytes() for name in ("constraints.txt", *locks(extra))]
    return hashlib.sha256(repr((dependencies(root, extra), pins, python)).encode()).hexdigest()


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
    pip = [*project.pip, "install"]
    hashed = ["--require-hashes", "--no-deps", *(f"--requirement={lock}" for lock in locks(extra))]
    # After the others, so that of what torch needs only the parts of its own build come without a hash.
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
    if not version or not output_of([*project.pip, "help", "install"]):
        version = create_venv(project)
    install_into_venv(project, extra)
    for group in {"", extra}:
        write_stamp(project.stamp(group), fingerprint(project.root, group, version))
