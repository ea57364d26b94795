"""The sound of a scene: a stereo tone whose pitch says the shape, panned by x, with a click at each bounce.

Knows the wave (16 kHz) and its mel analysis. One mel frame is 800 samples: the three pitches are
multiples of the 20 frames a second, so that a held tone looks the same in every frame. A convolutional
vocoder can only repeat itself from equal frames; at the usual 100 frames a second it could sound 400 or
500 Hz but not 440. Does not know models.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nano import world

RATE = 16000
HOP = 800
MEL_BINS = 16
# By frames of a clip: 4 L - 3, for the L = round(frames / 24 * 16000 / 740 / 4) latents that pipelines ask for.
MEL_FRAMES = {9: 5, 25: 21, 49: 41}
PITCH = {"ball": 440.0, "square": 660.0, "triangle": 880.0}

_LOUDNESS = 0.3
_CLICK_HZ, _CLICK_LOUDNESS, _CLICK_DECAY = 2400.0, 0.6, 0.006
_WINDOW = 2 * HOP
_FLOOR = 1e-3  # of a full-scale tone: quieter is silence

Wave = NDArray[np.float32]


def wave(scene: world.Scene, samples: int, *, rate: int = RATE, frames: int = 25, fps: float = world.FPS) -> Wave:
    """(2, samples): what `frames` of the scene sound like; the tone starts at phase 0."""
    if scene.silent:
        return np.zeros((2, samples), np.float32)
    time = np.arange(samples) / rate
    x = np.interp(time * fps, np.arange(frames), world.path(scene, frames, fps=fps)[:, 0])
    mono = _LOUDNESS * np.sin(2 * np.pi * PITCH[scene.shape] * time)
    for hit in world.hits(scene, samples / rate):
        since = time - hit
        mono += np.where(
            since >= 0,
            _CLICK_LOUDNESS * np.exp(-np.maximum(since, 0) / _CLICK_DECAY) * np.sin(2 * np.pi * _CLICK_HZ * since),
            0,
        )
    return pan(x)[:, :].astype(np.float32) * mono.astype(np.float32)


def pan(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """(2, ...): gains left and right for a place 0..1, of constant power."""
    return np.stack([np.cos(x * np.pi / 2), np.sin(x * np.pi / 2)])


def mel(waves: Wave) -> Wave:
    """(..., samples) to (..., frames, 16): log magnitudes of triangular mel bands, 0 for a full-scale tone.

    Frame k looks at the 1600 samples around samples 800 k to 800 (k + 1).
    """
    frames = waves.shape[-1] // HOP
    padded = np.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(HOP // 2, HOP)])
    cut = np.stack([padded[..., k * HOP : k * HOP + _WINDOW] for k in range(frames)], axis=-2)
    window = np.hanning(_WINDOW + 1)[:-1]
    magnitude = np.abs(np.fft.rfft(cut * window)) / (window.sum() / 2)
    logs: Wave = np.log(np.maximum(magnitude @ _bands().T, _FLOOR)).astype(np.float32)
    return logs


@lru_cache(maxsize=1)
def _bands() -> NDArray[np.float64]:
    """(16, bins): triangles evenly spaced in mel (2595 log10(1 + f / 700)) up to 8 kHz."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BINS + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None)
