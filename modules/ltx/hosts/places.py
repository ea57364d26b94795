"""Where the parts of a model are on this machine: LTX-Nano built, a folder as given, or downloaded from the hub.

What hosts have in common. Reads no weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.hosts import folders, nano
from modules.ltx.ltx_capabilities import Caps, Facts
from modules.ltx.plan import LoraPlan

NANO = "nano:"


def cache_folder(chosen: Path | None = None) -> Path:
    """Where LTX-Nano lives: outside the project, so that every checkout shares it."""
    if chosen is not None:
        return chosen
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or str(Path.home() / ".cache")
    return Path(os.environ.get("LTX_CACHE") or Path(base) / "ltx-nano")


@dataclass(frozen=True)
class Places:
    """`cache`: where LTX-Nano is built. `offline`: the network is not asked."""

    cache: Path
    offline: bool = False

    def probe(self, source: str) -> Facts | None:
        return folders.probe(source, offline=self.offline)

    def local(self, source: str) -> Path | None:
        """The folder of a source that needs no hub: LTX-Nano built, a folder as given."""
        if source.startswith(NANO):
            return nano.ensure(source.removeprefix(NANO), self.cache)
        return folders.folder_of(source)

    def extra(self, caps: Caps, name: str) -> Path:
        """The folder that has the component `name`, which only some jobs need: the model's own, else the hub's."""
        from modules.ltx.hosts import hub

        local = self.local(caps.source)
        if local is not None and (local / name).is_dir():
            return local
        if name == hub.ENHANCER and caps.prompt_enhancer_repo is not None:
            return hub.whole(caps.prompt_enhancer_repo, offline=self.offline)
        folder = local or hub.part(caps.source, name, offline=self.offline)
        if not (folder / name).is_dir():
            raise RequestError(f"{caps.source}: this copy of the model has no {name}")
        return folder

    def upsampler(self, source: str) -> Path:
        from modules.ltx.hosts import hub

        return self.local(source) or hub.upsampler(source, offline=self.offline)

    def lora(self, lora: LoraPlan) -> tuple[str, dict[str, Any]]:
        """See `folders.lora_file`."""
        if lora.repo.startswith(NANO):
            lora = replace(lora, repo=str(self.local(lora.repo)))
        return folders.lora_file(lora, offline=self.offline)
