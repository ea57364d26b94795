"""Gives random weights the few properties a trained model has, so that tests can rely on them.

Also the statistics and bases that a class leaves for a checkpoint to fill. Does not know which part of
which model it is given; torch is imported inside the functions.
"""

from __future__ import annotations

import math
from typing import Any


def tune(model: Any, kind: str) -> None:
    """Give random weights the few properties a trained model has and tests rely on.

    The factors were chosen by looking at the results: latents and encodings with a deviation near 1, and
    prompts, guidance and conditions that change them by more than rounding.
    """
    if kind.startswith("AutoencoderKL"):
        _set_statistics(model)
        _settle_posterior(model)
    elif kind.endswith("Transformer3DModel"):
        _open_gates(model)
    elif kind == "LTX2TextConnectors":
        for connector in (model.video_connector, model.audio_connector):
            # Below the norm's epsilon: else 120 registers outshout a prompt of six words.
            connector.learnable_registers.mul_(1e-4)
    elif kind.endswith("LatentUpsamplerModel"):
        model.final_conv.weight.mul_(3.0)
    elif kind == "LTX2Vocoder":
        _voice(model, last=3.0)
    elif kind == "LTX2VocoderWithBWE":
        set_stft(model.mel_stft)
        _voice(model.vocoder, last=0.1)
        _voice(model.bwe_generator, last=0.02)


def _set_statistics(vae: Any) -> None:
    """Means in -0.3..0.3, deviations in 0.8..1.2, so that a forgotten normalisation shows in any channel."""
    import torch

    index = torch.arange(vae.latents_mean.numel())
    vae.latents_mean.copy_((index % 7 - 3) * 0.1)
    vae.latents_std.copy_(0.8 + (index * 5 % 11) * 0.04)


def _settle_posterior(vae: Any) -> None:
    """Encode to a deviation near 1 with almost no sampling noise; random weights do the opposite.

    The video VAEs share one log-variance channel (the last), the audio VAE has one per latent channel.
    """
    vae.encoder.conv_out.conv.weight[: vae.config.latent_channels].mul_(4.0)
    quiet_posterior(vae)


def quiet_posterior(vae: Any) -> None:
    """Almost no sampling noise: training looks at the mode alone and leaves the log-variance as it was."""
    out, first = vae.encoder.conv_out.conv, vae.config.latent_channels
    out.weight[first:].zero_()
    out.bias[first:].fill_(-12.0)


def _open_gates(transformer: Any) -> None:
    """Let self attention, text and feed-forward count as much as the attention between sound and picture.

    The classes start the first kind of modulation near zero (to be learned) and the second kind at 1.
    """
    for block in transformer.transformer_blocks:
        for name, table in block.named_parameters(recurse=False):
            table.mul_(0.3 if "a2v" in name or "prompt" in name else 5.0)


def _voice(vocoder: Any, last: float) -> None:
    """Let the mels drive the wave. By default each layer shrinks its input to half and adds a bias, so that
    after ten layers every sound would be the same hum; `last` keeps the wave within -1..1."""
    for name, parameter in vocoder.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif name.endswith(".weight"):
            parameter.mul_(last if name.startswith("conv_out") else 2.0)


def set_stft(stft: Any) -> None:
    """The class leaves its bases zero for a checkpoint to fill: a Hann windowed DFT and triangular mels."""
    import torch

    basis = stft.stft_fn.forward_basis
    length, bins = basis.shape[-1], basis.shape[0] // 2
    angle = torch.outer(torch.arange(bins), torch.arange(length)) * (2 * math.pi / length)
    window = torch.hann_window(length)
    basis.copy_((torch.cat([angle.cos(), -angle.sin()]) * window)[:, None])
    centers = torch.linspace(0, bins - 1, stft.mel_basis.shape[0] + 2)
    distance = (torch.arange(bins)[None] - centers[1:-1, None]).abs()
    stft.mel_basis.copy_((1 - distance / (centers[1] - centers[0])).clamp(min=0))
