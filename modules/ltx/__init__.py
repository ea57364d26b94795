"""LTX video for SD.Next-style hosts, and without any host.

`plan(request, caps)` decides everything and loads nothing; `run(plan, host)` does it. Inside a host
the host's own package stands here, so nothing of ours may rely on this file having been imported.
"""

from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request

__all__ = ["Plan", "Request", "caps_for", "plan"]
