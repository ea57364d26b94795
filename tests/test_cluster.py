"""The queue on a Ray cluster of this machine: the same files as in one process, also where a worker is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.queue_kills import undisturbed, wrong
from modules.ltx.__main__ import main
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import Row, Store
from modules.ltx.request import Request
from modules.ltx.submit import several, submit
from modules.ltx.uploads import Uploads

ROOT = Path(__file__).resolve().parent.parent
ASKED: dict[str, object] = {"prompt": "a red ball", "width": 128, "height": 128, "frames": 9, "steps": 4}
MINUTES = 4 * 60.0  # to wait for anything
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or os.name != "posix", reason="Ray has no package for this Python or system"
)


def until(what: Callable[[], Any]) -> Any:
    """What `what` gives once it gives something."""
    end = time.monotonic() + MINUTES
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.01)
    raise TimeoutError


def sampling(store: Store) -> tuple[Row, int] | None:
    """A job that is in the middle of its first stage, and the process that does it."""
    for row in store.rows(state="running"):
        told = [event for _, event in store.events(row.id)]
        if told[-1].get("phase") == "sample":
            return row, next(event["worker"]["pid"] for event in reversed(told) if "worker" in event)
    return None


@needs_ray
def test_a_killed_worker_loses_nothing_and_every_file_is_the_same(
    cache: Path, host: EmbeddedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules.ltx.cluster import Cluster, Ray

    monkeypatch.setenv("LTX_CACHE", str(cache))
    store = Store(tmp_path / "outputs")
    uploads = Uploads(store.folder / "media")
    rows = submit(store, uploads, host, several(Request.parse(ASKED), seeds=[1, 2, 3]))
    cluster = Cluster(store, uploads, Settings(tmp_path / "outputs", device="cpu", offline=True), Ray(workers=2))
    cluster.start()
    try:
        killed, pid = until(lambda: sampling(store))
        os.kill(pid, signal.SIGKILL)
        until(lambda: all(row.over for row in store.rows()) or cluster.broken)
    finally:
        cluster.close()
        until(lambda: cluster.join(0.1))
    ended = [store.get(row.id) for row in rows]
    assert wrong(store, ended, undisturbed(tmp_path / "undisturbed", rows)) == []
    assert [row.attempts for row in ended] == [2 if row.id == killed.id else 1 for row in ended]
    said = [str(event.get("message")) for _, event in store.events(killed.id)]
    assert any("taken up behind" in one for one in said)  # encode, or sample where the kill was felt late
    workers = {event["worker"]["pid"] for row in ended for _, event in store.events(row.id) if "worker" in event}
    assert len(workers) >= 2  # the two did it together, or one and its successor


def without_ray(folder: Path) -> Path:
    """This Python's packages, all but Ray, as links."""
    folder.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if path.name != "ray" and not path.name.startswith("ray-"):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_without_ray_the_option_says_what_to_install_and_all_else_works(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(without_ray(tmp_path / "packages")), str(ROOT)])}
    # -S: the installed packages are not looked for where they are.
    asked = [sys.executable, "-S", "-m", "modules.ltx", "queue", "run", "--outputs", str(tmp_path / "outputs")]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*asked, *words], env=environment, capture_output=True, text=True, check=False)

    refused = call("--engine", "ray")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --engine ray: Ray is not installed (No module named 'ray')")
    assert "-m pip install --no-deps --require-hashes -r pins/ray.txt" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert call().returncode == 0
    assert not (tmp_path / "outputs").exists()


def test_what_belongs_to_ray_is_refused_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--workers", "2"], ["--address", "auto"], ["--engine", "slurm"]):
        assert main(["queue", "run", "--outputs", str(tmp_path), *words]) == 2
        assert words[0] in capsys.readouterr().err


def test_one_release_of_ray_is_asked_for_everywhere() -> None:
    """A cluster takes no other: the option's group and what the tests install must be the same."""
    asked = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if '"ray==' in line)
    assert asked.split('"')[1] in (ROOT / "constraints.txt").read_text().splitlines()
