"""Every route of the API with what is said of it: its handler's name, words, body, answers and problems.

Read by whoever mounts the API and by `ltx_openapi.py`. Knows no handler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Route:
    """`body` and `answer` name schemas of `ltx_openapi.py`, `problems` kinds of `ltx_problems.py` beside the usual."""

    method: str
    path: str
    handler: str
    summary: str
    answer: str = ""
    status: int = 200
    body: str = ""
    problems: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)  # of the request, with what each means
    content: tuple[str, ...] = ("application/json",)  # of the answer


_KEY = {"Idempotency-Key": "asking again with the same key makes no second job"}
_ADDING = ("not-json", "content-type", "too-large", "too-slow", "request", "too-many", "machine")
_CHANGING = ("not-json", "content-type", "too-large", "too-slow", "not-found", "gone", "conflict", "machine")
_OF_A_JOB = ("not-found", "gone", "machine")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/openapi.json", "openapi", "This document", "Document"),
    Route("GET", "/health", "health", "Whether it works, and what it does", "Health", problems=("machine",)),
    Route("GET", "/models", "models", "Every variant, what it can do, whether it can run here", "Models"),
    Route("POST", "/plan", "plan", "What would be made, without making it", "Plan", body="Request", problems=_ADDING),
    Route(
        *("POST", "/jobs", "add", "Add a job", "Job", 202, "JobRequest", _ADDING),
        headers=_KEY,
    ),
    Route(
        *("POST", "/batches", "add_batch", "Add a job for every prompt and seed", "Batch", 202, "BatchRequest"),
        problems=_ADDING,
        headers=_KEY,
    ),
    Route(
        *("POST", "/drafts", "add_drafts", "Add drafts: stage 1 alone, for several seeds", "Batch", 202),
        body="BatchRequest",
        problems=_ADDING,
        headers=_KEY,
    ),
    Route("GET", "/jobs", "list", "Jobs: running, waiting in order, ended", "Jobs", problems=("request", "machine")),
    Route("GET", "/jobs/{id}", "get", "A job", "Job", problems=_OF_A_JOB),
    Route(
        "DELETE",
        "/jobs/{id}",
        "delete",
        "Forget a job that does not run; its video stays",
        "",
        204,
        "",
        (*_OF_A_JOB, "conflict"),
    ),
    Route(
        *("GET", "/jobs/{id}/events", "events", "What happens to a job, until its end", "Events"),
        problems=(*_OF_A_JOB, "too-many"),
        headers={"Last-Event-ID": "number of the last event that was seen"},
        content=("text/event-stream",),
    ),
    Route("POST", "/jobs/{id}/cancel", "cancel", "Stop a job", "Job", 200, "Nothing", _CHANGING),
    Route(
        "POST",
        "/jobs/{id}/finish",
        "finish",
        "Go on from a draft",
        "Job",
        202,
        "Level",
        (*_CHANGING, "request", "too-many"),
        _KEY,
    ),
    Route(
        "POST",
        "/jobs/{id}/move",
        "move",
        "Move a job among those that wait",
        "Job",
        200,
        "Place",
        (*_CHANGING, "request"),
    ),
    Route(
        "POST",
        "/jobs/{id}/priority",
        "priority",
        "Give a job another priority",
        "Job",
        200,
        "Level",
        (*_CHANGING, "request"),
    ),
    Route(
        *("GET", "/jobs/{id}/preview", "preview", "A picture of the job: live, a draft's, or its video's", "Bytes"),
        problems=_OF_A_JOB,
        content=("image/png", "image/jpeg"),
    ),
    Route(
        *("GET", "/jobs/{id}/video", "video", "The video, or a range of its bytes", "Bytes"),
        problems=(*_OF_A_JOB, "conflict", "range"),
        headers={"Range": "bytes=FIRST-LAST"},
        content=("video/mp4",),
    ),
    Route(
        "GET",
        "/jobs/{id}/report",
        "report",
        "Times, notes and what the self-refiner did",
        "Report",
        problems=(*_OF_A_JOB, "conflict"),
    ),
    Route(
        *(
            "POST",
            "/media",
            "upload",
            "Send an image, a video or a sound; its id is for requests",
            "Medium",
            201,
            "Bytes",
        ),
        problems=("content-type", "too-large", "too-slow", "request", "too-many", "machine"),
    ),
    Route("GET", "/queue", "queue", "The queue as a whole", "Queue", problems=("machine",)),
    Route(
        "POST",
        "/queue/pause",
        "pause",
        "Begin no further job",
        "Queue",
        200,
        "Nothing",
        ("not-json", "content-type", "too-large", "too-slow", "machine"),
    ),
    Route(
        "POST",
        "/queue/resume",
        "resume",
        "Begin jobs again",
        "Queue",
        200,
        "Nothing",
        ("not-json", "content-type", "too-large", "too-slow", "machine"),
    ),
    Route(
        "POST",
        "/queue/retention",
        "retention",
        "How much of ended jobs is remembered",
        "Queue",
        200,
        "Retention",
        _ADDING,
    ),
)
