"""What to change where a job cannot be done: the next cheaper settings, or another variant, as values of the form.

Decided from the plan and the catalogue; knows no page and no host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modules.ltx import savings
from modules.ltx.errors import LTXError, OutOfMemory
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.plan import Plan
from modules.ltx.request import Request


@dataclass(frozen=True)
class Advice:
    """`label`: what a button says; `values`: of controls, by name; `model`: the id of another variant."""

    label: str
    values: Mapping[str, Any]
    model: str | None = None


def for_request(request: Request, caps: Caps, rows: Iterable[Caps]) -> Advice | None:
    """For a request that cannot be planned: what is missing is a picture, or the model."""
    several = list(rows)
    if caps.unavailable:
        return nano(caps, several)
    if caps.is_i2v and not request.images and request.prefix is None:
        other = _sibling(caps, several, mode="T2V", quantization=caps.quantization)
        return Advice("Make it from text alone", {}, other.id) if other else None
    return None


def for_job(error: LTXError, plan: Plan, rows: Iterable[Caps]) -> Advice | None:
    """For a job that failed: `plan` is what it did."""
    several = list(rows)
    if not isinstance(error, OutOfMemory):
        return None if plan.caps.source.startswith("nano:") else nano(plan.caps, several)
    if error.phase in ("load", "encode"):
        small = _sibling(plan.caps, several, mode=plan.caps.mode, quantization="sdnq-int4")
        return Advice("Take its SDNQ-4Bit weights", {}, small.id) if small and small.id != plan.caps.id else None
    best = savings.savings(plan, error.phase)[0]
    return Advice(best.said, best.values)


def nano(caps: Caps, rows: Iterable[Caps]) -> Advice | None:
    """The built-in model of the same kind, which needs nothing; None where it is that already."""
    if caps.source.startswith("nano:"):
        return None
    found = [row for row in rows if row.source.startswith("nano:") and row.is_ltx_2_3 and row.mode == caps.mode]
    found.sort(key=lambda row: row.is_distilled != caps.is_distilled)
    own = {"width": None, "height": None, "frames": None}
    return Advice("Use LTX-Nano, which is built in", own, found[0].id) if found else None


def _sibling(caps: Caps, rows: Iterable[Caps], *, mode: str, quantization: str) -> Caps | None:
    """The variant that is the same but for these two."""

    def alike(row: Caps) -> bool:
        same = row.generation == caps.generation and row.is_distilled == caps.is_distilled
        ours = row.source.startswith("nano:") == caps.source.startswith("nano:")
        return same and ours and row.mode == mode and row.quantization == quantization and not row.unavailable

    return next(filter(alike, rows), None)
