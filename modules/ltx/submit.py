"""From requests to jobs in the queue, for page, API and command line alike: checked first, seeds and media settled.

Knows requests, the queue and media; deliberately knows neither HTTP nor how a job is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.errors import RequestError
from modules.ltx.front import settle, sketch
from modules.ltx.host import Host
from modules.ltx.jobs import PRIORITY, Conflict, New, Row, Store
from modules.ltx.ltx_util import random_seed
from modules.ltx.plan import Plan
from modules.ltx.request import Option, Request

if TYPE_CHECKING:
    from modules.ltx.media import Encoding
    from modules.ltx.uploads import Uploads

MOST = 100  # jobs of a batch
COUNT = Option("count", "int", "how many seeds, drawn one by one", "--count", 1, MOST)
LEVEL = Option("priority", "int", "higher runs first", "--priority", -PRIORITY, PRIORITY)


@dataclass(frozen=True)
class Once:
    """What makes sure that asking twice makes one job: the caller's key, and a digest of what was asked."""

    key: str | None = None
    digest: str = ""


def several(
    request: Request, *, count: int = 1, seeds: Sequence[int] = (), prompts: Sequence[str] = ()
) -> list[Request]:
    """The request for every prompt and every seed: the `seeds`, or `count` of them, its own first, then drawn ones."""
    if seeds and count > 1:
        raise RequestError("seeds and count: give one of them; the seeds, or how many are to be drawn.")
    own = random_seed() if request.seed is None else request.seed
    chosen = list(seeds) or [own, *(random_seed() for _ in range(count - 1))]
    made = [replace(request, prompt=prompt, seed=seed) for prompt in prompts or (request.prompt,) for seed in chosen]
    if len(made) > MOST:
        raise RequestError(f"{len(made)} jobs: more than the {MOST} that a batch may have; ask for fewer at a time.")
    return made


def submit(
    store: Store,
    uploads: Uploads,
    host: Host,
    requests: Sequence[Request],
    *,
    kind: str = "video",
    priority: int = 0,
    once: Once = Once(),
    encoding: Encoding | None = None,
) -> list[Row]:
    """Add a job for every request, as one batch, or none; `encoding` is how their files are written. Raises
    RequestError for what cannot be done."""
    from modules.ltx.media import Encoding  # PyAV

    for number, request in enumerate(requests):
        plan = settle(request, host) if number == 0 else sketch(request, host)  # their files are the same
        if kind == "draft":
            _require_two_stages(plan)
    wanted = [
        New(_kept(request, uploads), kind, priority, output=asdict(encoding or Encoding())) for request in requests
    ]
    return store.add(wanted, key=once.key, digest=once.digest)


def finish(store: Store, draft: str, *, priority: int = 0, once: Once = Once()) -> Row:
    """Add the job that goes on from a draft; or from one that failed for want of memory, with less of it. Raises
    Conflict where it is neither."""
    row = store.get(draft)
    if not row.can_go_on and (row.kind != "draft" or row.state != "done"):
        what = row.kind if row.kind != "draft" else f"draft that is {row.state}"
        raise Conflict(
            f"{draft}: it is a {what}; only a draft that is done, or a job that ran out of memory, can be finished."
        )
    request = {**row.request, "make_room": True} if row.can_go_on else row.request
    return store.add([New(request, "finish", priority, row.id, row.output)], key=once.key, digest=once.digest)[0]


def _require_two_stages(plan: Plan) -> None:
    if len(plan.stages) == 1:
        raise RequestError("draft: it ends behind the first stage, and there is no other to finish with; add --refine.")


def _kept(request: Request, uploads: Uploads) -> dict[str, Any]:
    """The request with its media in the queue's own folder, so that they are there when it runs."""
    images = tuple(replace(at, path=str(uploads.take(Path(at.path), "image"))) for at in request.images)
    prefix = request.prefix and replace(request.prefix, path=str(uploads.take(Path(request.prefix.path), "video")))
    seed = random_seed() if request.seed is None else request.seed
    return replace(request, images=images, prefix=prefix, seed=seed).to_json()
