"""What one refined call keeps while it runs: where in the unrolled schedule it is, what has settled, the report.

Knows rounds (passes of the pipeline's loop), steps and streams (video, and sound where there is some). Does not know
schedulers or transformers, which are in `seam.py`, nor how a pass is mixed, which is in `refiner.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from . import refiner
from .refiner import Blend, Certainty
from .reuse import Reuse


class Stream(Protocol):
    """The part of a wrapped scheduler that the session looks at."""

    inner: Any
    blend: Blend | None
    free: Tensor | None
    cursor: int  # round of its next step
    timesteps: Tensor  # as shown to the pipeline, a round each


@dataclass(frozen=True)
class Refiner:
    """What is asked of one pipeline call.

    `passes`: evaluations of each step the call really runs, the plain one included; steps beyond have 1.
    `seed`: the job's; sample i of a batch draws from seed + i. `purpose` keeps the noise of two calls of a job
    apart. `guidance`: "full" or "reuse", see `reuse.py`. `keep_map`: keep which tokens stayed uncertain, and when.
    """

    passes: tuple[int, ...]
    rule: Certainty = field(default_factory=Certainty)
    seed: int = 0
    purpose: str = "stage1"
    guidance: str = "full"
    keep_map: bool = False


@dataclass(frozen=True)
class Refined:
    """What one refined step did. `shares`: certain share by stream, the mean over samples, after each extra pass.

    `settled` (optional) is, by stream, the extra pass (1, 2, ...) at which each token of the first sample became
    certain; 0 if it never did.
    """

    step: int
    sigma: float
    planned: int
    used: int
    shares: Mapping[str, tuple[float, ...]]
    settled: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One round of the pipeline's loop: which entry of the inner schedule, which pass of how many."""

    index: int
    step: int = -1  # of those really run; -1 where nothing is refined
    number: int = 0
    of: int = 1


class Session:
    """One attached call: what its streams (video, and sound where there is some) have in common."""

    def __init__(self, asked: Refiner, *, skipped: float | None, generator: torch.Generator | None) -> None:
        self.asked, self.strength, self.generator = asked, skipped, generator
        self.streams: dict[str, Stream] = {}
        self.reuse = Reuse(on=asked.guidance == "reuse")
        self.rounds: list[Entry] = []
        self.report: list[Refined] = []
        self.levels: Tensor | None = None
        self.before_round: Tensor | None = None
        self.restart([])

    def restart(self, rounds: list[Entry]) -> None:
        """A new schedule: the pipeline is about to loop over `rounds`."""
        self.rounds, self.report = rounds, []
        self.at = -1
        self._open()

    def _open(self) -> None:
        self.over: Tensor | None = None
        self.shares: dict[str, list[float]] = {}
        self.settled: dict[str, Tensor] = {}
        self.used = 0
        for stream in self.streams.values():
            stream.blend = None

    @property
    def entry(self) -> Entry:
        return self.rounds[self.at]

    @property
    def skip(self) -> bool:
        """Whether this round repeats a step that has settled."""
        return self.entry.number > 0 and self.over is not None and bool(self.over.all())

    def enter(self, at: int) -> None:
        """The pipeline is in round `at`, as the transformer or the first `step` of it tells."""
        if at == self.at:
            return
        if self.at >= 0:
            self._close_round()
        self.at = at
        if self.entry.number == 0:
            self._open()
            self.reuse.forget()
        if not self.skip:
            self.used += 1

    def _close_round(self) -> None:
        """Decide which samples are over, and note what a finished step did."""
        entry = self.entry
        if entry.of > 1 and entry.number > 0 and not self.skip:
            shares = {
                name: refiner.share(stream.blend.certain, stream.free).cpu()
                for name, stream in self.streams.items()
                if stream.blend is not None
            }
            for name, value in shares.items():
                self.shares.setdefault(name, []).append(float(value.mean()))
            done = refiner.finished(shares, self.asked.rule)
            self.over = done if self.over is None else self.over | done
        if entry.of > 1 and entry.number == entry.of - 1:
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        sigma = float(self.streams["video"].inner.sigmas[entry.index])
        shares = {name: tuple(values) for name, values in self.shares.items()}
        self.report.append(Refined(entry.step, sigma, entry.of, self.used, shares, dict(self.settled)))

    def finish(self) -> tuple[Refined, ...]:
        """The report; the last step's too, whose end nothing else tells."""
        if self.at >= 0 and self.at == len(self.rounds) - 1:
            self._close_round()
            self.at = -1
        return tuple(self.report)

    def position(self, index: int) -> tuple[int, int, int]:
        """Step, pass (from 1) and passes of round `index` of the loop really run, as step callbacks count it."""
        run = [entry for entry in self.rounds if entry.step >= 0]
        entry = run[min(index, len(run) - 1)]
        return entry.step, entry.number + 1, entry.of

    def preview(self, stream: str = "video") -> Tensor | None:
        """x0 of the running step in the pipeline's layout: latents between passes are noisy again."""
        wrapper = self.streams.get(stream)
        if wrapper is None or wrapper.blend is None:
            return None
        return as_given(wrapper.blend.x0)

    # the job's own generator, which 0.9 Condition draws from in every round

    def mark(self) -> None:
        """Remember the generator's state at the start of a round."""
        if self.generator is not None:
            self.before_round = self.generator.get_state()

    def rewind(self) -> None:
        """A pass will follow: it gets the draw of this round once more."""
        if self.generator is not None and self.before_round is not None:
            self.generator.set_state(self.before_round)


def channels_last(x: Tensor) -> Tensor:
    """(batch, tokens, channels) as it is; pictures and clips have their channels second."""
    return x if x.ndim == 3 else x.movedim(1, -1)


def as_given(x: Tensor, like: Tensor | None = None) -> Tensor:
    back = x if x.ndim == 3 else x.movedim(-1, 1)
    return back if like is None else back.to(like.dtype)
