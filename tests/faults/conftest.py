"""One place for all faults: its model is read once, its job done once undisturbed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.kit import Place, temporary


@dataclass(frozen=True)
class Undisturbed:
    """Digests of what the place's job makes: its video, and the latents before they are decoded; and where those are
    kept."""

    video: str
    latents: str
    kept: Path


@pytest.fixture(scope="session")
def place(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A host of its own: what others borrow from theirs is none of its business."""
    made = Place(tmp_path_factory.mktemp("faults"), cache)
    logging.disable(logging.ERROR)  # peft and diffusers log what was raised on purpose
    with temporary(made.temp):
        yield made
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def undisturbed(place: Place) -> Undisturbed:
    kept = place.kept / "refine.safetensors"
    latents = place.job(keep=kept, until="refine")
    return Undisturbed(place.job(keep=kept), latents, kept)
