"""Things taken for one stage, of a pipeline or of the disk, and given back on every way out.

Each function is a context manager. What is changed is remembered before it is changed, and put back
`firmly` in a `finally`, so that interrupts and out-of-memory leave everything as it was, those too that come
while it is put back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from modules.ltx import beside, lora
from modules.ltx.errors import RequestError
from modules.ltx.plan import DecodePlan


def firmly(put_back: Callable[[], object]) -> None:
    """`put_back`, which may be called twice, a second time where something came into the first: a second Ctrl-C, or
    memory that is still full."""
    try:
        put_back()
    except BaseException:
        put_back()
        raise


@contextmanager
def scheduler(pipe: Any, ours: Any) -> Iterator[Any]:
    """`pipe.scheduler` replaced by `ours`. Assigning also rewrites pipe.config["scheduler"]; both return."""
    theirs = pipe.scheduler
    try:
        pipe.scheduler = ours
        yield ours
    finally:
        firmly(lambda: setattr(pipe, "scheduler", theirs))


@contextmanager
def adapters(pipe: Any, weights: Sequence[tuple[str, dict[str, Any], float]]) -> Iterator[tuple[str, ...]]:
    """LoRA weights, each (source, load keywords, strength), loaded and active, beside those that others had there and
    that act on with their own strengths; none of ours left afterwards.

    `set_adapters` always gets the strengths: without them it resets every adapter to 1.0.
    """
    names: list[str] = []
    if not weights:
        yield ()
        return
    theirs = beside.layers(pipe)
    try:
        for number, (source, keywords, _) in enumerate(weights):
            names.append(f"ltx_stage_{number}")
            _load_adapter(pipe, names[-1], source, keywords)
        pipe.set_adapters(names, [strength for _, _, strength in weights])
        for layer in theirs:
            layer.join()
        yield tuple(names)
    finally:
        firmly(lambda: _remove_adapters(pipe, names, theirs))


def _load_adapter(pipe: Any, name: str, source: str, keywords: dict[str, Any]) -> None:
    """Load one LoRA. Raises RequestError for a file that is no LoRA of this model, HostError for a damaged one."""
    file = Path(source) / keywords.get("weight_name", "")
    if file.is_file():
        lora.check_layers(file, pipe.transformer)
    try:
        _loaded(pipe, name, source, keywords)
    except (OSError, ValueError, LookupError) as error:
        raise RequestError(lora.refused(file, _first_line(error))) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise RequestError(lora.refused(file, _first_line(error))) from error


def _loaded(pipe: Any, name: str, source: str, keywords: dict[str, Any]) -> None:
    try:
        pipe.load_lora_weights(source, adapter_name=name, **keywords)
    except KeyError as error:
        # Beside adapters of others, diffusers stumbles in its own clearing up where the layers were not all wrapped.
        if error.args == (name,) and error.__context__ is not None:
            raise error.__context__ from None
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _remove_adapters(pipe: Any, names: Sequence[str], theirs: Sequence[beside.Layer]) -> None:
    """Delete the named adapters, those too that got half-way and are in no list."""
    if theirs:
        beside.remove(pipe, names, theirs)
    else:
        pipe.unload_lora_weights()


@contextmanager
def hooked(module: Any, hook: Callable[..., None], *, with_kwargs: bool = False) -> Iterator[None]:
    """`hook` called before every forward of `module`, with what torch gives it."""
    try:
        module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
        yield
    finally:
        firmly(lambda: _unhook(module, hook))


def _unhook(module: Any, hook: Callable[..., None]) -> None:
    """By the hook, not by its handle, which an interrupt may have kept from us."""
    for number in [number for number, known in module._forward_pre_hooks.items() if known is hook]:
        module._forward_pre_hooks.pop(number)
        module._forward_pre_hooks_with_kwargs.pop(number, None)


@contextmanager
def forward_hook(module: Any, poll: Callable[[], None]) -> Iterator[None]:
    """`poll` called before every forward of `module`, so that a cancel is seen within one forward."""
    with hooked(module, lambda *_: poll()):
        yield


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """`path`, with its missing parents, made; whatever was made and is still empty goes again on failure.

    Raises RequestError if it cannot be made.
    """
    with ExitStack() as undo:
        undo.callback(_remove_empty, [p for p in (path, *path.parents) if not p.exists()])
        with _unwritable(path):
            path.mkdir(parents=True, exist_ok=True)
        yield path
        undo.pop_all()


def check_writable(path: Path) -> None:
    """Raise RequestError if nothing can be written to the folder `path`; if it is not there, it is left so."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with folder(path), _unwritable(path), tempfile.TemporaryFile(dir=path):
        pass
    _remove_empty(missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    for made in folders:
        with suppress(OSError):  # not empty: somebody else's by now
            made.rmdir()


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    """Around work on the folder alone: an OSError of what is done inside it means something else."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"output folder {path}: cannot be written ({reason}); choose another with -o.") from error


_TILING = (
    "use_tiling",
    "use_framewise_decoding",
    "tile_sample_min_height",
    "tile_sample_min_width",
    "tile_sample_stride_height",
    "tile_sample_stride_width",
)


@contextmanager
def tiling(vae: Any, decode: DecodePlan) -> Iterator[None]:
    """Spatial tiles as the plan says; no tiling in time by the VAE, which `decode.py` does itself."""
    before = {name: getattr(vae, name) for name in _TILING}
    stride = decode.tile_size - decode.overlap_size
    ours = (True, False, decode.tile_size, decode.tile_size, stride, stride)
    try:
        for name, value in zip(_TILING, ours, strict=True):
            setattr(vae, name, value)
        yield
    finally:
        firmly(lambda: _assign(vae, before))


def _assign(owner: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)
