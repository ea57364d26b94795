"""`python -m bench.compatibility FOLDER ...`: what each release of diffusers can do, and whether its latents are equal.

A FOLDER holds one release: `pip install --no-deps --target FOLDER diffusers==X`. Prints the tables of
docs/compatibility.md: the features that `modules.ltx.library_features` asks for, by release; and for LTX-Nano jobs of
every kind whether the latents of video and sound are those of the last release named, bit for bit. `--features` leaves
the jobs out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.kit import ROOT
from modules.ltx.library_features import FEATURES

TWO: dict[str, object] = {"refine": True, "width": 128, "height": 128}
FIRST: dict[str, object] = {"frame": 0}
JOBS: dict[str, tuple[str, dict[str, object]]] = {
    "2.3 Distilled, text": ("nano-2.3-distilled-t2v", {}),
    "2.3 Distilled, text, two stages": ("nano-2.3-distilled-t2v", TWO),
    "2.3 Dev, text, two stages with its LoRA": ("nano-2.3-dev-t2v", {**TWO, "steps": 4}),
    "2.3 Distilled, first image, two stages": ("nano-2.3-distilled-i2v", {**TWO, "images": [FIRST]}),
    "2.3 Distilled, first and last image, two stages": (
        "nano-2.3-distilled-condition",
        {**TWO, "images": [FIRST, {"frame": -1}]},
    ),
    "2.3 Dev, first image": ("nano-2.3-dev-i2v", {"steps": 4, "images": [FIRST]}),
    "2.0 Dev, text": ("nano-2.0-dev-t2v", {"steps": 4}),
    "0.9, text": ("nano-0.9-t2v", {"steps": 4}),
    "0.9, image, two stages": ("nano-0.9-condition", {**TWO, "steps": 4, "images": [FIRST]}),
    "upsampled alone": ("nano-2.3-distilled-t2v", {"upsample": 2.0}),
    "self-refined, two stages": (
        "nano-2.3-distilled-t2v",
        {**TWO, "self_refine": "p1", "self_refine_plan": "2-6:2;1-2:2"},
    ),
}


def features(releases: Mapping[str, Path]) -> Iterable[str]:
    """The table of features, in Markdown. A release is named as its folder is."""
    yield f"| | {' | '.join(releases)} | where it is missing |"
    yield f"|---|{'---|' * len(releases)}---|"
    for feature in FEATURES:
        cells = ["yes" if feature.present(folder / "diffusers") else "no" for folder in releases.values()]
        yield f"| {feature.name} | {' | '.join(cells)} | {feature.without} |"


def jobs(found: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """The table of jobs, in Markdown: latents of each release beside those of the last."""
    wanted = list(found.values())[-1]
    yield f"| latents | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for name in JOBS:
        cells = ["same bits" if told.get(name) == wanted[name] else told.get(name, "fails") for told in found.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def digests(folder: Path) -> dict[str, str]:
    """The latents of every job with the release in `folder`, in a process of its own."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bench.compatibility", "--one"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def one() -> dict[str, str]:
    """The latents' digests of every job, with the diffusers of this process; a sentence for one that fails."""
    from PIL import Image

    from modules.ltx.errors import LTXError
    from modules.ltx.front import settle
    from modules.ltx.hosts.embedded import EmbeddedHost, Settings
    from modules.ltx.ltx_process import run
    from modules.ltx.request import Request

    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "given.png"
        Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(picture)
        host = EmbeddedHost(Settings(Path(folder), device="cpu", dtype="float32", offline=True))
        for name, (model, options) in JOBS.items():
            asked = {
                "model": model,
                "prompt": "a red ball",
                "width": 64,
                "height": 64,
                "frames": 9,
                "seed": 1,
                **options,
            }
            given = asked.get("images", [])
            assert isinstance(given, list)
            asked["images"] = [{"path": str(picture), **at} for at in given]
            try:
                media = run(settle(Request.parse(asked), host), host).media
            except LTXError as error:
                found[name] = str(error)
                continue
            assert media is not None
            found[name] = f"{media.video_latents_sha256} {media.audio_latents_sha256}"
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compatibility", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="one release each, the newest last")
    parser.add_argument("--features", action="store_true", help="the table of features alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.one:
        print(json.dumps(one()))
        return 0
    missing = [str(folder) for folder in asked.folders if not (folder / "diffusers").is_dir()]
    if missing or not asked.folders:
        named = f"{missing[0]} holds no diffusers" if missing else "no folder is named"
        parser.error(f"{named}: make one with `pip install --no-deps --target FOLDER diffusers==X`")
    releases = {re.sub(r"^diffusers-", "", folder.absolute().name): folder.resolve() for folder in asked.folders}
    print("\n".join(features(releases)))
    if not asked.features:
        print("\n" + "\n".join(jobs({name: digests(folder) for name, folder in releases.items()})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
