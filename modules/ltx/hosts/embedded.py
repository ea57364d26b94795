"""The standalone host: models from folders or the hub, one device, one job at a time, no SD.Next.

Holds what stays between jobs (the resident pipeline and upsamplers), keyed by everything that built
them. Knows no recipe: what runs, and with which numbers, is in the plan. Torch and diffusers are
imported (with `loading`) when a model is first wanted, so that planning stays instant.
"""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.borrow import check_writable
from modules.ltx.denoise import DenoiseCallback
from modules.ltx.embeddings import Embeddings
from modules.ltx.errors import Cancelled
from modules.ltx.hosts import hub, machine, places, quantizing, ranks, refiner
from modules.ltx.hosts.places import Places
from modules.ltx.jobs_base import FolderLock
from modules.ltx.ltx_capabilities import Caps, Facts
from modules.ltx.plan import LoraPlan, Plan
from modules.ltx.state import Event, Media

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from modules.ltx.hosts.loading import Wanted
    from modules.ltx.preview import Colours


@dataclass(frozen=True)
class Settings:
    """What the user chose about the machine; None leaves it to the machine."""

    outputs: Path = Path("outputs")
    cache: Path | None = None  # where LTX-Nano is built; LTX_CACHE, else the user's cache folder
    device: str | None = None
    dtype: str | None = None
    offload: str | None = None
    offline: bool = False
    share: bool = True  # one text encoder and one set of connectors for all variants that have the same
    quantize: str | None = None
    quantize_parts: tuple[str, ...] = quantizing.DEFAULT_PARTS
    processes: int = 1  # that make one video together; this is one of them (`ranks.py`)

    def __post_init__(self) -> None:
        machine.check_names(self.dtype, self.offload)
        quantizing.check(self.quantize, self.quantize_parts)

    @property
    def cache_folder(self) -> Path:
        """Where LTX-Nano lives: outside the project, so that every checkout shares it."""
        return places.cache_folder(self.cache)


@dataclass
class _Resident:
    """The one model in memory: its key, its machine, and one pipeline object a class, over shared components."""

    key: tuple[str, ...]
    machine: machine.Machine
    pipes: dict[str, Any]
    colours: Colours | None = None  # how its latents are shown, once somebody has looked

    def unhook(self) -> None:
        for pipe in self.pipes.values():
            pipe.remove_all_hooks()


class EmbeddedHost:
    """See `modules.ltx.host.Host`. `on_event` receives every Event; `cancel` and `pause` may come from any thread."""

    def __init__(self, settings: Settings | None = None, on_event: Callable[[Event], None] | None = None) -> None:
        self.settings = settings or Settings()
        self._on_event = on_event
        self._job = threading.Lock()
        self._cancelled = threading.Event()
        self._paused = threading.Event()
        self._resident: _Resident | None = None
        self._upsamplers: dict[tuple[str, ...], Any] = {}
        self._shared: dict[tuple[str, ...], Any] = {}
        self._embeddings = Embeddings()
        self._callback: DenoiseCallback | None = None
        self._relieved: str | None = None  # the offload of the running job, where that had to be more
        self._claimed: FolderLock | None = None  # the name of the video that is being made
        refiner.register(self)

    def register(self, callback: DenoiseCallback) -> None:
        """Keep `callback` as the one that refines; a second one takes its place."""
        self._callback = callback

    def denoise_callback(self) -> DenoiseCallback | None:
        return self._callback

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self._job:
            self._cancelled.clear()
            self._paused.clear()
            try:
                yield
            finally:
                self._let_go()
                if self._relieved is not None:  # the next job begins with the user's own again
                    self._relieved = None
                    self._drop()

    def lacks(self) -> Mapping[str, str]:
        moved = f"--offload {self.settings.offload} moves weights inside of what it compiles; leave one of the two out"
        offload = {"compile": moved} if self.settings.offload in ("group", "sequential") else {}
        return {**machine.lacks(), **offload, **quantizing.lacks(self.settings.quantize)}

    def probe(self, source: str) -> Facts | None:
        return self._places.probe(source)

    @property
    def _places(self) -> Places:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
        return Places(self.settings.cache_folder, self.settings.offline or offline)

    def pipeline(self, caps: Caps, class_name: str) -> AbstractContextManager[Any]:
        return self._lent(lambda: self._pipeline(caps, class_name))

    @contextmanager
    def _lent(self, make: Callable[[], Any]) -> Iterator[Any]:
        self.poll()
        yield make()

    def _pipeline(self, caps: Caps, class_name: str) -> Any:
        resident = self._load(caps)
        if class_name not in resident.pipes:
            from modules.ltx.hosts import loading

            first = next(iter(resident.pipes.values()))
            resident.pipes[class_name] = loading.sibling(first, class_name)
        return resident.pipes[class_name]

    def _load(self, caps: Caps) -> _Resident:
        """The resident model, loaded if it is not this one; the old one is dropped before the new is read, and behind
        a look at what is to be read: a folder that cannot be loaded costs nobody a model."""
        chosen = self.settings
        key = (caps.source, caps.transformer, caps.vae_dtype or "")
        if self._resident is None or self._resident.key != key:
            from modules.ltx.hosts import loading

            self.emit(Event("load", message=f"looking for {caps.label}"))
            folder, parts = self._folders(caps)
            loading.check(caps, folder, parts)
            self._drop()
            self.emit(Event("load", message=f"loading {caps.label}"))
            offload = self._relieved or chosen.offload
            wanted = loading.Wanted(chosen.device, chosen.dtype, offload, chosen.quantize, chosen.quantize_parts)
            where = loading.settle([folder, *(found / name for name, found in parts.items())], wanted)
            if chosen.processes > 1:
                ranks.check_whole(where)
            borrowed = {name: self._part(caps, name, found, where, wanted) for name, found in parts.items()}
            self._shared = {kept: part for kept, part in self._shared.items() if part in borrowed.values()}
            pipe = loading.load(caps, folder, where, wanted, borrowed)
            if chosen.processes > 1:
                from modules.ltx.hosts import splitting

                splitting.split(pipe.transformer, chosen.processes, where.device)
            self._resident = _Resident(key, where, {caps.pipeline: pipe})
        return self._resident

    def relieve(self, caps: Caps) -> str:
        """More offload. The model is read again, because what is on the device cannot be trusted to come off it."""
        where = None if self._resident is None else self._resident.machine
        device = machine.choose_device(self.settings.device) if where is None else where.device
        now = (self._relieved or self.settings.offload or "none") if where is None else where.offload
        more = machine.more_offload(now, device)
        if more is None:
            return ""
        self._drop()
        self._shared.clear()
        self._relieved = more
        return f"offload {more} instead of {now}"

    def _drop(self) -> None:
        """Forget the resident model, but for the parts that others share; their offload hooks go with it."""
        if self._resident is not None:
            self._resident.unhook()
            self._resident = None
            self._upsamplers.clear()
            gc.collect()  # a model refers to itself in many places
            self.free("load")

    def _part(self, caps: Caps, name: str, folder: Path, where: machine.Machine, wanted: Wanted) -> Any:
        """A component that several variants have, read once for all of them."""
        from modules.ltx.hosts import loading

        key = (name, str(folder), where.device, where.dtype, where.offload)
        if key not in self._shared:
            self._shared[key] = loading.shared_part(caps, name, folder, where, wanted)
        return self._shared[key]

    def _folders(self, caps: Caps) -> tuple[Path, dict[str, Path]]:
        """The model's folder on this machine, and those of the parts that it shares with other variants. Of hub repos,
        what is not there yet is downloaded."""
        found = self._places
        local = found.local(caps.source)
        if local is not None:
            return local, {}
        shared = caps.shared_parts if self.settings.share else {}
        elsewhere = [name for name, repo in shared.items() if repo != caps.source]
        folder = hub.download(caps, offline=found.offline, borrowed=elsewhere)
        return folder, {name: hub.part(repo, name, offline=found.offline) for name, repo in shared.items()}

    def enhancer(self, caps: Caps) -> AbstractContextManager[Any]:
        return self._lent(lambda: self._extra(caps, hub.ENHANCER))

    def decoder(self, caps: Caps, shape: Sequence[int]) -> AbstractContextManager[Any]:
        return self._lent(lambda: self._extra(caps, hub.DECODER, shape))

    def _extra(self, caps: Caps, name: str, shape: Sequence[int] = ()) -> Any:
        from modules.ltx.hosts import extras

        return extras.read(self._places, caps, name, self._load(caps).machine, shape)

    def upsampler(self, caps: Caps, source: str) -> AbstractContextManager[Any]:
        return self._lent(lambda: self._upsampler(caps, source))

    def _upsampler(self, caps: Caps, source: str) -> Any:
        resident = self._load(caps)
        key = (source, *resident.key)  # an upsampler belongs to one VAE: never "loaded once"
        if key not in self._upsamplers:
            from modules.ltx.hosts import loading

            where = self._places.upsampler(source)
            pipe = next(iter(resident.pipes.values()))
            self._upsamplers[key] = loading.upsampler(caps, where, pipe.vae, resident.machine)
        return self._upsamplers[key]

    def weights(self, lora: LoraPlan) -> tuple[str, dict[str, Any]]:
        return self._places.lora(lora)

    def base_pass(self, pipe: Any, args: Mapping[str, Any], plan: Plan) -> Any:
        return pipe(**args)

    def device(self, pipe: Any) -> str:
        return "cpu" if self._resident is None else self._resident.machine.device

    def room(self, caps: Caps) -> int:
        resident = self._load(caps)
        vae = next(iter(resident.pipes.values())).vae
        return machine.total_memory(resident.machine.device) // (3 * int(vae.dtype.itemsize))

    def embeddings(self, encoder: Any) -> Embeddings:
        return self._embeddings.of(encoder)

    def peak(self) -> int | None:
        return machine.peak_memory("cpu" if self._resident is None else self._resident.machine.device)

    def free(self, phase: str) -> None:
        if phase == "relief":  # no other phase leaves a tensor in a reference cycle, and a collection takes long
            gc.collect()
        machine.empty_cache("cpu" if self._resident is None else self._resident.machine.device)

    def cancel(self) -> None:
        """Stop the running job at its next poll."""
        self._cancelled.set()

    def pause(self, paused: bool) -> None:
        """Hold the running job at its next poll, or let it go on."""
        (self._paused.set if paused else self._paused.clear)()

    def poll(self) -> None:
        while self._paused.is_set() and not self._cancelled.is_set():
            time.sleep(0.05)
        if self._cancelled.is_set():
            raise Cancelled("cancelled; nothing was written")

    def emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def picture(self, frame: Tensor) -> Image | None:
        """A latent frame (channels, height, width) of the model in memory as a picture. To be called by who runs the
        job: the first time, the VAE is asked how its latents look."""
        resident = self._resident
        if resident is None:
            return None
        if resident.colours is None:
            from modules.ltx import preview

            vae = next(iter(resident.pipes.values())).vae
            resident.colours = preview.fit(vae, resident.machine.device)
        return resident.colours.picture(frame)

    def output_path(self, plan: Plan) -> Path:
        """Named by time, variant and seed, never by the prompt."""
        folder = self.settings.outputs
        check_writable(folder)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(plan.caps)}-{plan.seed}"
        paths = [folder / f"{name}.mp4" for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000)))]
        self._let_go()
        return next(path for path in paths if self._claim(path))

    def _claim(self, path: Path) -> bool:
        """Whether the name is free, and no other process makes a video of it: two that begin within a second would have
        one name, and the second video take the place of the first. Held until the job ends, or its process."""
        named = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        claim = FolderLock(Path(tempfile.gettempdir()) / f"ltx-video-{named}.lock")
        if not claim.take():
            return False
        self._claimed = claim
        if path.exists():
            self._let_go()
        return self._claimed is not None

    def _let_go(self) -> None:
        if self._claimed is not None:
            self._claimed.give_back(remove=True)
            self._claimed = None

    def machine(self) -> Mapping[str, object]:
        where = self._resident.machine if self._resident is not None else None
        chosen = {"device": where.device, "dtype": where.dtype, "offload": where.offload} if where else {}
        if self.settings.processes > 1:
            chosen |= {"processes": str(self.settings.processes)}
        if self.settings.quantize is not None:
            chosen |= {"quantize": f"{self.settings.quantize} of {', '.join(self.settings.quantize_parts)}"}
        return {"host": "embedded", **chosen, "versions": machine.versions()}

    def infotext(self, plan: Plan) -> str:
        return ""

    def delivered(self, media: Media) -> None:
        """Nothing is kept of what was made but the files."""


def slug(caps: Caps) -> str:
    """A file-name part for a variant: letters, digits, dots and dashes of its id, or just the generation."""
    known = all(c.isalnum() or c in ".-" for c in caps.id) and 0 < len(caps.id) <= 48
    return caps.id if known else f"ltx-{caps.generation}"
