"""The world LTX-Nano learns from: drawn where the path says, continuous, described in known words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.ltx.hosts import nano_text
from nano import prompts, sound, world

SCENES = st.builds(
    world.Scene,
    shape=st.sampled_from(world.SHAPES),
    colour=st.sampled_from(world.COLOURS),
    size=st.sampled_from(world.SIZES),
    motion=st.sampled_from(world.MOTIONS),
    background=st.sampled_from(world.BACKGROUNDS),
    along=st.floats(0, 1),
    across=st.floats(0, 1),
    reach=st.floats(0, 1),
    pace=st.floats(0, 1),
)


@settings(deadline=None)
@given(SCENES, st.sampled_from((25, 49)), st.sampled_from(((1.0, 1.0), (1.5, 1.0), (1.0, 1.25))))
def test_the_object_stays_inside_and_never_jumps(scene: world.Scene, frames: int, frame: tuple[float, float]) -> None:
    points = world.path(scene, frames, width=frame[0], height=frame[1])
    side, up, down = world.extents(scene.shape, scene.size)
    assert (points[:, 0] - side >= 0).all()
    assert (points[:, 0] + side <= frame[0]).all()
    assert (points[:, 1] - up >= 0).all()
    assert (points[:, 1] + down <= frame[1]).all()
    # The fastest there is: an arc of 0.4 in 0.7 s meets the floor at 4 * 0.4 / 0.7 a second.
    assert np.abs(np.diff(points, axis=0)).max() <= 4 * 0.4 / 0.7 / 24


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_straight_motion_is_straight_and_even(motion: str, axis: int, sign: int) -> None:
    points = world.path(world.Scene("ball", "red", "small", motion, "black"), 25)
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose(steps[:, 1 - axis], 0, atol=1e-6)
    np.testing.assert_allclose(steps[:, axis], steps[0, axis], atol=1e-6)
    assert np.sign(steps[0, axis]) == sign


def test_a_bounce_is_free_fall_and_hits_the_floor_when_it_says() -> None:
    scene = world.Scene("square", "blue", "big", "bouncing", "white")
    period, top = world.bounce(scene)
    fps = 2400.0
    y = world.path(scene, round(2 * period * fps), fps=fps)[:, 1]
    falling = y[: round(0.4 * period * fps)]
    # Half a period for the height: g = 8 h / T^2.
    acceleration = np.diff(falling.astype(np.float64), n=2)[5:].mean() * fps**2
    assert acceleration == pytest.approx(8 * top / period**2, rel=0.02)
    for hit in world.hits(scene, 2 * period):
        assert y[round(hit * fps)] == pytest.approx(y.max(), abs=1e-3)
    assert len(world.hits(scene, 2 * period)) == 2


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("size", world.SIZES)
def test_every_shape_of_a_size_covers_the_same_area(shape: str, size: str) -> None:
    clip = world.render(world.Scene(shape, "green", size, "still", "black"), 1, width=256, height=256)
    covered = clip[0, :, :, 1].sum() / world.RGB["green"][1] / 256**2
    assert covered == pytest.approx(np.pi * world.RADIUS[size] ** 2, rel=0.01)


def test_a_drawing_is_the_average_of_a_finer_one() -> None:
    scene = world.Scene("triangle", "cyan", "big", "right", "gray")
    coarse = world.render(scene, 3, width=64, height=64)
    fine = world.render(scene, 3, width=512, height=512)
    averaged = fine.reshape(3, 64, 8, 64, 8, 3).mean((2, 4))
    assert np.abs(coarse - averaged).max() < 0.15
    assert np.abs(coarse - averaged).mean() < 0.001


def test_a_window_is_cut_from_the_whole() -> None:
    scene = world.Scene("ball", "magenta", "small", "bouncing", "white")
    whole = world.render(scene, 25, width=128, height=96)
    part = world.render(scene, 25, width=128, height=96, window=(3, 9, 16, 64, 32, 64))
    np.testing.assert_array_equal(part, whole[3:12, 16:80, 32:96])


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_what_words_leave_open_is_two_lanes_apart(motion: str) -> None:
    rng = np.random.default_rng(0)
    for shape, size in itertools.product(world.SHAPES, world.SIZES):
        clips: dict[bool, set[bytes]] = {False: set(), True: set()}
        for along, across, reach, pace in rng.random((12, 4)):
            scene = world.Scene(shape, "red", size, motion, "black", False, along, across, reach, pace)
            placed = world.placed(scene)
            assert world.placed(placed) == placed
            clips[across > 0.5].add(world.path(placed, 25).tobytes())
        low, high = clips.values()
        assert len(low) == len(high) == 1, "a lane is one clip"
        first, second = (np.frombuffer(path.copy().pop(), np.float32).reshape(25, 2) for path in (low, high))
        if motion == "bouncing":
            assert low == high
            continue
        axis = 0 if motion in ("up", "down") else 1
        assert (first[:, axis] < second[:, axis]).all()


@pytest.mark.parametrize("motion", [motion for motion in world.MOTIONS if motion != "bouncing"])
def test_what_is_drawn_in_one_lane_hardly_touches_the_other(motion: str) -> None:
    for shape, size in itertools.product(world.SHAPES, world.SIZES):
        ends = [world.Scene(shape, "red", size, motion, "black", across=across) for across in (0.0, 1.0)]
        one, other = (world.render(world.placed(end), 1, width=96, height=96).max(-1) > 0.3 for end in ends)
        assert (one & other).sum() < 0.2 * one.sum()


def test_a_tenth_is_held_out_and_every_word_of_it_is_trained() -> None:
    every = len(world.SHAPES) * len(world.COLOURS) * len(world.MOTIONS)
    assert 0.09 < len(world.HELD_OUT) / every < 0.11
    assert [len({row[i] for row in world.HELD_OUT}) for i in range(3)] == [3, 6, 6]
    rng = np.random.default_rng(1)
    assert not {world.draw_scene(rng).combination for _ in range(2000)} & world.HELD_OUT
    assert world.draw_scene(rng, held_out=True).combination in world.HELD_OUT


def test_prompts_use_known_words_and_say_what_is_there() -> None:
    rng = np.random.default_rng(2)
    said = set()
    for _ in range(300):
        scene = world.draw_scene(rng)
        text = prompts.varied(scene, rng)
        words = text.replace(",", "").split()
        assert set(words) <= set(nano_text.WORDS), text
        assert scene.colour in words
        assert scene.motion in words
        assert ("silent" in words) == scene.silent
        said.add(text)
    assert len(said) > 280
    scene = world.Scene("ball", "red", "small", "right", "black")
    assert prompts.plain(scene) == "a small red ball moving right on black"


@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_sound_has_the_pitch_the_side_and_the_click(shape: str) -> None:
    scene = world.Scene(shape, "red", "small", "bouncing", "black", along=0.0)
    wave = sound.wave(scene, 16000)
    power = np.abs(np.fft.rfft(wave.sum(0)))
    assert power[:2000].argmax() == sound.PITCH[shape]
    left, right = np.sqrt(np.square(wave).mean(1))
    x = world.path(scene, 1)[0, 0]
    assert right / left == pytest.approx(np.tan(x * np.pi / 2), rel=0.02)
    (hit,) = world.hits(scene, 1.0)
    loudest = np.abs(wave[0]).argmax() / 16000
    assert 0 <= loudest - hit < 0.005


def test_silence_is_silent_and_mel_frames_of_a_tone_are_equal() -> None:
    silent = world.Scene("ball", "red", "small", "still", "black", silent=True)
    assert not sound.wave(silent, 16000).any()
    tone = world.Scene("triangle", "red", "small", "still", "black")
    mel = sound.mel(sound.wave(tone, 16000))
    assert mel.shape == (2, 20, sound.MEL_BINS)
    np.testing.assert_allclose(mel[:, 2:-2], np.broadcast_to(mel[:, 2:3], mel[:, 2:-2].shape), atol=1e-3)
