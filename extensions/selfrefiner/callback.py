"""What a host registers: the plan text for planning, `attach` for running. Torch is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modules.ltx.denoise import RefinerPlan

from . import schedule

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .seam import Session


class SelfRefiner:
    """See `modules.ltx.denoise.DenoiseCallback`. Holds nothing; two of it are the same."""

    def canonical(self, text: str) -> str:
        return str(schedule.parse(text))

    def preset(self, name: str, sigmas: Sequence[float]) -> str:
        return schedule.PRESETS[name] or schedule.paper_text(sigmas)

    def passes(self, text: str, sigmas: Sequence[float], *, stage: int = 1) -> tuple[tuple[int, ...], tuple[str, ...]]:
        plan = schedule.parse(text)
        return schedule.passes(plan.stage2 if stage == 2 else plan.stage1, sigmas)

    @contextmanager
    def attach(
        self,
        pipe: Any,
        settings: RefinerPlan,
        passes: tuple[int, ...],
        *,
        seed: int,
        purpose: str,
        denoise_strength: float | None = None,
        generator: Any = None,
    ) -> Iterator[AtWork]:
        from .refiner import Certainty
        from .seam import Refiner, attach

        rule = Certainty(settings.norm, settings.threshold, settings.certain, settings.decide)
        asked = Refiner(passes, rule, seed, purpose, settings.guidance, settings.map)
        with attach(pipe, asked, denoise_strength=denoise_strength, generator=generator) as session:
            yield AtWork(session)


class AtWork:
    """See `modules.ltx.denoise.Attached`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def position(self, index: int) -> tuple[int, int, int]:
        return self._session.position(index)

    def preview(self, stream: str = "video") -> Tensor | None:
        return self._session.preview(stream)

    def told(self) -> list[dict[str, Any]]:
        return [
            {
                "step": row.step,
                "sigma": round(row.sigma, 6),
                "planned": row.planned,
                "used": row.used,
                "certain": {name: [round(share, 4) for share in shares] for name, shares in row.shares.items()},
            }
            for row in self._session.finish()
        ]

    def picture(self, frames: int, rows: int, columns: int) -> Image | None:
        from .picture import sheet

        return sheet(self._session.finish(), frames, rows, columns)
