"""install.py: what it would run, and when it runs nothing at all. No network, no pip."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import install
from setup_tools import checks
from setup_tools.environment import create_venv, fingerprint, setup
from setup_tools.project import (
    BAD_USAGE,
    CANCELLED,
    FAILED,
    Project,
    SetupError,
    canonical,
    dependencies,
    is_fresh,
    run_child,
    write_stamp,
)
from setup_tools.survey import PROTECTED, Distributions
from tests.install_kit import REPO, Recorder, make_root, start_nothing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def test_old_python_gets_one_sentence() -> None:
    (sentence,) = install.version_problem((3, 8, 18)).splitlines()
    assert sentence.startswith("install.py needs Python 3.10 or newer, this is 3.8.18: ")
    assert install.version_problem((3, 9, 99))
    assert not install.version_problem((3, 10, 0))


FILES = [REPO / "install.py", *sorted((REPO / "setup_tools").rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_old_python_can_read_the_file(file: Path) -> None:
    ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_standard_library_only(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "setup_tools"}


def test_dependencies_of_this_project() -> None:
    runtime = [Requirement(line).name for line in dependencies(REPO)]
    with_test = [Requirement(line).name for line in dependencies(REPO, "test")]
    assert {"torch", "diffusers", "transformers", "av", "rich", "gradio", "starlette", "uvicorn"} <= set(runtime)
    driving = ["httpx2", "schemathesis", "ray", "playwright"]  # the first two where markers say so
    assert with_test == [*runtime, "pytest", "pytest-xdist", "hypothesis", *driving, "ruff", "mypy"]


@pytest.mark.parametrize("content", ["not toml at all =", "[project]\n", ""])
def test_broken_pyproject_is_one_sentence(root: Path, content: str) -> None:
    (root / "pyproject.toml").write_text(content, encoding="utf-8")
    with pytest.raises(SetupError, match=r"pyproject\.toml in .* could not be read"):
        dependencies(root)


def test_fingerprint_depends_on_everything(root: Path) -> None:
    same = fingerprint(root, "", "3.11.7")
    assert same == fingerprint(root, "", "3.11.7")
    others = {fingerprint(root, "test", "3.11.7"), fingerprint(root, "", "3.12.1")}
    for name in ("pyproject.toml", "constraints.txt", "pins/setup.txt"):
        before = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(before.replace("1", "2"), encoding="utf-8")
        others.add(fingerprint(root, "", "3.11.7"))
        (root / name).write_text(before, encoding="utf-8")
    assert len(others) == 5
    assert same not in others


def test_stamp_is_fresh_only_for_its_content(tmp_path: Path) -> None:
    stamp = tmp_path / ".installed-runtime"
    assert not is_fresh(stamp, "abc")
    write_stamp(stamp, "abc")
    assert is_fresh(stamp, "abc")
    assert not is_fresh(stamp, "abd")
    assert [path.name for path in tmp_path.iterdir()] == [stamp.name]


def test_setup_makes_everything_and_then_nothing(root: Path) -> None:
    first = Recorder()
    setup(Project(root, first))
    assert first.kinds() == ["venv", "pip", "pip"]
    assert first.commands[1][5:] == ["--require-hashes", "--no-deps", "--requirement=pins/setup.txt"]
    assert first.commands[2][5:] == ["-c", "constraints.txt", "torch>=2"]
    assert first.constraints == "torch==2.13.0\n"

    start = time.monotonic()
    setup(Project(root, start_nothing))
    assert time.monotonic() - start < 1


def test_test_tools_have_their_own_stamp(root: Path) -> None:
    setup(Project(root, Recorder()))
    tools = Recorder()
    setup(Project(root, tools), "test")
    assert tools.kinds() == ["pip", "pip"]
    assert tools.commands[0][-2:] == ["--requirement=pins/setup.txt", "--requirement=pins/test.txt"]
    setup(Project(root, start_nothing), "test")
    setup(Project(root, start_nothing))


def test_interrupted_pip_leaves_no_stamp(root: Path) -> None:
    setup(Project(root, Recorder()))
    old = (root / "pins/setup.txt").read_bytes()
    (root / "pins/setup.txt").write_bytes(b"rich==14.0.0\n")
    with pytest.raises(KeyboardInterrupt):
        setup(Project(root, Recorder(interrupt=True)))
    # Back to what was installed completely once: half of something else may be in there now.
    (root / "pins/setup.txt").write_bytes(old)
    again = Recorder()
    setup(Project(root, again))
    assert again.kinds() == ["pip", "pip"]


@pytest.mark.parametrize(("failing", "runs"), [("--require-hashes", 1), ("constraints.txt", 2)])
def test_failed_pip_is_a_failure_with_no_stamp(
    root: Path, capsys: pytest.CaptureFixture[str], failing: str, runs: int
) -> None:
    recorder = Recorder(codes={failing: 1})
    project = Project(root, recorder)
    assert install.main(["setup"], project) == FAILED
    assert recorder.kinds()[1:] == ["pip"] * runs  # no torch, which is large, where something else is wrong
    assert "pip could not install" in capsys.readouterr().err
    assert not project.stamp("").exists()


def break_python(project: Project) -> None:
    project.python.unlink()


def break_config(project: Project) -> None:
    """Without it, .venv's python acts as the one it was made from."""
    (project.venv / "pyvenv.cfg").unlink()


def break_pip(project: Project) -> None:
    """As after a kill while pip was being unpacked, before any stamp."""
    next(project.venv.rglob("pip/__main__.py")).unlink()
    project.stamp("").unlink()


def empty_venv(project: Project) -> None:
    shutil.rmtree(project.venv)
    project.venv.mkdir()


@pytest.mark.parametrize("damage", [break_python, break_config, break_pip, empty_venv])
def test_half_made_venv_is_made_again(root: Path, damage: Callable[[Project], None]) -> None:
    setup(Project(root, Recorder()))
    damage(Project(root))
    repair = Recorder()
    setup(Project(root, repair))
    assert repair.kinds() == ["venv", "pip", "pip"]
    setup(Project(root, start_nothing))


def test_no_ensurepip_says_what_to_install(root: Path) -> None:
    with pytest.raises(SetupError, match="apt install python3-venv"):
        create_venv(Project(root, start_nothing), needed_module="no_such_module")


def test_venv_that_cannot_be_made(root: Path) -> None:
    with pytest.raises(SetupError, match="could not be created"):
        setup(Project(root, lambda *_: 1))


def test_demo_passes_everything_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(codes={"modules.ltx": 7})
    project = Project(root, recorder)
    assert install.main(["demo", 'a "red" ball', "--seed", "5"], project) == 7
    assert recorder.commands[-1][2:] == [
        *("modules.ltx", "generate", "--model", "nano", "--refine"),
        *('--prompt=a "red" ball', "--seed=5"),
    ]
    hints = capsys.readouterr().out
    assert all(word in hints for word in ("demo", "models", "plan", "serve"))


def test_serve_passes_everything_on(root: Path) -> None:
    recorder = Recorder()
    assert install.main(["serve", "--port", "7861", "-h"], Project(root, recorder)) == 0
    assert recorder.commands[-1][2:] == ["modules.ltx", "serve", "--port", "7861", "-h"]


def test_every_check_runs_and_the_verdict_is_last(root: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(checks, "ensure_browser", lambda _: None)
    recorder = Recorder(codes={"mypy": 1})
    assert install.main(["test", "-k", "one or two"], Project(root, recorder)) == FAILED
    assert recorder.kinds()[3:] == ["ruff", "ruff", "mypy", "bench.audit", "pytest"]
    assert recorder.commands[-1][3:] == ["-k", "one or two"]
    assert capsys.readouterr().out.splitlines()[-1] == "== failed: mypy"


def test_ctrl_c_is_not_a_traceback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["demo"], Project(root, Recorder(interrupt=True))) == CANCELLED
    assert capsys.readouterr().err == "install.py: stopped\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--seed", "x"], ["setup", "more"]])
def test_bad_usage(root: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        install.main(arguments, Project(root, start_nothing))
    assert caught.value.code == BAD_USAGE


def test_child_exit_code_is_passed_on(tmp_path: Path) -> None:
    assert run_child([sys.executable, "-c", "raise SystemExit(5)"], tmp_path, {}) == 5
    if os.name != "nt":
        script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        assert run_child([sys.executable, "-c", script], tmp_path, {}) == 137


@dataclass
class Host(Distributions):
    """A Python with a few distributions, and a pip that adds what it is given."""

    installed: dict[str, str]
    requirements: dict[str, list[str]] = field(default_factory=dict)
    pip: list[list[str]] = field(default_factory=list)

    def version(self, name: str) -> str | None:
        return self.installed.get(canonical(name))

    def requires(self, name: str) -> list[str]:
        return self.requirements.get(name, [])

    def start(self, command: Sequence[str], cwd: Path, more: Mapping[str, str]) -> int:
        assert list(command[:4]) == [sys.executable, "-m", "pip", "install"]
        assert "--no-deps" in command
        names = list(command[command.index("constraints.txt") + 1 :])
        assert not {Requirement(name).name for name in names} & PROTECTED
        assert not {Requirement(name).name for name in names} & self.installed.keys()
        self.pip.append(names)
        self.installed.update({Requirement(name).name: "1.0" for name in names})
        return 0

    def run(self, root: Path) -> int:
        return install.run_host(Project(root, self.start), self)


@pytest.mark.parametrize("av", ["18.1.0", "16.0.0rc1"])
def test_host_has_everything(root: Path, capsys: pytest.CaptureFixture[str], av: str) -> None:
    host = Host({"torch": "2.13.0", "rich": "15.0.0", "av": av})
    assert install.run_host(Project(root, start_nothing), host) == 0
    assert capsys.readouterr().out == "LTX video: nothing to install\n"


def test_host_gets_what_is_missing_and_what_that_needs(root: Path) -> None:
    host = Host({"torch": "2.13.0", "av": "18.1.0"})
    host.requirements = {
        "rich": ["markdown-it-py (>=2.2.0)", "Torch>=2", "ipywidgets ; extra == 'jupyter'"],
        "markdown-it-py": ["mdurl~=0.1", "rich"],
        "torch": ["setuptools>=77"],  # what the host's own choices need is its own business too
    }
    assert host.run(root) == 0
    assert host.pip == [["rich"], ["markdown-it-py>=2.2.0"], ["mdurl~=0.1"]]


@pytest.mark.parametrize("name", sorted(PROTECTED))
@pytest.mark.parametrize("direct", [True, False])
def test_protected_is_reported_and_never_installed(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, direct: bool
) -> None:
    spelled = name.replace("-", "_").title()  # however it is spelled where it is asked for
    lines = f'"{spelled}>=1", "rich"' if direct else '"rich"'
    (root / "pyproject.toml").write_text(f"[project]\ndependencies = [{lines}]\n", encoding="utf-8")
    host = Host({"torch": "2"} if name != "torch" else {}, {"rich": [spelled]})
    assert (host.run(root), name in host.installed) == (FAILED, False)
    assert f"{name} missing" in capsys.readouterr().out


def test_without_torch_it_is_no_host(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.run_host(Project(root, start_nothing), Host({})) == FAILED
    assert "install.py setup" in capsys.readouterr().out


def test_version_out_of_range_is_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host({"torch": "2.13.0", "av": "14.0.0", "rich": "15.0.0"})
    assert host.run(root) == 0
    assert "av 14.0.0 is kept, although <19,>=15 is asked for" in capsys.readouterr().out
    assert not host.pip


def test_failed_host_pip_is_shown_and_resumed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host({"torch": "2.13.0", "av": "18.1.0", "rich": "15.0.0"}, {"rich": ["pygments"]})
    assert install.run_host(Project(root, lambda *_: 1), host) == FAILED
    assert "pip could not install" in capsys.readouterr().out
    assert install.run_host(Project(root, lambda *_: 0), host) == FAILED
    assert host.run(root) == 0
    assert host.pip == [["pygments"]]


def test_this_python_knows_itself() -> None:
    here = Distributions()
    assert here.version("PyTest") == importlib.metadata.version("pytest")
    assert "pluggy" in {Requirement(line).name for line in here.requires("pytest")}
    assert here.version("no-such-distribution") is None
    assert here.requires("no-such-distribution") == []


def test_host_role_as_a_host_runs_it(root: Path) -> None:
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["pytest"]\n', encoding="utf-8")
    shutil.copy(REPO / "install.py", root)
    shutil.copytree(REPO / "setup_tools", root / "setup_tools")
    environment = {**os.environ, "PYTHONPATH": str(root.parent), "PIP_NO_INDEX": "1"}
    command = [sys.executable, "install.py"]
    done = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "LTX video: nothing to install\n"), done.stderr
