"""`python -m nano.parts`: what the VAEs and the vocoder keep of rendered clips, without any transformer.

Nothing that is sampled can be better than this. Scenes of all combinations, at both sizes, 25 frames; prints
a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modules.ltx.hosts import nano_parts
from nano import evaluate, judge, pool, sound, world

SIDES = (128, 256)
FRAMES = 25


def measure(clips: int, *, seed: int = 13) -> dict[str, Any]:
    """Means over `clips` scenes for each side: shares judged right, PSNR, outline and edge; then the sound's."""
    import torch

    vae, audio_vae, vocoder = (
        nano_parts.build(nano_parts.spec("2.3")[name]) for name in ("vae", "audio_vae", "vocoder")
    )
    rng = np.random.default_rng(seed)
    scenes = [world.draw_scene(rng, held_out=None) for _ in range(clips)]
    told: dict[str, Any] = {"clips": clips}
    for side in SIDES:
        rows = []
        for scene in scenes:
            pixels, _ = pool.clip(scene, pool.Kind(side, side, FRAMES))
            with torch.no_grad():
                again = vae.decode(vae.encode(pixels[None]).latent_dist.mode()).sample[0]
            rows.append(_seen(scene, again, pixels))
        told[f"{side}x{side}"] = _means(rows)
    rows = []
    for scene in scenes:
        meant = sound.wave(scene, sound.MEL_FRAMES[FRAMES] * sound.HOP, frames=FRAMES)
        with torch.no_grad():
            mel = torch.from_numpy(sound.mel(meant))[None]
            wave = vocoder(audio_vae.decode(audio_vae.encode(mel).latent_dist.mode()).sample)[0].numpy()
        heard = judge.listen(wave, sound.RATE, world.path(scene, FRAMES)[:, 0])
        right = heard.pitch == ("silent" if scene.silent else scene.shape)
        rows.append({"pitch": right, "pan_error": heard.pan_error})
    told["sound"] = _means(rows)
    return told


def _seen(scene: world.Scene, made: Any, pixels: Any) -> dict[str, float]:
    again, meant = (((clip.permute(1, 2, 3, 0).numpy() + 1) / 2).clip(0, 1) for clip in (made, pixels))
    seen = judge.look((again * 255).round().astype(np.uint8))
    right = judge.verdict(seen, scene)
    worst = min(evaluate.psnr(a, b) for a, b in zip(again, meant, strict=True))
    return {
        **right,
        "all": all(right.values()),
        f"all_{scene.size}": all(right.values()),
        "psnr": evaluate.psnr(again, meant),
        "psnr_first": evaluate.psnr(again[0], meant[0]),
        "psnr_worst": worst,
        "outline": seen.outline,
        "edge": seen.edge,
    }


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: round(float(np.nanmean([row[key] for row in rows if key in row])), 4) for key in keys}


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    keys = (*world.ATTRIBUTES, "all", "all_small", "all_big", "psnr", "psnr_first", "psnr_worst", "outline", "edge")
    yield "| | " + " | ".join(keys) + " |"
    yield "|" + " --- |" * (len(keys) + 1)
    for side in SIDES:
        row = told[f"{side}x{side}"]
        yield f"| {side}x{side} | " + " | ".join(f"{row.get(key, float('nan')):.3g}" for key in keys) + " |"
    yield ""
    yield f"pitch right: {told['sound']['pitch']:.3g}; pan off by {told['sound']['pan_error']:.3g} of the width"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nano.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=100, help="scenes (100)")
    asked = parser.parse_args(argv)
    if asked.clips < 1:
        parser.error("--clips: at least 1")
    told = measure(asked.clips)
    print("\n".join(table(told)))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
