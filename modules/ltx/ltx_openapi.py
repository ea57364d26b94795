"""The OpenAPI 3.1 document of the API, made of its routes and of the options of a request.

Knows schemas and examples; what an option may be comes from its one declaration in `request.py`.
"""

from __future__ import annotations

from typing import Any

from modules.ltx.jobs import KINDS as JOB_KINDS
from modules.ltx.jobs import PRIORITY, STATES
from modules.ltx.ltx_problems import KINDS, MEDIA_TYPE
from modules.ltx.ltx_routes import ROUTES, Route
from modules.ltx.request import MAX_FRAMES, MAX_PROMPT, OPTIONS, Option
from modules.ltx.serve_request import OUTPUT
from modules.ltx.submit import MOST
from modules.ltx.uploads import TYPES
from modules.ltx.version import VERSION

Schema = dict[str, Any]
_ID = "0123456789abcdef"
_MEDIUM = "0123456789abcdef" * 2


def document(prefix: str) -> Schema:
    """All of it, for an API that is mounted at `prefix`."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LTX video",
            "version": VERSION,
            "description": "Video with sound from text, images and video. Errors are problem details (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def operation(route: Route) -> Schema:
    """One method of one path."""
    said: Schema = {"operationId": route.handler, "summary": route.summary, "responses": _responses(route)}
    given = [_parameter("id", "path", "of the job", {"type": "string"}, True)] if "{id}" in route.path else []
    given += [_parameter(name, "header", about, {"type": "string"}) for name, about in route.headers.items()]
    if route.handler == "list":
        given += [
            _parameter("state", "query", "jobs in this state alone", {"type": "string", "enum": list(STATES)}),
            _parameter("batch", "query", "jobs of this batch alone", {"type": "string"}),
            _parameter("limit", "query", "how many", {"type": "integer", "minimum": 1, "maximum": 1000}),
        ]
    if given:
        said["parameters"] = given
    if route.handler == "upload":
        said["requestBody"] = {"required": True, "content": {name: {} for name in TYPES}}
    elif route.body:
        content = {"schema": _ref(route.body), "example": EXAMPLES[route.body]}
        said["requestBody"] = {"required": route.body != "Nothing", "content": {"application/json": content}}
    return said


def _responses(route: Route) -> Schema:
    answered: dict[str, Any] = {str(route.status): {"description": "as asked", "content": _content(route)}}
    if route.status == 204:
        del answered["204"]["content"]
    if route.status == 202:
        answered["202"]["headers"] = {"Location": {"description": "where it is", "schema": {"type": "string"}}}
    if route.handler == "video":
        answered["206"] = {"description": "the range that was asked for", "content": _content(route)}
    by_status: dict[int, list[str]] = {}
    for kind in ("unauthorized", "foreign", "unexpected", *route.problems):
        by_status.setdefault(KINDS[kind][0], []).append(kind)
    for status, kinds in sorted(by_status.items()):
        status_example = _problem_example(kinds[0])
        shown = {"schema": _ref("Problem"), "example": status_example}
        answered[str(status)] = {"description": "; ".join(KINDS[k][1] for k in kinds), "content": {MEDIA_TYPE: shown}}
        if status == 429:
            about = {"description": "seconds to wait", "schema": {"type": "string"}}
            answered["429"]["headers"] = {"Retry-After": about}
    return answered


def _content(route: Route) -> Schema:
    if route.content != ("application/json",):
        return {name: {"schema": {"type": "string"}} if name == "text/event-stream" else {} for name in route.content}
    shown: Schema = {"schema": _ref(route.answer)}
    if route.answer in EXAMPLES:
        shown["example"] = EXAMPLES[route.answer]
    return {"application/json": shown}


def _parameter(name: str, where: str, about: str, schema: Schema, required: bool = False) -> Schema:
    return {"name": name, "in": where, "description": about, "required": required, "schema": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _problem_example(kind: str) -> Schema:
    status, title = KINDS[kind]
    detail = {"request": "width 9999: out of range; it takes a whole number from 32 to 4096 pixels."}.get(kind, title)
    return {"type": f"urn:ltx:problem:{kind}", "title": title, "status": status, "detail": detail}


def _object(properties: Schema, required: list[str] | None = None, *, closed: bool = False) -> Schema:
    made: Schema = {"type": "object", "properties": properties}
    if required is not None:
        made["required"] = required
    if closed:
        made["additionalProperties"] = False
    return made


def of_option(option: Option) -> Schema:
    """What a value of an option may be."""
    kinds = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "choice": "string"}
    limits = {} if option.low is None else {"minimum": option.low, "maximum": option.high}
    if option.kind == "list":
        return {"type": "array", "items": {"type": "integer", **limits}, "description": option.help}
    made: Schema = {"type": kinds[option.kind], **limits, "description": option.help}
    if option.choices:
        made["enum"] = list(option.choices)
    if option.kind == "str":
        made["maxLength"] = MAX_PROMPT
    if option.name == "seed":
        return {"anyOf": [made, {"type": "string", "pattern": "^[0-9]{1,19}$"}], "description": option.help}
    return made


def _request(more: Schema) -> Schema:
    medium = {"type": "string", "description": "the id of an upload"}
    strength = {"type": "number", "minimum": 0, "maximum": 1}
    at = {"id": medium, "frame": {"type": ["integer", "null"], "minimum": -1, "maximum": MAX_FRAMES}}
    begun = {"id": medium, "frames": {"type": "integer", "minimum": 1, "maximum": MAX_FRAMES}}
    begun |= {"skip": {"type": "integer", "minimum": 0}, "strength": strength}
    weight = {"type": "number", "minimum": -4, "maximum": 4}
    lora = {"name": {"type": "string"}, "strength": weight, "stage2": weight}
    options = {option.name: of_option(option) for option in OPTIONS if option.name != "variant"}
    return _object(
        {
            **options,
            "images": {"type": "array", "items": _object({**at, "strength": strength}, ["id"], closed=True)},
            "prefix": _object(begun, ["id"], closed=True),
            "loras": {"type": "array", "items": _object(lora, ["name"], closed=True)},
            **more,
        },
        closed=True,
    )


def schemas() -> Schema:
    """Every schema that routes name."""
    text, whole, real = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    perhaps = {"type": ["string", "null"]}
    level = {"type": "integer", "minimum": -PRIORITY, "maximum": PRIORITY}
    counts = _object(dict.fromkeys(STATES, whole), list(STATES))
    retention = {"count": {"type": "integer", "minimum": 0}, "size": {"type": "integer", "minimum": 0}}
    video = _object({"name": text, "width": whole, "height": whole, "frames": whole, "fps": real}, ["name"])
    result = _object({"seed": text, "seconds": real, "video": {"anyOf": [video, {"type": "null"}]}}, ["seed"])
    error = _object({"type": text, "message": text, "exit_code": whole, "phase": perhaps}, ["type", "message"])
    names = ("id", "kind", "state", "batch", "priority", "attempts", "source", "cancelling", "created", "started")
    job = _object(
        {
            **dict.fromkeys(("id", "batch", "created"), text),
            **dict.fromkeys(("started", "ended", "source"), perhaps),
            "kind": {"enum": list(JOB_KINDS)},
            "state": {"enum": list(STATES)},
            "priority": level,
            "attempts": whole,
            "cancelling": {"type": "boolean"},
            "request": {"type": "object"},
            "progress": {"type": ["object", "null"]},
            "error": {"anyOf": [error, {"type": "null"}]},
            "result": {"anyOf": [result, {"type": "null"}]},
            "links": {"type": "object", "additionalProperties": text},
        },
        [*names, "ended", "request", "progress", "error", "result", "links"],
    )
    many = {"type": "array", "items": text, "maxItems": MOST}
    seeds = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MOST}
    asked = {"request": _ref("Request"), "priority": level, "seeds": seeds, "prompts": many, "output": _ref("Output")}
    problem = {"type": text, "title": text, "status": whole, "detail": text, "instance": text, "field": text}
    health = {"status": text, "version": text, "works_here": {"type": "boolean"}, "running": perhaps}
    queue = {"paused": {"type": "boolean"}, "counts": counts, "retention": _object(retention, ["count", "size"])}
    return {
        "Document": {"type": "object"},
        "Nothing": {"type": "object"},
        "Bytes": {},
        "Events": text,
        "Request": _request({}),
        "JobRequest": _request({"output": _ref("Output")}),
        "Output": _object({name: of_option(option) for name, option in OUTPUT.items()}, closed=True),
        "BatchRequest": _object({**asked, "count": {"type": "integer", "minimum": 1, "maximum": MOST}}, closed=True),
        "Place": _object({"place": {"type": "integer", "minimum": 0}}, ["place"], closed=True),
        "Level": _object({"priority": level}, closed=True),
        "Retention": _object(retention, closed=True),
        "Problem": _object(problem, ["type", "title", "status", "detail"]),
        "Models": _object({"default": text, "variants": {"type": "array", "items": {"type": "object"}}}, ["variants"]),
        "Plan": _object({"evaluations": whole, "stages": {"type": "array"}, "notes": {"type": "array"}}, ["stages"]),
        "Job": job,
        "Jobs": _object({"jobs": {"type": "array", "items": _ref("Job")}}, ["jobs"]),
        "Batch": _object({"batch": text, "jobs": {"type": "array", "items": _ref("Job")}}, ["batch", "jobs"]),
        "Medium": _object({"id": text, "kind": text, "width": whole, "height": whole, "seconds": real}, ["id", "kind"]),
        "Report": _object({"id": text, "seed": text, "notes": {"type": "array"}, "timings": {"type": "array"}}),
        "Queue": _object(queue, list(queue)),
        "Health": _object({**health, "free_bytes": whole, "queue": _ref("Queue")}, ["status", "queue"]),
    }


_ASKED = {"prompt": "a small red ball moving right on black", "seed": 7, "refine": True}
EXAMPLES: Schema = {
    "Request": _ASKED,
    "JobRequest": {**_ASKED, "output": {"codec": "av1"}},
    "BatchRequest": {"request": {"prompt": _ASKED["prompt"], "refine": True}, "count": 4},
    "Nothing": {},
    "Place": {"place": 0},
    "Level": {"priority": 5},
    "Retention": {"count": 100},
    "Medium": {"id": _MEDIUM, "kind": "image", "width": 640, "height": 360},
    "Job": {
        **{"id": _ID, "kind": "video", "state": "queued", "batch": _ID, "priority": 0, "attempts": 0},
        **{"source": None, "cancelling": False, "created": "2026-01-01T12:00:00+00:00", "started": None, "ended": None},
        **{"request": _ASKED, "progress": None, "error": None, "result": None, "links": {}},
    },
}
