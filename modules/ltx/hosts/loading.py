"""Read models into memory: from_pretrained, offload, sibling pipelines, upsamplers, LoRA files.

The same code loads LTX-Nano and the 22B: a folder in the diffusers layout, safetensors only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

from modules.ltx import headers
from modules.ltx.errors import HostError
from modules.ltx.hosts import built, folders, hub, machine, quantizing
from modules.ltx.library_features import in_dtype
from modules.ltx.ltx_capabilities import Caps
from modules.video_models.video_overrides import scheduler_overrides

_ALWAYS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")  # what every pipeline of LTX has
_VAE_KIND = ("latent_channels", "block_out_channels", "decoder_block_out_channels", "patch_size", "patch_size_t")


@dataclass(frozen=True)
class Wanted:
    """What the user chose about loading; None leaves it to the machine. `quantize` and `parts`: see `quantizing.py`."""

    device: str | None = None
    dtype: str | None = None
    offload: str | None = None
    quantize: str | None = None
    parts: tuple[str, ...] = quantizing.DEFAULT_PARTS


def check(caps: Caps, folder: Path, borrowed: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Look at all that `load` and `shared_part` would read, without reading it. Raises RequestError or HostError, with
    the name of a file, where something of it is missing, damaged, or not what it says it is."""
    folders.refuse_pickles(folder)
    missing = [name for name in _ALWAYS if name not in folders.named(folder)]
    if missing:
        raise HostError(f"{folder / 'model_index.json'}: it names no {missing[0]}; {headers.AGAIN}.")
    left = {*_left_out(folder), hub.DECODER, *borrowed}
    own = {name: name for name in folders.named(folder) if name not in left}
    built.check_folder(folder, own | ({"transformer": caps.transformer} if "transformer" in own else {}))
    for name, place in borrowed.items():
        built.check_folder(place, {name: name})


def settle(places: Sequence[Path], wanted: Wanted) -> machine.Machine:
    """Device, dtype and offload for the weights in `places`, a model's folder and any components from elsewhere: as
    asked, else as the machine allows."""
    device, dtype, offload = machine.choose_device(wanted.device), wanted.dtype, wanted.offload
    folder, *elsewhere = places
    found = folders.weight_bytes(folder)
    for place in elsewhere:
        found |= {place.name: folders.weight_bytes(place.parent).get(place.name, 0)}
    sizes = quantizing.smaller(found, wanted.quantize, wanted.parts)
    free = machine.free_memory(device)
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    return machine.Machine(
        device=device,
        dtype=machine.choose_dtype(dtype, device, total, free),
        offload=machine.choose_offload(offload, device, total, largest, free),
        free_bytes=free,
    )


def load(
    caps: Caps,
    folder: Path,
    where: machine.Machine,
    wanted: Wanted | None = None,
    borrowed: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The variant's pipeline, on its device or under its offload, with the row's load-time overrides.

    `borrowed`: components that are in memory already, by name; the folder need not have them.
    """
    folders.refuse_pickles(folder)
    _register_quantizer(caps)
    dtype = getattr(torch, where.dtype)
    with load_errors(str(folder)):
        wanted = wanted or Wanted()
        subfolders = {"transformer": caps.transformer}
        own = [part for part in wanted.parts if part not in borrowed]
        extra = {**borrowed, **quantizing.components(folder, wanted.quantize, own, dtype, subfolders)}
        extra |= dict.fromkeys(_left_out(folder))
        if "transformer" not in extra:
            extra |= _other_transformer(caps, folder, dtype)
        kind = _pipeline_class(caps.pipeline)
        pipe = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **in_dtype(kind, dtype), **extra
        )
    if caps.vae_dtype is not None:
        pipe.vae.to(getattr(torch, caps.vae_dtype))
    overrides = scheduler_overrides(caps)
    if overrides:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **overrides)
    pipe.set_progress_bar_config(disable=True)
    return place(pipe, where)


def _left_out(folder: Path) -> list[str]:
    """The components that some jobs read for themselves: the enhancer alone would be another 10 GB."""
    return [name for name in (hub.ENHANCER, hub.READER) if name in folders.named(folder)]


def _register_quantizer(caps: Caps) -> None:
    if caps.quantization == "sdnq-int4":
        import sdnq  # noqa: F401  registers its quantizer with diffusers and transformers


def _pipeline_class(name: str) -> Any:
    return getattr(diffusers, name)


def _other_transformer(caps: Caps, folder: Path, dtype: Any) -> dict[str, Any]:
    """A transformer from another subfolder than the default one (2.5 keeps Dev beside Distilled)."""
    if caps.transformer == "transformer":
        return {}
    kind = diffusers.LTX2VideoTransformer3DModel
    model = kind.from_pretrained(
        folder, subfolder=caps.transformer, use_safetensors=True, local_files_only=True, **in_dtype(kind, dtype)
    )
    return {"transformer": model}


def place(pipe: Any, where: machine.Machine) -> Any:
    """Put the pipeline where it runs."""
    if where.offload == "model":
        pipe.enable_model_cpu_offload(device=where.device)
    elif where.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=where.device)
    elif where.offload == "group":
        pipe.enable_group_offload(torch.device(where.device), offload_type="leaf_level", use_stream=True)
    else:
        pipe.to(where.device)
    return pipe


def sibling(pipe: Any, class_name: str) -> Any:
    """Another pipeline class over the very same components: nothing is read or copied.

    Built by its constructor: `from_pipe` would cast to another dtype and reset offload hooks.
    """
    wanted = _pipeline_class(class_name)
    taken = inspect.signature(wanted.__init__).parameters
    other = wanted(**{name: part for name, part in pipe.components.items() if name in taken})
    other.set_progress_bar_config(disable=True)
    for attribute in ("_offload_device", "_offload_gpu_id", "_all_hooks"):
        if hasattr(pipe, attribute):
            setattr(other, attribute, getattr(pipe, attribute))
    return other


def upsampler(caps: Caps, folder: Path, vae: Any, where: machine.Machine) -> Any:
    """The latent upsample pipeline of a variant's family over its own VAE, from the upsampler in `folder`. Raises
    HostError for one of another VAE, and for a damaged one, before it is read."""
    two = caps.family == "2.x"
    model_class = LTX2LatentUpsamplerModel if two else LTXLatentUpsamplerModel
    _check_upsampler(folder, model_class, vae)
    with load_errors(str(folder)):
        model = model_class.from_pretrained(
            folder,
            subfolder=hub.UPSAMPLER,
            use_safetensors=True,
            local_files_only=True,
            **in_dtype(model_class, getattr(torch, where.dtype)),
        )
    wrap = diffusers.LTX2LatentUpsamplePipeline if two else diffusers.LTXLatentUpsamplePipeline
    pipe = wrap(vae=vae, latent_upsampler=model.to(where.device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_upsampler(folder: Path, model_class: Any, vae: Any) -> None:
    part = folder / hub.UPSAMPLER
    tensors = headers.of_part(part)
    config, file = headers.check_config(part, tensors), part / "config.json"
    if config.get("_class_name", model_class.__name__) != model_class.__name__:
        raise HostError(
            f"{file}: it is a {config['_class_name']!s:.80}, and this model takes a {model_class.__name__}."
        )
    built.check(part, model_class, config, tensors)
    # Some come with the VAE that they were trained on; then more can be told than by the channels.
    theirs = headers.json_of(beside) if (beside := folder / "vae" / "config.json").is_file() else {}
    told = {"latent_channels": config.get("in_channels", vae.config.latent_channels), **theirs}
    for name in _VAE_KIND:
        ours = getattr(vae.config, name, None)
        if name in told and ours is not None and _plain(told[name]) != _plain(ours):
            raise HostError(f"{file}: it is for another VAE ({name} {told[name]}, not {ours}); take the model's own.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def shared_part(caps: Caps, name: str, folder: Path, where: machine.Machine, wanted: Wanted) -> Any:
    """One component from a folder, as `load` would load it there for `caps`."""
    folders.refuse_pickles(folder)
    _register_quantizer(caps)
    kind = wanted.quantize if name in wanted.parts else None
    with load_errors(str(folder)):
        return quantizing.component(folder, name, name, kind, getattr(torch, where.dtype))


@contextmanager
def load_errors(source: str) -> Iterator[None]:
    """Missing or damaged weight files, told in one sentence that names the folder. Torch's generator is left as it
    was: layers are filled with random numbers before their weights are read."""
    from safetensors import SafetensorError

    try:
        with torch.random.fork_rng(devices=()):
            yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise HostError(f"{source}: the model cannot be read ({reason}); download or copy it again.") from error
