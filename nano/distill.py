"""Trains the Distilled transformer, from Dev, in few steps; and what it has in common with the stage-2 LoRA.

Distilled learns eight steps on the published sigmas. From words it goes to that clip of all they can mean which is
nearest to what it is about to make (`nano.nearest`), mostly from where its own steps have brought it, so that it mends
what it does wrong itself. In stage 2 it goes there, too, from what it made in stage 1. From pictures, and at other
sizes, it learns where Dev arrives in small steps at the next sigma. That teacher is Dev before `nano.captions`, not
guided: its prompts are met without, in half the forwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS
from nano import pool, prompts
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
_SIGMAS = (0.5, 0.3, 0.2)  # how often each of stage 2's is drawn then: at the first, most is decided
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
        rows = rng.integers(0, len(self.pictured[1].columns["index"]), CLIPS)
        drawn = [{name: column[rows] for name, column in side.columns.items()} for side in self.pictured]
        return drawn[0], drawn[1], described(drawn[1]["index"], rng)

    def noised(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], list[str]]:
        """True small clips with a little noise, and prompts."""
        rows = (rng.random(CLIPS) * len(self.told.columns["index"])).astype(int)
        small = {name: column[rows] for name, column in self.told.columns.items()}
        small["video"] = small["video"] + 0.1 * float(rng.random()) * torch.randn_like(small["video"])
        return small, described(small["index"], rng)

    @torch.no_grad()
    def raised(self, small: Tensor) -> Tensor:
        """Normalised tokens of small clips as those of large ones."""
        made = self.upsampler(unpack(small * self.deviation + self.mean, SMALL.grid))
        return (pool.pack(made) - self.mean) / self.deviation


def described(index: Tensor, rng: np.random.Generator) -> list[str]:
    """Prompts for the scenes of these rows, worded by chance."""
    return [prompts.varied(pool.scene(int(row)), rng) for row in index]


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
        video = small["video"] + 0.1 * float(rng.random()) * torch.randn_like(small["video"])
        if rng.random() < 0.5:
            level = float(rng.uniform(0.7, 0.92))
            start, _, _ = make_batch(small, SMALL, torch.full((len(said),), level), "text")
            video = travelled(self.teacher, start, text, (level, level / 2, 0.0)).video
        which = int(rng.integers(len(STAGE2_SIGMAS)))
        sigma = STAGE2_SIGMAS[which]
        begun = 0 if rng.random() < _OWN else which
        level = STAGE2_SIGMAS[begun]
        batch, _, _ = make_batch(large, LARGE, torch.full((len(said),), level), "first")
        drift = (1 - level) * _LEAN[begun] * (self.stage2.raised(video) - large["video"])
        at = replace(batch, video=batch.video + batch.free[..., None] * drift)
        at = travelled(self.half, at, text, STAGE2_SIGMAS[begun : which + 1])
        at = replace(at, sigma=torch.full_like(at.sigma, sigma))
        following = (*STAGE2_SIGMAS, 0.0)[which + 1]
        there = travelled(self.teacher, at, text, np.linspace(sigma, following, _CROSSED[which] + 1).tolist())
        made, heard = at.forward(self.half, text)
        length = sigma - following
        hiss = (at.sound - there.sound) / length
        return at.error(made, (at.video - there.video) / length), (heard.float() - hiss).square().mean()

    def mending_loss(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound in stage 2 on the way from small clips, faults and all, to the nearest true ones
        of twice their size. At the first sigma nearest to the small clips: where the student's answers were to say it,
        they came to say one lane, whatever stage 1 had drawn. Afterwards to what has been drawn by then."""
        small, said = self.made(rng) if rng.random() < _MADE else self.stage2.noised(rng)
        true = {name: column[small["index"]] for name, column in self.stage2.told.columns.items()}
        text = self.embed(said)
        which = int(rng.choice(len(STAGE2_SIGMAS), p=_SIGMAS))
        raised = {"video": self.stage2.raised(small["video"]), "sound": small["sound"]}
        at, _, _ = make_batch(raised, LARGE, torch.full((len(said),), STAGE2_SIGMAS[0]), "text")
        at = travelled(self.half, at, text, STAGE2_SIGMAS[: which + 1])
        at = replace(at, sigma=torch.full_like(at.sigma, STAGE2_SIGMAS[which]))
        return self.nearest_error(self.meant[LARGE], at, true, said, text, like=None if which else raised["video"])

    def nearest_error(
        self,
        meant: Meant,
        at: Batch,
        columns: Mapping[str, Tensor],
        said: Sequence[str],
        text: Mapping[str, Tensor],
        *,
        lanes: Lanes | None = None,
        like: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way from `at` to that clip, of all that `said` can mean, which is nearest
        to what the student is about to make (`nano.nearest`). `columns`: the scenes, and their true sound, by which
        alone the silent ones are silent. `lanes`, for clips from pure noise, hold the two in balance. `like`: what the
        clip is to be nearest to, in place of the student's answer."""
        scenes = [pool.scene(int(index)) for index in columns["index"]]
        video, heard = at.forward(self.half, text)
        sigma = at.sigma[:, None, None]
        undecided = bool((at.sigma == 1).all())
        price = lanes.of(scenes) if lanes and undecided else None
        made = at.video - sigma * video.detach().float() if like is None else like
        aim = meant.nearest(made, scenes, said, price)
        if lanes:
            lanes.count(scenes, aim.lane)
        silent = torch.tensor([scene.silent for scene in scenes])[:, None, None]
        sound = torch.where(silent, columns["sound"], aim.sound)
        hiss = (at.sound - sound) / sigma
        return at.error(video, (at.video - aim.video) / sigma), (heard.float() - hiss).square().mean()


class Distilled(FromDev):
    name = "distilled"

    def __init__(
        self,
        pools: Path,
        weights: Mapping[str, Mapping[str, Tensor]],
        stage2: Stage2,
        steps: int = 1800,
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
        noise, _, _ = make_batch(columns, SMALL, torch.ones(CLIPS), "text")
        at = travelled(self.half, noise, self.embed(said), (*DISTILLED_SIGMAS, 0.0))
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
        sigma, own = DISTILLED_SIGMAS[which], rng.random() < _OWN_NEAREST
        level = torch.full((len(said),), DISTILLED_SIGMAS[0] if own else sigma)
        batch, _, _ = make_batch(columns, kind, level, "text")
        if own:
            batch = travelled(self.half, batch, text, DISTILLED_SIGMAS[: which + 1])
        batch = replace(batch, sigma=torch.full_like(batch.sigma, sigma))
        undirected = own or which == 0  # else it began in one of the lanes, by chance
        lanes = self.lanes[kind] if undirected else None
        return self.nearest_error(self.meant[kind], batch, columns, said, text, lanes=lanes)

    def teacher_loss(
        self, kind: Kind, columns: Mapping[str, Tensor], mode: str, text: Mapping[str, Tensor], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Errors of picture and sound on the way to where the teacher arrives at the next sigma."""
        shares = np.array([share for share, _ in _INTERVALS])
        which = int(rng.choice(len(shares), p=shares / shares.sum()))
        first, last = (*DISTILLED_SIGMAS, 0.0)[which : which + 2]
        own = mode == "text" and rng.random() < _OWN
        level = torch.full((len(columns["video"]),), DISTILLED_SIGMAS[0] if own else first)
        batch, _, _ = make_batch(columns, kind, level, mode)
        if own:
            batch = travelled(self.half, batch, text, DISTILLED_SIGMAS[: which + 1])
        batch = replace(batch, sigma=torch.full_like(batch.sigma, first))
        there = travelled(self.teacher, batch, text, np.linspace(first, last, _INTERVALS[which][1] + 1).tolist())
        video, heard = batch.forward(self.half, text)
        hiss = (batch.sound - there.sound) / (first - last)
        return batch.error(video, (batch.video - there.video) / (first - last)), (heard.float() - hiss).square().mean()
