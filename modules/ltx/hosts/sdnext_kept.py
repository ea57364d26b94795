"""Where our settings are saved: `config.ltx.json`, beside SD.Next's config.json.

In config.json they would outlive the extension: the UI warns at every start of each name there that it does not know.
The UI's own objects stay in charge of values, defaults and the page; only what is saved, and where, is decided here.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any

from modules.ltx.hosts.sdnext import replaced, ui


def settings_file(opts: Any) -> Path:
    """One file per config of the UI: `--config other.json` has `other.ltx.json`."""
    return Path(opts.filename).absolute().with_suffix(".ltx.json")


@contextmanager
def kept_apart(names: Collection[str]) -> Iterator[None]:
    """While it lasts, the options `names` are saved to our own file.

    What an older version of the extension left in config.json is moved. Afterwards the UI has none of these values.
    """
    opts = ui("shared").opts
    moved = [name for name in names if name in opts.data]
    for name, value in _read(settings_file(opts)).items():
        if name in names and name not in moved:
            opts.data[name] = value

    def save_atomic(silent: bool = False) -> None:
        kind = type(opts)
        if not _frozen() and not _write(settings_file(opts), _changed(opts, names)):
            kind.save_atomic(opts, silent)  # better in config.json than lost
            return
        rest = copy(opts)  # the UI reads and changes its own one meanwhile
        vars(rest)["data"] = {name: value for name, value in opts.data.items() if name not in names}
        kind.save_atomic(rest, silent)

    try:
        with replaced(opts, "save_atomic", save_atomic):
            if moved and not _frozen():
                save_atomic(silent=True)
            yield
    finally:
        for name in names:
            opts.data.pop(name, None)


def _frozen() -> bool:
    """The UI was started with --freeze: it saves no settings."""
    return bool(getattr(getattr(ui("shared"), "cmd_opts", None), "freeze", False))


def _changed(opts: Any, names: Collection[str]) -> dict[str, Any]:
    """The values that are not the defaults; before the UI has the labels, all values."""
    held = {name: opts.data[name] for name in sorted(names) if name in opts.data}
    labels = opts.data_labels
    return {name: value for name, value in held.items() if name not in labels or labels[name].default != value}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        found = error
    if isinstance(found, dict):
        return found
    ui("logger").log.error(f"LTX video: {file} could not be read ({found}); the settings are the defaults")
    return {}


def _write(file: Path, values: dict[str, Any]) -> bool:
    """The whole file or nothing; without values there is no file. Whether it could be done."""
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")  # the UI saves from several threads
    try:
        if values:
            new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            os.replace(new, file)
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        ui("logger").log.error(f"LTX video: the settings could not be saved to {file} ({error})")
        with suppress(OSError):
            new.unlink(missing_ok=True)
        return False
    return True
