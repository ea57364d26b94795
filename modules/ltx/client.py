"""A client of the API for programs in Python: what is asked is sent once, whatever happens to the connection.

    from modules.ltx.client import Client

    with Client() as ltx:
        job = ltx.submit(prompt="a small red ball moving right on black", seed=7)
        ltx.wait(job["id"])
        ltx.video(job["id"], "ball.mp4")

Knows HTTP alone; it imports nothing of the rest, so that the file can be copied into another project.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

PREFIX = "/sdapi/v1/ltx"
TYPES = {
    **{".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"},
    **{".mp4": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska"},
    **{".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".ogg": "audio/ogg"},
}
_TRIES = 5
_LATER = (408, 425, 429, 502, 503, 504)  # asked again later, the answer may be another
_OVER = ("done", "failed", "cancelled")


class ClientError(Exception):
    """The server's refusal: `problem` is what it said (RFC 9457), `status` the number."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.status, self.problem = status, dict(problem)


class JobFailed(ClientError):
    """A job that was waited for did not come to a video."""


class Client:
    """The API at `url`, the embedded app's or a web UI's. `token` is the embedded server's, `auth` (name, password) a
    web UI's."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        *,
        token: str | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, auth=auth, timeout=timeout, follow_redirects=True
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> dict[str, Any]:
        """Every variant, and the names of the LoRAs that may be asked for."""
        return self._json("GET", "/models")

    def health(self) -> dict[str, Any]:
        return self._json("GET", "/health")

    def plan(self, **request: Any) -> dict[str, Any]:
        """What would be made. Raises ClientError for what cannot be."""
        return self._json("POST", "/plan", request)

    def submit(self, *, wait: bool = False, **request: Any) -> dict[str, Any]:
        """Add a job; with `wait` return when it is done, and raise JobFailed where it is not."""
        job = self._json("POST", "/jobs", request)
        return self.wait(job["id"]) if wait else job

    def batch(self, request: Mapping[str, Any], **how: Any) -> list[dict[str, Any]]:
        """Add a job for every prompt and seed: `prompts`, `seeds` or `count`, `priority`."""
        return list(self._json("POST", "/batches", {"request": dict(request), **how})["jobs"])

    def draft(self, request: Mapping[str, Any], *, count: int = 4, seeds: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Add drafts: stage 1 alone, for several seeds."""
        how: dict[str, Any] = {"seeds": list(seeds)} if seeds else {"count": count}
        return list(self._json("POST", "/drafts", {"request": dict(request), **how})["jobs"])

    def finish(self, draft: str, *, wait: bool = False) -> dict[str, Any]:
        """Add the job that makes a draft's video."""
        job = self._json("POST", f"/jobs/{draft}/finish", {})
        return self.wait(job["id"]) if wait else job

    def job(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/jobs/{job}")

    def jobs(self, **query: Any) -> list[dict[str, Any]]:
        """Those of a `state` or a `batch`, or all."""
        return list(self._sent("GET", "/jobs", params=query).json()["jobs"])

    def cancel(self, job: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{job}/cancel", {})

    def delete(self, job: str) -> None:
        self._sent("DELETE", f"/jobs/{job}")

    def report(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/jobs/{job}/report")

    def events(self, job: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """What happens to a job, from event number `after` on to its last; a stream that breaks off is taken up."""
        while True:
            try:
                for number, event in self._stream(job, after):
                    after = number
                    yield event
                    if event["state"] in _OVER:
                        return
            except httpx.TransportError:
                time.sleep(1)
            if self.job(job)["state"] in _OVER and not list(self._stream(job, after)):
                return

    def _stream(self, job: str, after: int) -> Iterator[tuple[int, dict[str, Any]]]:
        number = after
        with self._http.stream(
            "GET", f"{PREFIX}/jobs/{job}/events", headers={"last-event-id": str(after)}, timeout=60
        ) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _refusal(answer)
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("data: "):
                    yield number, json.loads(line[6:])

    def wait(self, job: str, timeout: float | None = None) -> dict[str, Any]:
        """The job when it is done. Raises JobFailed where it failed or was cancelled, TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.1
        while (found := self.job(job))["state"] not in _OVER:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"{job} is still {found['state']}")
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)
        if found["state"] != "done":
            raise JobFailed(200, {"title": found["state"], "detail": (found["error"] or {}).get("message")})
        return found

    def video(self, job: str, path: str | Path) -> Path:
        """Write the job's video to `path`: all of it, or nothing."""
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            with self._http.stream("GET", f"{PREFIX}/jobs/{job}/video") as answer, part.open("wb") as file:
                if answer.status_code != 200:
                    answer.read()
                    raise _refusal(answer)
                for piece in answer.iter_bytes():
                    file.write(piece)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def preview(self, job: str) -> bytes:
        """A picture of the job as PNG or JPEG."""
        return self._sent("GET", f"/jobs/{job}/preview").content

    def upload(self, path: str | Path) -> str:
        """Send an image, a video or a sound; the id that requests name it by."""
        file = Path(path)
        kind = TYPES.get(file.suffix.lower())
        if kind is None:
            raise ValueError(f"{file.name}: not a kind of file that is taken; it is one of {', '.join(TYPES)}.")
        answer = self._sent("POST", "/media", content=file.read_bytes(), headers={"content-type": kind})
        return str(answer.json()["id"])

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        given: dict[str, Any] = {} if body is None else {"json": dict(body)}
        return dict(self._sent(method, path, **given).json())

    def _sent(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Ask until there is an answer. One key for all tries, since a server may have done what it did not answer."""
        headers = {**given.pop("headers", {}), "idempotency-key": uuid.uuid4().hex}
        for number in range(_TRIES):
            last = number == _TRIES - 1
            try:
                answer = self._http.request(method, PREFIX + path, headers=headers, **given)
            except httpx.TransportError:
                if last:
                    raise
                time.sleep(0.2 * 2**number)
                continue
            if answer.status_code not in _LATER or last:
                break
            wait = answer.headers.get("retry-after", "")
            time.sleep(min(float(wait), 30.0) if wait.isdigit() else 0.2 * 2**number)
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer


def _refusal(answer: httpx.Response) -> ClientError:
    try:
        told = answer.json()
    except ValueError:
        told = {}
    return ClientError(answer.status_code, told if isinstance(told, dict) else {"detail": str(told)})
