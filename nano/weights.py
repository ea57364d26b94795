"""From checkpoints to the files the project ships, and the statistics that normalise the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts, nano_random
from nano import pool
from nano.audio import new_part
from nano.loop import averaged_weights
from nano.transformer import new_text_encoder
from nano.video_vae import new_vae

_SCENES = 96  # whose latents the means and deviations are taken from


def vaes(folder: Path) -> tuple[Any, Any]:
    """The trained VAEs, their statistics set; measured once and kept beside the checkpoints."""
    from safetensors.torch import load_file, save_file

    vae: Any = new_vae()
    vae.load_state_dict(averaged_weights(folder, "vae", "vae"))
    audio_vae = new_part("audio_vae")
    audio_vae.load_state_dict(averaged_weights(folder, "audio_vae", "audio_vae"))
    with torch.no_grad():
        nano_random.quiet_posterior(vae)
        nano_random.quiet_posterior(audio_vae)
    vae.eval()
    audio_vae.eval()
    file = folder / "statistics.safetensors"
    if not file.exists():
        new = file.with_suffix(".new")
        save_file(_statistics(vae, audio_vae), new)
        new.replace(file)
    for name, value in load_file(file).items():
        model, buffer = name.split(".")
        getattr(audio_vae if model == "audio_vae" else vae, buffer).copy_(value)
    return vae, audio_vae


@torch.no_grad()
def _statistics(vae: Any, audio_vae: Any) -> dict[str, Tensor]:
    """Per channel of the video, per value of a sound token, over clips of the two main sizes."""
    for model in (vae, audio_vae):
        model.latents_mean.zero_()
        model.latents_std.fill_(1.0)
    seen, heard = [], []
    for index in range(_SCENES):
        kind = pool.Kind(256, 256, 25, True) if index % 4 == 0 else pool.Kind(128, 128, 25, True)
        pixels, mel = pool.clip(pool.scene(10**6 + index), kind)
        columns = pool.encode(vae, audio_vae, pixels[None], mel[None])
        seen.append(columns["video"].flatten(0, 1))
        heard.append(columns["sound"].flatten(0, 1))
    video, sound = torch.cat(seen), torch.cat(heard)
    return {
        "vae.latents_mean": video.mean(0),
        "vae.latents_std": video.std(0),
        "audio_vae.latents_mean": sound.mean(0),
        "audio_vae.latents_std": sound.std(0),
    }


# Stage and module of each shipped file; the LoRA is none of them, it is always trained anew.
_HOMES = {
    "vae": ("vae", "vae"),
    "audio_vae": ("audio_vae", "audio_vae"),
    "vocoder": ("vocoder", "vocoder"),
    "connectors": ("dev", "connectors"),
    "transformer-dev": ("captions", "transformer"),
    "transformer-distilled": ("distilled", "transformer"),
    "latent_upsampler": ("upsampler", "upsampler"),
}


def unpack(folder: Path) -> None:
    """The shipped weights as checkpoints at step 0, to train on from there. Existing checkpoints are kept.

    Dev as it was before `captions` is not shipped: the shipped one stands for it, too.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stages: dict[str, dict[str, Tensor]] = {}
    for name, (stage, module) in (*_HOMES.items(), ("transformer-dev", ("dev", "transformer"))):
        if name not in nano_parts.TRAINED:
            continue
        values = {f"{module}.{key}": value for key, value in nano_parts.trained(name).items()}
        stages.setdefault(stage, {}).update(values)
    for stage, weights in stages.items():
        if not (folder / f"{stage}.pt").exists():
            torch.save({"step": 0, "raw": weights, "weights": weights, "optimizer": None}, folder / f"{stage}.pt")
    if not (folder / "statistics.safetensors").exists():
        buffers = ("latents_mean", "latents_std")
        kept = {f"{name}.{b}": nano_parts.trained(name)[b] for name in ("vae", "audio_vae") for b in buffers}
        save_file(kept, folder / "statistics.safetensors")


def export(folder: Path, target: Path | None = None) -> list[str]:
    """Write every part that has a checkpoint to `target` (where the project looks for it), bfloat16 where it does
    not hurt; returns their names. `nano_parts.TRAINED` says which of them the project uses."""
    from safetensors.torch import save_file

    target = target or nano_parts.WEIGHTS
    target.mkdir(parents=True, exist_ok=True)
    parts = {
        name: averaged_weights(folder, stage, module)
        for name, (stage, module) in _HOMES.items()
        if (folder / f"{stage}.pt").exists()
    }
    if {"vae", "audio_vae"} <= set(parts):
        parts["vae"], parts["audio_vae"] = (model.state_dict() for model in vaes(folder))
    if (folder / "lora.pt").exists():
        weights = averaged_weights(folder, "lora", "transformer")
        parts["lora"] = {
            f"transformer.{name.replace('.default.', '.')}": value
            for name, value in weights.items()
            if ".lora_" in name
        }
    parts["text_encoder"] = new_text_encoder().state_dict()
    for name, weights in parts.items():
        exact = name in ("text_encoder", "vocoder")
        kept = {
            key: value.contiguous().clone() if exact or "latents_" in key else value.bfloat16().contiguous()
            for key, value in weights.items()
        }
        save_file(kept, target / f"{name}.safetensors", metadata={"format": "pt"})
    return sorted(parts)
