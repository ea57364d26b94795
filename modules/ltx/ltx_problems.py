"""What the API answers when something cannot be done (RFC 9457), and how much may be asked.

Knows which status an error has, how a body is read, and rates; deliberately knows no route.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from modules.ltx.errors import HostError, LTXError, RequestError
from modules.ltx.jobs import Conflict, KeyReused, NoSuchJob, QueueFull, Removed
from modules.ltx.request import OPTIONS
from modules.ltx.serve_request import in_words
from modules.ltx.uploads import TooLarge, TooSlow

MEDIA_TYPE = "application/problem+json"
PATIENCE = 60.0  # seconds in which a JSON body must have come
MOST_JSON = 8 << 20  # bytes: the longest prompt, escaped
# name of the kind: (status, title)
KINDS: Mapping[str, tuple[int, str]] = {
    "not-json": (400, "The body is not a JSON object"),
    "unauthorized": (401, "Credentials are missing or wrong"),
    "foreign": (403, "The request comes from elsewhere"),
    "not-found": (404, "There is no such thing"),
    "method": (405, "This method is not for this address"),
    "too-slow": (408, "Nothing was sent for too long"),
    "conflict": (409, "The job's state does not allow it"),
    "gone": (410, "It was there, and was removed"),
    "too-large": (413, "The body is too large"),
    "content-type": (415, "The content type is not taken"),
    "range": (416, "The range is outside the file"),
    "request": (422, "The request cannot be done as asked"),
    "key-reused": (422, "The idempotency key belongs to another request"),
    "too-many": (429, "Too much is asked at a time"),
    "unexpected": (500, "Something went wrong"),
    "machine": (503, "The machine is in the way"),
}
_OF_ERRORS: tuple[tuple[type[LTXError], str], ...] = (
    *((TooLarge, "too-large"), (TooSlow, "too-slow"), (KeyReused, "key-reused"), (QueueFull, "too-many")),
    *((Removed, "gone"), (NoSuchJob, "not-found"), (Conflict, "conflict"), (RequestError, "request")),
    *((HostError, "machine"), (LTXError, "unexpected")),
)
_FLAGS = {option.flag: option.name for option in OPTIONS}
_OF_MEDIA = {"image": "images", "video": "prefix", "videos": "prefix"}
_FIRST = re.compile(r"(--[a-z0-9-]+)|unknown option '(\w+)'|([a-z_]+)( [^:]{0,100})?:")
RETRY = 2  # seconds to wait before asking again


class Problem(LTXError):
    """A problem of HTTP alone; `kind` is one of KINDS."""

    def __init__(self, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.headers = kind, dict(headers or {})


def problem(kind: str, detail: str, *, instance: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says it."""
    status, title = KINDS[kind]
    body = {"type": f"urn:ltx:problem:{kind}", "title": title, "status": status, "detail": in_words(detail)}
    if instance:
        body["instance"] = instance
    if kind == "request" and (named := field_of(detail)) is not None:
        body["field"] = named
    more = {"retry-after": str(RETRY)} if status == 429 else {}
    return JSONResponse(body, status, media_type=MEDIA_TYPE, headers={**more, **(headers or {})})


def field_of(sentence: str) -> str | None:
    """The option that a sentence of a RequestError begins with."""
    found = _FIRST.match(sentence)
    if found is None:
        return None
    names = {option.name for option in OPTIONS} | {"images", "prefix", "loras"}
    named = _FLAGS.get(found[1] or "") or found[2] or _OF_MEDIA.get(found[3] or "", found[3])
    return named if named in names or found[2] else None


def problem_of(error: LTXError, instance: str = "") -> Response:
    """The answer to an error of ours."""
    if isinstance(error, Problem):
        return problem(error.kind, str(error), instance=instance, headers=error.headers)
    kind = next(kind for known, kind in _OF_ERRORS if isinstance(error, known))
    return problem(kind, str(error), instance=instance)


Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    """`handler`, whose refusals are answers: a web UI reshapes what is raised."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except LTXError as error:
            return problem_of(error, request.url.path)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    return answered


async def limited(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body in chunks, refused as soon as it is over `most` bytes, whatever its header says."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise TooLarge(f"the body may have {most} bytes; shorten it.")
        yield chunk


async def json_body(request: Request) -> dict[str, object]:
    """The JSON object of a body; none is an empty one. Raises Problem, TooLarge, TooSlow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("content-type", "send JSON, as application/json.")
    data: bytes | None = None
    with anyio.move_on_after(PATIENCE):
        data = b"".join([chunk async for chunk in limited(request, MOST_JSON)])
    if data is None:
        raise TooSlow(f"the body took over {PATIENCE:g} seconds to come; send it again.")
    if not data:
        return {}
    try:
        values = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Problem("not-json", "the body is not JSON.") from error
    if not isinstance(values, dict):
        raise Problem("not-json", "the body is JSON, but no object.")
    return values


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


@dataclass
class Rate:
    """How often one address may add something: `each` a second, after a burst of `burst`."""

    each: float = 20.0
    burst: int = 200
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, who: str) -> None:
        """Raises Problem where it is too often."""
        now = time.monotonic()
        with self._lock:
            left, then = self._left.get(who, (float(self.burst), now))
            left = min(self.burst, left + (now - then) * self.each)
            if len(self._left) > 10_000:
                self._left.clear()
            self._left[who] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if left < 1:
            raise Problem("too-many", f"more than {self.each:g} a second are asked to be added; wait a little.")


def body_of(values: Mapping[str, object], allowed: set[str], where: str) -> Mapping[str, Any]:
    """`values`, if it has no other names than `allowed`."""
    unknown = sorted(set(values) - allowed)
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0][:80]!r}; known are: {', '.join(sorted(allowed))}.")
    return values
