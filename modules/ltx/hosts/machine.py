"""What the machine offers: device, dtype, memory; and which offload fits. Decisions are pure functions."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modules.ltx import library_features
from modules.ltx.errors import RequestError

DEVICES = ("cuda", "xpu", "mps", "cpu")  # ROCm is "cuda" to torch
DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "group", "sequential")


@dataclass(frozen=True)
class Machine:
    """Where models run and in what precision. Memory in bytes; `free_bytes` of the device itself."""

    device: str
    dtype: str
    offload: str
    free_bytes: int


def check_names(dtype: str | None, offload: str | None) -> None:
    """Raise RequestError for a dtype or an offload that does not exist, before anything is loaded."""
    for flag, asked, known in (("--dtype", dtype, DTYPES), ("--offload", offload, OFFLOADS)):
        if asked is not None and asked not in known:
            raise RequestError(f"{flag} {asked}: not known; it takes one of: {', '.join(known)}.")


def choose_device(asked: str | None) -> str:
    """`asked`, checked, or the best there is. Raises RequestError for a device that is not there."""
    import torch

    present = [name for name in DEVICES if name == "cpu" or _available(torch, name)]
    if asked is None:
        return present[0]
    if asked.split(":")[0] not in present:
        raise RequestError(f"--device {asked}: not on this machine; it has: {', '.join(present)}.")
    return asked


def _available(torch: Any, name: str) -> bool:
    backend = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    return bool(backend is not None and backend.is_available())


def choose_dtype(asked: str | None, device: str, weight_bytes: int, free_bytes: int) -> str:
    """bfloat16 on accelerators. On a CPU float32, which is faster there, while the weights fit twice as large."""
    if asked is not None:
        return asked
    if device.startswith("cpu"):
        return "float32" if 2 * weight_bytes < free_bytes else "bfloat16"
    return "bfloat16"


def choose_offload(asked: str | None, device: str, total: int, largest: int, free: int) -> str:
    """The least offload that fits, with a fifth of the device's free memory left to activations.

    none: everything resident; model: one component at a time; sequential: one layer at a time. `group`
    (blocks streamed ahead) is the user's choice only: it needs pinned memory that may not be there.
    """
    if asked is not None:
        if device.startswith("cpu") and asked != "none":
            raise RequestError(f"--offload {asked}: there is no other device to offload from; leave it out on a CPU.")
        return asked
    if device.startswith("cpu") or total < 0.8 * free:
        return "none"
    return "model" if largest < 0.8 * free else "sequential"


def more_offload(offload: str, device: str) -> str | None:
    """The next offload that holds less on the device; None where there is none. From `group` there is no way back."""
    if device.startswith("cpu"):
        return None
    return {"none": "model", "model": "sequential"}.get(offload)


def free_memory(device: str) -> int:
    """Free bytes of the device; of the machine where the device shares its memory."""
    import psutil
    import torch

    if device.startswith(("cuda", "xpu")):
        backend = torch.cuda if device.startswith("cuda") else torch.xpu
        return int(backend.mem_get_info(torch.device(device))[0])
    return int(psutil.virtual_memory().available)


def total_memory(device: str) -> int:
    """All bytes of the device; of the machine where the device shares its memory."""
    import psutil
    import torch

    if device.startswith(("cuda", "xpu")):
        backend = torch.cuda if device.startswith("cuda") else torch.xpu
        return int(backend.get_device_properties(torch.device(device)).total_memory)
    return int(psutil.virtual_memory().total)


def peak_memory(device: str, *, anew: bool = True) -> int | None:
    """The most bytes held since this was last asked, or without `anew` since somebody else began to count: on an
    accelerator by torch, on Linux by this process. None where the system does not tell."""
    if not device.startswith("cpu"):
        import torch

        backend = getattr(torch, device.split(":", maxsplit=1)[0], None)
        if backend is None or not hasattr(backend, "max_memory_allocated"):
            return None
        most = int(backend.max_memory_allocated(torch.device(device)))
        if anew:
            backend.reset_peak_memory_stats(torch.device(device))
        return most
    with suppress(OSError, ValueError, IndexError):  # another system
        told = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        most = int(told.split("VmHWM:")[1].split()[0])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # what is held now counts as the most
        return most * 1024
    return None


def empty_cache(device: str) -> None:
    """Give freed blocks back: an accelerator's cache, or on Linux the heap's.

    glibc keeps freed tensors of up to 32 MB: the peak of a 241-frame clip at 256x256 was 690 MB with
    the heap trimmed between tiles and up to 820 MB without, at the same speed.
    """
    if device.startswith("cpu"):
        with suppress(OSError, AttributeError, TypeError):  # another C library, or none to be had
            ctypes.CDLL(None).malloc_trim(0)
        return
    import torch

    backend = getattr(torch, device.split(":", maxsplit=1)[0], None)
    if backend is not None and hasattr(backend, "empty_cache"):
        backend.empty_cache()


def lacks() -> Mapping[str, str]:
    """What is missing here, keyed as `ltx_capabilities.effective` reads it. Imports none of the libraries."""
    missing: dict[str, str] = {}
    if needed := library_features.missing(library_features.LTX_25):
        missing["generation 2.5"] = needed
    if not _said("sdnq"):
        missing["sdnq-int4"] = "needs the package sdnq (pip install sdnq)"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        missing["compile"] = "it needs a C++ compiler (g++ or clang++); leave --speed fast out, or install one"
    kernel = natten_missing()
    if kernel:
        missing["fast decoder"] = kernel
    return MappingProxyType(missing)


def natten_missing() -> str:
    """What the fast kernel of the 2.5 diffusion decoder (NATTEN) lacks here; empty where it can be had."""
    if not Path("/proc/driver/nvidia/version").exists():  # asked without torch; NATTEN is for Linux anyway
        return "needs an NVIDIA GPU and Linux"
    return "" if _said("kernels") else "needs the package kernels (pip install kernels)"


@cache  # asked at every plan and file, and read from files each time; what is installed stays as it is
def _said(package: str) -> str:
    """A package's version; empty where there is no such package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions(*others: str) -> dict[str, str]:
    """Versions of the libraries that decide the bits of a result, and of `others`."""
    names = ("torch", "diffusers", "transformers", "av", *others)
    return {name: said for name in names if (said := _said(name))}
