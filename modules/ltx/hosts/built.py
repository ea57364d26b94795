"""What a component's config builds, beside what its weights are: tried on the meta device, where nothing is allocated.

A library would find most of this too, but late: with gigabytes allocated, or by leaving a layer as chance made it.
Knows torch and the two libraries' ways of building; deliberately does not read a weight.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.modules import module as modules

from modules.ltx import headers
from modules.ltx.errors import HostError
from modules.ltx.headers import Tensor
from modules.ltx.hosts import quantizing

# What constructors raise for values nobody thought of; on the meta device none of these is about memory.
_REFUSED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
_REFUSED_TOO = (StrictDataclassError,)  # of huggingface_hub, for configs of transformers
_BUFFERS = 256 << 20  # bytes of tables that no file holds, such as those of positions; a library allocates them
_UNASKED = re.compile(r"vision|audio|multi_modal|lm_head")  # of a text encoder; some come without, and are read so
_NUMBER = re.compile(r"\.\d+(?=\.)")
_MODULES = 40  # modules a tensor at most: those of LTX-2 have 3, of the connectors 6


class _TooMuch(Exception):
    """More is being built than the weights are for."""


def check_folder(folder: Path, parts: Mapping[str, str]) -> None:
    """Raise RequestError or HostError, naming the file, where a component of a model folder cannot be what its
    model_index.json says. `parts`: the components that will be read, and the subfolder of each. First all files are
    looked at, then all configs are tried."""
    headers.check_sums(folder, parts.values())
    found = [(folder / parts[name], _class_of(folder, name)) for name in parts]
    known = [(part, model_class, _files(part, model_class)) for part, model_class in found]
    for part, model_class, (config, tensors) in known:
        if tensors:
            check(part, model_class, config, tensors)


def _class_of(folder: Path, name: str) -> Any:
    """The class that a folder names for a component. Only the two libraries are asked, whatever stands there."""
    file = folder / "model_index.json"
    told: Any = headers.json_of(file).get(name)
    try:
        return quantizing.class_of(*told)
    except (TypeError, StopIteration) as error:
        raise HostError(f"{file}: {name} is {str(told)[:120]}, which is no class that is known here.") from error


def _files(part: Path, model_class: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's config and tensors, checked by themselves; both empty for what has no weights, whose JSON is looked
    at."""
    if not part.is_dir():
        raise HostError(f"{part}: there is no such folder, and the model_index.json names it; {headers.AGAIN}.")
    if not issubclass(model_class, torch.nn.Module):
        for file in sorted(part.glob("*.json")):
            headers.json_of(file)
        return {}, {}
    tensors = headers.of_part(part)
    return headers.check_config(part, tensors), tensors


def check(part: Path, model_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise HostError where `config` of the folder `part` does not build what its `tensors` are, in number and shape.

    Quantized weights have other shapes, and are left to what reads them.
    """
    if "quantization_config" in config:
        return
    file = part / "config.json"
    try:
        with torch.device("meta"), _at_most(len(tensors)):
            model = _build(part, model_class, config)
    except _TooMuch as error:
        raise _unlike(file, f"it describes a larger model than the {len(tensors)} tensors beside it") from error
    except (*_REFUSED, *_REFUSED_TOO) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:160]
        raise _unlike(file, f"no {model_class.__name__} can be made of it: {reason}") from error
    renamed = not hasattr(model_class, "load_config")
    said = _too_large(model, tensors) or _misfit(model, tensors, renamed=renamed)
    if said or (not renamed and (said := _unused(model, tensors))):
        raise _unlike(file, said)


def _build(part: Path, model_class: Any, config: Mapping[str, Any]) -> Any:
    if hasattr(model_class, "load_config"):  # diffusers
        return model_class.from_config(dict(config))
    return model_class(model_class.config_class.from_pretrained(part, local_files_only=True))


def _too_large(model: Any, tensors: Mapping[str, Tensor]) -> str:
    """Why tables that are not among the weights are absurd; empty where they are not."""
    size = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in tensors)
    return f"it would make tables of {size >> 20} MiB" if size > _BUFFERS else ""


def _misfit(model: Any, tensors: Mapping[str, Tensor], *, renamed: bool) -> str:
    """How the model's parameters are not the tensors; empty where they are. transformers renames many while it reads
    (`renamed`): those are looked for by their shapes alone."""
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].shape != tuple(value.shape):
            return f"{name} would be {list(value.shape)}, and is {list(tensors[name].shape)} in the weights"
    missing = {name: tuple(one.shape) for name, one in model.named_parameters() if name not in tensors}
    if renamed:
        missing = {name: shape for name, shape in missing.items() if not _UNASKED.search(name)}
    known = model.state_dict().keys() if renamed else tensors.keys()
    left = Counter(tensor.shape for name, tensor in tensors.items() if name not in known)
    for name, shape in missing.items():
        if not left[shape]:
            return f"{name}, {list(shape)}, is not in the weights"
        left[shape] -= 1
    return ""


def _unused(model: Any, tensors: Mapping[str, Tensor]) -> str:
    """What of the weights nothing would be made of, where it is a layer like others; a few strange ones are left to
    the library, which has published files that hold some."""
    names = model.state_dict().keys()
    kinds = {_NUMBER.sub(".#", name) for name in names}
    more = sorted(name for name in tensors if name not in names)
    like = [name for name in more if _NUMBER.sub(".#", name) in kinds]
    if like or 2 * len(more) > len(tensors):
        return f"{(like or more)[0]} of the weights is for a layer that it does not have"
    return ""


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """This thread registers no more parameters than there are tensors, and no absurd number of modules."""
    here, counted = threading.get_ident(), Counter[str]()

    def count(kind: str, most: int) -> None:
        if threading.get_ident() == here:
            counted[kind] += 1
            if counted[kind] > most:
                raise _TooMuch

    # A parameter that is shared by two modules, as T5's embedding is, is registered twice.
    with ExitStack() as hooks:
        for register, kind, most in (
            (modules.register_module_parameter_registration_hook, "parameters", 2 * tensors + 100),
            (modules.register_module_module_registration_hook, "modules", _MODULES * tensors + 1000),
        ):
            handle: Any = register(lambda *_, kind=kind, most=most: count(kind, most))
            hooks.callback(handle.remove)
        yield


def _unlike(file: Path, how: str) -> HostError:
    return HostError(f"{file}: it does not fit its weights ({how}); {headers.AGAIN}.")
