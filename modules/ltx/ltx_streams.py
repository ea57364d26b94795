"""Answers that are sent piece by piece: a job's events, and files or parts of them.

Knows server-sent events and byte ranges; deliberately knows no route.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
from starlette.responses import Response, StreamingResponse

from modules.ltx.jobs import NoSuchJob, Store
from modules.ltx.ltx_problems import Problem

BEAT = 0.25  # seconds between two looks for news
QUIET = 15.0  # seconds without news after which a comment is sent, so that proxies keep the connection
_PIECE = 1 << 18  # bytes
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def events(store: Store, job: str, sent: int, closing: Callable[[], bool]) -> Response:
    """The events of a job behind number `sent`, until its last, as server-sent events with their numbers."""
    return StreamingResponse(
        _told(store, job, sent, closing), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


async def _told(store: Store, job: str, sent: int, closing: Callable[[], bool]) -> AsyncIterator[str]:
    waited = 0.0
    yield "retry: 1000\n\n"
    while not closing():
        found = store.events(job, sent)  # some 50 microseconds: not worth a thread
        if found:
            # In one piece: whoever closed the stream meanwhile is noticed behind each.
            sent, waited = found[-1][0], 0.0
            yield "".join(f"id: {n}\nevent: {event['state']}\ndata: {json.dumps(event)}\n\n" for n, event in found)
            if found[-1][1]["state"] in ("done", "failed", "cancelled"):
                return
        if waited >= QUIET:
            waited = 0.0
            yield ": waiting\n\n"
            try:
                if store.get(job).over:
                    return
            except NoSuchJob:
                return
        await anyio.sleep(BEAT)
        waited += BEAT


def first_of(header: str) -> int:
    """The number in Last-Event-ID; 0 where there is none."""
    return int(header) if header.isascii() and header.isdigit() and len(header) < 16 else 0


def sent_file(path: Path, media_type: str, range_header: str, *, head: bool = False) -> Response:
    """A file, or the part of it that is asked for; what is no range of bytes is not looked at.

    Raises Problem for a range outside the file and for a file that is gone.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise Problem("not-found", "its file was moved away or deleted.") from error
    size = file.seek(0, 2)
    try:
        start, end = _part(range_header, size)
    except Problem:
        file.close()
        raise
    part = (start, end) != (0, size) or _RANGE.fullmatch(range_header) is not None
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "content-disposition": f'inline; filename="{re.sub(r"[^A-Za-z0-9._-]", "_", path.name)}"',
        "last-modified": formatdate(path.stat().st_mtime, usegmt=True),
        **({"content-range": f"bytes {start}-{end - 1}/{size}"} if part else {}),
    }
    status = 206 if part else 200
    if head:
        file.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(_pieces(file, start, end), status, headers=headers, media_type=media_type)


def _part(header: str, size: int) -> tuple[int, int]:
    """First byte and the one behind the last."""
    found = _RANGE.fullmatch(header)
    if found is None or found[1] == found[2] == "":
        return 0, size
    if found[1] == "":
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if start >= min(end, size):
        raise Problem("range", f"{header}: the file has {size} bytes.", {"content-range": f"bytes */{size}"})
    return start, end


async def _pieces(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(start)
        while start < end:
            piece = await anyio.to_thread.run_sync(file.read, min(_PIECE, end - start))
            if not piece:
                return
            start += len(piece)
            yield piece
