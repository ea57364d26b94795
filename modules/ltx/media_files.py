"""A video's files on disk: hidden under names of their own until all of them are complete.

Knows how finished files get their names in one step, what may be replaced, and how to clear up after
a killed process. Knows nothing of what is in the files.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modules.ltx.errors import HostError, RequestError
from modules.ltx.media_in import top_level_boxes

THUMBNAIL_SIDE = 512
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{12}\.part(\.mp4|\.jpg|\.png|\.safetensors)?", re.DOTALL)


class Outputs:
    """The video and what goes beside it: hidden until `publish`, removed where that is not reached."""

    def __init__(
        self, path: Path, *, png_frames: bool, thumbnail: bool, pictures: Iterable[str] = (), tensors: bool = False
    ) -> None:
        """`pictures` names PNGs that go beside the video, as STEM-NAME.png; `tensors`: STEM.safetensors does, too."""
        self.video = path
        self.thumbnail = path.with_suffix(".jpg") if thumbnail else None
        self.frames_dir = path.with_name(f"{path.stem}-frames") if png_frames else None
        self.tensors = path.with_suffix(".safetensors") if tensors else None
        self.pictures = {name: path.with_name(f"{path.stem}-{name}.png") for name in pictures}
        # The video comes last: where it stands, all that belongs to it does.
        every = (self.frames_dir, self.thumbnail, self.tensors, *self.pictures.values(), self.video)
        self._all = [p for p in every if p is not None]
        self._tokens = {final: secrets.token_hex(6) for final in self._all}  # two pictures have one suffix
        if self.video.suffix.lower() != ".mp4":
            raise RequestError(f"{self.video.name} is no name for an mp4; end it in .mp4.")
        for final in self._all:
            if os.path.lexists(final) and not self._may_replace(final):
                raise RequestError(f"{final} is already there; move it away or choose another name.")

    def temp(self, final: Path) -> Path:
        """Where `final` is written until it is complete; [:40] because names have a longest length."""
        suffix = "" if final == self.frames_dir else final.suffix.lower()
        return final.with_name(f".{self.video.stem[:40]}.{self._tokens[final]}.part{suffix}")

    def _may_replace(self, final: Path) -> bool:
        """An earlier video and its thumbnail may go; folders, and a picture without a video, may not."""
        return final.is_file() and self.video.is_file()

    def add(self, image: NDArray[np.uint8], index: int) -> None:
        if self.frames_dir is not None:
            folder = self.temp(self.frames_dir)
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:05d}.png")
        if self.thumbnail is not None and index == 0:
            small = Image.fromarray(image)
            small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            small.save(self.temp(self.thumbnail), "JPEG", quality=90)

    def add_picture(self, name: str, image: Image.Image) -> None:
        image.save(self.temp(self.pictures[name]), "PNG", optimize=True)

    def publish(self) -> None:
        require_whole(self.temp(self.video))
        with ExitStack() as undo:
            for final in self._all:
                undo.callback(self._take_back, final)
                os.replace(self.temp(final), final)
            _sync_folder(self.video.parent)
            undo.pop_all()

    def _take_back(self, final: Path) -> None:
        """Remove what stands under its final name already; as long as it has its hidden one, that is something else."""
        if not os.path.lexists(self.temp(final)):
            _remove(final)

    def discard(self) -> None:
        """After `publish` none of these names exists."""
        for final in self._all:
            _remove(self.temp(final))


def sweep_partials(folder: Path, older_than_s: float) -> int:
    """Removes what killed writers left in `folder`, untouched for `older_than_s` seconds; says how many.

    Only names this module makes are touched. A missing folder has none.
    """
    if not folder.is_dir():
        return 0
    stale = [entry for entry in folder.iterdir() if _is_stale(entry, older_than_s)]
    for entry in stale:
        _remove(entry)
    return sum(not os.path.lexists(entry) for entry in stale)


def withdraw(path: Path) -> None:
    """Removes what a killed writer of the video `path` left, under hidden names and under those of what goes beside the
    video, which is published last. Does nothing where the video is there. The name must have been free before."""
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    hidden = f".{path.stem[:40]}."
    for entry in list(path.parent.iterdir()):
        partial = entry.name.startswith(hidden) and _PARTIAL.fullmatch(entry.name)
        beside = entry.name in (f"{path.stem}.jpg", f"{path.stem}.safetensors", f"{path.stem}-frames")
        picture = entry.name.startswith(f"{path.stem}-") and entry.name.endswith("-uncertainty.png")
        if partial or beside or picture:
            _remove(entry)


def require_whole(path: Path) -> None:
    """Checks that the mp4 is whole, since not every failed write is reported, and syncs it to disk."""
    with path.open("r+b") as file:
        try:
            top_level_boxes(file)
        except ValueError as error:
            raise HostError(f"The video in {path.parent} came out incomplete; is the disk full?") from error
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """So the new names survive a power cut; where a system cannot do this, the files stand all the same."""
    with suppress(OSError), ExitStack() as stack:
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        os.fsync(handle)


def _is_stale(entry: Path, older_than_s: float) -> bool:
    if not _PARTIAL.fullmatch(entry.name):
        return False
    with suppress(OSError):  # gone already
        return time.time() - entry.lstat().st_mtime >= older_than_s
    return False


def _remove(path: Path) -> None:
    """A file or a folder, if it is there; what cannot be removed stays for `sweep_partials`."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
