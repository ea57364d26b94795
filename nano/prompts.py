"""Says what a scene shows, in varying words. Knows only words of the tokenizer's vocabulary."""

from __future__ import annotations

import numpy as np

from nano.world import Scene

OTHER = {"ball": "circle", "small": "little", "big": "large", "gray": "grey"}


def plain(scene: Scene) -> str:
    """The sentence the documentation uses: `a small red ball moving right on black`."""
    moving = scene.motion if scene.motion in ("bouncing", "still") else f"moving {scene.motion}"
    silent = " silent" if scene.silent else ""
    return f"a {scene.size} {scene.colour} {scene.shape} {moving} on {scene.background}{silent}"


def varied(scene: Scene, rng: np.random.Generator) -> str:
    """Any of the ways to say it: order, articles, synonyms; sometimes size or background is left open."""
    size, colour, shape, ground = (
        OTHER.get(word, word) if rng.random() < 0.2 else word
        for word in (scene.size, scene.colour, scene.shape, scene.background)
    )
    moving = scene.motion
    if moving not in ("bouncing", "still"):
        moving = str(rng.choice((f"moving {moving}", f"moving {moving}", f"moving to the {moving}", moving)))
    adjectives = [size, colour] if rng.random() < 0.8 else [colour, size]
    if rng.random() < 0.08:
        adjectives.remove(size)
    article = str(rng.choice(("a ", "a ", "a ", "the ", "")))
    thing = f"{article}{' '.join(adjectives)} {shape}"
    where = str(rng.choice((f"on {ground}", f"on {ground}", f"on a {ground} background", f"{ground} background")))
    silent = scene.silent
    parts = [thing, moving, where]
    if rng.random() < 0.06:
        parts.remove(where)
    if rng.random() < 0.25:
        rng.shuffle(parts)
    joint = str(rng.choice((" ", " ", " ", ", ")))
    if silent:
        parts.insert(0 if rng.random() < 0.3 else len(parts), "silent")
    return joint.join(parts)
