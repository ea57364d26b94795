"""The parts of LTX-Nano models: which diffusers class, which configuration, which random weights.

Knows the shapes. Every config keeps what makes a generation a generation (which switches are on, how
often the VAE halves, how the vocoder is wired, as in diffusers' own conversion scripts) and shrinks only
widths and depths. Does not know folders, caches or names of models, and nothing here is trained.

torch and diffusers are imported inside the functions: importing this costs nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modules.ltx.hosts import nano_text

Config = dict[str, Any]

LATENT_CHANNELS = 32
HEADS = 4
WIDTH = HEADS * 40  # of the video stream
AUDIO_WIDTH = HEADS * 16  # of the audio stream
BLOCKS = 6
REGISTERS = 128  # as the real connectors: a text length must be a multiple of it

SAMPLE_RATE = 16000
MEL_BINS = 16
MEL_HOP = 160  # samples per mel frame, as the real audio VAE
AUDIO_LATENT_CHANNELS = 4
# The pipeline packs latent channels x latent mel bins (mel / 4) into one token; the audio VAE keeps its
# statistics per `base_channels`, so the three numbers have to agree.
AUDIO_TOKEN = AUDIO_LATENT_CHANNELS * MEL_BINS // 4


@dataclass(frozen=True)
class Part:
    """One component: `kind` picks the class, `seed` names the random stream of its weights."""

    kind: str
    seed: str
    config: Config


def spec(generation: str, variant: str = "") -> dict[str, Part]:
    """Components of a pipeline, by the name the pipeline gives them. Only the transformer has variants."""
    shared = {"scheduler": Part("FlowMatchEulerDiscreteScheduler", "", _scheduler())}
    if generation == "0.9":
        shared["vae"] = Part("AutoencoderKLLTXVideo", "0.9/vae", _vae_09())
        shared["transformer"] = Part("LTXVideoTransformer3DModel", "0.9/transformer", _transformer_09())
        shared["text_encoder"] = Part("T5EncoderModel", "0.9/text_encoder", nano_text.t5_config())
        return shared
    newer = generation == "2.3"
    parts = {
        "vae": ("AutoencoderKLLTX2Video", _vae_23() if newer else _vae_20()),
        "audio_vae": ("AutoencoderKLLTX2Audio", _audio_vae()),
        "vocoder": ("LTX2VocoderWithBWE", _vocoder_23()) if newer else ("LTX2Vocoder", _vocoder_20()),
        "connectors": ("LTX2TextConnectors", _connectors_23() if newer else _connectors_20()),
        "text_encoder": ("Gemma3ForConditionalGeneration", nano_text.gemma_config()),
    }
    shared.update({name: Part(kind, f"{generation}/{name}", cfg) for name, (kind, cfg) in parts.items()})
    seed = f"{generation}/transformer/{variant}"
    shared["transformer"] = Part("LTX2VideoTransformer3DModel", seed, _transformer_2(newer))
    return shared


def upsampler(generation: str) -> Part:
    """2x spatial. GroupNorm inside has 32 groups, so `mid_channels` must be a multiple of 32."""
    config: Config = {
        "in_channels": LATENT_CHANNELS,
        "mid_channels": 64,
        "num_blocks_per_stage": 1,
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
    }
    seed = f"{generation}/latent_upsampler"
    if generation == "0.9":
        return Part("LTXLatentUpsamplerModel", seed, config)
    # 2.0 ships the rational resampler, 2.3 the plain pixel shuffle.
    rational = {"rational_spatial_scale": 2.0, "use_rational_resampler": generation == "2.0"}
    return Part("LTX2LatentUpsamplerModel", seed, {**config, **rational})


def _scheduler() -> Config:
    """As Lightricks/LTX-2 and LTX-Video 0.9.0/0.9.1 ship it; whoever wants fixed sigmas turns it off."""
    return {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "shift_terminal": 0.1,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "time_shift_type": "exponential",
    }


def _vae_shared(mark: str, timestep_conditioning: bool) -> Config:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "down_block_types": [f"{mark}DownBlock3D"] * 4,
        "layers_per_block": [1] * 5,
        "spatio_temporal_scaling": [True] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "timestep_conditioning": timestep_conditioning,
        "patch_size": 4,
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def _decoder_3() -> Config:
    """The three residual up blocks of 0.9.5 and 2.0, each halving its channels on the way up."""
    return {
        "decoder_block_out_channels": [16, 32, 64],
        "decoder_layers_per_block": [1] * 4,
        "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_inject_noise": [False] * 4,
        "upsample_residual": [True] * 3,
        "upsample_factor": [2] * 3,
    }


def _vae_09() -> Config:
    """0.9.5 and later: timestep conditioning, but no injected noise (it ignores the caller's generator)."""
    channels = [16, 16, 32, 64, 64]  # 095 blocks read one entry more
    return {**_vae_shared("LTXVideo095", True), **_decoder_3(), "block_out_channels": channels}


def _vae_20() -> Config:
    upsample = {"upsample_type": ["spatiotemporal"] * 3, "decoder_spatial_padding_mode": "reflect"}
    channels = [16, 32, 64, 64]
    return {**_vae_shared("LTX2Video", False), **_decoder_3(), **upsample, "block_out_channels": channels}


def _vae_23() -> Config:
    decoder: Config = {
        "decoder_block_out_channels": [16, 32, 32, 64],
        "decoder_layers_per_block": [1] * 5,
        "decoder_spatio_temporal_scaling": [True] * 4,
        "decoder_inject_noise": [False] * 5,
        "upsample_residual": [False] * 4,
        "upsample_factor": [2, 2, 1, 2],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "decoder_spatial_padding_mode": "zeros",
    }
    return {**_vae_shared("LTX2Video", False), **decoder, "block_out_channels": [16, 32, 64, 64]}


def _audio_vae() -> Config:
    return {
        "base_channels": AUDIO_TOKEN,
        "output_channels": 2,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "attn_resolutions": None,
        "in_channels": 2,
        "resolution": 256,
        "latent_channels": AUDIO_LATENT_CHANNELS,
        "norm_type": "pixel",
        "causality_axis": "height",
        "mid_block_add_attention": False,
        "sample_rate": SAMPLE_RATE,
        "mel_hop_length": MEL_HOP,
        "is_causal": True,
        "mel_bins": MEL_BINS,
        "double_z": True,
    }


def _generator(factors: list[int], kernels: list[int], prefix: str = "") -> Config:
    """One HiFi-GAN like stack. Kernel minus factor must be even for an exact length."""
    config: Config = {
        "in_channels": 2 * MEL_BINS,  # two channels of mel bins, stacked
        "hidden_channels": 64,
        "out_channels": 2,
        "upsample_factors": factors,
        "upsample_kernel_sizes": kernels,
        "resnet_kernel_sizes": [3, 7],
        "resnet_dilations": [[1, 3], [1, 3]],
    }
    return {prefix + key: value for key, value in config.items()}


def _vocoder_20() -> Config:
    """The real one makes 24 kHz from 16 kHz mels; this one stays at 16 kHz (5*4*4*2 = MEL_HOP)."""
    stack = _generator([5, 4, 4, 2], [11, 8, 8, 4])
    return {**stack, "act_fn": "leaky_relu", "final_act_fn": "tanh", "output_sampling_rate": SAMPLE_RATE}


def _vocoder_23() -> Config:
    """A vocoder at 8 kHz and a bandwidth extension to 16 kHz (the real one: 16 kHz to 48 kHz).

    Two stages, 5*4*4 samples each: per mel frame in the first, per STFT hop (40 samples) in the second.
    """
    first = _generator([5, 4, 4], [11, 8, 8])
    second = _generator([5, 4, 4], [11, 8, 8], prefix="bwe_")
    stft = {"filter_length": 128, "window_length": 128, "hop_length": 40, "num_mel_channels": MEL_BINS}
    rates = {"input_sampling_rate": SAMPLE_RATE // 2, "output_sampling_rate": SAMPLE_RATE}
    return {**first, **second, **stft, **rates}


def _connectors_20() -> Config:
    """One projection for both streams, as wide as a text layer; the transformer projects once more."""
    stack = {"num_attention_heads": HEADS, "attention_head_dim": nano_text.GEMMA_HIDDEN // HEADS}
    return _connectors(stack, stack, gated=False)


def _connectors_23() -> Config:
    """A projection per stream, straight to its width: the transformer takes the text as it comes."""
    video = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS}
    audio = {"num_attention_heads": HEADS, "attention_head_dim": AUDIO_WIDTH // HEADS}
    projection = {"per_modality_projections": True, "proj_bias": True, "video_hidden_dim": WIDTH}
    return {**_connectors(video, audio, gated=True), **projection, "audio_hidden_dim": AUDIO_WIDTH}


def _connectors(video: Config, audio: Config, *, gated: bool) -> Config:
    shared = {"num_layers": 1, "num_learnable_registers": REGISTERS}
    config: Config = {
        "caption_channels": nano_text.GEMMA_HIDDEN,
        "text_proj_in_factor": nano_text.GEMMA_LAYERS + 1,  # every layer plus the embeddings
        "video_gated_attn": gated,
        "audio_gated_attn": gated,
        "rope_type": "split",
    }
    config.update({f"video_connector_{key}": value for key, value in {**video, **shared}.items()})
    config.update({f"audio_connector_{key}": value for key, value in {**audio, **shared}.items()})
    return config


def _transformer_09() -> Config:
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": WIDTH // HEADS,
        "cross_attention_dim": WIDTH,
        "num_layers": BLOCKS,
        "caption_channels": nano_text.T5_HIDDEN,
    }


def _transformer_2(newer: bool) -> Config:
    """Both streams have the same number of heads: their cross attention shares one split RoPE.

    `perturbed_attn` is off in the real 2.0 config, so diffusers runs spatio-temporal guidance on 2.0
    without any effect; it works on 2.3.
    """
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": WIDTH // HEADS,
        "cross_attention_dim": WIDTH,
        "audio_in_channels": AUDIO_TOKEN,
        "audio_out_channels": AUDIO_TOKEN,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": AUDIO_WIDTH // HEADS,
        "audio_cross_attention_dim": AUDIO_WIDTH,
        "audio_sampling_rate": SAMPLE_RATE,
        "audio_hop_length": MEL_HOP,
        "num_layers": BLOCKS,
        "caption_channels": nano_text.GEMMA_HIDDEN,
        "rope_type": "split",
        "gated_attn": newer,
        "cross_attn_mod": newer,
        "audio_gated_attn": newer,
        "audio_cross_attn_mod": newer,
        "use_prompt_embeddings": not newer,
        "perturbed_attn": newer,
    }


def build(part: Part) -> Any:
    """The component itself, ready to use. The same weights every time; the global RNG is untouched."""
    import torch

    with seeded(part.seed), torch.no_grad():
        model = _construct(part)
        _tune(model, part.kind)
    return model.eval() if isinstance(model, torch.nn.Module) else model  # a scheduler is no module


@contextmanager
def seeded(name: str) -> Iterator[None]:
    """Draw on the CPU from a stream named `name`. torch.manual_seed would also reseed the accelerators."""
    import torch

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _construct(part: Part) -> Any:
    if part.kind == "T5EncoderModel":
        return nano_text.t5_encoder(part.config)
    if part.kind == "Gemma3ForConditionalGeneration":
        return nano_text.gemma_encoder(part.config)
    return component_class(part.kind)(**part.config)


def component_class(kind: str) -> Any:
    import diffusers
    from diffusers.pipelines import ltx2
    from diffusers.pipelines.ltx import modeling_latent_upsampler

    for home in (diffusers, ltx2, modeling_latent_upsampler):
        if hasattr(home, kind):
            return getattr(home, kind)
    raise AttributeError(f"diffusers has no class {kind}")


def _tune(model: Any, kind: str) -> None:
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
        _set_stft(model.mel_stft)
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
    out = vae.encoder.conv_out.conv
    first = vae.config.latent_channels
    out.weight[:first].mul_(4.0)
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


def _set_stft(stft: Any) -> None:
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
