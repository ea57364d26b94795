"""Sound: there, as long as the picture and in time with it, read back from real files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from modules.ltx.errors import LTXError
from modules.ltx.media import (
    Sound,
)
from tests.media_kit import (
    decoded_sound,
    durations,
    moving,
    names,
    seconds,
    tone,
    write,
)


@pytest.mark.parametrize("rate", [16000, 24000, 48000])
@pytest.mark.parametrize("count", [25, 49, 121])
@pytest.mark.parametrize("fps", [24, 25])
def test_sound_is_there_as_long_as_the_picture_and_in_time(tmp_path: Path, rate: int, count: int, fps: int) -> None:
    length = count / fps
    clicks = [round(at * rate) for at in (0.25, length - 0.1)]
    wave = np.zeros((2, round(length * rate)), np.float32)
    wave[:, clicks] = 1.0
    write(tmp_path / "clip.mp4", moving(count), fps=fps, sound=Sound(wave, rate))

    recorded = durations(tmp_path / "clip.mp4")
    assert abs(recorded["video"] - recorded["audio"]) < Fraction(1, fps)
    assert abs(recorded["video"] - Fraction(count, fps)) < Fraction(1, 1000)
    assert abs(recorded["audio"] - Fraction(count, fps)) < Fraction(1, 1000)
    back = np.abs(decoded_sound(tmp_path / "clip.mp4"))
    assert back.shape[0] == 2
    for click in clicks:
        near = slice(click - rate // 20, click + rate // 20)
        for channel in back:
            assert channel[near].max() > 0.3
            assert abs(int(channel[near].argmax()) - rate // 20) <= rate // 1000


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 5.0])
def test_sound_is_cut_or_padded(tmp_path: Path, channels: int, seconds: float) -> None:
    sound = tone(seconds, 16000, channels=channels)
    written = write(tmp_path / "clip.mp4", moving(24), sound=sound)
    assert written.sample_rate == 16000
    assert abs(durations(tmp_path / "clip.mp4")["audio"] - 1) < Fraction(1, 1000)
    back = decoded_sound(tmp_path / "clip.mp4")
    heard = round(min(seconds, 1.0) * 16000)
    assert back.shape[0] == channels
    assert 16000 <= back.shape[1] < 16000 + 1024
    if heard:
        assert 0.25 < np.sqrt((back[:, 400 : heard - 400] ** 2).mean()) < 0.45
    assert np.abs(back[:, heard + 1024 : 16000]).max(initial=0) < 0.01


def test_tone_comes_back_as_it_was(tmp_path: Path) -> None:
    sound = tone(2, 48000)
    write(tmp_path / "clip.mp4", moving(48), sound=sound)
    back = decoded_sound(tmp_path / "clip.mp4")[:, 4800:90000]
    assert np.abs(back - sound.waveform[:, 4800:90000]).max() < 0.02


@pytest.mark.parametrize("count", [1, 2])
def test_sound_shorter_than_one_block(tmp_path: Path, count: int) -> None:
    write(tmp_path / "clip.mp4", moving(count), sound=tone(1, 16000))
    recorded = durations(tmp_path / "clip.mp4")
    assert abs(recorded["audio"] - Fraction(count, 24)) < Fraction(1, 1000)
    assert np.abs(decoded_sound(tmp_path / "clip.mp4")).max() > 0.3


def test_without_sound_there_is_no_sound_stream(tmp_path: Path) -> None:
    assert write(tmp_path / "clip.mp4", moving(2)).sample_rate is None
    assert set(durations(tmp_path / "clip.mp4")) == {"video"}


def test_sound_lies_between_the_pictures(tmp_path: Path) -> None:
    """A player that reads on from the start finds both: neither stream is ever a second behind."""
    write(tmp_path / "clip.mp4", moving(120), sound=tone(5, 16000))
    behind, latest = 0.0, {"video": 0.0, "audio": 0.0}
    with av.open(str(tmp_path / "clip.mp4")) as file:
        packets = [packet for packet in file.demux() if packet.dts is not None]
        for packet in sorted(packets, key=lambda packet: packet.pos or 0):
            latest[packet.stream.type] = float(seconds(packet.dts, packet.time_base))
            behind = max(behind, abs(latest["video"] - latest["audio"]))
    assert behind < 1.1


def test_sound_does_not_hold_back_the_pictures(tmp_path: Path) -> None:
    """A muxer keeps in memory whatever waits for the other stream; here the file grows all along."""
    sizes: list[int] = []
    noise = np.random.default_rng(0)
    frames = (noise.integers(0, 255, (1, 64, 64, 3), dtype=np.uint8) for _ in range(200))
    write(
        tmp_path / "clip.mp4",
        frames,
        sound=tone(9, 16000),
        on_frame=lambda _: sizes.append(next(tmp_path.iterdir()).stat().st_size),
    )
    assert sizes[-1] > 0.5 * (tmp_path / "clip.mp4").stat().st_size


def test_loud_sound_is_clipped(tmp_path: Path) -> None:
    wave = np.zeros((1, 16000), np.float32)
    wave[0, :8000] = 40 * np.sin(np.arange(8000) * 0.05)
    wave[0, 4000] = np.inf
    write(tmp_path / "clip.mp4", moving(24), sound=Sound(wave, 16000))
    back = decoded_sound(tmp_path / "clip.mp4")
    assert np.isfinite(back).all()
    assert 0.9 < np.abs(back[:, 500:7500]).max() < 1.6
    assert np.isinf(wave).any(), "the caller's array is left alone"


def test_nan_sound_is_named(tmp_path: Path) -> None:
    wave = np.full((1, 16000), np.nan, np.float32)
    with pytest.raises(LTXError, match="NaN"):
        write(tmp_path / "clip.mp4", moving(2), sound=Sound(wave, 16000))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "sound",
    [
        Sound(np.zeros((3, 9), np.float32), 16000),
        Sound(np.zeros(9, np.float32), 16000),
        Sound(np.zeros((1, 9), np.float64), 16000),
        Sound(np.zeros((1, 9), np.float32), 16001),
    ],
)
def test_sound_of_another_kind_is_refused(tmp_path: Path, sound: Sound) -> None:
    with pytest.raises(LTXError, match=r"sound|Sound"):
        write(tmp_path / "clip.mp4", moving(2), sound=sound)
    assert names(tmp_path) == []
