"""Gives damaged images, videos and sounds to all that reads them: files named on the command line, and uploads.

    python -m bench.media_fuzz [INPUTS] [--seed N] [--first N]

Every input must be taken or be refused with a RequestError, within SECONDS and MEMORY, and leave no file; what was
taken must be readable as what it was taken for. A process of its own reads, so that its death, or one that hangs, is a
finding as well. Prints what was found as JSON; the exit code is 1 where anything is wrong. `--seed` and `--first` with
the number of a finding repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.media_corpus import Original, damaged, of_this_program, originals
from modules.ltx.errors import RequestError
from modules.ltx.hosts.machine import peak_memory
from modules.ltx.media_clip import load_clip
from modules.ltx.media_in import load_image, read_metadata
from modules.ltx.request import Prefix
from modules.ltx.uploads import Uploads

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 30.0  # for one input; the machine may be busy
MEMORY = 2 << 30  # bytes that one input may take more than nothing does
ROADS = {
    "image": ("image on the command line", "image uploaded"),
    "video": ("video on the command line", "settings of a video", "video uploaded"),
    "audio": ("sound uploaded",),
}


def pick(files: Sequence[Original], seed: int, number: int) -> tuple[str, str, bytes]:
    """Input `number`: the road that it takes, its name, its bytes. One in ten comes as another kind than it is."""
    chance = random.Random(f"{seed}/{number}")
    file, other = chance.choice(files), chance.choice(files)
    kind = chance.choice(list(ROADS)) if chance.random() < 0.1 else file.kind
    return chance.choice(ROADS[kind]), file.name, damaged(file.data, chance, other.data)


def read(road: str, path: Path, uploads: Uploads) -> None:
    """Read `path` by a road, and what was taken in once more. Raises RequestError where it is refused."""
    if road == "image on the command line":
        load_image(path)
    elif road == "video on the command line":
        load_clip(Prefix(str(path), 3, 1))
    elif road == "settings of a video":
        read_metadata(path)
    else:
        kind = {"image uploaded": "image", "video uploaded": "video", "sound uploaded": "audio"}[road]
        taken = uploads.take(path, kind)
        _use(taken, kind)
        taken.unlink()


def _use(taken: Path, kind: str) -> None:
    """Raises AssertionError where what was taken in cannot be used."""
    try:
        if kind == "image":
            load_image(taken)
        elif kind == "video":
            load_clip(Prefix(str(taken), 1))
    except RequestError as error:
        raise AssertionError(f"it was taken in and cannot be read: {error}") from error


def corpus(folder: Path) -> list[Original]:
    """The whole files that `trial` put there."""
    return [Original(path.name[2:], path.parent.name, path.read_bytes()) for path in sorted(folder.glob("corpus/*/*"))]


def child(folder: Path, seed: int, first: int, last: int) -> None:
    """Reads inputs `first` to `last`, and says of each how it went, one line of JSON each."""
    _limit()
    files = corpus(folder)
    uploads = Uploads(folder / "uploads")
    for number in range(first, last):
        road, name, data = pick(files, seed, number)
        path = folder / "inputs" / name
        path.write_bytes(data)
        peak_memory("cpu")
        before, began = _held(), time.perf_counter()
        try:
            read(road, path, uploads)
            went = "taken"
        except RequestError as error:
            went = "refused" if str(error).count("\n") == 0 else f"more than a sentence: {error}"
        except BaseException as error:  # whatever else it is, it is what is looked for
            went = f"{type(error).__name__}: {str(error)[:200]}"
        took, most = time.perf_counter() - began, (peak_memory("cpu") or 0) - before
        path.unlink()
        left = [one.name for one in uploads.folder.iterdir()] if uploads.folder.is_dir() else []
        if left:
            went = f"left {left} behind, and {went}"
            for one in left:
                (uploads.folder / one).unlink()
        print(json.dumps([number, road, name, went, round(took, 4), most]), flush=True)


def _limit() -> None:
    """No more memory than MEMORY beside what is held already, no large file, no core dump; where there are limits."""
    with suppress(ImportError):
        import resource

        told = Path("/proc/self/statm")
        if told.exists():
            now = int(told.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + (1 << 30),) * 2)  # and threads' stacks
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _held() -> int:
    """Bytes of memory in use, where the system tells."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def said(folder: Path, seed: int, first: int, last: int) -> Iterator[list[Any]]:
    """What readers said of the inputs, one begun anew behind each that killed or held up the one before."""
    number = first
    while number < last:
        command = [sys.executable, "-m", "bench.media_fuzz", "--child", str(folder), str(seed), str(number), str(last)]
        # Without a buffer: what waits in one is not seen by `select`.
        reader = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        assert reader.stdout is not None
        try:
            while number < last:
                ready, _, _ = select.select([reader.stdout], [], [], SECONDS)
                line = reader.stdout.readline() if ready else b""
                if not line:
                    reader.kill()
                    road, name, _ = pick(corpus(folder), seed, number)
                    code = reader.wait()
                    went = f"the reader died ({code})" if ready else f"no answer within {SECONDS:g} s"
                    yield [number, road, name, went, SECONDS, 0]
                    number += 1
                    break
                yield json.loads(line)
                number += 1
        finally:
            reader.kill()
            reader.wait()
            reader.stdout.close()
        for left in (folder / "uploads").glob("*.part"):
            left.unlink()  # of one that was killed; a server removes it a day later


def trial(folder: Path, inputs: int, seed: int, first: int = 0) -> dict[str, Any]:
    """`inputs` inputs, read in `folder`; what went wrong stands under "wrong"."""
    (folder / "inputs").mkdir()
    (folder / "corpus").mkdir()
    for number, file in enumerate([*originals(), of_this_program(folder / "ours.mp4")]):
        (folder / "corpus" / file.kind).mkdir(exist_ok=True)
        (folder / "corpus" / file.kind / f"{chr(97 + number)}-{file.name}").write_bytes(file.data)
    roads: dict[str, Counter[str]] = {road: Counter() for every in ROADS.values() for road in every}
    wrong, slowest, largest = [], 0.0, 0
    for number, road, name, went, took, most in said(folder, seed, first, first + inputs):
        fine = went in ("taken", "refused") and most <= MEMORY
        roads[road][went if fine else "wrong"] += 1
        slowest, largest = max(slowest, took), max(largest, most)
        if not fine:
            wrong.append(f"{number} ({name}, {road}): {went}; {took:.1f} s, {most >> 20} MiB")
    told = {
        "inputs": sum(sum(road.values()) for road in roads.values()),
        "roads": {k: dict(v) for k, v in roads.items()},
    }
    return {**told, "slowest": round(slowest, 2), "most_mib": largest >> 20, "wrong": wrong}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(Path(folder), given.inputs, given.seed, given.first)
    print(json.dumps(found, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
