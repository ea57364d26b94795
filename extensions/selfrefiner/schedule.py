"""The plan text of the self-refiner, "2-6:2;1-2:2", and how many passes it gives each step of a schedule.

    plan   = stage1 [";" stage2]          entries are separated by commas
    entry  = where ":" passes
    where  = step | step "-" step         counted from 0, both ends included
           | sigma ".." sigma             every step whose noise level lies between the two
    passes = n                            evaluations of that step in all: 1 is a plain step
           | "+" n                        n more than the plain one

Whatever is wrong raises RequestError and names the entry; nothing is guessed. Knows text and numbers only,
neither torch nor pipelines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from modules.ltx.errors import RequestError

DEFAULT = "1-5:3,6-13:1"
MAX_PASSES = 16
MAX_STEP = 999
RESAMPLES = 0.995  # from this sigma on a pass draws another sample instead of refining one (arXiv 2601.18577)
WINDOW = (0.8, 0.985)  # where the paper refines: structure is decided there, detail is not
PAPER = "paper"  # a preset that depends on the schedule, see `paper_text`
_MOST_EXTRA = 3  # of the paper's plan, at one step

PRESETS: Mapping[str, str] = {
    "light": "2-6:2",
    "light-both": "2-6:2;1-2:2",
    "strong": "2-8:2",
    "strong-both": "2-8:2;1-2:2",
    PAPER: "",
}

_STEPS = re.compile(r"([0-9]+)(?:\s*-\s*([0-9]+))?", re.ASCII)
_SIGMAS = re.compile(r"([0-9]*\.?[0-9]+)\s*\.\.\s*([0-9]*\.?[0-9]+)", re.ASCII)
_PASSES = re.compile(r"(\+?)\s*([0-9]+)", re.ASCII)
_FORMS = "2-6:2 (steps 2 to 6, 2 evaluations each), 4:3, 2-6:+1 or 0.8..0.985:3 (noise levels)"


@dataclass(frozen=True)
class Steps:
    """Entry `first`-`last`:`passes`, or one step where both are the same."""

    first: int
    last: int
    passes: int

    def __str__(self) -> str:
        where = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{where}:{self.passes}"


@dataclass(frozen=True)
class Window:
    """Entry `low`..`high`:`passes`: every step at a noise level between the two, ends included."""

    low: float
    high: float
    passes: int

    def __str__(self) -> str:
        return f"{_plain(self.low)}..{_plain(self.high)}:{self.passes}"


Entry = Steps | Window


@dataclass(frozen=True)
class RefinePlan:
    """A parsed plan; `str` of it is its canonical text, which parses to the same plan."""

    stage1: tuple[Entry, ...] = ()
    stage2: tuple[Entry, ...] = ()

    def __str__(self) -> str:
        first, second = (",".join(map(str, entries)) for entries in (self.stage1, self.stage2))
        return f"{first};{second}" if second else first


def parse(text: str) -> RefinePlan:
    """The plan of a text; empty text is DEFAULT. Raises RequestError, which names the entry that is wrong."""
    parts = [part.strip() for part in (text.strip() or DEFAULT).split(";")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()  # a trailing `;`
    if len(parts) > 2:
        raise _wrong(f"{_shown(text)} has {len(parts)} parts; `;` separates stage 1 from stage 2.")
    if not any(parts):
        raise _wrong(f"{_shown(text)} has no entry; write for instance {_FORMS}.")
    stages = [_entries(part) if part else () for part in parts]
    return RefinePlan(*stages)


def passes(entries: Sequence[Entry], sigmas: Sequence[float]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Evaluations of each step of a schedule (sigmas without the final 0), and notes in words.

    Steps beyond the schedule are dropped with a note. Raises RequestError where a window and a step entry
    meet on one step, which only a schedule can tell.
    """
    planned = [1] * len(sigmas)
    by: dict[int, Entry] = {}
    notes = []
    for entry in entries:
        for step in _reached(entry, sigmas):
            if step in by:
                raise _wrong(
                    f"{by[step]} and {entry} both reach step {step} (sigma {sigmas[step]:.4g}); "
                    "let one of them leave it out."
                )
            by[step], planned[step] = entry, entry.passes
        notes += _dropped(entry, sigmas)
    pure = [step for step, sigma in enumerate(sigmas) if sigma >= RESAMPLES and planned[step] > 1]
    if pure:
        which = f"step {pure[0]}" if len(pure) == 1 else f"steps {pure[0]} to {pure[-1]}"
        notes.append(
            f"self-refiner: {which}: sigma {sigmas[pure[-1]]:.4g} or more is all but pure noise, so a pass "
            "draws another sample there instead of refining one"
        )
    return tuple(planned), tuple(notes)


def paper_text(sigmas: Sequence[float]) -> str:
    """The plan text of the paper's recipe for a schedule: half the step count as extra passes.

    They go to the steps inside WINDOW from the noisiest on, up to 3 a step (arXiv 2601.18577: 1.5 times the
    cost, K <= 3, sigma > 0.8).
    """
    left, entries = len(sigmas) // 2, []
    for step, sigma in enumerate(sigmas):
        extra = min(_MOST_EXTRA, left) if WINDOW[0] <= sigma <= WINDOW[1] else 0
        if extra:
            entries.append(str(Steps(step, step, 1 + extra)))
            left -= extra
    return ",".join(entries) or "0:1"


def _entries(part: str) -> tuple[Entry, ...]:
    """The entries of one stage, in order: steps first, then windows; none may overlap another of its kind."""
    found = [_entry(item.strip()) for item in part.split(",")]
    steps = sorted((e for e in found if isinstance(e, Steps)), key=lambda e: e.first)
    windows = sorted((e for e in found if isinstance(e, Window)), key=lambda e: e.low)
    for one, other in itertools.pairwise(steps):
        if other.first <= one.last:
            raise _wrong(f"{one} and {other} overlap at step {other.first}; each step once.")
    for low, high in itertools.pairwise(windows):
        if high.low <= low.high:
            raise _wrong(f"{low} and {high} overlap at sigma {_plain(high.low)}; keep them apart.")
    return (*steps, *windows)


def _entry(text: str) -> Entry:
    where, colon, count = (part.strip() for part in text.partition(":"))
    if not colon:
        raise _wrong(f"entry {_shown(text)} has no colon; write for instance {_FORMS}.")
    number = _PASSES.fullmatch(count)
    if number is None:
        raise _wrong(f"entry {_shown(text)}: after the colon comes a whole number, as in {_FORMS}.")
    total = _bounded(number[2]) + (1 if number[1] else 0)
    if not 1 <= total <= MAX_PASSES:
        raise _wrong(f"entry {_shown(text)}: a step takes 1 to {MAX_PASSES} passes in all.")
    steps, sigmas = _STEPS.fullmatch(where), _SIGMAS.fullmatch(where)
    if steps:
        return _steps(text, _bounded(steps[1]), _bounded(steps[2] or steps[1]), total)
    if sigmas:
        return _window(text, float(sigmas[1]), float(sigmas[2]), total)
    raise _wrong(f"entry {_shown(text)}: {_shown(where)} are no whole numbers; write {_FORMS}.")


def _wrong(sentence: str) -> RequestError:
    return RequestError(f"self-refiner plan: {sentence}")


def _steps(text: str, first: int, last: int, total: int) -> Steps:
    if last < first:
        raise _wrong(f"entry {_shown(text)} runs backwards; write {last}-{first}.")
    if last > MAX_STEP:
        raise _wrong(f"entry {_shown(text)}: steps go from 0 to {MAX_STEP}.")
    return Steps(first, last, total)


def _window(text: str, low: float, high: float, total: int) -> Window:
    if high < low:
        raise _wrong(f"entry {_shown(text)} runs backwards; the lower sigma comes first.")
    if high > 1.0:
        raise _wrong(f"entry {_shown(text)}: sigmas go from 0 (clean) to 1 (pure noise).")
    return Window(low, high, total)


def _reached(entry: Entry, sigmas: Sequence[float]) -> list[int]:
    if isinstance(entry, Steps):
        return list(range(entry.first, min(entry.last + 1, len(sigmas))))
    return [step for step, sigma in enumerate(sigmas) if entry.low <= sigma <= entry.high]


def _dropped(entry: Entry, sigmas: Sequence[float]) -> list[str]:
    """What an entry asks for and the schedule does not have; plain steps that are missing change nothing."""
    if entry.passes == 1:
        return []
    count = len(sigmas)
    if isinstance(entry, Window):
        if _reached(entry, sigmas):
            return []
        return [f"self-refiner: no step of this schedule lies in {_plain(entry.low)}..{_plain(entry.high)}"]
    missing = range(max(entry.first, count), entry.last + 1)
    if not missing:
        return []
    which = f"step {missing[0]} does" if len(missing) == 1 else f"steps {missing[0]} to {missing[-1]} do"
    return [f"self-refiner: {entry} on {count} steps: {which} not exist"]


def _bounded(digits: str) -> int:
    """The number, or one beyond every limit where there are more digits than any limit has."""
    kept = digits.lstrip("0") or "0"
    return int(kept) if len(kept) <= 6 else 10**6


def _plain(number: float) -> str:
    """Without an exponent, which the text does not have."""
    return format(Decimal(repr(number)).normalize(), "f")


def _shown(text: str) -> str:
    """Quoted for a message, and not longer than one."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
