"""`python -m modules.ltx serve`: a page, and the few routes it needs, for one user on this machine.

Knows HTTP: who may ask (loopback names, the page's own origin), what a body may be, which status an
error has. Deliberately has no accounts, so it listens on loopback addresses only; and takes no path
from a browser. What can be asked is in `serve_request.py`, what runs in `serve_jobs.py`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.ltx.errors import HostError, LTXError, RequestError
from modules.ltx.front import settle
from modules.ltx.plan import Plan
from modules.ltx.serve_jobs import UNEXPECTED, Busy, Images, Job, Jobs, MakeHost
from modules.ltx.serve_request import in_words, plan_json, request_of, variants_json

LOOPBACK: Mapping[str, tuple[socket.AddressFamily, str]] = {
    "127.0.0.1": (socket.AF_INET, "127.0.0.1"),
    "localhost": (socket.AF_INET, "127.0.0.1"),
    "::1": (socket.AF_INET6, "::1"),
}
MAX_IMAGE = 50 << 20  # bytes
MAX_JSON = 8 << 20  # bytes: the longest prompt, escaped
UPLOADS = "/gradio_api/upload"  # where gradio's components send files, as forms do
# Under it only what this server itself hands out is loaded; gradio's page is made of inline scripts and styles.
POLICY = (
    "default-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "connect-src 'self'; font-src 'self' data:; img-src 'self' blob: data:; media-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:"
)
# Nothing but HTTP/1.1 and silence; warnings and tracebacks still reach stderr.
_QUIET: Mapping[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
_PLAIN: Mapping[str, Any] = {"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "on", **_QUIET}


class Guard:
    """Refuses what does not come from the page or from this machine; says the same about every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = {
            "content-security-policy": POLICY,
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refused = refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (refused or self._app)(scope, receive, marked)


def refusal(method: str, path: str, headers: Headers) -> Response | None:
    """Why a request is not answered, if it is not: a foreign name, a foreign page, a form's content type."""
    host = ",".join(headers.getlist("host")).lower()
    if re.sub(r":\d+\Z", "", host).strip("[]") not in LOOPBACK:
        return _error(403, "this server answers to 127.0.0.1, localhost and [::1] only.")  # DNS rebinding
    if headers.get("origin", f"http://{host}").lower() != f"http://{host}":
        return _error(403, "another web page may not use this server.")
    if method in ("GET", "HEAD", "OPTIONS"):
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if path == "/images":
        right = kind.startswith("image/") or kind == "application/octet-stream"
        wanted = "the bytes of the image, as image/png, another image type or application/octet-stream"
    elif path == UPLOADS:
        right, wanted = kind == "multipart/form-data", "files as a form does, as multipart/form-data"
    else:
        right, wanted = kind == "application/json", "JSON, as application/json"
    return None if right else _error(415, f"send {wanted}.")


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


@dataclass(frozen=True)
class App:
    """The page and the routes, over the jobs and images of one server; `outputs` is where its videos are, `learned`
    where it is kept how fast they were made."""

    jobs: Jobs
    images: Images
    outputs: Path
    learned: Path

    @cached_property
    def asgi(self) -> ASGIApp:
        import gradio  # seconds
        from fastapi import FastAPI

        from modules.ltx.web.desk import Desk
        from modules.ltx.web.page import CSS, Page, theme

        routes = [
            Route("/variants", self.variants),
            Route("/plan", self.plan, methods=["POST"]),
            Route("/images", self.add_image, methods=["POST"]),
            Route("/job", self.last_job),
            Route("/jobs", self.start, methods=["POST"]),
            Route("/jobs/{id}/events", self.events),
            Route("/jobs/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/jobs/{id}/video", self.video),
        ]
        app = FastAPI(openapi_url=None, exception_handlers=dict(_HANDLERS))
        app.router.routes.extend(routes)
        page = Page(Desk(self.jobs, self.outputs, self.learned)).blocks
        allowed = [str(self.outputs.absolute())]
        gradio.mount_gradio_app(
            app, page, path="/", allowed_paths=allowed, theme=theme(), css=CSS, footer_links=[], ssr_mode=False
        )
        return Guard(app)

    async def variants(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(variants_json, self.jobs.host))

    async def plan(self, request: Request) -> Response:
        return JSONResponse(plan_json(await self._settled(request)))

    async def start(self, request: Request) -> Response:
        job = self.jobs.start(await self._settled(request))
        return JSONResponse(job.to_json(), 202)

    async def _settled(self, request: Request) -> Plan:
        asked = request_of(await _json_body(request), self.images.path_of)
        return await run_in_threadpool(settle, asked, self.jobs.host)  # it decodes the images

    async def add_image(self, request: Request) -> Response:
        chunks = _limited(request, MAX_IMAGE, f"the image is larger than {MAX_IMAGE >> 20} MB; make it smaller.")
        return JSONResponse(await self.images.add(chunks, self.jobs.images_in_use), 201)

    async def last_job(self, request: Request) -> Response:
        job = self.jobs.last
        return JSONResponse({"job": job.to_json() if job else None})

    async def events(self, request: Request) -> Response:
        job = self._job(request)
        seen = request.headers.get("last-event-id", "")
        told = _told(job, self.jobs, int(seen) + 1 if seen.isascii() and seen.isdigit() else 0)
        return StreamingResponse(told, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        self.jobs.cancel(job)
        return JSONResponse({"id": job.id, "running": job.running})

    async def video(self, request: Request) -> Response:
        path = self._job(request).video
        if path is None or not path.is_file():
            raise HTTPException(404, "there is no video of this job, or it was moved away.")
        return FileResponse(path, media_type="video/mp4", filename=path.name, content_disposition_type="inline")

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            raise HTTPException(404, "there is no such job; the server may have been started again since.")
        return job


async def _told(job: Job, jobs: Jobs, sent: int) -> AsyncIterator[str]:
    """A job's events from number `sent` on, to the last one, as server-sent events."""
    while not jobs.closing:
        for event in job.events[sent:]:
            yield f"id: {sent}\ndata: {json.dumps(event)}\n\n"
            sent += 1
            if event["state"] != "running":
                return
        await anyio.sleep(0.1)


async def _limited(request: Request, limit: int, sentence: str) -> AsyncIterator[bytes]:
    """The body in chunks, refused as soon as it is over `limit` bytes, whatever its header says."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise HTTPException(413, sentence)
        yield chunk


async def _json_body(request: Request) -> Mapping[str, object]:
    chunks = [chunk async for chunk in _limited(request, MAX_JSON, "the request is too long; shorten the prompt.")]
    try:
        values = json.loads(b"".join(chunks))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request is not JSON.") from error
    if not isinstance(values, dict):
        raise HTTPException(400, "the request is not a JSON object.")
    return values


async def _on_known(request: Request, error: Exception) -> Response:
    status = 409 if isinstance(error, Busy) else 422 if isinstance(error, RequestError) else 500
    return _error(status, in_words(str(error)))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the browser closed the connection


async def _on_unexpected(request: Request, error: Exception) -> Response:
    return _error(500, f"{UNEXPECTED}.")  # the server's log has the traceback


_HANDLERS: Mapping[Any, Any] = {
    LTXError: _on_known,
    HTTPException: _on_http,
    ClientDisconnect: _on_gone,
    Exception: _on_unexpected,
}


def listen(address: str, port: int) -> socket.socket:
    """A listening socket. Raises RequestError for an address others could reach, and for a port in use."""
    if address not in LOOPBACK:
        raise RequestError(
            f"--host {address}: the web app has no passwords yet, so it listens on {', '.join(LOOPBACK)} only;"
            f" from elsewhere use an SSH tunnel: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE."
        )
    if not 0 <= port <= 65535:
        raise RequestError(f"--port {port}: out of range; it takes 0 (any free one) to 65535.")
    family, bound = LOOPBACK[address]
    try:
        return socket.create_server((bound, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"--port {port}: in use; choose another, or --port 0 for any free one.") from error
        raise HostError(
            f"cannot listen on {address}, port {port} ({error.strerror}); choose another --port."
        ) from error


class _Server(uvicorn.Server):
    """uvicorn, which says when it listens, and which cancels the job before it waits for open streams."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._jobs = jobs
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.close()
        await super().shutdown(sockets)


def serve(
    make_host: MakeHost, *, address: str, port: int, prepare: Callable[[], None] = lambda: None, as_json: bool = False
) -> None:
    """The web app, until Ctrl-C, which cancels the running job. `make_host` takes who is told its events."""
    listening = listen(address, port)
    shown = f"[{address}]" if ":" in address else address
    url = f"http://{shown}:{listening.getsockname()[1]}"
    with listening, TemporaryDirectory(prefix="ltx-images-") as folder:
        jobs = Jobs(make_host, prepare)
        settings = jobs.host.settings
        app = App(jobs, Images(Path(folder)), settings.outputs, settings.cache_folder)
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        config = uvicorn.Config(app.asgi, timeout_graceful_shutdown=3, **_PLAIN)
        said = json.dumps({"address": url}) if as_json else f"{url}  (Ctrl-C stops it)"
        with suppress(KeyboardInterrupt):  # how it is meant to end
            _Server(config, jobs, lambda: print(said, flush=True)).run(sockets=[listening])
        if not jobs.wait(2):  # a model is being read or downloaded, which nothing can interrupt
            print("waiting for the job to stop; Ctrl-C again ends it at once", file=sys.stderr)
            jobs.wait()
    print("stopped", file=sys.stderr)
