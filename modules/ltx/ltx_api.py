"""The API: what programs ask for under /sdapi/v1/ltx, in the embedded app and in a web UI alike.

Handlers are plain `async (request) -> response`; `ltx_routes.py` says which address each answers to. Knows the queue,
media and hosts; deliberately does not know how it is mounted, who may ask, or how a job is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from modules.ltx import ltx_openapi, ltx_streams
from modules.ltx.errors import RequestError
from modules.ltx.front import settle
from modules.ltx.job import PREVIEW
from modules.ltx.jobs import STATES, Conflict, Retention, Row, Store
from modules.ltx.ltx_problems import Problem, Rate, body_of, json_body
from modules.ltx.request import BY_NAME, Option, Request
from modules.ltx.serve_request import (
    encoding_of,
    in_words,
    lora_names,
    plan_json,
    request_json,
    request_of,
    variants_json,
    without_paths,
)
from modules.ltx.submit import COUNT, LEVEL, MOST, Once, finish, several, submit
from modules.ltx.uploads import MOST_BYTES, Uploads, kind_of
from modules.ltx.version import VERSION
from modules.ltx.worker import Worker

T = TypeVar("T")

PREFIX = "/sdapi/v1/ltx"
STREAMS = 200  # open event streams at a time
_PLACE = Option("place", "int", "place among the jobs that wait, from 0", "--place", 0, 1_000_000)
_LIMIT = Option("limit", "int", "how many jobs", "--limit", 1, 1000)
_KEPT = Option("count", "int", "ended jobs that are remembered", "--count", 0, 1_000_000)
_BYTES = Option("size", "int", "bytes that ended jobs may take", "--size", 0, 2**60)
_BATCH = {"request", "priority", "count", "seeds", "prompts", "output"}


@dataclass
class Api:
    """The handlers, over the queue and worker of one host. `loras`: the folder that LoRAs are lent from."""

    worker: Worker
    loras: Path | None = None
    rate: Rate = field(default_factory=Rate)
    _streams: int = 0

    @property
    def _store(self) -> Store:
        return self.worker.store

    @property
    def _uploads(self) -> Uploads:
        return self.worker.uploads

    async def openapi(self, asked: Asked) -> Response:
        return JSONResponse(ltx_openapi.document(PREFIX))

    async def models(self, asked: Asked) -> Response:
        found = await _threaded(lambda: variants_json(self.worker.host))
        return JSONResponse({**found, "loras": lora_names(self.loras)})

    async def plan(self, asked: Asked) -> Response:
        values = await json_body(asked)
        return JSONResponse(await _threaded(lambda: plan_json(settle(self._request(values), self.worker.host))))

    def _request(self, values: Mapping[str, object]) -> Request:
        return request_of(values, self._uploads, self.loras)

    async def add(self, asked: Asked) -> Response:
        values = await json_body(asked)
        request = {name: value for name, value in values.items() if name != "output"}
        rows = await self._added(asked, values, lambda: several(self._request(request)), "video", 0)
        return self._accepted(rows[0])

    async def add_batch(self, asked: Asked) -> Response:
        return await self._batch(asked, "video")

    async def add_drafts(self, asked: Asked) -> Response:
        return await self._batch(asked, "draft")

    async def _batch(self, asked: Asked, kind: str) -> Response:
        values = body_of(await json_body(asked), _BATCH, "batch")
        request = values.get("request", {})
        if not isinstance(request, Mapping):
            raise RequestError("request: not valid; it takes an object.")
        seeds = BY_NAME["seed"].parse
        chosen: dict[str, Any] = {
            "count": COUNT.parse(values.get("count", 1)) or 1,
            "seeds": [_given(seeds(seed), "seeds") for seed in _several(values, "seeds")],
            "prompts": [_given(BY_NAME["prompt"].parse(one), "prompts") for one in _several(values, "prompts")],
        }
        level = LEVEL.parse(values.get("priority", 0)) or 0
        rows = await self._added(asked, values, lambda: several(self._request(request), **chosen), kind, level)
        jobs = [self._shown(row) for row in rows]
        where = {"location": f"{PREFIX}/jobs?batch={rows[0].batch}"}
        return JSONResponse({"batch": rows[0].batch, "jobs": jobs}, 202, headers=where)

    async def _added(
        self,
        asked: Asked,
        values: Mapping[str, object],
        requests: Callable[[], list[Request]],
        kind: str,
        priority: int,
    ) -> list[Row]:
        once = self._once(asked, values)

        def add() -> list[Row]:
            how: dict[str, Any] = {"kind": kind, "priority": priority, "once": once}
            encoding = encoding_of(values.get("output", {}))
            return submit(self._store, self._uploads, self.worker.host, requests(), encoding=encoding, **how)

        rows = await _threaded(add)
        self.worker.wake()
        return rows

    def _once(self, asked: Asked, values: Mapping[str, object]) -> Once:
        self.rate.take(asked.client.host if asked.client else "")
        key = asked.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
            raise RequestError("Idempotency-Key: not valid; it takes 1 to 255 printable ASCII characters.")
        told = json.dumps([asked.url.path, values], sort_keys=True)
        return Once(key, hashlib.sha256(told.encode()).hexdigest())

    def _accepted(self, row: Row) -> Response:
        return JSONResponse(self._shown(row), 202, headers={"location": f"{PREFIX}/jobs/{row.id}"})

    async def list(self, asked: Asked) -> Response:
        query = body_of(dict(asked.query_params), {"state", "batch", "limit"}, "jobs")
        state, batch = query.get("state"), query.get("batch")
        if state is not None and state not in STATES:
            raise RequestError(f"state {state[:80]!r}: not valid; it takes one of {', '.join(STATES)}.")
        limit = _given(_LIMIT.parse(query.get("limit", 100)), "limit")
        rows = await _threaded(lambda: self._store.rows(state=state, batch=batch, limit=limit))
        return JSONResponse({"jobs": [self._shown(row) for row in rows]})

    async def get(self, asked: Asked) -> Response:
        return JSONResponse(self._shown(self._row(asked)))

    async def events(self, asked: Asked) -> Response:
        row = self._row(asked)
        if self._streams >= STREAMS:
            raise Problem("too-many", f"{STREAMS} streams are open; close one, or ask again later.")
        answer: Any = ltx_streams.events(
            self._store,
            row.id,
            ltx_streams.first_of(asked.headers.get("last-event-id", "")),
            lambda: self.worker.closing,
        )
        answer.body_iterator = self._counted(answer.body_iterator)
        return answer  # type: ignore[no-any-return]

    async def _counted(self, pieces: Any) -> Any:
        self._streams += 1
        try:
            async for piece in pieces:
                yield piece
        finally:
            self._streams -= 1

    async def cancel(self, asked: Asked) -> Response:
        await json_body(asked)
        return await self._changed(asked, self._store.cancel)

    async def move(self, asked: Asked) -> Response:
        values = body_of(await json_body(asked), {"place"}, "move")
        place = _given(_PLACE.parse(values.get("place")), "place")
        return await self._changed(asked, lambda job: self._store.move(job, place))

    async def priority(self, asked: Asked) -> Response:
        values = body_of(await json_body(asked), {"priority"}, "priority")
        level = _given(LEVEL.parse(values.get("priority")), "priority")
        return await self._changed(asked, lambda job: self._store.prioritise(job, level))

    async def _changed(self, asked: Asked, change: Callable[[str], Row]) -> Response:
        row = await _threaded(lambda: change(asked.path_params["id"]))
        self.worker.wake()
        return JSONResponse(self._shown(row))

    async def finish(self, asked: Asked) -> Response:
        values = body_of(await json_body(asked), {"priority"}, "finish")
        level = LEVEL.parse(values.get("priority", 0)) or 0
        once = self._once(asked, values)
        row = await _threaded(lambda: finish(self._store, asked.path_params["id"], priority=level, once=once))
        self.worker.wake()
        return self._accepted(row)

    async def delete(self, asked: Asked) -> Response:
        await _threaded(lambda: self._store.delete(asked.path_params["id"]))
        return Response(status_code=204)

    async def preview(self, asked: Asked) -> Response:
        row = self._row(asked)
        picture = self.worker.previews.get(row.id)
        if picture is not None and not row.over:
            return await _threaded(lambda: _png(picture))
        files = _files(row)
        own = self._store.folder_of(row.id) / PREVIEW
        thumbnail = files.get("thumbnail")
        if row.kind != "draft" and thumbnail:
            return ltx_streams.sent_file(Path(thumbnail), "image/jpeg", "")
        if not own.is_file():
            raise Problem("not-found", "there is no picture of this job yet, or none any more.")
        return ltx_streams.sent_file(own, "image/png", "")

    async def video(self, asked: Asked) -> Response:
        row = self._row(asked)
        path = _files(row).get("path")
        if not path:
            raise Conflict(f"{row.id}: it is a {row.kind} that is {row.state}; it has no video.")
        header = asked.headers.get("range", "")
        return ltx_streams.sent_file(Path(path), "video/mp4", header, head=asked.method == "HEAD")

    async def report(self, asked: Asked) -> Response:
        row = self._row(asked)
        if row.result is None:
            raise Conflict(f"{row.id}: it is {row.state}; a job has a report when it is done.")
        told = {name: row.result[name] for name in ("timings", "refined")}
        notes = [without_paths(in_words(note), row.request) for note in row.result["notes"]]
        return JSONResponse({"id": row.id, "seed": str(row.result["seed"]), "notes": notes, **told})

    async def upload(self, asked: Asked) -> Response:
        try:
            kind = kind_of(asked.headers.get("content-type", ""))
        except RequestError as error:
            raise Problem("content-type", str(error)) from error
        self.rate.take(asked.client.host if asked.client else "")
        length = asked.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MOST_BYTES[kind]:  # it need not even be sent
            raise Problem("too-large", f"{kind}: it may have {MOST_BYTES[kind] // 1_000_000} MB; make it smaller.")
        medium = await self._uploads.add(asked.stream(), kind)
        return JSONResponse(medium.to_json(), 201)

    async def queue(self, asked: Asked) -> Response:
        return JSONResponse(await _threaded(self._queue))

    def _queue(self) -> dict[str, Any]:
        return {
            "paused": self._store.paused,
            "counts": self._store.counts(),
            "retention": asdict(self._store.retention),
        }

    async def pause(self, asked: Asked) -> Response:
        await json_body(asked)
        return await self._held(True)

    async def resume(self, asked: Asked) -> Response:
        await json_body(asked)
        return await self._held(False)

    async def _held(self, paused: bool) -> Response:
        await _threaded(lambda: self._store.pause(paused))
        self.worker.wake()
        return JSONResponse(await _threaded(self._queue))

    async def retention(self, asked: Asked) -> Response:
        values = body_of(await json_body(asked), {"count", "size"}, "retention")
        before = asdict(await _threaded(lambda: self._store.retention))
        given = {"count": _KEPT.parse(values.get("count")), "size": _BYTES.parse(values.get("size"))}
        new = Retention(**{name: before[name] if value is None else value for name, value in given.items()})
        await _threaded(lambda: self._store.set("retention", asdict(new)))
        return JSONResponse(await _threaded(self._queue))

    async def health(self, asked: Asked) -> Response:
        live, outputs = self.worker.live, self._store.folder.parent
        there = next(path for path in (outputs, *outputs.parents) if path.is_dir())
        told = {
            "status": "ok",
            "version": VERSION,
            "works_here": self.worker.working,
            "running": None if live is None else live.row.id,
            "free_bytes": shutil.disk_usage(there).free,
        }
        return JSONResponse({**told, "queue": await _threaded(self._queue)})

    def _row(self, asked: Asked) -> Row:
        return self._store.get(asked.path_params["id"])

    def _shown(self, row: Row) -> dict[str, Any]:
        """A job as JSON: no path of this machine, seeds as text."""
        told = [event for _, event in self._store.events(row.id) if "phase" in event]
        names = ("id", "kind", "state", "batch", "priority", "attempts", "source")
        own = f"{PREFIX}/jobs/{row.id}"
        return {
            **{name: getattr(row, name) for name in names},
            "cancelling": row.cancelling,
            **{name: _time(getattr(row, name)) for name in ("created", "started", "ended")},
            "request": request_json(row.request),
            "progress": told[-1] if told and row.state == "running" else None,
            "error": _error(row),
            "result": _result(row),
            "links": {"self": own, **{name: f"{own}/{name}" for name in ("events", "preview", "video", "report")}},
        }


def _result(row: Row) -> dict[str, Any] | None:
    if row.result is None:
        return None
    files = _files(row)
    shown = ("width", "height", "frames", "fps", "sample_rate", "video_latents_sha256", "audio_latents_sha256")
    video = {"name": Path(files["path"]).name, **{name: files[name] for name in shown}} if files else None
    seconds = round(sum(one["seconds"] for one in row.result["timings"]), 3)
    return {"seed": str(row.result["seed"]), "seconds": seconds, "video": video}


def _error(row: Row) -> dict[str, Any] | None:
    if row.error is None:
        return None
    return {**row.error, "message": without_paths(in_words(row.error["message"]), row.request)}


def _files(row: Row) -> dict[str, Any]:
    return (row.result or {}).get("files") or {}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _png(picture: Any) -> Response:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png", headers={"cache-control": "no-store"})


def _several(values: Mapping[str, object], name: str) -> Sequence[object]:
    items = values.get(name) or ()
    if not isinstance(items, (list, tuple)) or len(items) > MOST:
        raise RequestError(f"{name}: not valid; it takes a list of at most {MOST}.")
    return items


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise RequestError(f"{name}: it is missing; give it.")
    return value


async def _threaded(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call)
