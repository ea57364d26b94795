"""What must hold behind a fault: all that a run borrows is as it was, and the next job is the undisturbed one's.

A `Place` is a host of its own with its folders, and a job on it. Knows what to look at; where faults are raised is in
`seams.py`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modules.ltx.errors import LTXError, OutOfMemory
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.kept import Kept, embeds_of
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from tests.faults.seams import Call, Fault, Wire, wired
from tests.host_contract.kit import snapshot

# Two stages, LoRA, the self-refiner in both, sound, two tiles: a call of every seam in as little time as there is.
ASKED: Mapping[str, object] = {
    "prompt": "a red ball",
    "model": "nano-2.3-dev-t2v",
    "width": 64,
    "height": 64,
    "frames": 25,
    "steps": 2,
    "stage2_steps": 1,
    "refine": True,
    "self_refine": "p1",
    "self_refine_plan": "1:2;1:2",
    "self_refine_threshold": 0.0,
    "tile_frames": 16,
    "seed": 1,
}
# One evaluation that is one call of the transformer, without stage 2; of the same model, which is in memory.
PLAIN: Mapping[str, object] = {
    "prompt": "a ball",
    "model": "nano-2.3-dev-t2v",
    "width": 64,
    "height": 64,
    "frames": 49,
    "steps": 1,
    "seed": 1,
    **dict.fromkeys(("guidance_scale", "modality_scale", "audio_guidance_scale", "audio_modality_scale"), 1.0),
    **dict.fromkeys(("stg_scale", "audio_stg_scale"), 0.0),
}
RAISED = (RuntimeError, OSError, KeyboardInterrupt, SystemExit, LTXError)


class Place:
    """A host with a folder of outputs, one of what is kept, and one for temporary files; all of them below `folder`."""

    name = "faults"

    def __init__(self, folder: Path, cache: Path | None, asked: Mapping[str, object] = ASKED) -> None:
        self.folder, self.outputs, self.kept = folder, folder / "outputs", folder / "kept"
        self.temp = folder / "temp"
        for made in (self.outputs, self.kept, self.temp):
            made.mkdir(parents=True)
        self.host: Any = EmbeddedHost(Settings(self.outputs, cache=cache, device="cpu", dtype="float32", offline=True))
        self.plan: Plan = settle(Request.parse(dict(asked)), self.host)

    def pipes(self) -> list[Any]:
        return list(self.host._resident.pipes.values()) if self.host._resident else []

    def own_state(self) -> dict[str, Any]:
        """What is the process's and the disk's."""
        return {
            "torch's generator": torch.random.get_rng_state().tolist(),
            "Python's generator": random.getstate(),
            "numpy's generator": str(np.random.get_state()),
            "gradients": torch.is_grad_enabled(),
            "dtype": str(torch.get_default_dtype()),
            "environment": dict(os.environ),
            "signals": str(signal.getsignal(signal.SIGINT)),
            "settings": self.host.settings,
            "lock": self.host._job.locked(),
            "offload": [type(getattr(m, "_hf_hook", None)).__name__ for p in self.pipes() for m in modules_of(p)],
            "threads": threading.active_count(),
            "files": self.files(),
        }

    def files(self) -> dict[str, str]:
        """Every file by its digest; of what is kept on purpose only the names."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): "" if self.kept in path.parents else digest(path) for path in found}

    def job(self, *, keep: Path | None = None, until: str | None = None) -> str:
        """Run the plan; the digest of its video, which is removed, or of its latents where it makes none."""
        state = run(
            self.plan,
            self.host,
            path=self.outputs / "video.mp4",
            keep=None if keep is None else Kept(keep),
            until=until,
        )
        if state.media is None:
            assert state.video_latents is not None
            assert state.audio_latents is not None
            held = state.video_latents.numpy().tobytes() + state.audio_latents.numpy().tobytes()
            return hashlib.sha256(held).hexdigest()
        made = digest(state.media.path)
        for path in (state.media.path, state.media.thumbnail):
            if path is not None:
                path.unlink()
        return made

    def sampled(self) -> str:
        """The job up to the latents, from nothing that is known already; each phase kept on the way, and that removed.
        Whatever else is left where it was kept is seen among the files."""
        keep = self.kept / "on-the-way.safetensors"
        self.host._embeddings._kept.clear()  # or nothing is encoded
        try:
            return self.job(keep=keep, until="refine")
        finally:
            for path in (keep, embeds_of(keep)):
                path.unlink(missing_ok=True)


def modules_of(pipe: Any) -> Iterator[torch.nn.Module]:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            yield from part.modules()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Temporary files of this process go to `folder`."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@dataclass(frozen=True)
class Found:
    """What came of one fault: `wrong` is empty where nothing was lost."""

    call: Call
    fault: str
    struck: bool
    raised: str
    wrong: tuple[str, ...]

    def with_wrong(self, *more: str) -> Found:
        return replace(self, wrong=(*self.wrong, *more))


def strike(place: Place, job: Callable[[], str], call: Call, fault: Fault, wanted: str) -> Found:
    """Run `job` with `fault` at `call`, and look at everything. `wanted`: what an undisturbed one makes."""
    before, wire = looked(place), Wire(call, fault)
    raised, made = "", ""
    try:
        with wired(wire, place.host):
            made = job()
    except RAISED as error:
        raised = type(error).__name__
        wrong = told_wrong(fault, error)
    else:
        wrong = [] if made == wanted else ["what it made"]
    after = looked(place)
    wrong += [name for name in before if before[name] != after.get(name)]
    wrong += [name for name in after if name not in before]
    return Found(call, fault.name, wire.struck, raised, tuple(wrong))


def told_wrong(fault: Fault, error: BaseException) -> list[str]:
    """Whether what came out is what went in, in our own words where we have some."""
    went_in = fault.make()
    if isinstance(went_in, torch.OutOfMemoryError):
        right = isinstance(error, OutOfMemory) and bool(error.phase)
    elif isinstance(went_in, OSError):
        right = isinstance(error, (OSError, LTXError))
    else:
        right = type(error) is type(went_in)
    return [] if right else [f"{type(error).__name__} came of it: {error}"]


def looked(place: Place) -> dict[str, Any]:
    """Everything a run borrows, flat: name to value."""
    found = snapshot(place)
    own = found.pop("own")
    return {**own, **{f"{pipe}: {name}": value for pipe, told in found.items() for name, value in told.items()}}
