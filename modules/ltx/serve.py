"""`python -m modules.ltx serve`: the page and the API, for one user on this machine or for who has the token.

Knows how the two are mounted, which address is listened on, and how a server ends. Who may ask is in `guard.py`, what
can be asked in `ltx_api.py`, what runs in `worker.py`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modules.ltx.errors import HostError, RequestError
from modules.ltx.guard import Guard, Trust
from modules.ltx.job import UNEXPECTED
from modules.ltx.jobs import FOLDER
from modules.ltx.ltx_api import PREFIX, Api
from modules.ltx.ltx_problems import Rate, answering, problem
from modules.ltx.ltx_routes import ROUTES
from modules.ltx.serve_jobs import Jobs
from modules.ltx.worker import MakeHost

LOOPBACK: Mapping[str, tuple[socket.AddressFamily, str]] = {
    "127.0.0.1": (socket.AF_INET, "127.0.0.1"),
    "localhost": (socket.AF_INET, "127.0.0.1"),
    "::1": (socket.AF_INET6, "::1"),
}
_ANY = ("0.0.0.0", "::")
SHORTEST_TOKEN = 16  # characters
# Nothing but HTTP/1.1 and silence; warnings and tracebacks still reach stderr.
_QUIET: Mapping[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
_PLAIN: Mapping[str, Any] = {"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "on", **_QUIET}


@dataclass(frozen=True)
class App:
    """The page and the API, over the jobs of one server; `outputs` is where its videos are, `learned` where it is kept
    how fast they were made, `loras` the folder that LoRAs are lent from."""

    jobs: Jobs
    outputs: Path
    learned: Path
    trust: Trust
    loras: Path | None = None
    rate: Rate | None = None

    @cached_property
    def asgi(self) -> Guard:
        import gradio  # seconds
        from fastapi import FastAPI

        from modules.ltx.web.desk import Desk
        from modules.ltx.web.page import CSS, Page, theme

        app = FastAPI(openapi_url=None, exception_handlers=dict(_HANDLERS))
        app.router.routes.extend(api_routes(Api(self.jobs.worker, self.loras, self.rate or Rate())))
        page = Page(Desk(self.jobs, self.outputs, self.learned)).blocks
        gradio.mount_gradio_app(
            app,
            page,
            path="/",
            allowed_paths=[str(self.outputs.absolute())],
            blocked_paths=[str(self.outputs.absolute() / FOLDER)],
            theme=theme(),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
        )
        return Guard(app, self.trust)


def api_routes(api: Api) -> list[Route]:
    """The API's routes as starlette has them; what an address does not take is said as everything else is."""
    made = [Route(f"{PREFIX}{one.path}", answering(getattr(api, one.handler)), methods=[one.method]) for one in ROUTES]
    methods: dict[str, list[str]] = {}
    for one in ROUTES:
        methods.setdefault(one.path, []).append(one.method)
    return [*made, *(_not_allowed(path, allowed) for path, allowed in methods.items())]


def _not_allowed(path: str, allowed: list[str]) -> Route:
    names = ", ".join(sorted({*allowed, *(["HEAD"] if "GET" in allowed else [])}))

    async def refuse(request: Request) -> Response:
        return problem("method", f"{request.url.path} takes {names}.", headers={"allow": names})

    return Route(f"{PREFIX}{path}", refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not-found", 405: "method"}
    return problem(kinds.get(error.status_code, "request"), f"{request.url.path}: {error.detail}.")


async def _on_unexpected(request: Request, error: Exception) -> Response:
    return problem("unexpected", f"{UNEXPECTED}.")  # the server's log has the traceback


_HANDLERS: Mapping[Any, Any] = {HTTPException: _on_http, Exception: _on_unexpected}


def listen(address: str, port: int, token: str | None = None) -> socket.socket:
    """A listening socket. Raises RequestError for an address that others could reach without a token, for a token that
    could be guessed, and for a port in use."""
    if address not in LOOPBACK and token is None:
        raise RequestError(
            f"--host {address}: others could reach it, so a token is needed: put one into LTX_TOKEN or into a file for"
            f" --token-file; or use an SSH tunnel: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE."
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise RequestError(f"the token is too short: give it {SHORTEST_TOKEN} characters or more.")
    if not 0 <= port <= 65535:
        raise RequestError(f"--port {port}: out of range; it takes 0 (any free one) to 65535.")
    family, bound = LOOPBACK.get(address, (socket.AF_INET6 if ":" in address else socket.AF_INET, address))
    try:
        listening = socket.create_server((bound, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"--port {port}: in use; choose another, or --port 0 for any free one.") from error
        raise HostError(
            f"cannot listen on {address}, port {port} ({error.strerror}); choose another --port."
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these do not: a body
    # then waits for the acknowledgement of its headers, 40 ms an answer.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Server(uvicorn.Server):
    """uvicorn, which has the job make way before it waits for open streams."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs) -> None:
        super().__init__(config)
        self._jobs = jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.close()
        await super().shutdown(sockets)


@dataclass(frozen=True)
class Listening:
    """Where a server listens and who may ask it; `proxies` are names of what stands in front of it."""

    address: str = "127.0.0.1"
    port: int = 7860
    proxies: tuple[str, ...] = ()
    token: str | None = None
    loras: Path | None = None

    @property
    def trust(self) -> Trust:
        names = () if self.address in (*LOOPBACK, *_ANY) else (self.address,)
        return Trust(names, self.proxies, self.token)


def serve(
    make_host: MakeHost,
    outputs: Path,
    at: Listening,
    *,
    prepare: Callable[[], None] = lambda: None,
    as_json: bool = False,
) -> None:
    """The web app, until Ctrl-C; a running job then makes way, and goes on when the server is started again."""
    listening = listen(at.address, at.port, at.token)
    shown = f"[{at.address}]" if ":" in at.address else at.address
    url = f"http://{shown}:{listening.getsockname()[1]}"
    with listening, TemporaryDirectory(prefix="ltx-uploads-") as folder:
        # Said at once: whoever connects while gradio is imported, which takes seconds, is answered as soon as it is.
        print(json.dumps({"address": url}) if as_json else f"{url}  (Ctrl-C stops it)", flush=True)
        jobs = Jobs(make_host, outputs, prepare)
        app = App(jobs, outputs, jobs.host.settings.cache_folder, at.trust, at.loras)
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        with suppress(KeyboardInterrupt):  # how it is meant to end
            config = uvicorn.Config(app.asgi, timeout_graceful_shutdown=3, **_PLAIN)
            _Server(config, jobs).run(sockets=[listening])
        jobs.close()  # once more, where it was stopped before it ran
        if not jobs.wait(2):  # a model is being read or downloaded, which nothing can interrupt
            print("waiting for the job to stop; Ctrl-C again ends it at once", file=sys.stderr)
            jobs.wait()
        if jobs.store.counts()["queued"]:
            print("jobs are waiting; they go on when it is started again (`queue list` shows them)", file=sys.stderr)
    print("stopped", file=sys.stderr)
