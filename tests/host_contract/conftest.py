"""Both hosts as one fixture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.host_contract.kit import Embedded, SDNext


@pytest.fixture(scope="session", params=["embedded", "sdnext"])
def under_test(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The host under test: `kit.Embedded` or `kit.SDNext`."""
    if request.param == "embedded":
        return Embedded(cache, tmp_path_factory.mktemp("embedded"))
    if not os.environ.get("LTX_HOST_ROOT"):
        pytest.skip("no SD.Next: set LTX_HOST_ROOT to a checkout and run with its Python (ARCHITECTURE.md says how)")
    return SDNext()


@pytest.fixture(scope="session")
def sdnext(tmp_path_factory: pytest.TempPathFactory) -> SDNext:
    """A real SD.Next."""
    if not os.environ.get("LTX_HOST_ROOT"):
        pytest.skip("no SD.Next: set LTX_HOST_ROOT to a checkout and run with its Python (ARCHITECTURE.md says how)")
    return SDNext()
