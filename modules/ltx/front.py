"""What every front door does between a Request and a Plan: find the row, look at the files, plan.

Front doors translate (argv, form fields, JSON) into a Request and hand it here; none of them decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from modules.ltx import lora
from modules.ltx.errors import LTXError, RequestError
from modules.ltx.host import Host
from modules.ltx.ltx_capabilities import Caps, all_caps, as_variant, caps_for, effective
from modules.ltx.ltx_util import file_digest
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request


def settle(request: Request, host: Host) -> Plan:
    """The plan of a request on this host. Reads configs and images, never weights; looks for LoRA files."""
    caps, notes = resolve(request, host)
    settled = plan(request, caps, notes, host.denoise_callback())
    if settled.images or settled.prefix is not None:
        _look_at(settled)
    for asked in {one.repo: one for stage in settled.stages for one in stage.loras}.values():
        folder, file = host.weights(asked)
        lora.check(Path(folder) / file["weight_name"], caps.num_blocks)
    return settled


def _look_at(settled: Plan) -> None:
    """What is unreadable is said now, not after the model was loaded."""
    from modules.ltx.media_clip import load_clip  # PyAV: nothing that a plan without media should wait for
    from modules.ltx.media_in import load_image

    for image in settled.images:
        load_image(Path(image.path))
    if settled.prefix is not None:
        load_clip(settled.prefix)


def sketch(request: Request, host: Host) -> Plan:
    """The plan of a request, without a look at its files: what a form shows while it is filled in."""
    caps, notes = resolve(request, host)
    return plan(request, caps, notes, host.denoise_callback())


def resolve(request: Request, host: Host) -> tuple[Caps, tuple[str, ...]]:
    """The row of the request's model, with what this machine lacks, and notes on how it was found."""
    mode = mode_of(request)
    if request.variant is not None:
        row, notes = caps_for(request.variant, mode=mode)
        if host.probe(request.model) is None:
            raise RequestError(f"model {request.model!r}: no such folder or repo; --variant goes with one of these.")
        caps = as_variant(row, request.model)
        notes = (*notes, f"{request.model}: taken as {row.label}, as asked")
    else:
        caps, notes = caps_for(request.model, mode=mode, probe=host.probe)
    return effective(caps, host.lacks()), notes


def mode_of(request: Request) -> str:
    """Which variant of a repo the request needs: text alone, one first image held fully, or anything else."""
    if request.prefix is not None:
        return "Condition"
    if not request.images:
        return "T2V"
    only_first = len(request.images) == 1 and request.images[0].frame == 0 and request.images[0].strength == 1.0
    return "I2V" if only_first else "Condition"


def variants(host: Host) -> tuple[Caps, ...]:
    """Every variant of the catalogue, with what this machine lacks."""
    lacks = host.lacks()
    return tuple(effective(caps, lacks) for caps in all_caps())


def request_of_file(path: Path) -> dict[str, object]:
    """The request that made an mp4 of ours, as `Request.parse` takes it. Its images must be unchanged."""
    request, gone = _stored(path)
    for name in gone:
        raise RequestError(f"--from {path}: its {name} is missing or was changed; put it back, or name another file.")
    return request


def settings_of_file(path: Path) -> tuple[Request, list[str]]:
    """The request that made an mp4 of ours, for a form: pictures and videos that are missing or were changed since are
    left out; they are named, too."""
    values, gone = _stored(path)
    images, prefix = values.get("images"), values.get("prefix")
    if isinstance(images, (list, tuple)):
        values["images"] = [at for at in images if not (isinstance(at, Mapping) and at.get("path") in gone)]
    if isinstance(prefix, Mapping) and prefix.get("path") in gone:
        values["prefix"] = None
    return Request.parse(values), [Path(name).name for name in gone]


def restored(path: Path, rows: Iterable[Caps]) -> tuple[Request, Caps, str]:
    """What a form needs to ask for an mp4 of ours again: the request, its row of `rows`, and a sentence. Raises
    RequestError for any other file, without its folder."""
    try:
        request, gone = settings_of_file(path)
    except LTXError as error:
        raise RequestError(str(error).replace("--from ", "").replace(str(path), path.name)) from error
    caps = next((row for row in rows if request.model in (row.id, row.label)), None)
    if caps is None:
        raise RequestError(f"{path.name}: it was made with {request.model}, which is not in the list of models.")
    said = f"the settings of {path.name} are in the form now"
    if gone:
        said += f"; {', '.join(gone)} {'are' if len(gone) > 1 else 'is'} not where it was any more: give it again"
    return request, caps, said


def _stored(path: Path) -> tuple[dict[str, object], list[str]]:
    """The request in an mp4 of ours, and which of its files are not what they were."""
    from modules.ltx.media_in import read_metadata

    found = read_metadata(path)
    request, media = found.get("request"), found.get("media")
    if not isinstance(request, Mapping) or not isinstance(media, Mapping):
        raise RequestError(f"--from {path}: it holds no request; give an mp4 that this program wrote.")
    gone = [name for name, digest in media.items() if not Path(name).is_file() or file_digest(Path(name)) != digest]
    return dict(request), gone
