"""Trains the audio VAE (mel to latents and back) and the vocoder (mel to a wave).

The tone of a scene starts at phase 0 and each mel frame is a whole number of its periods, so the wave is
a function of the mel frames and plain regression learns it; no discriminator is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts, nano_random
from nano import sound, world

_LOUD = -4.0  # log magnitude: most of a mel is silence around a tone of about -1.2
_LATENT_NOISE = 0.1
_MEL_NOISE = 0.05
_EXTEND_EVERY = 5  # the vocoder's second half is the dearer one and has little to add


def new_part(name: str) -> Any:
    """An audio VAE or vocoder with fresh weights."""
    part = nano_parts.spec("2.3")[name]
    with nano_parts.seeded(part.seed), torch.no_grad():
        model = nano_parts.component_class(part.kind)(**part.config)
        if name == "vocoder":
            nano_random.set_stft(model.mel_stft)
            model.bwe_generator.conv_out.weight.mul_(0.01)  # starts as plain resampling
    return model.train()


def _draw(rng: np.random.Generator, count: int) -> tuple[list[world.Scene], int, int]:
    """Scenes of one length, its frames and its samples."""
    frames = 49 if rng.random() < 0.15 else 25
    return [world.draw_scene(rng, held_out=None) for _ in range(count)], frames, sound.MEL_FRAMES[frames] * sound.HOP


class AudioVae:
    name = "audio_vae"
    lr = 3e-3

    def __init__(self, steps: int = 2500) -> None:
        self.steps = steps
        self.vae = new_part("audio_vae")

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"audio_vae": self.vae}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        scenes, frames, samples = _draw(rng, 16)
        mel = torch.from_numpy(sound.mel(np.stack([sound.wave(scene, samples, frames=frames) for scene in scenes])))
        latents = self.vae.encode(mel).latent_dist.mode()
        again = self.vae.decode(latents + _LATENT_NOISE * torch.randn_like(latents)).sample
        loud = 1.0 + 6.0 * (mel > _LOUD)
        sides = (again[:, 0] - again[:, 1]) - (mel[:, 0] - mel[:, 1])  # where it comes from
        off = ((again - mel).abs() * loud).mean() + (sides.abs() * loud[:, 0]).mean()
        token = latents.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        scale = token.mean(0).square().mean() + (token.std(0) - 1).square().mean()
        figures = {"mel": float((again - mel).detach().abs().mean()), "sides": float(sides.detach().abs().mean())}
        return off + 0.02 * scale, {**figures, "std": float(token.detach().std())}


class Vocoder:
    name = "vocoder"
    lr = 2e-3

    def __init__(self, steps: int = 4000) -> None:
        self.steps = steps
        self.vocoder = new_part("vocoder")

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"vocoder": self.vocoder}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        scenes, frames, samples = _draw(rng, 4)
        high = np.stack([sound.wave(scene, samples, frames=frames) for scene in scenes])
        low = np.stack([sound.wave(scene, samples // 2, rate=sound.RATE // 2, frames=frames) for scene in scenes])
        mel = torch.from_numpy(sound.mel(high))
        first = self.vocoder.vocoder(mel + _MEL_NOISE * torch.randn_like(mel))
        total = _wave_error(first, torch.from_numpy(low))
        figures = {"8k": float(total.detach())}
        if step % _EXTEND_EVERY == 0:
            extra = _wave_error(extended(self.vocoder, first.detach()), torch.from_numpy(high))
            total = total + extra
            figures["16k"] = float(extra.detach())
        return total, figures


def _wave_error(heard: Tensor, meant: Tensor) -> Tensor:
    return (heard - meant).abs().mean() + (heard - meant).square().mean().sqrt()


def extended(vocoder: Any, first: Tensor) -> Tensor:
    """The second half of the vocoder on a given 8 kHz wave: the class runs both, and its STFT has no
    gradient at silence."""
    with torch.no_grad():
        mel = vocoder.mel_stft(first.flatten(0, 1))[0].unflatten(0, (-1, first.shape[1]))
    wave: Tensor = vocoder.bwe_generator(mel.transpose(2, 3)) + vocoder.resampler(first)
    return wave
