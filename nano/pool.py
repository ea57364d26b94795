"""Scenes as normalised latents, encoded once and drawn from by every training that comes after the VAEs.

A pool is a folder of safetensors, one per worker, and belongs to the VAEs that made it. Scene k of every
pool is the same scene, so that pools of two sizes are pairs. Knows nothing of what is trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nano import prompts, sound, world


@dataclass(frozen=True)
class Kind:
    """The size of the clips in a pool, and whether their objects may be `anywhere` or only where `world.placed`
    puts them; `every`: not scenes by chance, but each that words alone can mean, once; `made`: what a model made of
    their prompts (`nano.made`)."""

    width: int
    height: int
    frames: int
    anywhere: bool = False
    every: bool = False
    made: bool = False

    @property
    def name(self) -> str:
        sort = f"{'-anywhere' * self.anywhere}{'-every' * self.every}{'-made' * self.made}"
        return f"{self.width}x{self.height}x{self.frames}{sort}"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows, columns."""
        return (self.frames - 1) // 8 + 1, self.height // 32, self.width // 32


def scene(index: int) -> world.Scene:
    """Scene `index` of every pool, never a held-out one."""
    return world.draw_scene(np.random.default_rng([77, index]))


def clip(what: world.Scene, kind: Kind) -> tuple[Tensor, Tensor]:
    """Pixels (3, frames, height, width) in -1..1 and mel (2, mel frames, 16)."""
    what = what if kind.anywhere else world.placed(what)
    pixels = world.render(what, kind.frames, width=kind.width, height=kind.height)
    samples = sound.MEL_FRAMES[kind.frames] * sound.HOP
    heard = sound.mel(sound.wave(what, samples, frames=kind.frames))
    return torch.from_numpy(pixels.transpose(3, 0, 1, 2) * 2 - 1).contiguous(), torch.from_numpy(heard)


def pack(latents: Tensor) -> Tensor:
    """(batch, channels, frames, rows, columns) to (batch, tokens, channels), as the pipelines do."""
    return latents.flatten(2).transpose(1, 2)


def pack_sound(latents: Tensor) -> Tensor:
    """(batch, channels, length, bins) to (batch, length, channels x bins)."""
    return latents.transpose(1, 2).flatten(2)


@torch.no_grad()
def encode(vae: Any, audio_vae: Any, clips: Tensor, mels: Tensor) -> dict[str, Tensor]:
    """Normalised, packed: `video`, `last` (the last frame as a picture of its own) and `sound`."""

    def normal(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16):  # twice as fast
            latents = vae.encode(pixels.to(memory_format=torch.channels_last_3d)).latent_dist.mode().float()
        return pack((latents - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1))

    heard = pack_sound(audio_vae.encode(mels).latent_dist.mode())
    heard = (heard - audio_vae.latents_mean) / audio_vae.latents_std
    return {"video": normal(clips), "last": normal(clips[:, :, -1:]), "sound": heard}


def make(folder: Path, kind: Kind, count: int, vae: Any, audio_vae: Any, *, rank: int = 0, workers: int = 1) -> None:
    """This worker's share of a pool of rendered clips, unless it is there."""
    scenes = world.every().__getitem__ if kind.every else scene

    def encoded(indices: Sequence[int]) -> dict[str, Tensor]:
        drawn = [clip(scenes(index), kind) for index in indices]
        return encode(vae, audio_vae, *(torch.stack(column) for column in zip(*drawn, strict=True)))

    fill(folder, kind, range(rank, count, workers), encoded, file=f"{count}-{rank}-{workers}.safetensors", together=8)


def fill(
    folder: Path,
    kind: Kind,
    indices: Sequence[int],
    columns: Callable[[Sequence[int]], Mapping[str, Tensor]],
    *,
    file: str,
    together: int,
) -> None:
    """One file of a pool, unless it is there: the columns of these scenes, computed so many `together`."""
    from safetensors.torch import save_file

    target = folder / kind.name / file
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = [columns(indices[start : start + together]) for start in range(0, len(indices), together)]
    whole = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    new = target.with_suffix(".new")
    save_file({**whole, "index": torch.tensor(list(indices))}, new)
    new.replace(target)


def described(index: Tensor, rng: np.random.Generator) -> list[str]:
    """Prompts for the scenes of these rows, worded by chance."""
    return [prompts.varied(scene(int(row)), rng) for row in index]


@dataclass(frozen=True)
class Pool:
    """Everything encoded for one size; `video`, `last`, `sound` by row, and the scene of each row."""

    kind: Kind
    columns: dict[str, Tensor]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[dict[str, Tensor], list[str]]:
        """`count` rows and a prompt for each, worded by chance."""
        drawn = self.rows(rng.integers(0, len(self.columns["index"]), count))
        return drawn, described(drawn["index"], rng)

    def rows(self, rows: Any) -> dict[str, Tensor]:
        """The columns of these rows, in this order; whatever can index a tensor."""
        return {name: column[rows] for name, column in self.columns.items()}


def read(folder: Path, kind: Kind) -> Pool:
    from safetensors.torch import load_file

    files = sorted((folder / kind.name).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"No latents of {kind.name} in {folder}: run `python -m nano.train pool` first.")
    shares = [load_file(file) for file in files]
    columns = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
    return Pool(kind, Pool(kind, columns).rows(columns["index"].argsort()))
