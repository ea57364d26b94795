"""The API in SD.Next: the same routes through its own registration, so that its passwords, limits and subpath hold, and
a worker of the same queue, which waits for the UI's own jobs as any job of the UI does.

What is refused is answered, never raised: the UI would reshape it. Its own 401 and 429 keep its shape.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from modules.ltx.guard import wrong_type
from modules.ltx.hosts.sdnext import SDNextHost, ui
from modules.ltx.jobs import FOLDER, Store
from modules.ltx.ltx_api import PREFIX, Api
from modules.ltx.ltx_problems import Handler, answering, problem
from modules.ltx.ltx_routes import ROUTES
from modules.ltx.uploads import Uploads
from modules.ltx.worker import Worker

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class QueueHost(SDNextHost):
    """One host for all jobs of the queue: what stopped a job does not stop the next."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        self._cancelled = False
        with super().lock():
            yield

    def picture(self, frame: Tensor) -> Image | None:
        colours = self._kept.colours
        return None if colours is None else colours.picture(frame)


@cache
def worker() -> Worker:
    """The one of this process, over the UI's folder for videos; it ends with the UI, and its job makes way."""
    opts = ui("shared").opts
    outputs = Path(ui("paths").resolve_output_path(opts.outdir_samples, opts.outdir_video))
    uploads = Uploads(outputs / FOLDER / "media")
    made = Worker(Store(outputs), uploads, lambda heard: QueueHost(on_event=heard))
    made.start()

    def end() -> None:
        made.close()
        made.join(3)

    atexit.register(end)
    return made


def started(_demo: Any, _app: Any) -> None:
    """The UI's server is there: mount the API and begin to work."""
    loras = getattr(ui("shared").opts, "lora_dir", "")
    api = Api(worker(), Path(loras) if loras else None)
    for route in ROUTES:
        ui("shared").api.add_api_route(
            PREFIX + route.path,
            own_pages(answering(getattr(api, route.handler))),
            methods=[route.method],
            response_model=None,
            summary=route.summary,
            description=f"Described in {PREFIX}/openapi.json.",
            tags=["LTX video"],
        )


def own_pages(handler: Handler) -> Handler:
    """`handler`, for requests that no foreign page sends; the UI itself looks at no origin."""

    async def guarded(request: Request) -> Response:
        headers, host = request.headers, request.headers.get("host", "").lower()
        known = {f"{scheme}://{host}" for scheme in ("http", "https")}
        known |= set(filter(None, (ui("shared").cmd_opts.cors_origins or "").lower().split(",")))
        foreign = headers.get("origin", f"http://{host}").lower() not in known
        if foreign or headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
            return problem("foreign", "another web page may not use this server.", instance=request.url.path)
        path = request.url.path
        refused = wrong_type(request.method, path[path.find(PREFIX) :], headers)
        return refused or await handler(request)

    return guarded
