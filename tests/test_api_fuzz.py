"""The short forms of `bench.api_fuzz`: what nobody would ask is answered as the document says, and as the CLI does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.api_fuzz import conform, fuzz, serving


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "outputs"


@pytest.fixture(scope="module")
def address(outputs: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with serving(outputs) as address:
            yield address


def test_any_body_is_a_job_or_refused_as_on_the_command_line(address: str, outputs: Path) -> None:
    found = fuzz(address, outputs, 200, seed=1, every=5)
    assert found["bodies"] >= 200
    assert found["202"] > 10
    assert found["422"] > 50


def test_every_answer_is_as_the_document_says(address: str) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
    found = conform(address, 200, seed=1)
    assert found["calls"] >= 200
    assert len(found["statuses"]) >= 5
