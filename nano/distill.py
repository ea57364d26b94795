"""Trains the Distilled transformer, from Dev, in few steps; and what it has in common with the stage-2 LoRA.

Distilled learns eight steps on the published sigmas. From words it goes to that clip of all they can mean which is
nearest to what it is about to make (`nano.nearest`), mostly from where its own steps have brought it, so that it mends
what it does wrong itself; in stage 2 to the one that is where it drew it in stage 1. From pictures, and at other
sizes, it learns where Dev arrives in small steps at the next sigma. That teacher is Dev before `nano.captions`, not
guided: its prompts are met without, in half the forwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS
from nano import pool
from nano.half import Compiled, Half
from nano.nearest import Lanes, Meant
from nano.pool import Kind
from nano.transformer import (
    KINDS,
    LARGE,
    LARGE_ANYWHERE,
    LASTING,
    OFTEN,
    SMALL,
    SMALL_ANYWHERE,
    SOUND_WEIGHT,
    Batch,
    Dev,
    draw_mode,
    make_batch,
    new_transformer,
    travelled,
)
from nano.upsampler import unpack

# How often each of the eight intervals is drawn, and in how many steps the teacher crosses it. A clip of 64 tokens
# takes shape between 0.975 and 0.725: one step of Dev's own velocity would go to the mean of what is possible.
_INTERVALS = ((0.07, 1), (0.07, 1), (0.07, 1), (0.09, 1), (0.22, 3), (0.2, 2), (0.14, 2), (0.14, 2))
# How often each of the eight sigmas is drawn where the nearest clip is the aim: at the first it is chosen.
_NEAREST = (0.26, 0.1, 0.1, 0.1, 0.12, 0.12, 0.1, 0.1)
_OWN_NEAREST = 0.75  # of those batches, those that begin where the student's own steps have led
_STAGE2 = 0.4  # of Distilled's batches
_PICTURED = 0.25  # of those, what is given the first picture
CLIPS = 8  # in a batch of stage 2, 2048 tokens
_MADE = 0.6  # of the batches that are to be mended, those that begin with what stage 1 makes
_SIGMAS = (0.4, 0.4, 0.2)  # how often each of stage 2's is drawn then: at the first two it is decided
_TOKENS = 64 * 32
_OWN = 0.6  # of the batches that may, those that begin where the student's own steps have led
_CROSSED = (3, 2, 2)  # in how many steps the teacher crosses each interval of stage 2
_LEAN = (1.0, 0.5, 0.15)  # how much of the upsampled latents' error is left at each sigma of stage 2


class Stage2:
    """What stage 2 begins with: small clips, prompts, and the upsampler."""

    def __init__(self, pools: Path, upsampler: Any, statistics: tuple[Tensor, Tensor]) -> None:
        self.told = pool.read(pools, SMALL)
        self.pictured = tuple(pool.read(pools, kind) for kind in (SMALL_ANYWHERE, LARGE_ANYWHERE))
        self.upsampler = upsampler.eval()
        self.mean, self.deviation = (value.view(1, 1, -1) for value in statistics)

    def pairs(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        """The columns of small and large clips of the same scenes, anywhere, and prompts."""
        small, large = self.pictured
        columns, said = large.draw(rng, CLIPS)
        return small.rows(columns["index"]), columns, said

    def noised(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], list[str]]:
        """True small clips with a little noise, and prompts."""
        small, said = self.told.draw(rng, CLIPS)
        return {**small, "video": noised(small["video"], rng)}, said

    @torch.no_grad()
    def raised(self, small: Tensor) -> Tensor:
        """Normalised tokens of small clips as those of large ones."""
        made = self.upsampler(unpack(small * self.deviation + self.mean, SMALL.grid))
        return (pool.pack(made) - self.mean) / self.deviation


def noised(video: Tensor, rng: np.random.Generator) -> Tensor:
    """As different from what it was as stage 1's own clips may be."""
    return video + 0.1 * float(rng.random()) * torch.randn_like(video)


def errors(
    at: Batch, answer: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor], length: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean squared errors of answered velocities, picture and sound, on a way of this length from `at` to `there`."""
    (video, sound), (picture, heard) = answer, there
    return at.error(video, (at.video - picture) / length), (sound.float() - (at.sound - heard) / length).square().mean()


class FromDev(Dev, ABC):
    """What starts from a finished Dev: it is the teacher, its connectors stay as they are."""

    lr = 1e-3

    def __init__(
        self,
        pools: Path,
        weights: Mapping[str, Mapping[str, Tensor]],
        stage2: Stage2,
        steps: int,
        kinds: Sequence[Kind],
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(pools, steps, kinds, compiled=compiled)
        teacher = new_transformer()
        for model in (self.transformer, teacher):
            model.load_state_dict(weights["transformer"])
        self.connectors.load_state_dict(weights["connectors"])
        self.connectors.requires_grad_(False)
        teacher.requires_grad_(False)
        self.teacher = Compiled(teacher, OFTEN) if compiled else Half(teacher)
        self.stage2 = stage2
        self.meant = {kind: Meant(pools, kind) for kind in (SMALL, LARGE)}

    @abstractmethod
    def made(self, rng: np.random.Generator) -> tuple[Mapping[str, Tensor], list[str]]:
        """The columns of small clips that stage 1 makes, faults and all, and prompts for them."""

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"transformer": self.transformer}

    def pictured_loss(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound in stage 2 with the first picture given, from a state built on upsampled latents
        to where the teacher arrives at the next sigma.

        Not to the true clip: at 0.909 it is one of many that are possible, and their mean has no outline. Half of the
        small clips are the teacher's own, made anew from partly noised ones, so that what stage 1 gets wrong is mended.
        The state leans on the upsampled latents at the first sigma and on the true ones at the last, as it does along a
        run that goes well; or it is where the student's own steps lead from the first sigma.
        """
        small, large, said = self.stage2.pairs(rng)
        text = self.embed(said)
        video = noised(small["video"], rng)
        if rng.random() < 0.5:
            level = float(rng.uniform(0.7, 0.92))
            start, _, _ = make_batch(small, SMALL, torch.full((len(said),), level), "text")
            video = travelled(self.teacher, start, text, (level, level / 2, 0.0)).video
        which = int(rng.integers(len(STAGE2_SIGMAS)))
        begun = 0 if rng.random() < _OWN else which
        level = STAGE2_SIGMAS[begun]
        batch, _, _ = make_batch(large, LARGE, torch.full((len(said),), level), "first")
        drift = (1 - level) * _LEAN[begun] * (self.stage2.raised(video) - large["video"])
        at = replace(batch, video=batch.video + batch.free[..., None] * drift)
        at = travelled(self.half, at, text, STAGE2_SIGMAS[begun : which + 1])
        return self.teacher_error(at, text, (*STAGE2_SIGMAS, 0.0)[which : which + 2], _CROSSED[which])

    def mending_loss(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound in stage 2 on the way from small clips, faults and all, to the nearest true ones
        of twice their size.

        At the first sigma nearest to the small clip, whatever the student answers: where its answers were to say it,
        they came to say one lane, whatever stage 1 had drawn. So that answer is a mean of both lanes, by how likely
        each is. Afterwards nearest to halfway between it and the answer of now: it decides, for the likelier one.
        """
        small, said = self.made(rng) if rng.random() < _MADE else self.stage2.noised(rng)
        true = self.stage2.told.rows(small["index"])
        text = self.embed(said)
        which = int(rng.choice(len(STAGE2_SIGMAS), p=_SIGMAS))
        first, second, *_ = STAGE2_SIGMAS
        raised = {"video": self.stage2.raised(small["video"]), "sound": small["sound"]}
        begun = self.led(LARGE, raised, "text", text, (first,))
        if which == 0:
            return self.nearest_error(self.meant[LARGE], begun, true, said, text, near=lambda _: raised["video"])
        after = travelled(self.half, begun, text, (first, second))
        answered = begun.video + (after.video - begun.video) * first / (first - second)
        at = travelled(self.half, after, text, STAGE2_SIGMAS[1 : which + 1])
        return self.nearest_error(self.meant[LARGE], at, true, said, text, near=lambda now: (now + answered) / 2)

    def led(
        self, kind: Kind, columns: Mapping[str, Tensor], mode: str, text: Mapping[str, Tensor], levels: Sequence[float]
    ) -> Batch:
        """Clips noised to the first of these levels, and from there where the student's own steps lead."""
        begun, _, _ = make_batch(columns, kind, torch.full((len(columns["video"]),), levels[0]), mode)
        return travelled(self.half, begun, text, levels)

    def teacher_error(
        self, at: Batch, text: Mapping[str, Tensor], ends: tuple[float, ...], steps: int
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way to where the teacher arrives, in `steps` from one end to the other."""
        sigma, following = ends
        there = travelled(self.teacher, at, text, np.linspace(sigma, following, steps + 1).tolist())
        return errors(at, at.forward(self.half, text), (there.video, there.sound), sigma - following)

    def nearest_error(
        self,
        meant: Meant,
        at: Batch,
        columns: Mapping[str, Tensor],
        said: Sequence[str],
        text: Mapping[str, Tensor],
        *,
        lanes: Lanes | None = None,
        near: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way from `at` to that clip, of all that `said` can mean, which is nearest
        to what the student is about to make (`nano.nearest`). `columns`: the scenes, and their true sound, by which
        alone the silent ones are silent. `lanes` hold the two in balance. `near`: what the clip is to be nearest to, of
        the student's answer, instead of that itself."""
        scenes = [pool.scene(int(index)) for index in columns["index"]]
        video, heard = at.forward(self.half, text)
        sigma = at.sigma[:, None, None]
        made = at.video - sigma * video.detach().float()
        aim = meant.nearest(near(made) if near else made, scenes, said, lanes)
        silent = torch.tensor([scene.silent for scene in scenes])[:, None, None]
        sound = torch.where(silent, columns["sound"], aim.sound)
        return errors(at, (video, heard), (aim.video, sound), sigma)


class Distilled(FromDev):
    name = "distilled"

    def __init__(
        self,
        pools: Path,
        weights: Mapping[str, Mapping[str, Tensor]],
        stage2: Stage2,
        steps: int = 3300,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(pools, weights, stage2, steps, LASTING, compiled=compiled)
        self.lanes = {kind: Lanes() for kind in self.meant}

    def modules(self) -> Mapping[str, torch.nn.Module]:
        lanes = {kind.name: lanes for kind, lanes in self.lanes.items()}
        return {"transformer": self.transformer, "lanes": torch.nn.ModuleDict(lanes)}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if rng.random() < _STAGE2:
            seen, heard = self.pictured_loss(rng) if rng.random() < _PICTURED else self.mending_loss(rng)
            return seen + SOUND_WEIGHT * heard, {"stage2": float(seen.detach())}
        kind, columns, said = self.draw(rng, rng, _TOKENS)
        mode, text = draw_mode(rng, KINDS[kind].pictured), self.embed(said)
        if mode == "text" and kind in self.meant:
            seen, heard = self.nearest_loss(kind, columns, said, text, rng)
        else:
            seen, heard = self.teacher_loss(kind, columns, mode, text, rng)
        return seen + SOUND_WEIGHT * heard, {"video": float(seen.detach()), "sound": float(heard.detach())}

    def made(self, rng: np.random.Generator) -> tuple[Mapping[str, Tensor], list[str]]:
        """What it makes now, from pure noise."""
        columns, said = self.stage2.told.draw(rng, CLIPS)
        at = self.led(SMALL, columns, "text", self.embed(said), (*DISTILLED_SIGMAS, 0.0))
        return {**columns, "video": at.video, "sound": at.sound}, said

    def nearest_loss(
        self,
        kind: Kind,
        columns: Mapping[str, Tensor],
        said: Sequence[str],
        text: Mapping[str, Tensor],
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way to the nearest clip, mostly from where the student's own steps from
        pure noise have led it."""
        which = int(rng.choice(len(DISTILLED_SIGMAS), p=_NEAREST))
        begun = 0 if rng.random() < _OWN_NEAREST else which
        at = self.led(kind, columns, "text", text, DISTILLED_SIGMAS[begun : which + 1])
        lanes = None if which else self.lanes[kind]  # afterwards it is in one of them
        return self.nearest_error(self.meant[kind], at, columns, said, text, lanes=lanes)

    def teacher_loss(
        self, kind: Kind, columns: Mapping[str, Tensor], mode: str, text: Mapping[str, Tensor], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way to where the teacher arrives at the next sigma."""
        shares = np.array([share for share, _ in _INTERVALS])
        which = int(rng.choice(len(shares), p=shares / shares.sum()))
        begun = 0 if mode == "text" and rng.random() < _OWN else which
        at = self.led(kind, columns, mode, text, DISTILLED_SIGMAS[begun : which + 1])
        return self.teacher_error(at, text, (*DISTILLED_SIGMAS, 0.0)[which : which + 2], _INTERVALS[which][1])
