"""How fast this machine is, learned from the jobs it has done: seconds a unit of work, by variant, device and phase.

A plan's work is counted (evaluations x streams x tokens, pixels); what a unit takes is measured. Knows no host and no
model library. One small JSON file; one that cannot be read is as good as none.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from modules.ltx import speed
from modules.ltx.plan import Plan, StagePlan
from modules.ltx.state import Event, Timing

NAME = "pace.json"
_KEPT = 5  # jobs; their median forgives the one beside which something else ran


def work(plan: Plan) -> dict[str, float]:
    """Units of work by phase, in order; loading is none of it, because it depends on what is in memory."""
    found: dict[str, float] = {"encode": 1.0}
    phases = {"stage1": "sample", "upsample": "upsample", "stage2": "refine"}
    for stage in plan.stages:
        found[phases[stage.name]] = _units(stage)
    return {**found, "decode": plan.width * plan.height * plan.frames / 1e6}


def _units(stage: StagePlan) -> float:
    return (speed.forwards(stage) if stage.sigmas else 1) * stage.tokens / 1e3


@dataclass(frozen=True)
class Pace:
    """Seconds a unit, newest last, by `VARIANT DEVICE PHASE`."""

    rates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def seconds(self, plan: Plan, device: str) -> dict[str, float] | None:
        """What each phase is likely to take; None where one was never seen."""
        told: dict[str, float] = {}
        for phase, units in work(plan).items():
            known = self.rates.get(_key(plan, device, phase))
            if not known:
                return None
            told[phase] = units * statistics.median(known)
        return told

    def left(self, plan: Plan, device: str, event: Event, elapsed: float) -> float | None:
        """Seconds until the end of the job, `elapsed` seconds into the phase of `event`; None where nobody knows.

        What the phase at hand has done so far counts more than what was learned.
        """
        learned = self.seconds(plan, device)
        if learned is None or event.phase not in learned:
            return sum(learned.values()) if learned else None
        names = list(learned)
        later = sum(learned[name] for name in names[names.index(event.phase) + 1 :])
        share = event.step / event.of if event.of else 0.0
        here = learned[event.phase] * (1 - share) if share < 0.2 else elapsed / share * (1 - share)
        return later + max(here, 0.0)

    def after(self, plan: Plan, device: str, timings: Sequence[Timing]) -> Pace:
        """With one more job learned."""
        units, rates = work(plan), {key: list(values) for key, values in self.rates.items()}
        for timing in timings:
            if units.get(timing.phase):
                kept = rates.setdefault(_key(plan, device, timing.phase), [])
                kept.append(timing.seconds / units[timing.phase])
                del kept[:-_KEPT]
        return Pace(rates)


def _key(plan: Plan, device: str, phase: str) -> str:
    return f"{plan.caps.id} {device} {phase}"


def read(folder: Path) -> Pace:
    """What is known in `folder`; nothing where there is no file, or none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return Pace(
                {
                    str(key): [float(value) for value in values][-_KEPT:]
                    for key, values in found.items()
                    if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)
                }
            )
    return Pace()


def write(folder: Path, pace: Pace) -> None:
    """Beside the old file first, then in its place. A folder that cannot be written to is left without."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{NAME}.{os.getpid()}.new"
        new.write_text(json.dumps(pace.rates), encoding="utf-8")
        new.replace(folder / NAME)
