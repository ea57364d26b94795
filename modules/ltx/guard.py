"""Who may ask the server anything: names, origins, content types, and a token where others could reach it.

Knows HTTP headers alone; deliberately knows no route but the page's own, and no account.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.ltx.ltx_problems import problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "ltx-video"
GRADIO_UPLOADS = "/gradio_api/upload"  # where gradio's components send files, as forms do
API_UPLOADS = "/sdapi/v1/ltx/media"
# Under it only what this server itself hands out is loaded; gradio's page is made of inline scripts and styles.
POLICY = (
    "default-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "connect-src 'self'; font-src 'self' data:; img-src 'self' blob: data:; media-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:"
)


@dataclass(frozen=True)
class Trust:
    """Names the server answers to besides loopback ones, those of proxies in front of it, and what opens the door; with
    no token the server must be reachable from this machine alone. `names` empty with a token: any name."""

    names: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    @property
    def cookie(self) -> str:
        """What the page's cookie holds: made from the token, which cannot be read from it."""
        return hmac.new((self.token or "").encode(), b"cookie of the page", hashlib.sha256).hexdigest()

    def knows(self, name: str) -> bool:
        known = {*LOOPBACK, *self.names, *self.proxies}
        return name in known or (self.token is not None and not self.names)


class Guard:
    """Refuses what does not come from the page, from this machine or with the token; marks every answer."""

    def __init__(self, app: ASGIApp, trust: Trust) -> None:
        self._app, self._trust = app, trust
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

        headers, path = Headers(scope=scope), scope["path"]
        refused = foreign(path, scope["method"], headers, self._trust)
        if refused is None and self._trust.token is not None:
            refused = self._opened(scope, headers)
        refused = refused or wrong_type(scope["method"], path, headers)
        await (refused or self._app)(scope, receive, marked)

    def _opened(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who has the token; a cookie for who brings it to the page; else why not."""
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET" and asked and same(asked, self._trust.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._trust.cookie, httponly=True, samesite="strict", path="/")
            return answer
        scheme, _, given = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if (scheme.lower() == "bearer" and same(given.strip(), self._trust.token)) or same(cookie, self._trust.cookie):
            return None
        told = "send the server's token as `Authorization: Bearer TOKEN`, or open the page with /?token=TOKEN."
        return problem("unauthorized", told, headers={"www-authenticate": "Bearer"})


def same(given: str, wanted: str | None) -> bool:
    """Whether two secrets are the same, in a time that does not tell where they differ."""
    return wanted is not None and hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def foreign(path: str, method: str, headers: Mapping[str, str], trust: Trust) -> Response | None:
    """Why a request from another name or another page is not answered."""
    host = headers.get("host", "").lower()
    if isinstance(headers, Headers):
        host = ",".join(headers.getlist("host")).lower()
    name = re.sub(r":\d+\Z", "", host).strip("[]")
    if not trust.knows(name):
        return problem("foreign", "this server does not answer to that name.", instance=path)  # DNS rebinding
    origin = headers.get("origin", f"http://{host}").lower()
    own = {f"http://{host}", *(f"{scheme}://{proxy}" for proxy in trust.proxies for scheme in ("http", "https"))}
    own |= {f"https://{host}"} if name in trust.proxies else set()
    if origin not in own:
        return problem("foreign", "another web page may not use this server.", instance=path)
    opened = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and path == "/"
    if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin") and not opened:
        return problem("foreign", "another web page may not use this server.", instance=path)
    return None


def wrong_type(method: str, path: str, headers: Mapping[str, str]) -> Response | None:
    """Why a body is not looked at: a form could be sent by any page."""
    if method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if path == GRADIO_UPLOADS:
        right, wanted = kind == "multipart/form-data", "files as a form does, as multipart/form-data"
    elif path == API_UPLOADS:
        right = kind.partition("/")[0] in ("image", "video", "audio")
        wanted = "the bytes of an image, a video or a sound under its own type"
    else:
        right, wanted = kind == "application/json", "JSON, as application/json"
    return None if right else problem("content-type", f"send {wanted}.", instance=path)
