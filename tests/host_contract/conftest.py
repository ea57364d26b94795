"""Both hosts as one fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.host_contract.boot import host_root
from tests.host_contract.kit import Embedded, SDNext


def needs_sdnext() -> Path:
    """The checkout of SD.Next to test in; skips where none is given."""
    root = host_root()
    if root is None:
        pytest.skip("no SD.Next: `python3 install.py host-test --host-root PATH` runs this in a checkout of it")
    return root


@pytest.fixture(scope="session", params=["embedded", "sdnext"])
def under_test(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The host under test: `kit.Embedded` or `kit.SDNext`."""
    if request.param == "embedded":
        return Embedded(cache, tmp_path_factory.mktemp("embedded"))
    needs_sdnext()
    return SDNext()


@pytest.fixture(scope="session")
def sdnext(tmp_path_factory: pytest.TempPathFactory) -> SDNext:
    """A real SD.Next."""
    needs_sdnext()
    return SDNext()
