"""The judge: right about clean clips, and not fooled by broken ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nano import judge, sound, world

SCENE = world.Scene("square", "blue", "big", "right", "gray")
Clip = NDArray[np.uint8]


def drawn(scene: world.Scene, *, frames: int = 25, side: int = 128) -> Clip:
    return world.pixels(scene, frames, width=side, height=side)


def test_rendered_clips_are_judged_right() -> None:
    """At least 99.5 % of 200 clips, every attribute and the sound, at both sizes and lengths."""
    rng = np.random.default_rng(11)
    wrong = []
    for index in range(200):
        scene = world.draw_scene(rng, held_out=None)
        side, frames = (256, 25) if index % 16 == 0 else (128, 49 if index % 8 == 1 else 25)
        seen, places = judge.look_and_place(drawn(scene, frames=frames, side=side))
        heard = judge.listen(sound.wave(scene, round(frames / 24 * 16000), frames=frames), 16000, places[:, 0])
        np.testing.assert_allclose(places, world.path(scene, frames), atol=0.01)
        if not all(judge.verdict(seen, scene).values()) or heard.pitch != ("silent" if scene.silent else scene.shape):
            wrong.append((scene, seen, heard))
        assert scene.silent or heard.pan_error < 0.02
    assert len(wrong) <= 1, wrong


def test_a_clean_clip_measures_clean() -> None:
    seen = judge.look(drawn(SCENE))
    assert seen.present == 1.0
    assert seen.outline > 0.98
    assert seen.edge < 1.1
    assert max(seen.flatness, seen.flicker, seen.area_drift, seen.colour_drift) < 0.03
    assert seen.jerk < 0.01


def _noise(clip: Clip) -> Clip:
    rng = np.random.default_rng(0)
    return (clip + rng.normal(0, 12, clip.shape)).clip(0, 255).astype(np.uint8)


def _stretched(clip: Clip) -> Clip:
    wide = np.repeat(clip, 2, axis=2)
    return wide[:, ::1, 64:192]


def _shrunk(clip: Clip) -> Clip:
    page: Clip = np.broadcast_to(clip[0, 0, 0], clip.shape).copy()
    page[:, 32:96, 32:96] = clip[:, ::2, ::2]
    return page


def _pulsing(clip: Clip) -> Clip:
    still = drawn(world.Scene("square", "blue", "small", "still", "gray"))
    return np.where((np.arange(len(clip)) % 2 == 0)[:, None, None, None], clip, still)


def _blurred(clip: Clip) -> Clip:
    soft = clip.astype(np.float64)
    for axis in (1, 2):
        soft = np.mean([np.roll(soft, shift, axis) for shift in range(-4, 5)], axis=0)
    return soft.astype(np.uint8)


def _shaken(clip: Clip) -> Clip:
    rng = np.random.default_rng(0)
    return np.stack([np.roll(frame, rng.integers(-4, 5, 2), (0, 1)) for frame in clip])


def _fading(clip: Clip) -> Clip:
    grey = np.full_like(clip, 128)
    weight = np.linspace(0, 0.5, len(clip))[:, None, None, None]
    return (clip * (1 - weight) + grey * weight).astype(np.uint8)


@pytest.mark.parametrize(
    ("damage", "measure", "least"),
    [
        (_noise, "flatness", 0.03),
        (_noise, "flicker", 0.03),
        (_pulsing, "area_drift", 0.2),
        (_fading, "colour_drift", 0.03),
        (_blurred, "edge", 3.0),
        (_shaken, "jerk", 0.03),
    ],
)
def test_damage_shows_in_its_measure(damage: Callable[[Clip], Clip], measure: str, least: float) -> None:
    clean, broken = judge.look(drawn(SCENE)), judge.look(damage(drawn(SCENE)))
    assert getattr(broken, measure) > least > getattr(clean, measure)


@pytest.mark.parametrize(
    ("damage", "attribute"),
    [
        (lambda clip: clip[::-1], "motion"),
        (lambda clip: clip[:1].repeat(25, 0), "motion"),
        (lambda clip: np.swapaxes(clip, 1, 2), "motion"),
        (lambda clip: clip[..., ::-1], "colour"),
        (lambda clip: 255 - clip // 2, "background"),
        (_shrunk, "size"),
        (_stretched, "shape"),
    ],
)
def test_a_wrong_clip_is_not_taken_for_right(damage: Callable[[Clip], Clip], attribute: str) -> None:
    assert all(judge.verdict(judge.look(drawn(SCENE)), SCENE).values())
    assert not judge.verdict(judge.look(np.ascontiguousarray(damage(drawn(SCENE)))), SCENE)[attribute]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_clip_has_no_object(level: int) -> None:
    seen = judge.look(np.full((25, 64, 64, 3), level, np.uint8))
    assert (seen.shape, seen.colour, seen.motion, seen.present) == (judge.UNCLEAR,) * 3 + (0.0,)
    assert not any(judge.verdict(seen, SCENE).values())


def test_an_object_that_vanishes_is_not_there() -> None:
    clip = drawn(SCENE)
    clip[20:] = clip[0, 0, 0]
    assert not any(judge.verdict(judge.look(clip), SCENE).values())


def test_static_is_nothing() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    assert not all(judge.verdict(judge.look(noise), SCENE).values())


def test_sounds() -> None:
    time = np.arange(16000) / 16000

    def heard(hertz: float, loudness: float = 0.3) -> judge.Heard:
        return judge.listen(np.tile(loudness * np.sin(2 * np.pi * hertz * time), (2, 1)), 16000)

    assert [heard(hertz).pitch for hertz in (440, 660, 880)] == list(world.SHAPES)
    assert [heard(hertz).pitch for hertz in (400, 500, 550, 740, 990)] == [judge.UNCLEAR] * 5
    assert heard(440, 0.001).pitch == "silent"
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 16000))
    assert judge.listen(np.zeros((2, 100)), 16000).pitch == "silent"
    swapped = sound.wave(world.Scene("ball", "red", "small", "right", "black", along=1.0), 16000)[::-1]
    x = world.path(world.Scene("ball", "red", "small", "right", "black", along=1.0), 24)[:, 0]
    assert judge.listen(swapped, 16000, x).pan_error > 0.1
    assert np.isfinite(judge.listen(noise, 16000, x).pan_error)
