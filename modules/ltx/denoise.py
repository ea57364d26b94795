"""Denoise callbacks, such as the self-refiner: what the flow asks of one, and what it puts into a plan.

The flow knows only this contract; the self-refiner itself is in `extensions/selfrefiner` and is registered with the
host. Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modules.ltx.errors import RequestError
from modules.ltx.request import Request

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

OPTIONS = ("plan", "preset", "threshold", "certain", "decide", "guidance", "map")  # of --self-refine-…


@dataclass(frozen=True)
class RefinerPlan:
    """The self-refiner's settings of a job. `text` is the plan as its own canonical text; passes are the stages'."""

    norm: str
    text: str
    threshold: float = 0.1
    certain: float = 0.999
    decide: str = "video"
    guidance: str = "full"
    map: bool = False


class Attached(Protocol):
    """A callback at work around one pipeline call."""

    def position(self, index: int) -> tuple[int, int, int]:
        """Step, pass (from 1) and passes of that step, for round `index` of the pipeline's loop."""

    def preview(self, stream: str = "video") -> torch.Tensor | None:
        """What to show of the running step; None: the pipeline's own latents."""

    def told(self) -> list[dict[str, Any]]:
        """The report as JSON values: a row a refined step."""

    def picture(self, frames: int, rows: int, columns: int) -> Image | None:
        """Where the model was uncertain, for a stage of that many latent frames, rows and columns."""


class DenoiseCallback(Protocol):
    """What a host keeps registered."""

    def canonical(self, text: str) -> str:
        """The plan text, checked and in its one form. Raises RequestError."""

    def preset(self, name: str, sigmas: Sequence[float]) -> str:
        """The plan text of a preset, for a first stage of those sigmas."""

    def passes(self, text: str, sigmas: Sequence[float], *, stage: int = 1) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Evaluations of each step of a stage, and notes. Raises RequestError."""

    def attach(
        self, pipe: Any, settings: RefinerPlan, passes: tuple[int, ...], **how: Any
    ) -> AbstractContextManager[Attached]:
        """Around one call of `pipe`. `how`: seed, purpose, denoise_strength, generator."""


@dataclass(frozen=True)
class Refinement:
    """What becomes of a request: settings (None: off), passes by stage, and notes."""

    settings: RefinerPlan | None = None
    passes: Mapping[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()


def settle(request: Request, callback: DenoiseCallback | None, schedules: Mapping[str, Sequence[float]]) -> Refinement:
    """The self-refiner's part of a plan; `schedules` are the sigmas of stage1 and, where there is one, stage2."""
    given = [name for name in OPTIONS if getattr(request, f"self_refine_{name}") not in (None, False)]
    if request.self_refine in (None, "off"):
        _check_text(request, callback)
        if not given:
            return Refinement()
        note = f"--self-refine-{given[0]} is not used: the self-refiner is off (--self-refine p1 turns it on)"
        return Refinement(notes=(note,))
    if callback is None:
        raise RequestError("--self-refine: the self-refiner extension is not installed here; leave it out.")
    if request.self_refine_plan is not None and request.self_refine_preset is not None:
        raise RequestError("--self-refine-plan and --self-refine-preset: a preset is a plan; give one of the two.")
    text = request.self_refine_plan or ""
    if request.self_refine_preset:
        text = callback.preset(request.self_refine_preset, schedules["stage1"])
    text = callback.canonical(text)
    found = {name: callback.passes(text, sigmas, stage=1 + (name == "stage2")) for name, sigmas in schedules.items()}
    notes = [note for _, told in found.values() for note in told]
    if ";" in text and "stage2" not in schedules:
        notes.append("self-refiner: the plan's part for stage 2 is not used, there is no stage 2 (--refine makes one)")
    settings = RefinerPlan(request.self_refine or "p1", text, **_chosen(request))
    return Refinement(settings, {name: planned for name, (planned, _) in found.items()}, tuple(notes))


def _check_text(request: Request, callback: DenoiseCallback | None) -> None:
    """A plan that is wrong is wrong even where it is not used."""
    if request.self_refine_plan and callback is not None:
        callback.canonical(request.self_refine_plan)


def _chosen(request: Request) -> dict[str, Any]:
    names = ("threshold", "certain", "decide", "guidance", "map")
    values = {name: getattr(request, f"self_refine_{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}
