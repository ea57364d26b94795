"""The seams of a run, and a wire laid through them: it counts the calls, and raises at one of them.

Real objects stay real: a call goes through the wire to what it was meant for, and everything that the wire was laid
through is as it was when the `with` ends. Knows where the parts of a run meet; does not know what must hold behind a
fault (`kit.py`).
"""

from __future__ import annotations

import errno
import functools
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import peft
import torch

from modules.ltx import borrow, kept, media
from modules.ltx.hosts import loading, refiner
from modules.ltx.media_files import Outputs
from modules.ltx.scheduler import FlowMatchPlanScheduler

LOAD = ("load the model", "place it", "load the upsampler", "share components")
COMMIT = "database"
# Whole statements of the queue that begin or end a transaction.
_TRANSACTIONS = ("begin immediate", "commit")


@dataclass(frozen=True)
class Call:
    """The `number`th call (from 1) of a run across the seam of that name."""

    seam: str
    number: int


@dataclass(frozen=True)
class Fault:
    """What is raised: in front of the call, or `behind` it, when all that it does is done."""

    name: str
    make: Callable[[], BaseException]
    behind: bool = False


FAULTS: tuple[Fault, ...] = (
    Fault("RuntimeError", lambda: RuntimeError("broken")),
    Fault("OutOfMemoryError", lambda: torch.OutOfMemoryError("CUDA out of memory")),
    Fault("KeyboardInterrupt", KeyboardInterrupt),
    Fault("OSError(ENOSPC)", lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    Fault("SystemExit", SystemExit),
    Fault("KeyboardInterrupt behind", KeyboardInterrupt, behind=True),
)


class Wire:
    """Counts calls by seam; armed, it raises once."""

    def __init__(self, at: Call | None = None, fault: Fault | None = None) -> None:
        self.calls: list[Call] = []
        self.struck = False
        self._at, self._fault = at, fault
        self._count: Counter[str] = Counter()

    def cross(self, seam: str, call: Callable[[], Any]) -> Any:
        self._count[seam] += 1
        made = Call(seam, self._count[seam])
        self.calls.append(made)
        fault = self._fault if made == self._at else None
        if fault is not None and not fault.behind:
            self.struck = True
            raise fault.make()
        result = self._made(made, call)
        if fault is not None:
            self.struck = True
            raise fault.make()
        return result

    def _made(self, made: Call, call: Callable[[], Any]) -> Any:
        return call()


@contextmanager
def through(wire: Wire, seam: str, owner: Any, name: str) -> Iterator[None]:
    """Calls of `owner.name` go through the wire; `owner` is a module, a class or an object."""
    theirs, own = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wire.cross(seam, lambda: theirs(*args, **kwargs))

    with _set(owner, name, call, own):
        yield


@contextmanager
def assigned(wire: Wire, seam: str, owner: type, names: Sequence[str]) -> Iterator[None]:
    """Assignments to attributes of these names, of objects of the class `owner`, go through the wire."""
    theirs: Any = owner.__setattr__

    def assign(self: Any, name: str, value: Any) -> None:
        if name not in names:
            theirs(self, name, value)
            return
        wire.cross(seam, lambda: theirs(self, name, value))

    with _set(owner, "__setattr__", assign, vars(owner).get("__setattr__")):
        yield


@contextmanager
def committed(wire: Wire) -> Iterator[None]:
    """Connections that are made from now on tell the wire where a transaction begins and ends."""

    class Wired(sqlite3.Connection):
        """See `committed`."""

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            run = super().execute
            if statement not in _TRANSACTIONS:
                return run(statement, *values)
            made: sqlite3.Cursor = wire.cross(f"{COMMIT}: {statement}", lambda: run(statement, *values))
            return made

    theirs = sqlite3.connect
    with _set(sqlite3, "connect", functools.partial(theirs, factory=Wired), theirs):
        yield


@contextmanager
def _set(owner: Any, name: str, value: Any, own: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)


def _parts(pipe: Any, upsampler: Any) -> Mapping[str, tuple[Any, str]]:
    """What a pipeline in memory is made of."""
    return {
        "prompt encode": (pipe.text_encoder, "forward"),
        "connectors": (pipe.connectors, "forward"),
        "denoise": (pipe.transformer, "forward"),
        "upsample": (upsampler.latent_upsampler, "forward"),
        "decode a tile": (pipe.vae, "decode"),
        "decode sound": (pipe.audio_vae, "decode"),
        "vocoder": (pipe.vocoder, "forward"),
    }


def _everywhere() -> Mapping[str, tuple[Any, str]]:
    """What is there without a model."""
    wrapper = sys.modules[f"{refiner.NAME}.seam"].FlowMatchRefiningScheduler
    return {
        LOAD[0]: (loading, "load"),
        LOAD[1]: (loading, "place"),
        LOAD[2]: (loading, "upsampler"),
        LOAD[3]: (loading, "sibling"),
        "set the sigmas": (FlowMatchPlanScheduler, "set_timesteps"),
        "scheduler step": (FlowMatchPlanScheduler, "step"),
        "refiner pass": (wrapper, "_absorb"),
        "LoRA layers": (peft, "inject_adapter_in_model"),
        "LoRA weights": (peft, "set_peft_model_state_dict"),
        "hook": (torch.nn.Module, "register_forward_pre_hook"),
        "unhook": (borrow, "_unhook"),
        "LoRA: removal": (borrow, "_remove_adapters"),
        "encode a frame": (media._Movie, "add"),
        "encode sound": (media._SoundTrack, "_encode"),
        "frame's pictures": (Outputs, "add"),
        "finish the file": (media._Movie, "finish"),
        "keep the state": (kept, "save_file"),
        "sync": (os, "fsync"),
        "rename": (os, "replace"),
    }


@contextmanager
def wired(wire: Wire, host: Any) -> Iterator[Wire]:
    """The wire through every seam of a run on `host`, through those of the model as far as it is in memory."""
    with ExitStack() as laid:
        for seam, (owner, name) in _everywhere().items():
            laid.enter_context(through(wire, seam, owner, name))
        laid.enter_context(assigned(wire, "swap the scheduler", diffusers.DiffusionPipeline, ["scheduler"]))
        laid.enter_context(committed(wire))
        resident = host._resident
        for number, pipe in enumerate(resident.pipes.values() if resident is not None else ()):
            for name in ("load_lora_weights", "set_adapters", "unload_lora_weights", "delete_adapters"):
                laid.enter_context(through(wire, f"LoRA: {name}", pipe, name))
            if number == 0:
                laid.enter_context(assigned(wire, "set the tiles", type(pipe.vae), borrow._TILING))
                for upsampler in host._upsamplers.values():
                    for seam, (owner, name) in _parts(pipe, upsampler).items():
                        laid.enter_context(through(wire, seam, owner, name))
        yield wire
