"""What a job has after each phase, as safetensors, so that it can go on there after its process was killed.

What was encoded has a file of its own, written once: of LTX 2.x it is hundreds of megabytes.

The plan is not kept but made again, by the same pure functions; the file is only taken up where that gives the plan it
was written for, of the same files on the same machine. Knows tensors and files; deliberately knows no queue and no
stage. Nothing in the file is ever run: tensors, and JSON in its header.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modules.ltx import duration
from modules.ltx.errors import HostError, RequestError
from modules.ltx.host import Host
from modules.ltx.ltx_util import file_digest
from modules.ltx.plan import Plan
from modules.ltx.state import Embeds, Refinement, State, Timing

FORMAT = 1  # of the header; a file of another one is not taken up
_LATER = ("decode", "make_room")  # of a plan: what no latent depends on
_EMBEDS = ("prompt", "prompt_mask", "negative", "negative_mask")
_LATENTS = ("video_latents", "audio_latents", "delivered_audio")
# A file that was cut short, or is another program's: json, the header's keys, tensors that are missing.
_DAMAGED = (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError)


class Kept:
    """See `host.Keep`. One job; `file` is where its state is, `named` hears what the video will be called."""

    def __init__(self, file: Path, named: Callable[[Path], None] = lambda path: None) -> None:
        self.file, self.named = file, named
        self._asked = ""  # fingerprint of the plan as it was before encoding
        self._written: Embeds | None = None  # whose file stands already

    def load(self, state: State, host: Host) -> tuple[State, str | None]:
        """`state`, which has just been loaded, moved on to what is kept, and the last phase that it has behind it."""
        self._asked = fingerprint(state.plan, host)
        with suppress(*_DAMAGED), safe_open(str(self.file), framework="pt") as file:
            header = json.loads(file.metadata()["ltx"])
            plan = self._plan(header, state.plan, host)
            if plan is not None:
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
                self._written = self._embeds()
                return _moved_on(state, plan, header, tensors, self._written), str(header["phase"])
        return state, None

    def _embeds(self) -> Embeds:
        """What was encoded for this very plan. Raises LookupError where the file is of another one."""
        with safe_open(str(embeds_of(self.file)), framework="pt") as file:
            if file.metadata()["asked"] != self._asked:
                raise LookupError(self._asked)
            found = {name: file.get_tensor(name) for name in list(file.keys())}
        return Embeds(*(found.get(name) for name in _EMBEDS))  # type: ignore[arg-type]

    def _plan(self, header: Mapping[str, Any], plan: Plan, host: Host) -> Plan | None:
        """The plan as encoding left it; None where the file is of another one."""
        if (header["format"], header["asked"], header["seed"]) != (FORMAT, self._asked, plan.seed):
            return None
        spoken = replace(plan, prompt=str(header["prompt"]))
        candidates = [replace(spoken, predicts_frames=False), spoken]
        with suppress(RequestError):
            candidates.append(duration.planned_again(spoken, int(header["frames"]), host))
        return next((plan for plan in candidates if _digest(plan) == header["settled"]), None)

    def save(self, phase: str, state: State) -> None:
        """Write the state behind `phase`: whole, or not at all. Raises HostError where the disk does not take it."""
        if state.embeds is not None and state.embeds is not self._written:
            _write(embeds_of(self.file), _named(state.embeds, _EMBEDS), {"asked": self._asked})
            self._written = state.embeds
        tensors = _named(state, _LATENTS)
        for number, done in enumerate(state.refined):
            if done.picture is not None:
                tensors[f"refined.{number}"] = _png(done.picture)
        _write(self.file, tensors, {"ltx": json.dumps(self._header(phase, state))})

    def _header(self, phase: str, state: State) -> dict[str, Any]:
        latents = state.video_latents
        return {
            "format": FORMAT,
            "phase": phase,
            "asked": self._asked,
            "settled": _digest(state.plan),
            "seed": state.seed,
            "prompt": state.plan.prompt,
            "frames": state.plan.frames,
            "done": state.done,
            "notes": list(state.notes),
            "timings": [[timing.phase, timing.seconds, timing.peak] for timing in state.timings],
            "refined": [[done.stage, done.rows] for done in state.refined],
            "video_sha256": None if latents is None else latents_digest(latents),
        }


def embeds_of(file: Path) -> Path:
    """The file of the embeddings that belong to a state's `file`."""
    return file.with_name(f"{file.stem}-embeds{file.suffix}")


def _write(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Whole, or not at all. Raises HostError."""
    # A copy each: the file's format refuses two names for one memory.
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(held, str(new), metadata)
        _synced(new)
        os.replace(new, file)
    except (OSError, SafetensorError) as error:
        raise HostError(f"{file.parent}: what is done so far cannot be kept ({error}).") from error
    finally:
        with suppress(OSError):  # the folder may be no folder at all
            new.unlink(missing_ok=True)


def header_of(file: Path) -> dict[str, Any] | None:
    """What a kept state says of itself: its phase, seed and the digest of its latents; None where there is none."""
    with suppress(*_DAMAGED), safe_open(str(file), framework="np") as found:
        return dict(json.loads(found.metadata()["ltx"]))
    return None


def fingerprint(plan: Plan, host: Host) -> str:
    """Changes whenever stages that are done would come out otherwise: plan, files, machine. How latents are decoded
    is no part of it, nor where weights lie until they are used."""
    media = {path: file_digest(Path(path)) for path in plan.media}
    machine = {name: value for name, value in host.machine().items() if name != "offload"}
    return hashlib.sha256(json.dumps([_digest(plan), media, machine], default=str).encode()).hexdigest()


def latents_digest(latents: torch.Tensor) -> str:
    """The sha256 of a tensor's numbers, 64 hex digits."""
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()


def _digest(plan: Plan) -> str:
    told = {name: value for name, value in plan.to_json().items() if name not in _LATER}
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _named(owner: Any, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    found = {name: getattr(owner, name, None) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _moved_on(
    state: State, plan: Plan, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], embeds: Embeds
) -> State:
    timings = tuple(Timing(phase, seconds, peak) for phase, seconds, peak in header["timings"] if phase != "load")
    refined = tuple(
        Refinement(stage, rows, _picture(tensors.get(f"refined.{number}")))
        for number, (stage, rows) in enumerate(header["refined"])
    )
    return replace(
        state,
        plan=replace(plan, decode=state.plan.decode),
        embeds=embeds,
        video_latents=tensors.get("video_latents"),
        audio_latents=tensors.get("audio_latents"),
        delivered_audio=tensors.get("delivered_audio"),
        done=int(header["done"]),
        notes=tuple(header["notes"]),
        timings=(*state.timings, *timings),
        refined=refined,
    )


def _png(picture: Image.Image) -> torch.Tensor:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _picture(data: torch.Tensor | None) -> Image.Image | None:
    if data is None:
        return None
    with Image.open(io.BytesIO(data.numpy().tobytes()), formats=("PNG",)) as picture:
        picture.load()
        return picture.copy()


def _synced(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
