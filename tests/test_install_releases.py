"""`install.py test` with other releases of a library: which, how they are fetched, and what the last line says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import install
from setup_tools import checks
from setup_tools.project import BAD_USAGE, FAILED, Project, SetupError
from setup_tools.releases import NotFetched, Release, declared, named, unpacked
from setup_tools.survey import Elsewhere
from tests.install_kit import Pip, make_root, start_nothing

Capture = pytest.CaptureFixture[str]
OLD = Release("diffusers", "0.39.0")
HASH = f"--hash=sha256:{'1' * 64}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that declares two releases; without a browser, which would be asked of apt."""
    monkeypatch.setattr(checks, "ensure_browser", lambda _: None)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = make_root(tmp_path)
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(text.replace('"rich"', '"rich", "diffusers>=0.39,<0.43"'), encoding="utf-8")
    pins = [f"diffusers=={version} \\\n    {HASH}\n" for version in ("0.42.1", "0.40.0", "0.39.0", "0.38.0")]
    (folder / "pins/releases.txt").write_text("# a comment\n" + "".join(pins), encoding="utf-8")
    by_python = "diffusers==0.42.1 ; python_version >= '3.11'\ndiffusers==0.41.0 ; python_version < '3.11'\n"
    (folder / "constraints.txt").write_text(f"torch==2.13.0\n{by_python}", encoding="utf-8")
    (folder / "tests").mkdir()
    for name, mark in (("a", "short"), ("b", "library"), ("c", "other")):
        (folder / f"tests/test_{name}.py").write_text(f"pytestmark = pytest.mark.{mark}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("installed", "python", "expected"),
    [
        ("0.42.1", "3.11", ["0.39.0"]),
        ("0.39.0", "3.12", ["0.42.1"]),
        ("0.40.0", "3.12", ["0.39.0", "0.42.1"]),
        ("0.41.0", "3.10", ["0.39.0"]),
    ],
)
def test_the_oldest_and_the_newest_declared_that_are_not_installed(
    root: Path, installed: str, python: str, expected: list[str]
) -> None:
    packages = {"diffusers": {"version": installed}}
    there = Elsewhere({"markers": {"python_version": python}, "packages": packages})
    assert [one.version for one in declared(Project(root), "diffusers", there)] == expected


def test_a_release_is_fetched_once_and_checked_by_its_hash(root: Path) -> None:
    pip = Pip()
    project = Project(root, pip)
    place = unpacked(project, OLD, project.venv / "releases", project.pip)
    assert place == root / ".venv/releases/diffusers-0.39.0"
    assert [one.name for one in place.iterdir()] == ["diffusers-0.39.0.dist-info"]
    [fetched] = pip.started("pip", "download")
    assert {"--no-deps", "--only-binary=:all:", "diffusers==0.39.0"} <= {*fetched}
    [installed] = pip.started("pip", "install")
    assert {"--no-deps", "--no-index", "--require-hashes"} <= {*installed}
    assert [one.name for one in place.parent.iterdir()] == [place.name], "no draft is left"
    unpacked(Project(root, start_nothing), OLD, project.venv / "releases", project.pip)


def test_a_release_without_a_hash_is_taken_and_that_is_said(root: Path, capsys: Capture) -> None:
    pip = Pip()
    unpacked(Project(root, pip), Release("transformers", "5.1.0"), root / "releases", ["python", "-m", "pip"])
    assert not pip.started("pip", "--require-hashes")
    assert "transformers==5.1.0 has no hash in pins/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "fault", "said"),
    [
        ({"download": 1}, NotFetched, r"could not be fetched.*pip index versions diffusers"),
        ({"install": 1}, SetupError, r"pip could not install what .*differs from its hash"),
    ],
)
def test_what_could_not_be_unpacked_is_tried_again(
    root: Path, codes: dict[str, int], fault: type[Exception], said: str
) -> None:
    with pytest.raises(fault, match=said):
        unpacked(Project(root, Pip(codes=codes)), OLD, root / "releases", ["python", "-m", "pip"])
    assert unpacked(Project(root, Pip()), OLD, root / "releases", ["python", "-m", "pip"]).is_dir()


def test_every_check_and_then_the_short_tests_with_the_other_releases(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    pip = Pip()
    assert install.main(["test"], Project(root, pip)) == 0
    whole, oldest, _ = pip.started("pytest")
    assert whole[2:] == ["pytest"]
    assert oldest[2:] == ["pytest", "-m", "short", "-p", "no:cacheprovider", "-n", "0", "tests/test_a.py"]
    told = pip.environments[pip.commands.index(oldest)]
    assert told == {"PYTHONPATH": os.pathsep.join([str(root / ".venv/releases/diffusers-0.39.0"), "/before"])}
    assert capsys.readouterr().out.splitlines()[-1] == "== all 7 steps passed", "nothing is installed in this .venv"


def prepared(root: Path) -> None:
    pip = Pip()
    assert install.main(["test"], Project(root, pip)) == 0


def nothing(root: Path) -> None:
    pass


NAMES = "short tests with diffusers==0.39.0", "short tests with diffusers==0.42.1"


@pytest.mark.parametrize(
    ("pip", "before", "code", "last"),
    [
        (Pip(offline=True), nothing, 0, f"== all 5 steps passed; not run: {NAMES[0]}; not run: {NAMES[1]}"),
        (Pip(offline=True), prepared, 0, "== all 7 steps passed"),
        (Pip(codes={"--require-hashes": 1, "mypy": 1}), prepared, FAILED, "== failed: mypy"),
        (Pip(codes={"--no-index": 1}), nothing, FAILED, f"== failed: {', '.join(NAMES)}"),
        (Pip(codes={"short": 1}), nothing, FAILED, f"== failed: {', '.join(NAMES)}"),
        (Pip(codes={"mypy": 1}, offline=True), nothing, FAILED, f"== failed: mypy; not run: {NAMES[0]}"),
    ],
)
def test_the_last_line_tells_what_failed_and_what_was_not_run(
    root: Path, capsys: Capture, pip: Pip, before: Callable[[Path], None], code: int, last: str
) -> None:
    before(root)
    assert install.main(["test"], Project(root, pip)) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_who_chooses_tests_gets_these_alone(root: Path) -> None:
    pip = Pip()
    assert install.main(["test", "-k", "one or two"], Project(root, pip)) == 0
    assert [one[2:] for one in pip.started("pytest")] == [["pytest", "-k", "one or two"]]


@pytest.mark.parametrize(
    ("arguments", "expected", "fronts"),
    [
        (
            ["--with", "diffusers==0.39.0"],
            ["library", "-p", "no:cacheprovider", "tests/test_b.py"],
            ["diffusers-0.39.0"],
        ),
        (["--short"], ["short", "-p", "no:cacheprovider", "-n", "0", "tests/test_a.py"], []),
        (
            ["-x", "--with", "Diffusers==0.39.0", "--with=peft==0.19.1", "--short", "tests/test_a.py::test_it"],
            ["short", "-p", "no:cacheprovider", "-n", "0", "-x", "tests/test_a.py::test_it"],
            ["diffusers-0.39.0", "peft-0.19.1"],
        ),
    ],
)
def test_library_tests_with_named_releases_in_front(
    root: Path, capsys: Capture, arguments: list[str], expected: list[str], fronts: list[str]
) -> None:
    pip = Pip()
    assert install.main(["test", *arguments], Project(root, pip)) == 0
    [command] = pip.started("pytest")
    assert command[2:] == ["pytest", "-m", *expected]
    folders = os.pathsep.join(str(root / ".venv/releases" / one) for one in fronts)
    assert pip.environments[-1] == ({"PYTHONPATH": folders} if fronts else {})
    assert not pip.started("mypy")
    assert capsys.readouterr().out.splitlines()[-1].startswith("== passed: ")


def test_failed_library_tests_are_a_failure(root: Path, capsys: Capture) -> None:
    pip = Pip(codes={"pytest": 1})
    assert install.main(["test", "--with", str(OLD), "--short"], Project(root, pip)) == FAILED
    assert capsys.readouterr().out.splitlines()[-1] == "== failed: short tests with diffusers==0.39.0"


def test_a_named_release_that_cannot_be_had_is_one_sentence(root: Path, capsys: Capture) -> None:
    pip = Pip(offline=True)
    assert install.main(["test", "--with", "diffusers==9.9"], Project(root, pip)) == FAILED
    assert not pip.started("pytest")
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("install.py: diffusers==9.9 could not be fetched, pip's own message is above: ")


@pytest.mark.parametrize(
    "text", ["diffusers", "diffusers>=0.39", "==1", "diffusers==", "diffusers==*", "a b==1", "-e ."]
)
def test_what_is_no_release_is_one_sentence(root: Path, capsys: Capture, text: str) -> None:
    assert install.main(["test", f"--with={text}"], Project(root, start_nothing)) == BAD_USAGE
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"install.py: --with {text}: it takes a name and one exact version")


def test_names_are_compared_as_pip_does() -> None:
    assert named("Hugging_Face.Hub==1.0") == Release("hugging-face-hub", "1.0")


def test_a_half_unpacked_release_is_none(root: Path) -> None:
    """A kill while pip unpacks leaves the draft alone."""
    pip = Pip()
    project = Project(root, pip)
    folder = project.venv / "releases"
    (folder / "draft-diffusers-0.39.0/files/half").mkdir(parents=True)
    place = unpacked(project, OLD, folder, project.pip)
    assert not (place / "half").exists()
    shutil.rmtree(folder)
