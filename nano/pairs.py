"""Noise and the clip that it becomes: where Dev's guided way from a noise ends, put right.

From pure noise Dev must choose one of the places that a prompt leaves open, and where it chooses by halves a shape
gets a bite or a bump. A pair tells it what to choose: the noise, and of the rendered clips of the prompt the one whose
object stands where Dev's own way from that noise put it. Trained on pairs the way is straight (reflow: Liu et al. 2022,
arXiv 2209.03003), and its end is a true clip instead of the model's own. Never of a combination that is held out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.ltx_util import shift_for_tokens, shifted_sigmas
from nano import judge, pool, prompts, world
from nano.transformer import LARGE, Batch, guided

COUNT = 2400
STEPS = 12  # of the teacher's way; 8 to 30 made no difference to what it makes (docs/nano.md)
_BATCH = 16
_FIRST = 2_000_000  # pairs show other scenes than the pools


def scene(index: int) -> world.Scene:
    """The scene of pair `index`, before its place is known."""
    return pool.scene(_FIRST + index)


def places(what: world.Scene) -> list[world.Scene]:
    """Every clip that the scene's prompt can become."""
    paces = (0.0, 1.0) if what.motion == "bouncing" else (0.5,)
    thirds = (0.0, 0.5, 1.0)
    return [
        world.placed(replace(what, along=along, across=across, pace=pace))
        for along, across, pace in itertools.product(thirds, thirds, paces)
    ]


def righted(what: world.Scene, seen: Any) -> world.Scene:
    """Of the scene's clips the one whose object covers most of what was `seen` (height, width) in the first frame; of
    equals the scene's own."""

    def likeness(one: world.Scene) -> float:
        frame = world.render(one, LARGE.frames, width=seen.shape[1], height=seen.shape[0], window=_first(seen.shape))[0]
        mask = np.abs(frame - np.array(world.RGB[one.background], np.float32)).max(-1) > 0.2
        return float((mask & seen).sum() / max((mask | seen).sum(), 1))

    return max([world.placed(what), *places(what)], key=likeness)


def _first(size: Sequence[int]) -> tuple[int, int, int, int, int, int]:
    """The window of the first frame alone."""
    return 0, 1, 0, size[0], 0, size[1]


@torch.no_grad()
def make(
    folder: Path, count: int, models: Mapping[str, Any], vaes: tuple[Any, Any], *, rank: int = 0, workers: int = 1
) -> None:
    """This worker's share of `count` pairs, unless it is there. `models`: `transformer`, and `embed`, which turns
    prompts into what it takes."""
    from safetensors.torch import save_file

    file = folder / f"{count}-{rank}-{workers}.safetensors"
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    indices = list(range(rank, count, workers))
    parts = [_made(indices[start : start + _BATCH], models, vaes) for start in range(0, len(indices), _BATCH)]
    columns = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    new = file.with_suffix(".new")
    save_file({**columns, "index": torch.tensor(indices)}, new)
    new.replace(file)


def _made(indices: Sequence[int], models: Mapping[str, Any], vaes: tuple[Any, Any]) -> dict[str, Tensor]:
    scenes = [scene(index) for index in indices]
    like = _clips(scenes[:1], vaes)
    torch.manual_seed(_FIRST + indices[0])
    noise, hiss = (torch.randn(len(scenes), *like[name].shape[1:]) for name in ("video", "sound"))
    start = Batch(noise, hiss, torch.ones(len(scenes)), torch.ones(noise.shape[:2]), LARGE.grid)
    sigmas = [*shifted_sigmas(STEPS, shift_for_tokens(noise.shape[1])), 0.0]
    said = [prompts.plain(one) for one in scenes]
    end = guided(models["transformer"], start, models["embed"](said), models["embed"]([""]), sigmas)
    right = [righted(one, _seen(vaes[0], tokens)) for one, tokens in zip(scenes, end.video, strict=True)]
    return {**_clips(right, vaes), "noise": noise, "hiss": hiss}


def _clips(scenes: Sequence[world.Scene], vaes: tuple[Any, Any]) -> dict[str, Tensor]:
    parts = []
    for one in scenes:
        clip, mel = pool.clip(one, LARGE)
        parts.append(pool.encode(*vaes, clip[None], mel[None]))
    return {name: torch.cat([part[name] for part in parts]) for name in ("video", "sound")}


def _seen(vae: Any, tokens: Tensor) -> Any:
    """Where in the first frame of a clip something is to be seen."""
    latents = tokens.T.reshape(1, -1, *LARGE.grid)[:, :, :1]
    mean, deviation = (value.view(1, -1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    pixels = vae.decode(latents * deviation + mean).sample[0, :, 0].permute(1, 2, 0)
    return judge.cover(pixels.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8).numpy())


@dataclass(frozen=True)
class Pairs:
    """What `make` left: columns by row."""

    columns: dict[str, Tensor]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[dict[str, Tensor], list[str]]:
        """`count` rows and a prompt for each, worded by chance."""
        rows = rng.integers(0, len(self.columns["index"]), count)
        said = [prompts.varied(scene(int(self.columns["index"][row])), rng) for row in rows]
        return {name: column[rows] for name, column in self.columns.items()}, said


def read(folder: Path) -> Pairs | None:
    """The pairs in `folder`; None where none were made."""
    from safetensors.torch import load_file

    shares = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    if not shares:
        return None
    return Pairs({name: torch.cat([share[name] for share in shares]) for name in shares[0]})
