"""`python -m nano.sheet FILE.png`: a contact sheet, a row of frames for each prompt, made two-stage."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nano import evaluate, prompts, world

FRAMES = (0, 4, 8, 12, 16, 20, 24)
SIDE, CAPTION = 112, 18

SCENES = (
    world.Scene("ball", "red", "small", "right", "black"),
    world.Scene("square", "green", "big", "up", "white"),
    world.Scene("triangle", "blue", "big", "left", "gray"),
    world.Scene("ball", "yellow", "big", "bouncing", "black"),
    world.Scene("triangle", "magenta", "small", "down", "white"),
    world.Scene("square", "cyan", "small", "still", "gray"),
    world.Scene("ball", "green", "big", "right", "gray"),  # never trained, as the next two
    world.Scene("square", "blue", "small", "bouncing", "white"),
    world.Scene("triangle", "magenta", "big", "up", "black"),
)


def sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of a caption and its (frames, height, width, 3)."""
    page = Image.new("RGB", (len(FRAMES) * (SIDE + 4) + 4, len(rows) * (SIDE + CAPTION + 4) + 4), (38, 38, 46))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for index, (caption, clip) in enumerate(rows):
        top = index * (SIDE + CAPTION + 4) + 4
        draw.text((6, top), caption, fill=(235, 235, 235), font=font)
        for column, frame in enumerate(FRAMES):
            picture = Image.fromarray(clip[min(frame, len(clip) - 1)]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (column * (SIDE + 4) + 4, top + CAPTION))
    return page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nano.sheet", description=__doc__)
    parser.add_argument("file", type=Path, help="the PNG to write")
    parser.add_argument("--mode", default="distilled, two stages", help="a mode of nano.evaluate")
    asked = parser.parse_args(argv)
    mode = next((each for each in evaluate.MODES if each.name == asked.mode), None)
    if mode is None:
        parser.error(f"no mode {asked.mode!r}; there are: {'; '.join(each.name for each in evaluate.MODES)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        maker = evaluate.Maker(Path(folder))
        for index, scene in enumerate(SCENES):
            held_out = " (never trained)" if scene.combination in world.HELD_OUT else ""
            rows.append((prompts.plain(scene) + held_out, maker.make(mode, scene, seed=index).frames))
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(asked.file, optimize=True)
    print(asked.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
