"""What a host's script loader runs: registers the self-refiner with whatever keeps denoise callbacks.

A thin caller. A host whose loader only imports this file has it register itself with the registry that the LTX
extension mounts; anything else calls `register` with its own.
"""

from __future__ import annotations

from typing import Any

from modules.ltx.hosts import refiner


def register(registry: Any) -> bool:
    """Register with `registry` (it has `register(callback)`); whether the self-refiner is there."""
    return refiner.register(registry)
