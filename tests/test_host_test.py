"""`install.py host-test`: which host and Python it takes, what it adds beside them, and what it says at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import install
from setup_tools import host_test
from setup_tools.host_test import CHECKOUT, MODERN, behind, counted
from setup_tools.project import BAD_USAGE, CANCELLED, FAILED, Project, run_child
from setup_tools.survey import look_into
from tests.install_kit import REPO, Pip, make_distribution, make_root, make_venv, start_nothing

Capture = pytest.CaptureFixture[str]
HASH = f"--hash=sha256:{'1' * 64}"
HAS = {
    "torch": "2.13.0",
    "diffusers": "0.40.0.dev0",
    "transformers": "5.13.0",
    "gradio": "3.43.2",
    "av": "17.1.0",
    "pip": "25.0",
}
PYPROJECT = """\
[project]
dependencies = ["torch>=2", "diffusers>=0.39", "av>=15", "rich", "absent-here ; python_version < '3'"]
optional-dependencies.test = ["pytest", "hypothesis", "playwright"]
"""
PINS = ["pytest==9.2.0", "pluggy==1.7.0 ; python_version > '3'", "playwright==1.65.2", "greenlet==3.5.6"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, on a machine with a browser."""
    monkeypatch.setattr(host_test, "browser", lambda: "/usr/bin/chromium")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = make_root(tmp_path)
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "pins/test.txt").write_text("".join(f"{pin} \\\n    {HASH}\n" for pin in PINS), encoding="utf-8")
    (folder / "pins/setup.txt").write_text(f"rich==15.0.0 {HASH}\n", encoding="utf-8")
    return folder


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A checkout of SD.Next with its venv."""
    folder = tmp_path / "sdnext"
    for name in CHECKOUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    make_venv(folder / "venv")
    for name, version in HAS.items():
        make_distribution(site(folder), name, version)
    make_distribution(site(folder), "rich", "14.0", "markdown-it-py")
    make_distribution(site(folder), "markdown-it-py", "4.0")
    vcs = {"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "01969142b55379991fee"}}
    (site(folder) / "diffusers-0.40.0.dev0.dist-info/direct_url.json").write_text(json.dumps(vcs))
    return folder


def python_in(host: Path) -> Path:
    return host / ("venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python")


def site(host: Path) -> Path:
    return next((host / "venv").rglob("site-packages"))


def index(**more: object) -> Pip:
    """A pip that has what pytest and playwright need as well."""
    return Pip(needs={"pytest": "pluggy>=1", "playwright": "greenlet"}, **more)  # type: ignore[arg-type]


def run(root: Path, host: Path, pip: Pip, *arguments: str) -> int:
    return install.main(["host-test", "--host-root", str(host), *arguments], Project(root, pip))


def files(folder: Path) -> dict[str, bytes]:
    found = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_only_what_is_missing_is_added_beside_the_host(root: Path, host: Path, capsys: Capture) -> None:
    before, pip = files(host), index()
    assert run(root, host, pip, "-x") == 0
    assert pip.given == [["pytest==9.2.0", "playwright==1.65.2"], ["pluggy==1.7.0", "greenlet==3.5.6"]]
    for command in pip.started("pip", "install"):
        assert {"--no-deps", "--require-hashes"} <= {*command}
        assert command[:4] == [str(python_in(host)), "-I", "-m", "pip"]
        assert any(one.startswith(f"--target={root / '.host-test'}") for one in command)
    assert files(host) == before
    [tests] = pip.started("pytest")
    assert tests[3:7] == ["tests/host_contract", f"--host-root={host}", "-o", "addopts="]
    assert tests[-3:] == ["-k", "not embedded", "-x"]
    assert "the host's Python is not changed" in capsys.readouterr().out


def test_the_second_start_installs_nothing_until_the_host_changes(root: Path, host: Path) -> None:
    run(root, host, index())
    again = index()
    run(root, host, again)
    assert again.kinds() == ["pytest"]
    make_distribution(site(host), "pytest", "8.0", "pluggy>=1")
    make_distribution(site(host), "pluggy", "1.5")
    changed = index()
    run(root, host, changed)
    assert changed.given == [["playwright==1.65.2"], ["greenlet==3.5.6"]]
    [packages] = (root / ".host-test").glob("*/packages")
    assert not list(packages.glob("pytest-*")), "the host's own is not shadowed, nor kept in reserve"


def test_an_interrupted_install_is_made_again(root: Path, host: Path) -> None:
    assert run(root, host, index(interrupt=True)) == CANCELLED
    whole = index()
    assert run(root, host, whole) == 0
    assert whole.given[0][0] == "pytest==9.2.0"


def test_who_chooses_by_name_chooses_among_all(root: Path, host: Path) -> None:
    pip = index()
    run(root, host, pip, "-k", "not test_page and sigmas")
    [tests] = pip.started("pytest")
    assert tests.count("-k") == 1
    assert tests[-2:] == ["-k", "not test_page and sigmas"]


def test_a_named_file_is_the_only_one(root: Path, host: Path) -> None:
    (root / "tests").mkdir()
    (root / "tests/test_page.py").touch()
    pip = index()
    run(root, host, pip, "tests/test_page.py::test_it")
    [tests] = pip.started("pytest")
    assert [one for one in tests if one.startswith("tests/")] == ["tests/test_page.py::test_it"]


def test_a_named_python_is_taken_as_it_is_named(root: Path, host: Path, tmp_path: Path) -> None:
    """Not what a link leads to, which would be another Python with other packages."""
    (host / "venv").rename(tmp_path / "elsewhere")
    pip = index()
    assert run(root, host, pip) == BAD_USAGE
    python = tmp_path / "elsewhere" / python_in(host).relative_to(host / "venv")
    assert run(root, host, pip, "--python", str(python)) == 0
    assert {one[0] for one in pip.commands} == {str(python)}


def test_a_host_without_pip_is_served_by_ours(root: Path, host: Path) -> None:
    (site(host) / "pip-25.0.dist-info/METADATA").unlink()
    pip = index()
    assert run(root, host, pip) == 0
    for command in pip.started("pip", "install"):
        assert command[:7] == [sys.executable, "-I", "-m", "pip", "--python", str(python_in(host)), "install"]


def no_checkout(host: Path) -> None:
    (host / "webui.py").unlink()


def no_python(host: Path) -> None:
    (host / "venv").rename(host / "other")


def no_torch(host: Path) -> None:
    (site(host) / "torch-2.13.0.dist-info/METADATA").unlink()


def no_av(host: Path) -> None:
    (site(host) / "av-17.1.0.dist-info/METADATA").unlink()


def broken(host: Path) -> None:
    python_in(host).unlink()
    python_in(host).write_text("no program", encoding="utf-8")


def fine(host: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (no_checkout, [], "not a checkout of SD.Next, webui.py is missing"),
        (no_python, [], "has no venv/bin/python: name the Python that SD.Next runs with by --python PATH."),
        (no_torch, [], "it has no torch; name the Python that SD.Next runs with"),
        (no_av, [], "it has no av, which SD.Next's own installer brings"),
        (broken, [], "it does not start as a Python"),
        (fine, ["--python", "/no/such/python"], "--python /no/such/python: no such file"),
        (fine, ["--with", "diffusers"], "--with diffusers: it takes a name and one exact version"),
        (fine, ["--host-root", "/no/such/folder"], "--host-root /no/such/folder: no such folder"),
    ],
)
def test_what_it_cannot_run_in_is_one_sentence(
    root: Path, host: Path, capsys: Capture, change: Callable[[Path], None], arguments: list[str], said: str
) -> None:
    change(host)
    command = ["host-test", "--host-root", str(host), *arguments]
    assert install.main(command, Project(root, start_nothing)) == BAD_USAGE
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith("install.py: ")
    assert said in sentence


def test_a_host_root_must_be_named(root: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        install.main(["host-test", "-x"], Project(root, start_nothing))
    assert caught.value.code == BAD_USAGE


def test_without_a_browser_its_driver_is_left_out(
    root: Path, host: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_test, "browser", lambda: None)
    pip = index()
    assert run(root, host, pip) == 0
    assert pip.given == [["pytest==9.2.0"], ["pluggy==1.7.0"]]
    assert "No Chromium or Chrome on this machine: the tests of SD.Next's page are skipped." in capsys.readouterr().out


def test_without_its_driver_the_others_run(root: Path, host: Path, capsys: Capture) -> None:
    pip = index(refused="playwright")
    assert run(root, host, pip) == 0
    assert pip.given[-2:] == [["pytest==9.2.0"], ["pluggy==1.7.0"]]
    assert "Without playwright, the tests of SD.Next's page are skipped." in capsys.readouterr().out


def test_without_pytest_nothing_runs(root: Path, host: Path, capsys: Capture) -> None:
    pip = index(refused="pytest")
    assert run(root, host, pip) == FAILED
    assert not pip.started("pytest")
    assert "pip could not install" in capsys.readouterr().err


def test_a_tool_without_a_hash_is_not_installed(root: Path, host: Path, capsys: Capture) -> None:
    pip = index()
    pip.needs["pytest"] = "unheard-of"
    assert run(root, host, pip) == FAILED
    assert "lacks unheard-of, of which pins/ has no hash" in capsys.readouterr().err


def test_another_release_stands_before_the_hosts(root: Path, host: Path, capsys: Capture) -> None:
    (root / "pins/releases.txt").write_text(f"diffusers==0.41.0 {HASH}\n", encoding="utf-8")
    pip = index()
    assert run(root, host, pip, "--with", "diffusers==0.41.0") == 0
    first, second = pip.environments[-1]["PYTHONPATH"].split(os.pathsep)
    assert Path(first).name == "diffusers-0.41.0"
    assert Path(second) == REPO / "setup_tools/behind"
    shown = capsys.readouterr().out.splitlines()
    assert "diffusers        0.41.0 (the host has 0.40.0.dev0 at 01969142)" in shown


def test_it_ends_with_every_version_and_the_counts(root: Path, host: Path, capsys: Capture) -> None:
    for command in (["init", "-qb", "dev"], ["add", "webui.py"], ["commit", "-qm", "x", "--date=2026-07-24T12:00:00Z"]):
        author = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a",
        }
        environment = {**os.environ, **author, "GIT_COMMITTER_DATE": "2026-07-24T12:00:00Z"}
        subprocess.run(["git", *command], cwd=host, check=True, env=environment)
    (host / MODERN / "javascript").mkdir(parents=True)
    assert run(root, host, index(codes={"pytest": 1})) == FAILED
    *_, last = lines = capsys.readouterr().out.splitlines()
    shown = dict(line.split("  ", 1) for line in lines[-16:-1])
    assert {name: text.strip() for name, text in shown.items()}.items() >= {
        "torch": "2.13.0",
        "diffusers": "0.40.0.dev0 at 01969142",
        "gradio": "3.43.2",
        "sdnq": "not there",
        "theme": "Standard, Modern (not known: no git, or no git checkout)",
    }.items()
    assert shown["SD.Next"].endswith(", dev, 2026-07-24")
    assert last == "== 3 passed, 1 failed, 1 skipped in 0.0 minutes"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '<x><testsuite tests="9" failures="2" errors="1" skipped="3"/></x>',
            "3 passed, 2 failed, 3 skipped, 1 errors",
        ),
        ('<testsuites><testsuite tests="0"/></testsuites>', "no test was chosen (pytest ended with code 5)"),
        ("<testsui", "pytest ended with code 5 before it wrote its results"),
        ("", "pytest ended with code 5 before it wrote its results"),
    ],
)
def test_the_counts_are_pytests(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "results.xml").write_text(text, encoding="utf-8")
    assert counted(tmp_path / "results.xml", 5) == said


def test_exit_codes(root: Path, host: Path) -> None:
    for code, ours in ((2, CANCELLED), (4, BAD_USAGE), (139, FAILED)):
        assert run(root, host, index(codes={"pytest": code})) == ours


def test_what_is_added_is_found_after_all_of_the_hosts_and_by_every_program(host: Path, tmp_path: Path) -> None:
    python = str(python_in(host))
    added = tmp_path / "added"
    added.mkdir()
    for folder in (added, site(host)):
        (folder / "both.py").write_text(f"place = {str(folder)!r}", encoding="utf-8")
    (added / "alone.py").touch()
    (site(host) / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = 5\n", encoding="utf-8")
    inner = f"import both, alone; assert both.place == {str(site(host))!r}; assert theirs == 5"
    outer = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))"
    assert run_child([python, "-c", outer], tmp_path, behind(added)) == 0
    assert run_child([python, "-c", "import alone"], tmp_path, {}) != 0


def test_of_two_with_one_name_the_imported_one_is_told(host: Path, tmp_path: Path) -> None:
    make_distribution(tmp_path / "front", "diffusers", "0.41.0")
    make_distribution(tmp_path / "added", "torch", "1.0")
    there = look_into(python_in(host), behind(tmp_path / "added", [tmp_path / "front"]))
    assert there is not None
    assert (there.version("Diffusers"), there.version("torch")) == ("0.41.0", "2.13.0")
