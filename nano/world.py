"""The world LTX-Nano knows: one object on a plain background, drawn and moved by formula.

Knows what a scene is, where its object is at any time, and how it looks (anti-aliased by signed
distance). Lengths are in units of the frame's short side, times in seconds, y points down. Does not know
prompts, sound, torch or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = ("ball", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
SIZES = ("small", "big")
MOTIONS = ("left", "right", "up", "down", "bouncing", "still")
BACKGROUNDS = ("black", "white", "gray")
FPS = 24.0

RGB = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.72, 0.18),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.92, 0.85, 0.10),
    "magenta": (0.88, 0.12, 0.82),
    "cyan": (0.10, 0.80, 0.88),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
}

# The radius of the ball; square and triangle have the ball's area, so that size does not depend on shape.
RADIUS = {"small": 0.14, "big": 0.22}
_SQUARE = math.sqrt(math.pi) / 2  # half a side, in radii of the ball of the same area
_TRIANGLE = math.sqrt(4 * math.pi / (3 * math.sqrt(3)))  # circumradius of the equilateral one, likewise
_MARGIN = 0.02

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What a prompt can say, and the chances it leaves open (each 0..1, uniform)."""

    shape: str
    colour: str
    size: str
    motion: str
    background: str
    silent: bool = False
    along: float = 0.5  # where the path lies along the motion
    across: float = 0.5  # and across it
    reach: float = 0.5  # how far it goes, or how high it bounces
    pace: float = 0.5  # how fast it bounces

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.shape, self.colour, self.motion


ATTRIBUTES = tuple(field.name for field in fields(Scene))[:5]


def _held_out() -> frozenset[tuple[str, str, str]]:
    """11 of the 108 (shape, colour, motion) combinations: every shape, colour and motion among them.

    Index sums, so that no value is left out of training: any pair of values is still seen together.
    """
    chosen = [
        (shape, colour, motion)
        for (i, shape), (j, colour), (k, motion) in product(*map(enumerate, (SHAPES, COLOURS, MOTIONS)))
        if (j + 2 * i) % len(COLOURS) == k and (i + j) % 3 < 2
    ]
    return frozenset(chosen[:11])


HELD_OUT = _held_out()


def draw_scene(rng: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """A random scene: of the training combinations, of the held-out ones (True), or of all (None)."""
    while True:
        shape, colour, size, motion, background = (
            str(rng.choice(values)) for values in (SHAPES, COLOURS, SIZES, MOTIONS, BACKGROUNDS)
        )
        if held_out is None or ((shape, colour, motion) in HELD_OUT) == held_out:
            break
    along, across, reach, pace = rng.random(4)
    silent = bool(rng.random() < 0.1)
    return Scene(shape, colour, size, motion, background, silent, along, across, reach, pace)


def every() -> list[Scene]:
    """All scenes of training combinations that words alone can mean, both lanes of each, none silent: a combination
    after the other, of each sizes x backgrounds x lanes. The two of a bounce are the same."""
    combinations = (combination for combination in product(SHAPES, COLOURS, MOTIONS) if combination not in HELD_OUT)
    chances = list(product(SIZES, BACKGROUNDS, (0.0, 1.0)))
    return [
        placed(Scene(shape, colour, size, motion, background, across=across))
        for (shape, colour, motion) in combinations
        for size, background, across in chances
    ]


def placed(scene: Scene) -> Scene:
    """The same scene in the nearer of the two lanes that a clip made from words alone can have, at one speed: left or
    right for what moves up and down, high or low for what moves sideways or stands. Bounces have one lane, the middle,
    and one height.

    A model that starts from noise must choose among all that is possible, and a small one chooses cleanly only among
    few things far apart: between nine places, of which neighbours overlap, it drew objects one place too wide.
    """
    return replace(scene, along=0.5, across=float(scene.across > 0.5), reach=0.5, pace=0.5)


def extents(shape: str, size: str) -> tuple[float, float, float]:
    """How far the object reaches from its centre: sideways, up, down."""
    radius = RADIUS[size]
    if shape == "ball":
        return radius, radius, radius
    if shape == "square":
        return (radius * _SQUARE,) * 3
    return radius * _TRIANGLE * math.sqrt(3) / 2, radius * _TRIANGLE, radius * _TRIANGLE / 2


def path(scene: Scene, frames: int, *, width: float = 1.0, height: float = 1.0, fps: float = FPS) -> Floats:
    """(frames, 2): the object's centre x, y in each frame. Always wholly inside the frame.

    Straight motions cross 0.34 to 0.44 within the clip at constant speed; a bounce starts at rest at its
    highest point and loses nothing, every 0.7 to 0.8 seconds.
    """
    side, up, down = extents(scene.shape, scene.size)
    low = np.array([side, up]) + _MARGIN
    high = np.array([width - side, height - down]) - _MARGIN
    time = np.arange(frames) / fps
    middle = (low + high) / 2
    loose = np.minimum((high - low) / 2, 0.2) * 2  # how far chance moves the path, in all
    chance = (
        np.array([scene.across, scene.along])
        if scene.motion in ("up", "down")
        else np.array([scene.along, scene.across])
    )
    centre = middle + (chance - 0.5) * loose
    points = np.repeat(centre[None], frames, axis=0)
    if scene.motion == "bouncing":
        period, top = bounce(scene)
        top = min(top, high[1] - low[1])
        phase = ((time / period + 0.5) % 1.0) * 2 - 1  # -1 and 1 on the floor, 0 at the top
        points[:, 1] = high[1] - top * (1 - phase**2)
    elif scene.motion != "still":
        axis = 1 if scene.motion in ("up", "down") else 0
        reach = min(0.34 + 0.10 * scene.reach, high[axis] - low[axis])
        free = high[axis] - low[axis] - reach
        start = low[axis] + free / 2 + (scene.along - 0.5) * min(free, 0.3)
        progress = time * fps / max(frames - 1, 1)
        if scene.motion in ("left", "up"):
            progress = 1 - progress
        points[:, axis] = start + reach * progress
    return points.astype(np.float32)


def bounce(scene: Scene) -> tuple[float, float]:
    """Seconds between two hits of the floor, and the height of the arc."""
    return 0.70 + 0.10 * scene.pace, 0.32 + 0.08 * scene.reach


def hits(scene: Scene, seconds: float) -> list[float]:
    """When a bouncing object meets the floor, in seconds."""
    if scene.motion != "bouncing":
        return []
    period, _ = bounce(scene)
    return [period * (n + 0.5) for n in range(int(seconds / period + 0.5))]


def distance(shape: str, radius: float, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Signed distance to the outline from points relative to the centre; negative inside."""
    signed: NDArray[Any]
    if shape == "ball":
        signed = np.hypot(x, y) - radius
    elif shape == "square":
        signed = np.maximum(np.abs(x), np.abs(y)) - radius * _SQUARE
    else:
        inner = radius * _TRIANGLE / 2  # of the inscribed circle
        signed = np.maximum(y, np.abs(x) * (math.sqrt(3) / 2) - y / 2) - inner
    return signed


def render(
    scene: Scene,
    frames: int,
    *,
    width: int,
    height: int,
    fps: float = FPS,
    window: tuple[int, int, int, int, int, int] | None = None,
) -> Floats:
    """(frames, height, width, 3) in 0..1; `window` cuts out frames, rows and columns: (t, n, y, h, x, w)."""
    first, count, top, rows, left, columns = window or (0, frames, 0, height, 0, width)
    short = min(width, height)
    centres = path(scene, frames, width=width / short, height=height / short, fps=fps)[first : first + count]
    y = ((np.arange(top, top + rows) + 0.5) / short).astype(np.float32)[None, :, None] - centres[:, 1, None, None]
    x = ((np.arange(left, left + columns) + 0.5) / short).astype(np.float32)[None, None, :] - centres[:, 0, None, None]
    signed = distance(scene.shape, RADIUS[scene.size], x, y) * np.float32(short)
    cover = np.clip(0.5 - signed, 0, 1)[..., None]
    ground, colour = (np.array(RGB[name], np.float32) for name in (scene.background, scene.colour))
    pixels: Floats = ground + cover * (colour - ground)
    return pixels


def pixels(scene: Scene, frames: int, *, width: int, height: int) -> NDArray[np.uint8]:
    """The same as a video has it: (frames, height, width, 3) in 0..255."""
    made: NDArray[np.uint8] = (render(scene, frames, width=width, height=height) * 255).round().astype(np.uint8)
    return made
