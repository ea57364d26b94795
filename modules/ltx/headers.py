"""Safetensors files, their indexes and configs as they are on disk, looked at before any library reads them.

A header must fit its file to the byte, an index its files, a config what weights there are: what is cut short, damaged
or absurd is refused in one sentence that names the file. Knows the format; reads no numbers, so that a flipped bit in
these is found only where the folder brings a SHA256SUMS. Imports no torch; what a config builds is `built.py`'s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modules.ltx.errors import HostError, LTXError
from modules.ltx.ltx_util import file_digest

SUMS = "SHA256SUMS"  # as `sha256sum` writes it, paths from the folder it stands in
AGAIN = "download or copy it again"
# What diffusers and transformers call weights.
_STEMS = ("diffusion_pytorch_model", "model")
# Bits of a number, by the names of https://github.com/huggingface/safetensors (safetensors/src/tensor.rs).
_BITS: Mapping[str, int] = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F4": 4},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F6_E2M3": 6, "F6_E3M2": 6},
}
_HEADER = "its header"
_MOST_HEADER = 100_000_000  # bytes: safetensors' own limit
_MOST_CONFIG = 4_000_000  # bytes; published ones have a few kB
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip files, and bare ones
# What a config counts in modules, each of which has tensors.
_COUNTS = re.compile(r"(?:^|_)(?:layers|blocks|depth|layers_per_\w+)\Z")


class Tensor(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises HostError where its header is not exactly that of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(head := opened.read(8), "little")
            if head.startswith(_PICKLES):
                raise HostError(
                    f"{file}: it is a pickle, whatever its name; only safetensors are read. Convert it first."
                )
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise _damaged(file, f"its {size} bytes are no header and no weights")
            text = opened.read(length)
    except OSError as error:
        raise HostError(f"{file}: it cannot be read ({error.strerror}); {AGAIN}.") from error
    entries = _object(file, text, _HEADER)
    _check_metadata(file, entries.pop("__metadata__", {}))
    found = {name: _tensor(file, name, entry) for name, entry in entries.items()}
    _check_places(file, entries, size - 8 - length)
    return found


def _check_metadata(file: Path, told: Any) -> None:
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise _damaged(file, "the notes in its header are damaged")
    if told.get("format", "pt") != "pt":
        raise _damaged(file, f"its format is {told['format']!r:.40}, not 'pt'")


def _tensor(file: Path, name: str, entry: Any) -> Tensor:
    """Checked by itself: a known dtype, and as many bytes as its shape has numbers."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or dtype not in _BITS:
        raise _damaged(file, f"its header does not say what {name[:80]!r} is")
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise _damaged(file, f"{name[:80]!r} has {end - begin} bytes, which is not {dtype} {list(shape)}")
    return Tensor(dtype, shape)


def _check_places(file: Path, entries: Mapping[str, Any], size: int) -> None:
    """The tensors lie one behind the other, and fill the file."""
    at = 0
    for begin, end in sorted(entry["data_offsets"] for entry in entries.values()):
        if begin != at:
            raise _damaged(file, f"its tensors overlap or leave a gap at byte {at}")
        at = end
    if at != size:
        raise _damaged(file, f"it holds {size} bytes of weights, and its header describes {at}")


def of_part(part: Path) -> dict[str, Tensor]:
    """The tensors of a component's folder, from its one file or all that its index names. Raises HostError where a
    file is missing, or index and files disagree."""
    for stem in _STEMS:
        if (index := part / f"{stem}.safetensors.index.json").is_file():
            return _of_shards(index)
        if (single := part / f"{stem}.safetensors").is_file():
            return read(single)
    raise HostError(f"{part}: there is no {' or '.join(f'{stem}.safetensors' for stem in _STEMS)} in it; {AGAIN}.")


def _of_shards(index: Path) -> dict[str, Tensor]:
    places = json_of(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _damaged(index, "it names no files")
    names = set(map(str, places.values()))
    strange = next((name for name in names if Path(name).name != name or not name.endswith(".safetensors")), None)
    if strange is not None:
        raise _damaged(index, f"it names {strange[:80]!r}, which is no file beside it")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise HostError(f"{index.parent / missing[0]}: it is missing, and the index names it; {AGAIN}.")
    found = {(tensor, name): what for name in sorted(names) for tensor, what in read(index.parent / name).items()}
    wrong = sorted(places.items() ^ found.keys())
    if wrong:
        raise _damaged(index, f"it and its files disagree about {wrong[0][0][:80]!r} in {wrong[0][1]}")
    return {tensor: what for (tensor, _), what in found.items()}


def check_config(part: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A component's config. Raises HostError for one that is damaged, brings code, or counts more layers than there
    are tensors."""
    file = part / "config.json"
    config = json_of(file, _MOST_CONFIG)
    if "auto_map" in config:
        raise HostError(f"{file}: it asks for code of the folder to be run, which is not done; take a model without.")
    for name, count in _counts(config):
        if not 0 <= count <= max(len(tensors), 1):
            raise HostError(f"{file}: {name} is {count}, and there are {len(tensors)} tensors; {AGAIN}.")
    return config


def _counts(config: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a config that counts modules, those in lists and inner configs too."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _counts(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _counts(value, name)
    elif type(config) is int and _COUNTS.search(name):
        yield name, config


def json_of(file: Path, most: int = _MOST_HEADER) -> dict[str, Any]:
    """A JSON file's object. Raises HostError for anything else, and for one of over `most` bytes."""
    try:
        if file.stat().st_size > most:
            raise _damaged(file, f"it has over {most // 1_000_000} MB")
        return _object(file, file.read_bytes(), "it")
    except OSError as error:
        raise HostError(f"{file}: it cannot be read ({error.strerror}); {AGAIN}.") from error


def _object(file: Path, text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once if what == _HEADER else None)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"{what} is no whole JSON") from error
    if not isinstance(found, dict):
        raise _damaged(file, f"{what} is no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def check_sums(folder: Path, parts: Iterable[str]) -> None:
    """Where a model folder brings a SHA256SUMS: the files of `parts` that it names are what it says, to the last bit.
    Reads them whole. Raises HostError."""
    file = folder / SUMS
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.strip().partition(" ")
        path = folder / name.lstrip(" *")
        if path.parent != folder and path.parent.name in parts:
            try:
                right = file_digest(path) == digest.lower()
            except LTXError as error:
                raise HostError(f"{path}: it is in {SUMS} and cannot be read; {AGAIN}.") from error
            if not right:
                raise _damaged(path, f"it is not what {SUMS} says")


def _damaged(file: Path, how: str) -> HostError:
    return HostError(f"{file}: the file is damaged or cut short ({how}); {AGAIN}.")
