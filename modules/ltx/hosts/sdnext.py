"""SD.Next as a Host: with the entry scripts the only file that imports the web UI's own modules.

One `Resident` lives as long as the UI; a `SDNextHost` is made for every job. The base pass goes through the UI's
`process_images`; encoding, upsampling, stage 2 and decoding are direct calls inside the UI's lock, state, inference
context and offload.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from modules.ltx import preview
from modules.ltx.denoise import DenoiseCallback
from modules.ltx.embeddings import Embeddings
from modules.ltx.errors import Cancelled, HostError
from modules.ltx.hosts import machine, places, refiner
from modules.ltx.hosts.captured import captured
from modules.ltx.hosts.sdnext_stops import remembered
from modules.ltx.ltx_capabilities import Caps, Facts
from modules.ltx.plan import LoraPlan, Plan
from modules.ltx.preview import Colours
from modules.ltx.state import Event, Media

ENGINE = "LTX Video"  # the UI's name for the group of rows that LTX models are in


def ui(name: str) -> Any:
    """One of the web UI's own modules."""
    return importlib.import_module(f"modules.{name}")


@dataclass
class Resident:
    """What stays between jobs: the registered self-refiner, and what was read for the model in memory."""

    callback: DenoiseCallback | None = None
    fall_back: Callable[[], None] | None = None  # takes our folders out of the UI's packages again
    owner: int = 0  # id of the UI's pipeline that the rest belongs to
    colours: Colours | None = None  # how its latents are shown
    siblings: dict[str, Any] = field(default_factory=dict)
    upsamplers: dict[str, Any] = field(default_factory=dict)
    embeddings: Embeddings = field(default_factory=Embeddings)

    def register(self, callback: DenoiseCallback) -> None:
        self.callback = callback

    def of(self, pipe: Any) -> Resident:
        """Itself, emptied where the UI has another model in memory by now."""
        if self.owner != id(pipe):
            self.owner, self.colours, self.siblings, self.upsamplers = id(pipe), None, {}, {}
        return self


@cache
def resident() -> Resident:
    """The one of this process, with the self-refiner registered."""
    kept = Resident()
    refiner.register(kept)
    return kept


class SDNextHost:
    """See `modules.ltx.host.Host`. One job; `task` is the UI's id for it, `on_event` receives every Event."""

    def __init__(
        self, task: str = "", on_event: Callable[[Event], None] | None = None, kept: Resident | None = None
    ) -> None:
        self._task, self._on_event = task, on_event
        self._kept = kept or resident()
        self._cancelled = False
        self._began = 0.0
        self._frame: Tensor | None = None  # the middle latent frame, until the UI has asked for it

    @contextmanager
    def queued(self) -> Iterator[None]:
        """The task is known to the UI, which shows it, until it is over in whatever way."""
        progress = ui("progress")
        try:
            progress.add_task_to_queue(self._task)
            yield
        finally:
            progress.pending_tasks.pop(self._task, None)
            progress.finish_task(self._task)

    @contextmanager
    def lock(self) -> Iterator[None]:
        progress, state = ui("progress"), ui("shared").state
        with ExitStack() as undo:
            undo.enter_context(ui("call_queue").get_lock())
            if self._task:
                undo.callback(progress.finish_task, self._task)
                progress.start_task(self._task)
            self._began = time.time()
            undo.enter_context(remembered(state))
            undo.callback(state.end, state.begin(ENGINE, task_id=self._task or 0))
            undo.enter_context(replaced(state, "set_current_image", self._show))
            yield

    def cancel(self) -> None:
        """Stop the job at its next poll, as an interrupt does; for who has the job and not the page."""
        self._cancelled = True

    def poll(self) -> None:
        state = ui("shared").state
        while state.paused and not self._stopped(state):
            time.sleep(0.1)
        if stopped := self._stopped(state):
            raise Cancelled(f"{stopped}; nothing was written")

    def _stopped(self, state: Any) -> str:
        """How the job was stopped, in a word; empty while nobody stopped it."""
        if self._cancelled or state.interrupted:
            return "interrupted"
        return "skipped" if state.skipped else ""

    def emit(self, event: Event) -> None:
        state = ui("shared").state
        # Every job that the UI nests into ours clears these at its end.
        state.job, state.job_no, state.job_count, state.time_start = ENGINE, 0, 1, self._began
        state.sampling_step, state.sampling_steps = event.evaluations, event.planned
        state.textinfo = event.message or f"{event.phase} {event.step}/{event.of}"
        if event.preview is not None:
            self._frame = event.preview
        if self._on_event is not None:
            self._on_event(event)

    def _show(self) -> bool:
        """The UI asks for a preview, from the thread of a page: the latest latents, unless it has seen them."""
        shared, frame, colours = ui("shared"), self._frame, self._kept.colours
        if frame is None or colours is None or shared.opts.show_progress_type == "None":
            return False
        self._frame = None
        shared.state.assign_current_image(colours.picture(frame))
        return True

    def lacks(self) -> Mapping[str, str]:
        return {**machine.lacks(), "compile": "the web UI compiles models as its own settings say"}

    @property
    def _places(self) -> places.Places:
        return places.Places(places.cache_folder(), bool(ui("shared").opts.offline_mode))

    def probe(self, source: str) -> Facts | None:
        return self._places.probe(source)

    def denoise_callback(self) -> DenoiseCallback | None:
        return self._kept.callback

    @contextmanager
    def pipeline(self, caps: Caps, class_name: str) -> Iterator[Any]:
        self.poll()
        main = self._load(caps)
        pipe = main if type(main).__name__ == class_name else self._sibling(main, class_name)
        with ui("devices").inference_context(), _plain(main), _plain(pipe):
            try:
                yield pipe
            finally:  # a component called by itself stays on the device, unless it is told to go
                ui("sd_models").apply_balanced_offload(ui("shared").sd_model, force=True, silent=True)

    def _sibling(self, main: Any, class_name: str) -> Any:
        from modules.ltx.hosts import loading

        kept = self._kept.of(main).siblings
        if class_name not in kept:
            kept[class_name] = loading.sibling(main, class_name)
        return kept[class_name]

    def _load(self, caps: Caps) -> Any:
        """The UI's pipeline, loaded if it is another model's. Raises HostError with what the UI logged."""
        shared, row = ui("shared"), self._row(caps)
        with logged_errors() as errors:
            ui("video_models.video_load").load_model(row)
            pipe = shared.sd_model if shared.sd_loaded else None
        if pipe is None or type(pipe).__name__ != caps.pipeline:
            reason = errors[0] if errors else "see its log"
            raise HostError(f"{caps.label}: the web UI could not load it ({reason}).")
        kept = self._kept.of(pipe)
        if kept.colours is None:
            with ui("devices").inference_context(), _plain(pipe):
                kept.colours = preview.fit(pipe.vae)
        return pipe

    def _row(self, caps: Caps) -> Any:
        """The UI's row of the variant; for a folder or a repo that it does not list, one like it."""
        from modules.ltx.hosts import sdnext_rows

        local = self._places.local(caps.source)
        return sdnext_rows.row_to_load(caps, None if local is None else str(local))

    @contextmanager
    def enhancer(self, caps: Caps) -> Iterator[Any]:
        self.poll()
        from modules.ltx.hosts import extras, hub

        yield extras.read(self._places, caps, hub.ENHANCER, self._where())

    @contextmanager
    def decoder(self, caps: Caps, shape: Sequence[int]) -> Iterator[Any]:
        self.poll()
        from modules.ltx.hosts import extras, hub

        yield extras.read(self._places, caps, hub.DECODER, self._where(), shape)

    @contextmanager
    def upsampler(self, caps: Caps, source: str) -> Iterator[Any]:
        self.poll()
        from modules.ltx.hosts import loading

        main = self._load(caps)
        kept = self._kept.of(main).upsamplers  # one belongs to one VAE
        if source not in kept:
            kept[source] = loading.upsampler(caps, self._places.upsampler(source), main.vae, self._where())
        with ui("devices").inference_context():
            yield kept[source]

    def _where(self) -> machine.Machine:
        """Device, dtype and offload as the UI has them."""
        devices, device = ui("devices"), str(ui("devices").device)
        offload = ui("shared").opts.diffusers_offload_mode
        return machine.Machine(device, str(devices.dtype).removeprefix("torch."), offload, machine.free_memory(device))

    def weights(self, lora: LoraPlan) -> tuple[str, dict[str, Any]]:
        return self._places.lora(lora)

    def device(self, pipe: Any) -> Any:
        return pipe._execution_device  # the UI moves models as it sees fit

    def base_pass(self, pipe: Any, args: Mapping[str, Any], plan: Plan) -> Any:
        """Through `process_images`, which adds the UI's modifiers, callbacks, infotext and history.

        Sampler `None` leaves the scheduler to the plan; the arguments are given as `task_args`, which win over all that
        the UI puts together; the prompt that it adds goes, because it was encoded already.
        """
        p = self._processing(plan)
        p.task_args.update(args)

        def without_prompt(_: Any, ready: dict[str, Any]) -> None:
            for name in ("prompt", "negative_prompt"):
                ready.pop(name, None)

        with captured(pipe) as call, replaced(pipe, "preprocess", without_prompt):
            ui("processing").process_images(p)
        if call.error is not None:  # the UI marks what failed as interrupted; the user did not
            ui("shared").state.interrupted = False
        self.poll()
        return call.result()

    def _processing(self, plan: Plan) -> Any:
        shared, first = ui("shared"), plan.stages[0]
        p = ui("processing").StableDiffusionProcessingVideo(
            sd_model=shared.sd_model if shared.sd_loaded else None,  # asking for it would load another model
            video_engine=ENGINE,
            video_model=plan.caps.label,
            prompt=plan.prompt,
            negative_prompt=plan.negative or "",
            styles=[],
            seed=plan.seed,
            sampler_name="None",
            steps=len(first.sigmas),
            width=first.width,
            height=first.height,
            frames=first.frames,
            cfg_scale=first.guidance.guidance_scale if first.guidance else 1.0,
        )
        p.scripts = p.script_args = None
        p.do_not_save_grid = p.do_not_save_samples = True
        p.disable_extra_networks = True  # networks are the plan's: the UI would unload what stage 2 needs
        p.ops.append("video")
        return p

    def room(self, caps: Caps) -> int:
        vae = self._load(caps).vae
        return machine.total_memory(str(ui("devices").device)) // (3 * int(vae.dtype.itemsize))

    def embeddings(self, encoder: Any) -> Embeddings:
        return self._kept.embeddings.of(encoder)

    def relieve(self, caps: Caps) -> str:
        """Nothing: how the UI offloads is the user's, for all models."""
        return ""

    def peak(self) -> int | None:
        device = str(ui("devices").device)
        return machine.peak_memory(device, anew=device.startswith("cpu"))  # the UI counts an accelerator's itself

    def free(self, phase: str) -> None:
        """The allocator's cache before stage 2 and after decoding. A collection only where the UI's own threshold of
        used memory asks for it, or after memory ran out: no phase leaves a tensor in a reference cycle, and with a page
        open a collection takes seconds."""
        if phase == "relief":
            ui("devices").torch_gc(force=True, reason="ltx:relief")
        elif phase in ("upsample", "decode"):
            machine.empty_cache(str(ui("devices").device))
            ui("devices").torch_gc(reason=f"ltx:{phase}")

    def output_path(self, plan: Plan) -> Path:
        """Named and placed as the UI names and places its videos."""
        stem = Path(ui("video_models.video_save").get_video_filename(self._processing(plan)))
        names = (stem.name, *(f"{stem.name}-{n}" for n in range(2, 1000)))
        return next(path for name in names if not (path := stem.with_name(f"{name}.mp4")).exists())

    def machine(self) -> Mapping[str, object]:
        where = self._where()
        chosen = {"device": where.device, "dtype": where.dtype, "offload": where.offload}
        return {"host": "SD.Next", **chosen, "versions": machine.versions()}

    def infotext(self, plan: Plan) -> str:
        if not ui("shared").opts.image_metadata:
            return ""
        return str(ui("processing").create_infotext(self._processing(plan)))

    def delivered(self, media: Media) -> None:
        for path in filter(None, (media.path, media.tensors)):
            ui("shared").state.outputs(str(path))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` set on the instance; afterwards the instance has what it had, or nothing of that name."""
    had, before = name in vars(owner), vars(owner).get(name)
    try:
        setattr(owner, name, value)
        yield
    finally:
        if had:
            setattr(owner, name, before)
        elif name in vars(owner):
            delattr(owner, name)


@contextmanager
def _plain(pipe: Any) -> Iterator[None]:
    """The pipeline without the UI's own wrappers of it, which swallow errors and mix up prompts (they cache by the
    positive prompt alone); the VAEs are moved to the device as those do."""
    with ExitStack() as undo:
        if "encode_prompt" in vars(pipe) and hasattr(pipe, "orig_encode_prompt"):
            undo.enter_context(replaced(pipe, "encode_prompt", pipe.orig_encode_prompt))
        for part in (pipe.vae, getattr(pipe, "audio_vae", None)):
            for name in ("encode", "decode") if part is not None else ():
                if not hasattr(getattr(part, name), "ltx"):
                    undo.enter_context(replaced(part, name, _moved(part, name)))
        yield


def _moved(vae: Any, name: str) -> Callable[..., Any]:
    """The VAE's own `encode` or `decode`, on the UI's device."""
    own = getattr(vae, f"orig_{name}", None) or getattr(vae, name)

    def call(first: Any, *rest: Any, **named: Any) -> Any:
        models, device = ui("sd_models"), ui("devices").device
        models.apply_balanced_offload(ui("shared").sd_model, exclude=["vae", "audio_vae"], silent=True)
        models.move_model(vae, device)
        return own(first.to(device), *rest, **named)

    call.ltx = True  # type: ignore[attr-defined]
    return call


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """The first lines of what the UI logs as errors meanwhile: it logs them and goes on."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage().strip().splitlines()[0][:300])

    keep, log = Keep(logging.ERROR), ui("logger").log
    try:
        log.addHandler(keep)
        yield told
    finally:
        log.removeHandler(keep)
