"""What a Python has installed, and how that meets a list of requirements. Installs nothing, imports nothing of it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setup_tools.project import canonical, output_of, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a host chose for its own good reasons (its GPU, its user interface): never installed, never changed.
PROTECTED = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "av", "numpy", "pillow"}
PROTECTED |= {"gradio", "gradio-client"}


class Distributions:
    """What is installed in the Python that runs this file."""

    @property
    def markers(self) -> Mapping[str, str]:
        """What differs from this Python for the markers of requirement lines."""
        return {}

    def version(self, name: str) -> str | None:
        # Leftovers of an aborted uninstall have no version: None or KeyError, by Python version.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, KeyError):
            return importlib.metadata.version(name)
        return None

    def requires(self, name: str) -> list[str]:
        importlib.invalidate_caches()  # pip has just added it
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.requires(name) or []
        return []


@dataclass(frozen=True)
class Elsewhere(Distributions):
    """What is installed in another Python: what `inventory.py` printed there."""

    told: Mapping[str, Any]

    @property
    def markers(self) -> Mapping[str, str]:
        return {str(name): str(value) for name, value in self.told["markers"].items()}

    def _about(self, name: str) -> Mapping[str, Any]:
        return self.told["packages"].get(canonical(name), {})  # type: ignore[no-any-return]

    def version(self, name: str) -> str | None:
        return self._about(name).get("version")

    def requires(self, name: str) -> list[str]:
        return list(self._about(name).get("requires", ()))

    def commit(self, name: str) -> str:
        """The git commit that a distribution was installed from; empty for a release of an index."""
        return str(self._about(name).get("commit", ""))


def look_into(python: Path, more: Mapping[str, str] | None = None) -> Elsewhere | None:
    """What another Python has, with `more` in its environment; None where it is no Python that starts."""
    printed = output_of([str(python), str(Path(__file__).with_name("inventory.py"))], more)
    with contextlib.suppress(ValueError):
        return Elsewhere(json.loads(printed))
    return None


@dataclass
class Survey:
    """How a host's Python meets some requirements, by name."""

    missing: dict[str, str] = field(default_factory=dict)  # what pip may be given
    protected: dict[str, str] = field(default_factory=dict)  # missing, but the host's business
    unusual: dict[str, str] = field(default_factory=dict)  # there, in a version nobody asked for


def survey(requirements: Sequence[str], here: Distributions) -> Survey:
    """Look at the requirements, and at what those need that are there and not the host's own choice."""
    found, seen, waiting = Survey(), set(PROTECTED), [parsed(line) for line in requirements]
    while waiting:
        wanted = waiting.pop(0)
        if wanted.marker and not wanted.marker.evaluate({**here.markers, "extra": ""}):
            continue
        name, version = canonical(wanted.name), here.version(wanted.name)
        if version is None:
            (found.protected if name in PROTECTED else found.missing)[name] = f"{name}{wanted.specifier}"
        elif not wanted.specifier.contains(version, prereleases=True):
            found.unusual[name] = f"{name} {version} is kept, although {wanted.specifier} is asked for"
        if version is not None and name not in seen:
            seen.add(name)
            waiting += [parsed(line) for line in here.requires(name)]
    return found
