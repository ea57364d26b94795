"""LTX video for SD.Next-style hosts, and without any host.

`plan(request, caps)` decides everything and loads nothing; `run(plan, host)` does it. Inside a host
the host's own package stands here, so nothing of ours may rely on this file having been imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request

if TYPE_CHECKING:
    from modules.ltx.ltx_process import run

__all__ = ["Plan", "Request", "caps_for", "plan", "run"]


def __getattr__(name: str) -> Any:
    """`run`, imported when it is first asked for: it brings torch, which planning does without."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modules.ltx.ltx_process import run

    return run
