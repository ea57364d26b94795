"""`python -m nano.evaluate`: makes clips of LTX-Nano and says how often they show what was asked.

Runs the project's own plans and stages, from a prompt to pixels and sound; only the file is left out. Half
of the scenes are of combinations that were never trained. Prints a table, the differences of what is to be compared
(paired: the same prompts and seeds) with 95 % bootstrap intervals, and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nano import judge, prompts, world

CHUNK = 10  # scenes whose rows are kept in one file
ELSEWHERE = 0.1  # of the width: an object that far off is not where it was, nor where the sound comes from
PARTS = ("seen", "held_out")
MEASURES = ("outline", "edge", "flatness", "flicker", "area_drift", "colour_drift", "jerk")


@dataclass(frozen=True)
class Mode:
    """One way to make a clip: a model and its options. `given` names the pictures it gets."""

    name: str
    model: str
    options: Mapping[str, object] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    enlarge: bool = False  # bicubic to twice the size before it is judged


@dataclass(frozen=True)
class Made:
    """A clip: frames (frames, height, width, 3), the wave (2, samples), its rate, and the seconds it took; `draft`: the
    frames that the first of two stages drew."""

    frames: Any
    wave: Any
    rate: int
    seconds: float
    draft: Any | None = None


_SMALL = {"width": 128, "height": 128}
_LARGE = {"width": 256, "height": 256}
_TWO = {**_LARGE, "refine": True}
_ALL = {"guided_batch": "all"}  # one forward a guided step: the same clips, sooner
MODES: tuple[Mode, ...] = (
    Mode("dev, one stage", "nano-2.3-dev-t2v", {**_LARGE, **_ALL}),
    Mode("dev, one stage, cfg 1", "nano-2.3-dev-t2v", {**_LARGE, **_ALL, "guidance_scale": 1.0}),
    Mode("dev, 128x128", "nano-2.3-dev-t2v", {**_SMALL, **_ALL}),
    Mode("dev, 128x128, cfg 1", "nano-2.3-dev-t2v", {**_SMALL, **_ALL, "guidance_scale": 1.0}),
    Mode("dev, two stages", "nano-2.3-dev-t2v", {**_TWO, **_ALL}),
    Mode("distilled, one stage", "nano-2.3-distilled-t2v", _LARGE),
    Mode("distilled, 128x128", "nano-2.3-distilled-t2v", _SMALL),
    Mode("distilled, 128x128, bicubic to 256x256", "nano-2.3-distilled-t2v", _SMALL, enlarge=True),
    Mode("distilled, two stages", "nano-2.3-distilled-t2v", _TWO),
    Mode("i2v, two stages", "nano-2.3-distilled-i2v", _TWO, given=("first",)),
    Mode("condition, two stages", "nano-2.3-distilled-condition", _TWO, given=("first", "last")),
)

# What the first of two modes is worth, and in which figures.
COMPARED = (
    ("distilled, two stages", "distilled, 128x128, bicubic to 256x256"),
    ("dev, one stage", "dev, one stage, cfg 1"),
    ("dev, 128x128", "dev, 128x128, cfg 1"),
)
FIGURES = ("all", "shape", "size", "outline", "edge")


def scenes(count: int, *, seed: int = 5) -> list[world.Scene]:
    """`count` scenes, alternating between trained and held-out combinations."""
    rng = np.random.default_rng(seed)
    return [world.draw_scene(rng, held_out=index % 2 == 1) for index in range(count)]


class Maker:
    """Holds one host, so that models stay loaded between clips."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        from modules.ltx.hosts.embedded import EmbeddedHost, Settings

        self.folder = folder
        self.host = EmbeddedHost(Settings(folder, cache=cache, device="cpu", offline=True))

    def make(self, mode: Mode, scene: world.Scene, seed: int) -> Made:
        import torch

        from modules.ltx import decode, stages
        from modules.ltx.front import settle
        from modules.ltx.media_in import load_image
        from modules.ltx.request import Request
        from modules.ltx.state import State

        asked: dict[str, object] = {"model": mode.model, "prompt": prompts.plain(scene), "frames": 25, "seed": seed}
        asked.update(mode.options)
        if mode.given:
            asked["images"] = [self._picture(scene, which) for which in mode.given]
        plan = settle(Request.parse(asked), self.host)
        began = time.perf_counter()
        state = State(plan=plan, seed=seed, images=tuple(load_image(Path(at.path)) for at in plan.images))
        drafted = None
        with torch.no_grad():
            for phase, stage in stages.ordered(plan):
                drafted = state if phase == "upsample" else drafted
                state = stage(state, self.host)
            with self.host.pipeline(plan.caps, plan.stages[-1].pipeline or plan.caps.pipeline) as pipe:
                assert state.delivered_audio is not None
                heard = decode.sound(pipe, state.delivered_audio, device=self.host.device(pipe))
                frames = self._frames(pipe, state)
                frames = enlarged(frames) if mode.enlarge else frames
                seconds = time.perf_counter() - began
                draft = None if drafted is None else self._frames(pipe, drafted)
        return Made(frames, heard.waveform, heard.rate, seconds, draft)

    def _frames(self, pipe: Any, state: Any) -> Any:
        import torch

        from modules.ltx import decode
        from modules.ltx.ltx_process import _for_vae

        chunks = decode.frames(
            pipe,
            _for_vae(pipe, state),
            state.plan.decode,
            device=self.host.device(pipe),
            generator=torch.Generator("cpu").manual_seed(state.seed),
            before_tile=lambda: None,
        )
        return np.concatenate([np.asarray(chunk) for chunk in chunks])

    def _picture(self, scene: world.Scene, which: str) -> dict[str, object]:
        from PIL import Image

        clip = world.pixels(scene, 25, width=256, height=256)
        path = self.folder / f"{which}-{os.getpid()}.png"
        Image.fromarray(clip[0 if which == "first" else -1]).save(path)
        return {"path": str(path), "frame": 0 if which == "first" else -1}


def enlarged(frames: Any) -> Any:
    """Twice as wide and high, by bicubic interpolation."""
    from PIL import Image

    big = [
        Image.fromarray(frame).resize((frame.shape[1] * 2, frame.shape[0] * 2), Image.Resampling.BICUBIC)
        for frame in frames
    ]
    return np.stack([np.asarray(frame) for frame in big])


def assess(mode: Mode, scene: world.Scene, made: Made) -> dict[str, Any]:
    """One row of results."""
    frames = made.frames
    seen, places = judge.look_and_place(frames)
    heard = judge.listen(made.wave, made.rate, places[:, 0])
    right = judge.verdict(seen, scene)
    row: dict[str, Any] = {
        "held_out": scene.combination in world.HELD_OUT,
        **right,
        "all": all(right.values()),
        "pitch": heard.pitch == ("silent" if scene.silent else scene.shape),
        "pan_error": heard.pan_error,
        "seconds": made.seconds,
        **{name: asdict(seen)[name] for name in MEASURES},
    }
    if made.draft is not None:
        _, before = judge.look_and_place(made.draft)
        row["moved"] = float(np.linalg.norm(places - before, axis=1).mean())
    for which in mode.given:
        true = world.render(scene, 25, width=frames.shape[2], height=frames.shape[1])[0 if which == "first" else -1]
        row[f"psnr_{which}"] = psnr(frames[0 if which == "first" else -1] / 255, true)
    return row


def psnr(made: Any, true: Any) -> float:
    """Decibels, for values 0..1."""
    return float(-10 * math.log10(max(float(np.square(made - true).mean()), 1e-10)))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of what is right, over seen and held-out combinations apart, and mean measures. `side`: the sound comes
    from where the object is, or there is none; `kept`: in two stages, the object is where the first one drew it."""
    told: dict[str, Any] = {}
    for name in PARTS:
        chosen = [row for row in rows if row["held_out"] == (name == "held_out")]
        keys = (*world.ATTRIBUTES, "all", "pitch")
        told[name] = {"clips": len(chosen), **{key: _mean(row[key] for row in chosen) for key in keys}}
        told[name]["side"] = _mean(not row["pan_error"] > ELSEWHERE for row in chosen)
        if all("moved" in row for row in chosen):
            told[name]["kept"] = _mean(row["moved"] <= ELSEWHERE for row in chosen)
    for key in (*MEASURES, "pan_error", "moved", "seconds", "psnr_first", "psnr_last"):
        values = [row[key] for row in rows if key in row and not math.isnan(row[key])]
        if values:
            told[key] = _mean(values)
    return told


def interval(values: Any, *, draws: int = 4000) -> tuple[float, float, float]:
    """The mean of independent values and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    picked = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(picked, (0.025, 0.975))
    return round(float(values.mean()), 5), round(float(low), 5), round(float(high), 5)


def differences(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """For each two modes of COMPARED that `rows` has: by how much the first exceeds the second in each of FIGURES, clip
    by clip, with its interval. The rows of every mode are of the same scenes in the same order."""
    told = {}
    for one, other in COMPARED:
        if one in rows and other in rows:
            pairs = list(zip(rows[one], rows[other], strict=True))
            told[f"{one} - {other}"] = {
                figure: interval(np.array([float(a[figure]) - float(b[figure]) for a, b in pairs]))
                for figure in FIGURES
            }
    return told


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values) or [0.0])), 5)


@dataclass(frozen=True)
class Share:
    """What one of several workers makes: every `workers`-th chunk of scenes, each in all modes named."""

    names: Sequence[str]
    clips: int
    rank: int
    workers: int
    keep: Path | None  # a folder of finished chunks; those found there are read, not made


def rows_of(share: Share) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The rows of this worker: by mode, then by the number of the first scene of a chunk."""
    import torch

    torch.set_num_threads(1 if share.workers > 1 else torch.get_num_threads())
    numbered = list(enumerate(scenes(share.clips)))
    rows: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in share.names}
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        for start in range(share.rank * CHUNK, share.clips, share.workers * CHUNK):
            for mode in (mode for mode in MODES if mode.name in share.names):
                chunk = numbered[start : start + CHUNK]
                kept = None if share.keep is None else share.keep / chunk_name(mode, start, len(chunk))
                rows[mode.name][start] = _chunk(maker, mode, chunk, kept)
            print(f"scenes {start} to {start + len(chunk) - 1} made or read", file=sys.stderr, flush=True)
    return rows


def _chunk(
    maker: Maker, mode: Mode, chunk: Sequence[tuple[int, world.Scene]], kept: Path | None
) -> list[dict[str, Any]]:
    if kept is not None and kept.exists():
        return list(json.loads(kept.read_text(encoding="utf-8")))
    rows = [assess(mode, scene, maker.make(mode, scene, seed=index)) for index, scene in chunk]
    if kept is not None:
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(rows, default=lambda value: value.item()), encoding="utf-8")
        part.replace(kept)
    return rows


def chunk_name(mode: Mode, start: int, count: int) -> str:
    """The file of a chunk's rows; other weights, options or defaults make another name: no stale row is ever read."""
    from modules.ltx import ltx_capabilities
    from modules.ltx.hosts import nano_parts

    other = {"transformer-dev", "lora"} if "distilled" in mode.model else {"transformer-distilled"}
    if "refine" not in mode.options:
        other |= {"lora", "latent_upsampler"}
    weights = [nano_parts.digest(name) for name in sorted(set(nano_parts.TRAINED) - other)]
    row, _ = ltx_capabilities.caps_for(mode.model)
    facts = [asdict(row), dict(mode.options), mode.given, mode.enlarge, weights]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{re.sub('[^a-z0-9]+', '-', mode.name)}-{key}-{start:04d}-{count}.json"


def _in_order(parts: Sequence[Mapping[int, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    chunks = sorted((start, rows) for part in parts for start, rows in part.items())
    return [row for _, rows in chunks for row in rows]


def table(told: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a row a mode; shares in per cent, seen then held-out."""
    shares = (*world.ATTRIBUTES, "all", "pitch", "side", "kept")
    heads = ("mode", *shares, "outline", "edge px", "flatness", "jerk", "s/clip")
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for name, row in told.items():
        cells = [name]
        for key in shares:  # one stage keeps nothing
            cells.append(" / ".join(f"{100 * row[part][key]:.0f}" for part in PARTS if key in row[part]))
        cells += [f"{row['outline']:.3f}", f"{row['edge']:.2f}", f"{row['flatness']:.4f}", f"{row['jerk']:.5f}"]
        yield "| " + " | ".join([*cells, f"{row['seconds']:.1f}"]) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nano.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="scenes for each mode, half of them held out (200)")
    parser.add_argument("--modes", nargs="*", metavar="NAME", help=f"some of: {'; '.join(mode.name for mode in MODES)}")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the clips (1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep finished rows there, and go on from them")
    asked = parser.parse_args(argv)
    names = asked.modes or [mode.name for mode in MODES]
    unknown = set(names) - {mode.name for mode in MODES}
    if unknown or asked.clips < 2 or asked.workers < 1:
        parser.error(f"unknown modes: {', '.join(sorted(unknown))}" if unknown else "at least 2 clips and 1 worker")
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
    shares = [Share(names, asked.clips, rank, asked.workers, asked.keep) for rank in range(asked.workers)]
    if asked.workers == 1:
        parts = [rows_of(shares[0])]
    else:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(rows_of, shares))
    rows = {name: _in_order([part[name] for part in parts]) for name in names}
    told = {name: summary(part) for name, part in rows.items()}
    compared = differences(rows)
    print("\n".join(table(told)))
    for pair, figures in compared.items():
        said = (f"{name} {mean:+.3f} [{low:+.3f}, {high:+.3f}]" for name, (mean, low, high) in figures.items())
        print(f"{pair}: {'; '.join(said)}")
    print(json.dumps({"clips": asked.clips, "modes": told, "differences": compared}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
