"""The processes that make one video together: how they are started, and which of them this one is.

torch's own launcher does the work, here (`generate --nproc N`) or as `torchrun`, which starts them on several machines
as well. Knows that launcher and process groups; deliberately does not know what the processes share (`splitting.py`).
Torch is imported when it is needed, so that this costs nothing where one process is enough.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.errors import Cancelled, HostError, LTXError, OutOfMemory, RequestError

if TYPE_CHECKING:
    from modules.ltx.hosts.machine import Machine

_ENDED = {error.exit_code: error for error in (RequestError, Cancelled)}  # what a process ends with, as an error again


class LeftAlone(HostError):
    """Another process ended, and took the connection with it; what happened is for that one to tell."""


@dataclass(frozen=True)
class Place:
    """A process among those of one video: its number, how many there are, its number on this machine."""

    rank: int
    count: int
    local: int

    @property
    def first(self) -> bool:
        """Whether this is the one that shows progress and writes files."""
        return self.rank == 0


def here() -> Place | None:
    """This process's place where torch's launcher started it; None for a process on its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def device_of(place: Place, asked: str | None) -> str:
    """The device of a process: a GPU each, or all on the CPU. Raises RequestError where there are fewer GPUs."""
    import torch

    from modules.ltx.hosts import machine

    kind = machine.choose_device(asked)
    if kind == "cpu":
        return kind
    if kind not in ("cuda", "xpu"):
        raise RequestError(f"--nproc: processes cannot share a video on {kind}; it takes cuda, xpu or cpu.")
    there = int(getattr(torch, kind).device_count())
    if place.local >= there:
        raise RequestError(f"--nproc: a GPU each is needed, and this machine has {there}; ask for {there} at most.")
    getattr(torch, kind).set_device(place.local)
    return f"{kind}:{place.local}"


def check_whole(where: Machine) -> None:
    """Raise RequestError where the model is not resident: offloading takes the hooks that part the tokens away."""
    if where.offload != "none":
        raise RequestError(
            f"--nproc: each process holds the whole model, and here it would be offloaded ({where.offload}); make it "
            "smaller with --quantize, or give --offload none where it does fit."
        )


@contextmanager
def joined(place: Place, device: str) -> Iterator[None]:
    """The connection to the other processes, closed on every way out. Raises LeftAlone where one of them is gone. To be
    made once a process: a second one meets what the first has left with the launcher, and may wait for ever."""
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    backend = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}.get(device.split(":", maxsplit=1)[0], "gloo")
    try:
        distributed.init_process_group(backend)
        yield
    except (distributed.DistError, RuntimeError) as error:
        # Gloo's own errors are plain RuntimeErrors; only their text tells.
        if isinstance(error, distributed.DistError) or "gloo" in str(error).lower():
            raise LeftAlone(f"process {place.rank} has lost the others ({str(error)[:120]})") from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def same(value: Any) -> Any:
    """The first process's `value`, in all of them."""
    from torch import distributed

    told = [value]
    distributed.broadcast_object_list(told, 0)
    return told[0]


def launch(count: int, arguments: Sequence[str], module: str = "modules.ltx") -> None:
    """Run `python -m` `module` with `arguments` as `count` processes of this machine. Raises what the first one that
    failed did, with its exit code; Cancelled on Ctrl-C."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is told in a sentence
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        1,
        1,
        count,
        run_id=f"ltx-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException:
        raise Cancelled("cancelled; nothing was written") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _again(rank, failure.exitcode, str(failure.message)) from error


def _again(rank: int, code: int, said: str) -> LTXError:
    if code == OutOfMemory.exit_code:
        return OutOfMemory(said, phase="")
    if code in _ENDED:
        return _ENDED[code](said)
    return LTXError(said if code == LTXError.exit_code else f"process {rank} ended: {said}")


def report(error: LTXError) -> None:
    """Leave the sentence where the launcher looks for it; the process ends with the error's exit code."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None and not isinstance(error, LeftAlone):
        told = {"message": " ".join(str(error).split()), "timestamp": int(time.time())}
        with suppress(OSError):  # the exit code tells as well
            Path(file).write_text(json.dumps(told), encoding="utf-8")
