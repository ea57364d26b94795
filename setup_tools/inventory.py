"""Prints as JSON what the Python that runs it has: markers, and each distribution with its version and needs.

Started by `survey.look_into` with a Python that need not have anything of this project.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys


def markers() -> dict[str, str]:
    """The variables of environment markers (PEP 508)."""
    implementation = ".".join(map(str, sys.implementation.version[:3]))
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": implementation,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


def commit_of(found: importlib.metadata.Distribution) -> str:
    """The git commit of a distribution that pip installed from a repository (PEP 610), else empty."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(found.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])
    return ""


def packages() -> dict[str, dict[str, object]]:
    """By canonical name; of two with one name the first on the path, which is the one that is imported."""
    found: dict[str, dict[str, object]] = {}
    for one in importlib.metadata.distributions():
        with contextlib.suppress(KeyError, AttributeError):  # leftovers of an aborted uninstall
            name, version = one.metadata["Name"], one.version
            if name and version:
                key = re.sub(r"[-_.]+", "-", name).lower()
                found.setdefault(key, {"version": version, "requires": one.requires or [], "commit": commit_of(one)})
    return found


if __name__ == "__main__":
    print(json.dumps({"markers": markers(), "packages": packages()}))
