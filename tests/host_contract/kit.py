"""One face for both hosts: make one, trip it, and look at everything that a job borrows."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.hosts.sdnext import SDNextHost
from modules.ltx.state import Event

Listener = Callable[[Event], None]


class Tripped:
    """Counts polls of the host it is mixed into, and raises `error` at one of them."""

    at = 0
    count = 0
    error: BaseException | None = None

    def arm(self, at: int, error: BaseException | None) -> None:
        self.at, self.error, self.count = at, error, 0

    def poll(self) -> None:
        super().poll()  # type: ignore[misc]
        self.count += 1
        if self.error is not None and self.count == self.at:
            raise self.error


class TrippedEmbedded(Tripped, EmbeddedHost):
    """See `Tripped`."""


class TrippedSDNext(Tripped, SDNextHost):
    """See `Tripped`."""


class Embedded:
    """The embedded host."""

    name = "embedded"

    def __init__(self, cache: Path, outputs: Path) -> None:
        self.outputs = outputs
        self._host = TrippedEmbedded(Settings(outputs, cache=cache, device="cpu", dtype="float32", offline=True))

    def host(self, on_event: Listener | None = None) -> Any:
        self._host._on_event = on_event
        self._host.arm(0, None)
        return self._host

    def pipes(self) -> list[Any]:
        return list(self._host._resident.pipes.values()) if self._host._resident else []

    def interrupt(self) -> None:
        self._host.cancel()

    def own_state(self) -> dict[str, Any]:
        return {"rng": torch.random.get_rng_state().tolist()}


class SDNext:
    """A real SD.Next in this process."""

    name = "sdnext"

    def __init__(self) -> None:
        self.outputs = Path(self.ui("paths").resolve_output_path(self.opts.outdir_samples, self.opts.outdir_video))

    @staticmethod
    def ui(name: str) -> Any:
        return importlib.import_module(f"modules.{name}")

    @property
    def opts(self) -> Any:
        return self.ui("shared").opts

    def host(self, on_event: Listener | None = None) -> Any:
        return TrippedSDNext("task(contract)", on_event)

    def pipes(self) -> list[Any]:
        return [self.ui("shared").sd_model] if self.ui("shared").sd_loaded else []

    def interrupt(self) -> None:
        self.ui("shared").state.interrupt()

    def own_state(self) -> dict[str, Any]:
        state, model = self.ui("shared").state, self.ui("shared").sd_model
        return {
            "options": copy.deepcopy(self.opts.data),
            "default scheduler": (id(model.default_scheduler), dict(model.default_scheduler.config)),
            "flags": (state.job, state.paused, self.ui("progress").current_task),
            "state": sorted(k for k in vars(state) if k in ("interrupt", "skip")),
        }


def snapshot(under_test: Any) -> dict[str, Any]:
    """Everything a run borrows, as it is now."""
    found: dict[str, Any] = {"own": under_test.own_state()}
    for pipe in under_test.pipes():
        hooks: dict[str, Any] = {}
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                count = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in part.modules())
                parameters = {key: id(value) for key, value in part.named_parameters()}
                hooks[name] = (count, [type(m).__name__ for m in part.modules()], parameters)
        found[type(pipe).__name__] = {
            "class": type(pipe),
            "scheduler": (id(pipe.scheduler), dict(pipe.scheduler.config)),
            "pipe config": dict(pipe.config),
            "attributes": sorted(vars(pipe)),
            "vae": sorted(k for k in vars(pipe.vae) if not k.startswith("_")),
            "hooks": hooks,
            "adapters": {k: v for k, v in pipe.get_list_adapters().items() if v},
            "tiling": {k: v for k, v in vars(pipe.vae).items() if "til" in k or "framewise" in k},
        }
    return copy.deepcopy(found)
