"""What LTX 2.5 brings along for one phase of a job: its prompt enhancer and its diffusion decoder.

Both are read when the phase begins and dropped when it ends. Does not know when they are wanted (the plan) or how
they are used (the stages).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modules.ltx.errors import RequestError
from modules.ltx.hosts import machine
from modules.ltx.hosts.hub import DECODER, ENHANCER, READER
from modules.ltx.hosts.loading import load_errors
from modules.ltx.hosts.machine import Machine, natten_missing
from modules.ltx.hosts.places import Places
from modules.ltx.library_features import in_dtype
from modules.ltx.ltx_capabilities import Caps

_GIB = 2**30


class Reader:
    """What `enhance_prompt` reads its template with: the tokenizer, and the pictures a template names.

    transformers' own Gemma4Processor needs torchvision, for videos, which nobody shows it here. This one does the same
    with text and pictures.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def __call__(self, text: str, images: Any = None, return_tensors: str = "pt") -> Any:
        """Token ids and masks of `text`, with each picture's tokens where the template has its one, and its patches."""
        shown: dict[str, Any] = {}
        if images is not None:
            from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

            shown = dict(Gemma4ImageProcessorPil.from_pretrained(self.folder)(images, return_tensors=return_tensors))
            one = self.tokenizer.image_token
            tokens = one * int(shown.pop("num_soft_tokens_per_image")[0])
            text = text.replace(one, f"{self.tokenizer.boi_token}{tokens}{self.tokenizer.eoi_token}", 1)
        read = self.tokenizer(text, return_tensors=return_tensors)
        read.update(shown)
        return read


def read(found: Places, caps: Caps, name: str, where: Machine, shape: Sequence[int] = ()) -> Any:
    """The variant's ENHANCER, or its DECODER for latents of `shape`, from wherever it is found.

    Raises RequestError where it cannot be had or does not fit, HostError for damaged files.
    """
    folder, free = found.extra(caps, name), machine.free_memory(where.device)
    with load_errors(str(folder)):
        return enhancer(folder, where, free) if name == ENHANCER else decoder(folder, shape, where, free)


def enhancer(folder: Path, where: Machine, free: int) -> Any:
    """A pipeline with a prompt enhancer and nothing else, from a model's folder or one of the enhancer's own.

    It runs on the device where its weights fit into the `free` bytes there, else on the CPU.
    """
    import diffusers
    from transformers import Gemma4ForConditionalGeneration

    place, words = (folder / name if (folder / name).is_dir() else folder for name in (ENHANCER, READER))
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    device = where.device if 1.25 * weights < free else "cpu"
    dtype = getattr(torch, where.dtype)
    model = Gemma4ForConditionalGeneration.from_pretrained(
        place, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    nothing = ("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "transformer", "vocoder")
    pipe = diffusers.LTX2Pipeline(**dict.fromkeys(nothing))
    pipe.prompt_enhancer, pipe.processor = model.eval().to(device), Reader(words)
    return pipe


def decoder(folder: Path, shape: Sequence[int], where: Machine, free: int) -> Any:
    """The diffusion decoder of a model folder, ready for latents of `shape` (batch, channels, frames, height, width)
    on a device with `free` bytes.

    Raises RequestError where it cannot decode them here.
    """
    from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel

    config = json.loads((folder / DECODER / "config.json").read_text(encoding="utf-8"))
    attention, missing = _fast_attention(where.device)
    obstacle = too_small(config, shape) or (missing and too_large(config, shape, free, missing))
    if obstacle:
        raise RequestError(obstacle)
    named = in_dtype(LTX2VideoDiffusionDecoderModel, getattr(torch, where.dtype))
    model = LTX2VideoDiffusionDecoderModel.from_pretrained(
        folder, subfolder=DECODER, use_safetensors=True, local_files_only=True, **named
    )
    if attention is not None:
        model.set_attn_processor(attention)
    model.enable_tiling()  # the sizes it comes with are Lightricks' own
    return model.eval().to(where.device)


def _fast_attention(device: str) -> tuple[Any, str]:
    """NATTEN's attention for the decoder, or None and what it lacks. The kernel comes from the hub."""
    missing = natten_missing() if device.startswith("cuda") else "runs on NVIDIA GPUs only"
    if missing:
        return None, missing
    from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoVaeNeighborhoodNattenProcessor

    try:
        return LTX2VideoVaeNeighborhoodNattenProcessor(), ""
    except (ImportError, ValueError, OSError) as error:  # offline, or code from the hub is switched off
        return None, f"could not be fetched ({type(error).__name__})"


def too_small(config: dict[str, Any], shape: Sequence[int]) -> str:
    """Why latents of `shape` are too small for the decoder's windows; empty where they are not."""
    kernels = [*config["decoder_stage_kernels"], config["decoder_stage5_kernel"]]
    strides = config["decoder_upsample_strides"]
    for kernel, grid in zip(kernels, grids(shape, strides, (kernels[0][0] // 2) * 2), strict=True):
        if any(size < window for size, window in zip(grid, kernel, strict=True)):
            least = [32 * kernels[0][1], 32 * kernels[0][2]]
            return f"the clip is too small for it (it needs about {least[1]}x{least[0]} pixels and 17 frames)"
    return ""


def grids(shape: Sequence[int], strides: Sequence[Sequence[int]], pad: int) -> list[tuple[int, int, int]]:
    """The (frames, height, width) of the decoder's five stages; the last without the `pad` latent frames that the
    others carry behind the clip."""
    frames, height, width = shape[2] + pad, shape[3], shape[4]
    found = [(frames, height, width)]
    for time, high, wide in strides:
        frames, height, width = frames * time - (time > 1), height * high, width * wide
        found.append((frames, height, width))
    return [*found[:-1], ((shape[2] - 1) * 8 + 1, height, width)]


def too_large(config: dict[str, Any], shape: Sequence[int], free: int, missing: str) -> str:
    """Why the decoder without its fast kernel does not fit into `free` bytes; empty where it does.

    FlexAttention makes a mask, and without a compiler the scores, of every pair of tokens (diffusers' own note: 167
    GiB of mask for 69x64x96 tokens).
    """
    patch, heads = config["patch_size"], config["decoder_stage_channels"][-1] // config["decoder_head_dim"]
    # Tiles as the model comes with them: 768 pixels, 80 frames.
    tokens = min((shape[2] - 1) * 8 + 1, 80) * min(shape[3] * 32, 768) * min(shape[4] * 32, 768) // patch**2
    needed = tokens**2 * (1 + 4 * heads)
    if needed < free // 2:
        return ""
    return f"without its fast kernel, which {missing}, it would take about {needed / _GIB:.0f} GiB"
