"""Shared parts: one embedded host per session, LTX-Nano built once, small requests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.host_contract.boot import boot, host_root

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the models are tiny, and pytest runs a worker per core
if root := host_root():  # before our `modules`: in that process the name is the web UI's
    boot(root, Path(tempfile.mkdtemp(prefix="ltx-host-")))

import huggingface_hub.constants
import pytest
from PIL import Image, ImageDraw

from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from tests.seam_kit import Bench

# As small as every class allows: two latent frames of 2x2 tokens.
SMALL: dict[str, object] = {
    "prompt": "a red ball moving right",
    "width": 64,
    "height": 64,
    "frames": 9,
    "steps": 2,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--host-root", metavar="PATH", help="a checkout of SD.Next to test in, as LTX_HOST_ROOT says")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's LTX-Nano models are built."""
    return tmp_path_factory.mktemp("nano-cache")


@pytest.fixture(scope="session")
def host(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedHost:
    """The embedded host, on the CPU, offline."""
    outputs = tmp_path_factory.mktemp("outputs")
    return EmbeddedHost(Settings(outputs, cache=cache, device="cpu", offline=True))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disc on gray, wider than high."""
    image = Image.new("RGB", (120, 80), "gray")
    ImageDraw.Draw(image).ellipse((30, 20, 70, 60), fill="red")
    path = tmp_path_factory.mktemp("pictures") / "disc.png"
    image.save(path)
    return path


@pytest.fixture
def planned(host: EmbeddedHost) -> Callable[..., Plan]:
    """`planned(model, **options)`: the plan of a small request."""

    def make(model: str, **options: object) -> Plan:
        return settle(Request.parse(SMALL | {"model": model, "seed": 1} | options), host)

    return make


@pytest.fixture(scope="session")
def bench(cache: Path) -> Callable[[str], Bench]:
    """`bench(kind)`: a pipeline class to attach the self-refiner to, built once."""
    built: dict[str, Bench] = {}

    def get(kind: str) -> Bench:
        if kind not in built:
            built[kind] = Bench(kind, cache)
        return built[kind]

    return get


@pytest.fixture
def repos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`repos(name, folder, without)`: a hub cache that holds a folder as a repo, but for some components."""
    home = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))

    def add(name: str, folder: Path, without: tuple[str, ...] = ()) -> None:
        place = home / f"models--{name.replace('/', '--')}"
        revision = "0" * 40
        shutil.copytree(folder, place / "snapshots" / revision, ignore=shutil.ignore_patterns(*without))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(revision)

    return add


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[Any]:
    """A client of the module's own `app`, asking as this machine's browser would."""
    from starlette.testclient import TestClient  # not in every web UI's Python

    from tests.api_kit import HERE

    with TestClient(app.asgi, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def held(client: Any) -> Iterator[Any]:
    """The same with the queue paused and empty, before and after."""
    from tests.api_kit import API

    client.post(f"{API}/queue/pause", json={})
    yield client
    for job in client.get(f"{API}/jobs", params={"state": "queued"}).json()["jobs"]:
        client.delete(f"{API}/jobs/{job['id']}")
    client.post(f"{API}/queue/resume", json={})
