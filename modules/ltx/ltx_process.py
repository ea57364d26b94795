"""Run a plan: one loop over its stages, then frames and sound into one file.

Timing, progress, translation of out-of-memory, and the file's metadata live here; nothing is decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from modules.ltx import borrow, decode, relief, savings, stages, tiles
from modules.ltx.errors import HostError, LTXError, OutOfMemory, RequestError
from modules.ltx.export import VIDEO_ALONE, Export
from modules.ltx.host import Host, Keep
from modules.ltx.kept import latents_digest
from modules.ltx.ltx_util import file_digest, random_seed, seed_for
from modules.ltx.media import Encoding, require_codec, write_video
from modules.ltx.media_clip import load_clip
from modules.ltx.media_files import Outputs, sweep_partials
from modules.ltx.media_in import load_image
from modules.ltx.plan import Plan
from modules.ltx.state import Event, Media, State, Timing
from modules.ltx.version import VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray

STALE = 24 * 3600.0  # seconds after which a partial file of ours belongs to a process that was killed


def run(
    plan: Plan,
    host: Host,
    *,
    path: Path | None = None,
    encoding: Encoding | None = None,
    keep: Keep | None = None,
    until: str | None = None,
    export: Export = VIDEO_ALONE,
) -> State:
    """Make the video of `plan`; the returned state's `media` says what was written and where.

    `path` overrides the host's own name. With `keep` the job begins behind the last phase that is kept, and bit for bit
    the same comes out. `until` names the phase to end with, without a video. `export`: what is written besides. Raises
    RequestError, HostError, OutOfMemory, Cancelled or LTXError; on any of them, and on KeyboardInterrupt, no file
    stands under the final name and the host is as it was.
    """
    with host.lock():
        seed = random_seed() if plan.seed is None else plan.seed
        plan = plan.with_seed(seed)
        encoding = encoding or Encoding()
        require_codec(encoding)
        if path is not None:
            _look_for_room(path, plan, encoding, export)
        images = tuple(load_image(Path(at.path)) for at in plan.images)
        state = State(plan, seed, images, load_clip(plan.prefix) if plan.prefix else (), path=path)
        state = _timed("load", partial(load, encoding=encoding, export=export), state, host)
        state, last = _taken_up(state, host, keep)
        writing = partial(write, encoding=encoding, export=export)
        job: list[tuple[str, stages.Stage]] = [*stages.ordered(plan), ("decode", writing)]
        for phase, stage in _left(job, last, until):
            state = _timed(phase, stage, state, host)
            if keep is not None and state.media is None:
                with _phase(phase, state.plan, host):
                    keep.save(phase, state)
        if state.media is not None:
            host.delivered(state.media)
        return state


def _taken_up(state: State, host: Host, keep: Keep | None) -> tuple[State, str | None]:
    """The state as far as it is kept, and the last phase behind it."""
    if keep is None:
        return state, None
    if state.path is not None:
        keep.named(state.path)
    state, last = keep.load(state, host)
    if last is not None:
        host.emit(Event(last, 1, 1, state.done, state.plan.evaluations, message=f"taken up behind {last}"))
    return state, last


def _left(job: list[tuple[str, stages.Stage]], last: str | None, until: str | None) -> list[tuple[str, stages.Stage]]:
    """The phases behind `last`, to `until`; None is the beginning, and the end."""
    names = [phase for phase, _ in job]
    return job[0 if last is None else names.index(last) + 1 : len(job) if until is None else names.index(until) + 1]


def _timed(phase: str, stage: stages.Stage, state: State, host: Host) -> State:
    """A phase, and where memory runs out and the plan makes room, the phase again from the state before it."""
    while True:
        try:
            return _once(phase, stage, state, host)
        except OutOfMemory:
            eased = relief.eased(state.plan, phase, host)
            if eased is None:
                raise
        # Behind the handler: the error's frames, and the tensors in them, are gone here.
        plan, note = eased
        state = replace(state, plan=plan, notes=(*state.notes, note))
        host.free("relief")
        host.emit(Event(phase, evaluations=state.done, planned=plan.evaluations, message=note))


def _once(phase: str, stage: stages.Stage, state: State, host: Host) -> State:
    host.peak()  # what was before is not of this phase
    with _phase(phase, state.plan, host) as clock:
        state = stage(state, host)
        most = host.peak()
        host.free(phase)
    return replace(state, timings=(*state.timings, Timing(phase, clock(), most)))


def map_names(plan: Plan) -> list[str]:
    """The pictures of uncertainty that a plan makes: one a refined stage."""
    if plan.refiner is None or not plan.refiner.map:
        return []
    return [f"{stage.name}-uncertainty" for stage in plan.stages if max(stage.passes, default=1) > 1]


def _look_for_room(path: Path, plan: Plan, encoding: Encoding, export: Export) -> None:
    """Raise RequestError where something stands under a name: better known now than when the frames are there."""
    beside = {"png_frames": encoding.png_frames, "thumbnail": encoding.thumbnail, "tensors": export.tensors is not None}
    Outputs(path, **beside, pictures=map_names(plan))


def load(state: State, host: Host, *, encoding: Encoding, export: Export = VIDEO_ALONE) -> State:
    """The model made resident, so that its time and its failures have a phase of their own; tiles as it has room; the
    host's name for the video, in which the model may stand."""
    plan = state.plan
    with host.pipeline(plan.caps, plan.caps.pipeline):
        fitting = tiles.settled(plan.decode, (plan.width, plan.height, plan.frames), host.room(plan.caps))
    path = state.path or host.output_path(plan)
    _look_for_room(path, plan, encoding, export)
    return replace(state, plan=replace(plan, decode=fitting), path=path)


@contextmanager
def _phase(name: str, plan: Plan, host: Host) -> Iterator[Any]:
    """A running clock, and out-of-memory of any device told as ours, with the phase it struck in."""
    began = time.perf_counter()
    try:
        yield lambda: time.perf_counter() - began
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(savings.said(plan, name, host.machine()), phase=name) from error
    except RuntimeError as error:
        # torch's CPU allocator and MPS raise a plain RuntimeError; only its text tells.
        if "not enough memory" in str(error) or "out of memory" in str(error):
            raise OutOfMemory(savings.said(plan, name, host.machine()), phase=name) from error
        raise


def write(state: State, host: Host, *, encoding: Encoding, export: Export = VIDEO_ALONE) -> State:
    """Decode and encode, a tile at a time, into the state's path."""
    plan, latents, path = state.plan, state.video_latents, state.path
    if latents is None or path is None:
        raise LTXError("decode: there are no latents")
    total = plan.frames * export.factor

    def on_frame(count: int) -> None:
        host.emit(Event("decode", count, total, state.done, plan.evaluations))
        host.poll()

    def before_tile() -> None:
        host.poll()
        host.free("tile")

    host.emit(Event("decode", 0, total, state.done, plan.evaluations))
    last = plan.stages[-1].pipeline or plan.caps.pipeline
    with borrow.folder(path.parent) as folder, host.pipeline(plan.caps, last) as pipe:
        sweep_partials(folder, STALE)
        heard, device = state.delivered_audio, host.device(pipe)
        sound = None if heard is None else decode.sound(pipe, heard, device=device, poll=host.poll)
        state, frames = _frames(state, host, pipe, before_tile)
        digests = latents_digest(latents), None if heard is None else latents_digest(heard)
        written = write_video(
            path,
            export.frames(frames),
            fps=plan.fps * export.factor,
            sound=sound,
            metadata=metadata(state, host, digests, export.factor),
            encoding=encoding,
            on_frame=on_frame,
            poll=host.poll,
            waiting=plan.decode.tile_frames,
            pictures={f"{done.stage}-uncertainty": done.picture for done in state.refined if done.picture is not None},
            tensors=export.tensors,
        )
    media = Media(
        path=written.path,
        thumbnail=written.thumbnail,
        frames_folder=written.frames_dir,
        maps=written.pictures,
        tensors=written.tensors,
        width=written.width,
        height=written.height,
        frames=written.frames,
        fps=written.fps,
        sample_rate=written.sample_rate,
        video_latents_sha256=digests[0],
        audio_latents_sha256=digests[1],
    )
    return replace(state, media=media)


def _frames(
    state: State, host: Host, pipe: Any, before_tile: Callable[[], None]
) -> tuple[State, Iterator[NDArray[np.uint8]]]:
    """The clip in chunks of frames, by the decoder of the plan; where that cannot be had, by the VAE, with a note."""
    plan, latents = state.plan, _for_vae(pipe, state)

    def generator() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(seed_for(state.seed, "decode"))

    if plan.decode.decoder == "diffusion":
        try:
            with host.decoder(plan.caps, latents.shape) as model:
                return state, decode.diffused(model, latents, generator=generator(), poll=before_tile)
        except (RequestError, HostError) as error:  # not there, not for this clip, or damaged
            reason = str(error)
        except torch.OutOfMemoryError:
            reason = "the device has too little memory for it"
        said = f"decoded by the VAE instead of the diffusion decoder: {reason}"
        state = replace(state, notes=(*state.notes, said))
        host.free("relief")
    device = host.device(pipe)
    return state, decode.frames(
        pipe, latents, plan.decode, device=device, generator=generator(), before_tile=before_tile, poll=host.poll
    )


def drawn(state: State, host: Host) -> Image.Image:
    """The clip as far as it is, in three pictures side by side: its first, middle and last frame."""
    plan = state.plan
    wanted = sorted({0, (plan.frames - 1) // 2, plan.frames - 1})
    with host.lock(), _phase("decode", plan, host), host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
        seed = torch.Generator("cpu").manual_seed(seed_for(state.seed, "decode"))
        latents, device = _for_vae(pipe, state), host.device(pipe)
        chunks = decode.frames(pipe, latents, plan.decode, device=device, generator=seed, before_tile=host.poll)
        every = (frame for chunk in chunks for frame in chunk)
        return Image.fromarray(np.concatenate([frame for n, frame in enumerate(every) if n in wanted], axis=1))


def _for_vae(pipe: Any, state: State) -> torch.Tensor:
    """The latents as the VAE takes them."""
    latents = state.video_latents
    assert latents is not None
    if not state.plan.caps.latents_normalized:
        return latents
    vae = pipe.vae
    plain: torch.Tensor = pipe._denormalize_latents(
        latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    return plain


def metadata(state: State, host: Host, digests: tuple[str, str | None], factor: int = 1) -> dict[str, object]:
    """All that is needed to make the file again, and to prove that it came out the same. `factor`: see `Export`."""
    plan = state.plan
    return {
        "title": plan.prompt[:200],
        "software": f"sdnext-ltx {VERSION}",
        "version": VERSION,
        "request": plan.request.to_json(),
        "plan": plan.to_json(),
        "notes": list(state.notes),
        **({"interpolation": factor} if factor > 1 else {}),
        **({"self_refiner": {done.stage: done.rows for done in state.refined}} if state.refined else {}),
        "media": {path: file_digest(Path(path)) for path in plan.media},
        "machine": dict(host.machine()),
        **({"infotext": told} if (told := host.infotext(plan)) else {}),
        "latents": {"video_sha256": digests[0], "audio_sha256": digests[1]},
    }
