"""Finds the self-refiner beside this project and registers it, as a web UI's loader would.

It is loaded by its path, under a module name that nothing else has: `modules/ltx` never imports it, and inside a
web UI the name `extensions` belongs to the UI.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

from modules.ltx.denoise import DenoiseCallback

NAME = "ltx_selfrefiner"
FOLDER = Path(__file__).resolve().parents[3] / "extensions" / "selfrefiner"


class Registry(Protocol):
    """Whatever keeps denoise callbacks."""

    def register(self, callback: DenoiseCallback) -> None: ...


def register(host: Registry, folder: Path = FOLDER) -> bool:
    """Register the self-refiner with `host`; whether there is one. Harmless to do twice."""
    package = load(folder)
    if package is None:
        return False
    host.register(importlib.import_module(f"{package.__name__}.callback").SelfRefiner())
    return True


def load(folder: Path = FOLDER) -> Any:
    """The package in `folder`, imported once under NAME; None where there is none."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    init = folder / "__init__.py"
    if not init.is_file():
        return None
    spec = importlib.util.spec_from_file_location(NAME, init, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)
    return package
