"""A project in a temporary folder, and what stands where install.py would start programs."""

from __future__ import annotations

import os
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import install
from setup_tools.project import pins

REPO = Path(install.__file__).resolve().parent
PYPROJECT = """\
[project]
dependencies = ["torch>=2", "rich", "av>=15,<19", "absent-here ; python_version < '3'"]
optional-dependencies.test = ["pytest"]
"""


@dataclass
class Recorder:
    """Stands where programs are started: makes a .venv with a stub pip, notes every other command."""

    commands: list[list[str]] = field(default_factory=list)
    constraints: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    interrupt: bool = False

    def __call__(self, command: Sequence[str], cwd: Path, more: Mapping[str, str]) -> int:
        self.commands.append(arguments := list(command))
        if self.interrupt and "install" in arguments:
            raise KeyboardInterrupt
        if arguments[1:3] == ["-m", "venv"]:
            make_venv(Path(arguments[-1]))
        if "-c" in arguments:
            self.constraints = Path(cwd, arguments[arguments.index("-c") + 1]).read_text(encoding="utf-8")
        return next((code for word, code in self.codes.items() if word in arguments), 0)

    def kinds(self) -> list[str]:
        """The module of each command, such as venv or pip."""
        return [command[command.index("-m") + 1] for command in self.commands]


def make_venv(folder: Path) -> None:
    """A real virtual environment, with a pip that only says that it is there."""
    venv.create(folder, clear=True, symlinks=os.name != "nt", with_pip=False)
    site = next(folder.rglob("site-packages"))
    (site / "pip").mkdir()
    (site / "pip/__init__.py").touch()
    (site / "pip/__main__.py").write_text("print('stub')\n", encoding="utf-8")


def start_nothing(command: Sequence[str], cwd: Path, more: Mapping[str, str]) -> int:
    raise AssertionError(command)


def make_root(tmp_path: Path) -> Path:
    """A project of few files."""
    folder = tmp_path / "my project"  # a space, as in many home folders
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "constraints.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    (folder / "pins").mkdir()
    for group in ("setup", "test"):
        (folder / f"pins/{group}.txt").write_text(f"{group}-tool==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    return folder


@dataclass
class Pip(Recorder):
    """As `Recorder`, with a pip that puts what it is given into its target, and a pytest that writes its results."""

    offline: bool = False
    results: str = '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="1"/></testsuites>'
    environments: list[Mapping[str, str]] = field(default_factory=list)
    needs: dict[str, str] = field(default_factory=dict)  # what a distribution needs
    refused: str = ""  # a distribution that cannot be installed
    given: list[list[str]] = field(default_factory=list)  # the pins of each install

    def __call__(self, command: Sequence[str], cwd: Path, more: Mapping[str, str]) -> int:
        code = super().__call__(command, cwd, more)
        self.environments.append(more)
        values = dict(one.split("=", 1) for one in command if one.startswith("--") and "=" in one)
        if "download" in command:
            code = code or int(self.offline)
        if code == 0 and "--target" in values:
            self.given.append([pin for pin, _ in pins(Path(values["--requirement"]))])
            for name, version in (pin.split("==") for pin in self.given[-1]):
                if name == self.refused:
                    return 1
                needs = [self.needs[name]] if name in self.needs else []
                make_distribution(Path(values["--target"]), name, version, *needs)
        if "--junitxml" in values and self.results:
            Path(values["--junitxml"]).write_text(self.results, encoding="utf-8")
        return code

    def started(self, module: str, *words: str) -> list[list[str]]:
        """The commands of a module that have all these words."""
        found = [one for one in self.commands if "-m" in one and one[one.index("-m") + 1] == module]
        return [one for one in found if {*words} <= {*one}]


def make_distribution(place: Path, name: str, version: str, *requires: str) -> Path:
    """What pip leaves of an installed distribution, without its modules."""
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return folder
