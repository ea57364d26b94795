"""Full-size LTX models with random weights, built on the device from their published configs: nothing is downloaded.

The configs are what the published folders hold, as diffusers' conversion scripts write them
(scripts/convert_ltx_to_diffusers.py, scripts/convert_ltx2_to_diffusers.py); what is not named here is the class's own
default. There is no text encoder: prompt embeddings of its shape are drawn, since it runs once a prompt. `SizedHost` is
the embedded host with such a model for resident, so that plans and stages run as they do for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.ltx.embeddings import Key
from modules.ltx.hosts import machine, quantizing
from modules.ltx.hosts.embedded import EmbeddedHost, Settings, _Resident
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.plan import LoraPlan

LORA_RANK = 32  # of the random stage-2 LoRA; the published ones have 128 to 384

_VAE_095 = {
    **{"block_out_channels": (128, 256, 512, 1024, 2048), "down_block_types": ("LTXVideo095DownBlock3D",) * 4},
    **{"decoder_block_out_channels": (256, 512, 1024), "layers_per_block": (4, 6, 6, 2, 2)},
    **{"decoder_layers_per_block": (5, 5, 5, 5), "spatio_temporal_scaling": (True,) * 4},
    **{"decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4},
    **{"downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal")},
    **{"upsample_residual": (True,) * 3, "upsample_factor": (2, 2, 2), "timestep_conditioning": True},
    **{"encoder_causal": True, "decoder_causal": False},
    **{"spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
}
_VAE_23 = {
    **{"block_out_channels": (256, 512, 1024, 1024), "decoder_block_out_channels": (256, 512, 512, 1024)},
    **{"layers_per_block": (4, 6, 4, 2, 2), "decoder_layers_per_block": (4, 6, 4, 2, 2)},
    **{"decoder_spatio_temporal_scaling": (True,) * 4, "decoder_inject_noise": (False,) * 5},
    **{"upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial")},
    **{"upsample_residual": (False,) * 4, "upsample_factor": (2, 2, 1, 2), "decoder_spatial_padding_mode": "zeros"},
}
_CONNECTORS_20 = {"caption_channels": 3840, "text_proj_in_factor": 49, "rope_type": "split"}
_CONNECTORS_23 = {
    **_CONNECTORS_20,
    **{"video_connector_num_attention_heads": 32, "video_connector_attention_head_dim": 128},
    **{"video_connector_num_layers": 8, "video_gated_attn": True},
    **{"audio_connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64},
    **{"audio_connector_num_layers": 8, "audio_gated_attn": True, "per_modality_projections": True},
    **{"video_hidden_dim": 4096, "audio_hidden_dim": 2048, "proj_bias": True},
}
_TRANSFORMER_23 = {
    **{"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True},
    **{"rope_type": "split", "use_prompt_embeddings": False, "perturbed_attn": True},
}


@dataclass(frozen=True)
class Size:
    """One full-size model: the row that plans for it, and the configs of its components beside their defaults."""

    row: str
    billions: float  # parameters of the transformer; 2.3's "22B" counts its connectors and decoders too
    transformer: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    connectors: Mapping[str, Any] | None = None  # None: a model without sound
    vocoder: str = ""
    upsampler: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[int, int] = (256, 4096)  # tokens and channels of the prompt embeddings


_GEMMA = (1024, 3840 * 49)  # all hidden states of Gemma 3 12B, beside one another
SIZES: Mapping[str, Size] = {
    "2b": Size("0.9.6-t2v", 1.9, vae=_VAE_095, upsampler={"mid_channels": 512}),
    "13b": Size(
        "0.9.7-dev",
        13.0,
        {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
        _VAE_095,
        upsampler={"mid_channels": 512},
    ),
    "19b": Size("2.0-dev-t2v", 19.0, {"rope_type": "split"}, {}, _CONNECTORS_20, "LTX2Vocoder", {}, _GEMMA),
    "22b": Size(
        "2.3-dev-t2v",
        19.0,
        _TRANSFORMER_23,
        _VAE_23,
        _CONNECTORS_23,
        "LTX2VocoderWithBWE",
        {"use_rational_resampler": False},
        _GEMMA,
    ),
}


@contextmanager
def _made_in(device: str, dtype: Any) -> Iterator[None]:
    """Modules built inside have their weights there, in that type, from the start: no copy in system memory."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def transformer(size: Size, device: str, dtype: Any, **changed: Any) -> Any:
    """The transformer alone. `changed`: config values to override, such as num_layers."""
    import diffusers

    kind = diffusers.LTXVideoTransformer3DModel if size.connectors is None else diffusers.LTX2VideoTransformer3DModel
    with _made_in(device, dtype):
        return kind(**{**size.transformer, **changed}).eval()


def pipeline(size: Size, device: str, dtype: Any, *, quantize: str | None = None, **changed: Any) -> Any:
    """The row's pipeline without a text encoder."""
    import diffusers
    from diffusers.pipelines import ltx2

    from modules.ltx.hosts import nano_text
    from modules.ltx.ltx_capabilities import caps_for

    kind = getattr(diffusers, caps_for(size.row)[0].pipeline)
    model = transformer(size, device, dtype, **changed)
    if quantize is not None:
        model = quantizing.quantized(model, quantize, dtype)
    with _made_in(device, dtype):
        reader = _reader()
        shared = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), "text_encoder": reader}
        if size.connectors is None:
            vae = diffusers.AutoencoderKLLTXVideo(**size.vae).eval()
            pipe = kind(transformer=model, vae=vae, tokenizer=nano_text.t5_tokenizer(), **shared)
        else:
            pipe = kind(
                transformer=model,
                vae=diffusers.AutoencoderKLLTX2Video(**size.vae).eval(),
                audio_vae=diffusers.AutoencoderKLLTX2Audio().eval(),
                connectors=ltx2.LTX2TextConnectors(**size.connectors).eval(),
                vocoder=getattr(ltx2, size.vocoder)().eval(),
                tokenizer=nano_text.gemma_tokenizer(),
                **shared,
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _reader() -> Any:
    """Stands where the text encoder does; it is never called."""
    import torch

    class Reader(torch.nn.Module):
        dtype = torch.get_default_dtype()

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        @property
        def device(self) -> torch.device:
            return self.weight.device

    return Reader()


class SizedHost(EmbeddedHost):
    """The embedded host whose model is one of SIZES. `changed`: see `transformer`."""

    def __init__(self, name: str, settings: Settings, **changed: Any) -> None:
        super().__init__(settings)
        self.size, self._changed = SIZES[name], changed

    def _load(self, caps: Caps) -> _Resident:
        import torch

        if self._resident is None:
            device = machine.choose_device(self.settings.device)
            dtype = self.settings.dtype or "bfloat16"
            pipe = pipeline(self.size, device, getattr(torch, dtype), quantize=self.settings.quantize, **self._changed)
            where = machine.Machine(device, dtype, "none", machine.free_memory(device))
            self._resident = _Resident((caps.source, caps.transformer, ""), where, {caps.pipeline: pipe})
        return self._resident

    def read(self, caps: Caps, *texts: str) -> None:
        """Drawn embeddings for `texts`, as if the encoder had read them."""
        import torch

        pipe = next(iter(self._load(caps).pipes.values()))
        tokens, channels = min(self.size.text[0], caps.max_sequence_length), self.size.text[1]
        generator = torch.Generator().manual_seed(0)
        for text in texts:
            embeds = torch.randn(1, tokens, channels, generator=generator).to(pipe.transformer.dtype)
            mask = torch.ones(1, tokens, dtype=torch.int64 if self.size.connectors is not None else torch.bool)
            self.embeddings(pipe.text_encoder).put(Key(caps.pipeline, text, caps.max_sequence_length), (embeds, mask))

    def _upsampler(self, caps: Caps, source: str) -> Any:
        import diffusers
        from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
        from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

        resident = self._load(caps)
        pipe = next(iter(resident.pipes.values()))
        sound = self.size.connectors is not None
        kind = LTX2LatentUpsamplerModel if sound else LTXLatentUpsamplerModel
        with _made_in(resident.machine.device, pipe.vae.dtype):
            model = kind(**self.size.upsampler).eval()
        lender = diffusers.LTX2LatentUpsamplePipeline if sound else diffusers.LTXLatentUpsamplePipeline
        made = lender(vae=pipe.vae, latent_upsampler=model)
        made.set_progress_bar_config(disable=True)
        return made

    def weights(self, lora: LoraPlan) -> tuple[str, dict[str, Any]]:
        """A random LoRA of every attention projection, written once."""
        file = Path(self.settings.outputs) / "lora.safetensors"
        if not file.exists():
            self._write_lora(file)
        return str(file.parent), {"weight_name": file.name}

    def _write_lora(self, file: Path) -> None:
        import torch
        from safetensors.torch import save_file

        assert self._resident is not None
        model = next(iter(self._resident.pipes.values())).transformer
        found = {}
        for name, part in model.named_modules():
            if name.startswith("transformer_blocks") and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                for side, shape in (("A", (LORA_RANK, part.in_features)), ("B", (part.out_features, LORA_RANK))):
                    found[f"transformer.{name}.lora_{side}.weight"] = torch.full(shape, 1e-3, dtype=torch.bfloat16)
        save_file(found, file)
