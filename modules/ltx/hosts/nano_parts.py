"""The parts of LTX-Nano models: which diffusers class, which configuration, which weights.

Knows the shapes. Every config keeps what makes a generation a generation (which switches are on, how
often the VAE halves, how the vocoder is wired, as in diffusers' own conversion scripts) and shrinks only
widths and depths. Parts of 2.3 come from files beside this one (how they are made: the nano package);
those of 2.0 and 0.9 are random. Does not know folders, caches or names of models.

torch and diffusers are imported inside the functions: importing this costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modules.ltx.hosts import nano_random, nano_text

Config = dict[str, Any]

# Trained weights, a file a part. How they were made is in the nano package, what they can do in docs/nano.md.
WEIGHTS = Path(__file__).with_name("nano_weights")
TRAINED = (  # the files there are, all of 2.3; the parts of 2.0 and 0.9 are random
    *("vae", "audio_vae", "vocoder", "text_encoder", "connectors"),
    *("transformer-dev", "transformer-distilled", "latent_upsampler", "lora"),
)

LATENT_CHANNELS = 32
HEADS = 4
WIDTH = HEADS * 40  # of the video stream
AUDIO_WIDTH = HEADS * 16  # of the audio stream
BLOCKS = 6
REGISTERS = 64  # as the real connectors: a text length must be a multiple of it

SAMPLE_RATE = 16000
MEL_BINS = 16
MEL_HOP = 160  # samples per mel frame, as the real audio VAE; 2.3 has 800, see nano/sound.py
# What 2.3 states instead of its 800: pipelines ask for duration * rate / hop / 4 latents, of which a causal
# decoder makes 4 L - 3 frames. At 800 a clip of 25 frames would fall silent 0.19 s early; with 740 the 6 and 11
# latents of 25 and 49 frames reach their ends.
NOMINAL_HOP = 740
AUDIO_LATENT_CHANNELS = 4
# The pipeline packs latent channels x latent mel bins (mel / 4) into one token; the audio VAE keeps its
# statistics per `base_channels`, so the three numbers have to agree.
AUDIO_TOKEN = AUDIO_LATENT_CHANNELS * MEL_BINS // 4


@dataclass(frozen=True)
class Part:
    """One component: `kind` picks the class, `seed` names the random stream of its weights.

    `trained` names the file of its trained weights in WEIGHTS instead; empty: random ones.
    """

    kind: str
    seed: str
    config: Config
    trained: str = ""


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
        "audio_vae": ("AutoencoderKLLTX2Audio", _audio_vae(newer)),
        "vocoder": ("LTX2VocoderWithBWE", _vocoder_23()) if newer else ("LTX2Vocoder", _vocoder_20()),
        "connectors": ("LTX2TextConnectors", _connectors_23() if newer else _connectors_20()),
        "text_encoder": ("Gemma3ForConditionalGeneration", nano_text.gemma_config()),
    }
    for name, (kind, config) in parts.items():
        shared[name] = Part(kind, f"{generation}/{name}", config, _file(generation, name))
    seed = f"{generation}/transformer/{variant}"
    trained = _file(generation, f"transformer-{'distilled' if variant == 'distilled' else 'dev'}")
    shared["transformer"] = Part("LTX2VideoTransformer3DModel", seed, _transformer_2(newer), trained)
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
    trained = _file(generation, "latent_upsampler")
    return Part("LTX2LatentUpsamplerModel", seed, {**config, **rational}, trained)


def _file(generation: str, name: str) -> str:
    """The name of a part's trained weights, empty where there are none."""
    return name if generation == "2.3" and name in TRAINED else ""


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
        "decoder_block_out_channels": [24, 48, 48, 96],
        "decoder_layers_per_block": [1] * 5,
        "decoder_spatio_temporal_scaling": [True] * 4,
        "decoder_inject_noise": [False] * 5,
        "upsample_residual": [False] * 4,
        "upsample_factor": [2, 2, 1, 2],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "decoder_spatial_padding_mode": "zeros",
    }
    return {**_vae_shared("LTX2Video", False), **decoder, "block_out_channels": [16, 32, 64, 64]}


def _audio_vae(newer: bool) -> Config:
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
        "mel_hop_length": NOMINAL_HOP if newer else MEL_HOP,
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

    The first makes 400 samples per mel frame, the second 80 per STFT hop (40 samples).
    """
    first = {**_generator([5, 5, 4, 4], [11, 11, 8, 8]), "hidden_channels": 128}
    # Filtering around every activation makes a CPU eight times slower and nothing here needs it.
    plain = {"antialias": False, "bwe_antialias": False}
    second = _generator([5, 4, 4], [11, 8, 8], prefix="bwe_")
    stft = {"filter_length": 128, "window_length": 128, "hop_length": 40, "num_mel_channels": MEL_BINS}
    rates = {"input_sampling_rate": SAMPLE_RATE // 2, "output_sampling_rate": SAMPLE_RATE}
    return {**first, **second, **plain, **stft, **rates}


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
        "audio_hop_length": NOMINAL_HOP if newer else MEL_HOP,
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
        if part.trained:
            model.load_state_dict(trained(part.trained))
        else:
            nano_random.tune(model, part.kind)
    return model.eval() if isinstance(model, torch.nn.Module) else model  # a scheduler is no module


def trained(name: str) -> dict[str, Any]:
    """The trained weights of a part, in float32 as random ones are.

    Raises OSError (FileNotFoundError too) when the file is missing, as in a copy without its large files.
    """
    from safetensors.torch import load_file

    return {key: value.float() for key, value in load_file(WEIGHTS / f"{name}.safetensors").items()}


def digest(name: str) -> str:
    """Changes with the trained weights, so that a folder built from others is not taken for this one."""
    file = WEIGHTS / f"{name}.safetensors"
    there = file.stat()
    return _digest(file, there.st_mtime_ns, there.st_size)


@cache  # asked for each LoRA and upsampler of a job; a file that was changed is read again
def _digest(file: Path, changed: int, size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
