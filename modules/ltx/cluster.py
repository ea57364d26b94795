"""Does the jobs of the queue on a Ray cluster: as many at a time as there are workers, which keep their models.

Ray places the workers, starts them anew where they die, and carries what they say; the queue stays the one place where
anything is written down, by this process alone. Knows Ray and the queue; how a job is done is in `job.py`, by whom in
`hosts/ray_hand.py`. Files go through the output folder, which all machines share: docs/scale.md says why.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.ltx import job
from modules.ltx.errors import HostError, LTXError, RequestError
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.hosts.ray_hand import Hand
from modules.ltx.jobs import Row, Store
from modules.ltx.request import Request
from modules.ltx.uploads import Uploads
from modules.ltx.version import VERSION
from modules.ltx.worker import Taker

_BEAT = 0.25  # seconds to wait for a word of the workers before the queue is looked at again
_TOLD, _WRITES = 0.5, 40.0  # seconds between two events of a phase; of all workers, so many a second at most
_STORE = 100 << 20  # bytes of Ray's own store on one machine: what goes through it is small


@dataclass(frozen=True)
class Ray:
    """Which cluster, None for one of this machine's own, and how many workers, None for one a GPU."""

    address: str | None = None
    workers: int | None = None


def require_ray() -> Any:
    """The package. Raises RequestError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked whether they may be sent
    try:
        import ray
    except ImportError as error:
        raise RequestError(
            f"--engine ray: Ray is not installed ({error}); `{Path(sys.executable).name} -m pip install "
            "--no-deps --require-hashes -r pins/ray.txt` in this project's folder adds it."
        ) from error
    return ray


class Cluster(Taker):
    """See `Taker`. The cluster is reached when the first job waits, and left when this is closed. Raises RequestError
    where Ray is not installed."""

    def __init__(
        self, store: Store, uploads: Uploads, settings: Settings, at: Ray, prepare: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(store, uploads, prepare)
        self._ray, self._at = require_ray(), at
        self._settings = replace(settings, outputs=settings.outputs.absolute())
        self._host = EmbeddedHost(self._settings)  # plans and names; holds no model
        self._joining: dict[Any, Any] = {}  # a worker's greeting: the worker
        self._idle: list[tuple[Any, dict[str, Any]]] = []  # workers, and who they are
        self._busy: dict[Any, tuple[Any, Row]] = {}  # what a worker tells of its job: the worker, the job
        self._taken: dict[str, Path] = {}  # names of the videos of running jobs

    def _work_off(self) -> None:
        if not self.store.counts()["queued"]:
            return
        try:
            with _connected(self._ray, self._at) as (workers, options), self._mark() as mark:
                make = self._ray.remote(Hand).options(max_restarts=-1, max_concurrency=2, **options)
                given = self._settings, self.store.folder / "jobs", max(_TOLD, workers / _WRITES)
                for worker in [make.remote(*given) for _ in range(workers)]:
                    self._greet(worker, mark)
                while self._busy or not self.closing:
                    self._give()
                    self._hear(mark)
                    self._pass_on_cancels()
        except HostError as error:
            self.broken, self.closing = error, True
        finally:
            self._forget()

    def _forget(self) -> None:
        """The workers are gone; what they were at waits again."""
        for _, row in self._busy.values():
            with suppress(HostError):  # the next one who takes the folder does it then
                self.store.take_back(row.id, self._made)
        for known in (self._joining, self._idle, self._busy, self._taken):
            known.clear()

    @contextmanager
    def _mark(self) -> Iterator[Path]:
        """A file by which workers see that their folder is this one."""
        mark = self.store.folder / f"cluster-{secrets.token_hex(8)}"
        try:
            mark.write_text(VERSION, encoding="utf-8")
            yield mark
        except OSError as error:
            raise HostError(f"{mark.parent}: cannot be written to ({error}).") from error
        finally:
            mark.unlink(missing_ok=True)

    def _greet(self, worker: Any, mark: Path) -> None:
        # Again for as long as Ray starts the worker anew; a job never: it is the queue that gives it again.
        self._joining[worker.greet.options(max_task_retries=-1).remote(mark)] = worker

    def _give(self) -> None:
        """A job to each worker that has none, as long as jobs wait."""
        while self._idle and not self.closing and (row := self.store.claim()) is not None:
            try:
                path = None if row.kind == "draft" else self._name(row)
            except LTXError as error:
                self.store.end(row.id, "failed", error=job.error_of(error))
                continue
            worker, who = self._idle.pop()
            self.store.tell(row.id, {"state": "running", "worker": who}, kept=True)
            self._busy[worker.work.options(num_returns="streaming").remote(row, path)] = worker, row

    def _name(self, row: Row) -> Path:
        """The name that the job's video gets, decided here, so that no two workers take one; in the row before the
        file is there."""
        path = job.free(row)
        if path is None:
            path = self._host.output_path(settle(Request.parse(row.request), self._host))
            names = (path.with_stem(f"{path.stem}{end}") for end in ("", *(f"-{n}" for n in range(2, 10000))))
            path = next(name for name in names if name not in self._taken.values() and not name.exists())
            self.store.named(row.id, path)
        self._taken[row.id] = path
        return path

    def _hear(self, mark: Path) -> None:
        """What the workers have to say, each one's next word."""
        asked = [*self._joining, *self._busy]
        ready, _ = self._ray.wait(asked, num_returns=1, timeout=_BEAT)
        if ready:
            ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
        for one in ready:
            if one in self._joining:
                self._joined(one, mark)
            else:
                self._told(one, mark)

    def _joined(self, greeting: Any, mark: Path) -> None:
        """Raises HostError where a worker cannot be used: its machine is not set up as this one is."""
        worker = self._joining.pop(greeting)
        errors = self._ray.exceptions
        try:
            self._idle.append((worker, self._ray.get(greeting)))
        except errors.RayTaskError as error:
            raise HostError(str(error.cause)) from error
        except errors.ActorUnavailableError:  # between its end and its next beginning
            time.sleep(_BEAT)
            self._greet(worker, mark)
        except errors.RayActorError as error:
            print(f"queue: a worker could not be started ({_first_line(error)})", file=sys.stderr)
            if not (self._joining or self._idle or self._busy):
                raise HostError("no worker could be started; Ray's own log says why.") from error

    def _told(self, telling: Any, mark: Path) -> None:
        """The next word of a job into the queue; behind its last one the worker is free, or greets again after it
        died."""
        worker, row = self._busy[telling]
        errors = self._ray.exceptions
        try:
            word = self._ray.get(next(telling))
        except errors.RayActorError as error:
            print(f"queue: the worker of {row.id} died ({_first_line(error)})", file=sys.stderr)
            if isinstance(error, errors.ActorUnavailableError):  # it may live on, and must not go on with the job
                self._ray.kill(worker, no_restart=False)
            self.store.take_back(row.id, self._made)
        except errors.RayTaskError as error:
            print(f"queue: {row.id}: {error}", file=sys.stderr)  # with the worker's traceback
            self.store.end(row.id, "failed", error=job.unexpected())
        else:
            if "event" in word:
                with suppress(HostError):  # progress may be lost; the job goes on
                    self.store.tell(row.id, word["event"], kept=word["kept"])
                return
            self._ended(row, word)
        del self._busy[telling]
        self._taken.pop(row.id, None)
        self._tidy()
        self._greet(worker, mark)

    def _ended(self, row: Row, word: dict[str, Any]) -> None:
        if word["state"] == "cancelled" and self.closing and not self.store.get(row.id).cancelling:
            self.store.release(row.id)
        else:
            self.store.end(row.id, word["state"], result=word["result"], error=word["error"])

    def _pass_on_cancels(self) -> None:
        with suppress(HostError):  # the queue cannot be read now: the jobs go on, and it is looked at again
            stopped = {row.id for row in self.store.rows(state="running", limit=-1) if row.cancelling or self.closing}
            for worker, row in self._busy.values():
                if row.id in stopped:
                    worker.cancel.remote()


@contextmanager
def _connected(ray: Any, at: Ray) -> Iterator[tuple[int, dict[str, Any]]]:
    """A cluster, how many workers, and what each of them takes of it; left on every way out. Raises HostError."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    with tempfile.TemporaryDirectory(prefix="ltx-ray-", ignore_cleanup_errors=True) as folder:
        own = {
            "num_cpus": max(at.workers or 1, os.cpu_count() or 1),
            "object_store_memory": _STORE,
            "include_dashboard": False,
            "_temp_dir": folder,
        }
        try:
            ray.init(**quiet, **({"address": at.address} if at.address is not None else own))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise HostError(f"Ray cannot be started or reached ({_first_line(error)}); see docs/scale.md.") from error
        try:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            yield at.workers or gpus or 1, {"num_cpus": 1, "num_gpus": min(gpus, 1)}
        finally:
            ray.shutdown()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0][:200]
