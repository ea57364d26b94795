"""Says from pixels and waveform alone what a clip shows, and how cleanly. Knows no model and no prompt.

Every answer is a word of the world or "unclear"; every measure is near 0 for a perfect rendering (but
`outline`, which is 1, and `edge`, which is a pixel or less). Lengths are in units of the frame's short side,
colours 0..1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nano import sound, world

UNCLEAR = "unclear"

Pixels = NDArray[np.uint8]
Floats = NDArray[Any]

_GROUNDS = ("black", "white", "gray")
_FOREGROUND = 0.18  # how far a pixel is from the background before it can be the object's
_LEAST_AREA = 0.01  # a sixth of a small object's
_AREAS = {size: np.pi * radius**2 for size, radius in world.RADIUS.items()}
_STILL = 0.08  # of the short side: what moves less stands
_PITCH_TOLERANCE = 0.03  # of the pitch: half a semitone
_QUIET = 0.01  # root mean square, of full scale


@dataclass(frozen=True)
class Seen:
    """What the pictures show. `present` is the share of frames with an object in them."""

    shape: str
    colour: str
    size: str
    motion: str
    background: str
    present: float
    outline: float  # overlap (intersection over union) with the best of the three outlines
    edge: float  # width of the outline in pixels: how far the colour takes to change from 15 to 85 per cent
    flatness: float  # root mean square of the background around its own colour
    flicker: float  # mean change of the background from frame to frame
    area_drift: float  # deviation of the area over time, of its mean
    colour_drift: float  # deviation of the object's mean colour over time
    jerk: float  # root mean square third difference of the object's place, per frame


@dataclass(frozen=True)
class Heard:
    """What the sound says. `pan_error` is the mean distance between heard and seen x; NaN when silent."""

    pitch: str  # the shape it names, "silent", or "unclear"
    hertz: float
    pan_error: float


@dataclass(frozen=True)
class _Found:
    """The clip taken apart: pixels 0..1, the background's colour, where the object is (per frame)."""

    clip: Floats
    ground: Floats
    away: Floats
    masks: NDArray[np.bool_]

    @property
    def short(self) -> int:
        height, width = self.clip.shape[1:3]
        return int(min(height, width))


def look(frames: Pixels) -> Seen:
    """Judge (frames, height, width, 3)."""
    return _look(_find(frames))


def look_and_place(frames: Pixels) -> tuple[Seen, Floats]:
    """The judgement, and the object's place in each frame, (frames, 2): x and y, 0..1 of width and height; where there
    is none, the middle."""
    found = _find(frames)
    height, width = found.clip.shape[1:3]
    places = [_centre(mask) / (width, height) if mask.any() else (0.5, 0.5) for mask in found.masks]
    return _look(found), np.array(places)


def _find(frames: Pixels) -> _Found:
    clip = frames.astype(np.float32) / np.float32(255)
    ground = _ground_colour(clip)
    red, green, blue = np.moveaxis(np.abs(clip - ground), -1, 0)
    away = np.maximum(np.maximum(red, green), blue)
    masks = away > max(_FOREGROUND, 0.5 * float(np.quantile(away[:, ::2, ::2], 0.999)))
    return _Found(clip, ground, away, masks)


def _look(found: _Found) -> Seen:
    clip, masks, short = found.clip, found.masks, found.short
    areas = masks.sum((1, 2)) / short**2
    there = areas > _LEAST_AREA
    background = _nearest(found.ground, _GROUNDS, 0.25)
    outside = ~_grown(masks)
    flatness = float(np.sqrt(np.square(_pixels(clip, outside) - found.ground).mean())) if outside.any() else 1.0
    both = outside[1:] & outside[:-1]
    flicker = float(np.abs(_pixels(clip[1:], both) - _pixels(clip[:-1], both)).mean()) if both.any() else 0.0
    if there.mean() < 0.5:
        words = (UNCLEAR,) * 4
        return Seen(*words, background, float(there.mean()), 0.0, 9.0, flatness, flicker, 1.0, 1.0, 1.0)
    centres = np.array([_centre(mask) for mask in masks[there]]) / short
    colours = np.array([np.median(frame[mask], axis=0) for frame, mask in zip(clip[there], masks[there], strict=True)])
    shape, outline = _shape(masks[there], areas[there], centres, short)
    area = float(np.median(areas[there]))
    size = min(_AREAS, key=lambda name: abs(np.log(area / _AREAS[name])))
    return Seen(
        shape,
        _nearest(np.median(colours, axis=0), world.COLOURS, 0.35),
        size if 0.5 < area / _AREAS[size] < 2 else UNCLEAR,
        _motion(centres),
        background,
        float(there.mean()),
        outline,
        _edge(found, float(np.median(found.away[masks])), area),
        flatness,
        flicker,
        float(areas[there].std() / areas[there].mean()),
        float(np.sqrt(colours.var(axis=0).mean())),
        _jerk(centres),
    )


def listen(wave: NDArray[np.floating], rate: int, x: Floats | None = None) -> Heard:
    """Judge (2, samples) and, given the x seen in each frame (0..1 of the width), where it comes from."""
    wave = np.asarray(wave, np.float64)
    active = _active(wave)
    if np.sqrt(np.square(active).mean()) < _QUIET:
        return Heard("silent", 0.0, float("nan"))
    mono = active.sum(0)
    power = np.abs(np.fft.rfft(mono * np.hanning(len(mono)), 8 * len(mono))) ** 2
    frequency = np.fft.rfftfreq(8 * len(mono), 1 / rate)
    band = (frequency > 200) & (frequency < 2000)
    hertz = float(frequency[band][power[band].argmax()])
    shape = min(sound.PITCH, key=lambda name: abs(sound.PITCH[name] - hertz))
    right = abs(hertz / sound.PITCH[shape] - 1) < _PITCH_TOLERANCE
    error = float("nan") if x is None else _pan_error(wave, x)
    return Heard(shape if right else UNCLEAR, hertz, error)


def verdict(seen: Seen, scene: world.Scene) -> dict[str, bool]:
    """Which attributes are as asked; an object that is missing in a tenth of the frames is not there."""
    told = asdict(seen)
    there = seen.present >= 0.9
    return {name: bool(there and told[name] == getattr(scene, name)) for name in world.ATTRIBUTES}


def _ground_colour(clip: Floats) -> Floats:
    """The median of the outermost pixels of all frames."""
    edge = max(1, min(clip.shape[1:3]) // 32)
    rim = [clip[:, :edge], clip[:, -edge:], clip[:, :, :edge], clip[:, :, -edge:]]
    colour: Floats = np.median(np.concatenate([part.reshape(-1, 3) for part in rim]), axis=0)
    return colour


def _nearest(colour: Floats, names: tuple[str, ...], limit: float) -> str:
    gaps = {name: float(np.linalg.norm(colour - np.array(world.RGB[name]))) for name in names}
    best = min(gaps, key=gaps.__getitem__)
    return best if gaps[best] < limit else UNCLEAR


def _edge(found: _Found, height: float, area: float) -> float:
    """Half-covered pixels per pixel of a circle's outline of that area."""
    half = (found.away > 0.15 * height) & (found.away < 0.85 * height)
    return float(half.sum((1, 2)).mean() / (2 * np.sqrt(np.pi * area) * found.short))


def _grown(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks with a rim of a sixteenth of the frame: what is outside is background for certain."""
    reach = max(2, masks.shape[1] // 32)
    tall: NDArray[np.bool_] = masks.copy()
    for shift in range(1, reach + 1):
        tall[:, shift:] |= masks[:, :-shift]
        tall[:, :-shift] |= masks[:, shift:]
    grown: NDArray[np.bool_] = tall.copy()
    for shift in range(1, reach + 1):
        grown[:, :, shift:] |= tall[:, :, :-shift]
        grown[:, :, :-shift] |= tall[:, :, shift:]
    return grown


def _pixels(clip: Floats, where: NDArray[np.bool_]) -> Floats:
    """The pixels there, (n, 3). By their numbers: several times quicker than by the mask."""
    there: Floats = clip.reshape(-1, 3).take(np.flatnonzero(where), axis=0)
    return there


def _centre(mask: NDArray[np.bool_]) -> Floats:
    """x, y in pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


def _shape(masks: NDArray[np.bool_], areas: Floats, centres: Floats, short: int) -> tuple[str, float]:
    """The outline that overlaps best with what is there, drawn with its area at its place."""
    y, x = (np.arange(n) + 0.5 for n in masks.shape[1:])
    overlaps = dict.fromkeys(world.SHAPES, 0.0)
    for mask, area, centre in zip(masks[::2], areas[::2], centres[::2], strict=True):  # every second says enough
        radius = float(np.sqrt(area / np.pi)) * short
        across = (x - centre[0] * short)[None, :].astype(np.float32)
        down = (y - centre[1] * short)[:, None].astype(np.float32)
        for shape in world.SHAPES:
            drawn = world.distance(shape, radius, across, down) < 0
            overlaps[shape] += float((mask & drawn).sum() / max(1, (mask | drawn).sum())) / len(masks[::2])
    best = max(overlaps, key=overlaps.__getitem__)
    return (best if overlaps[best] > 0.7 else UNCLEAR), overlaps[best]


def _motion(centres: Floats) -> str:
    if len(centres) < 4:
        return UNCLEAR
    smooth = (centres[:-2] + centres[1:-1] + centres[2:]) / 3
    spread = np.ptp(smooth, axis=0)
    travelled = np.abs(np.diff(smooth, axis=0)).sum(0)
    net = smooth[-1] - smooth[0]
    if spread.max() < _STILL:
        return "still"
    if spread[1] > 0.15 and travelled[1] > 1.4 * spread[1] and spread[0] < 0.5 * spread[1]:
        return "bouncing"
    axis = int(np.abs(net).argmax())
    if abs(net[axis]) < 0.12 or abs(net[1 - axis]) > 0.5 * abs(net[axis]) or travelled[axis] > 1.4 * abs(net[axis]):
        return UNCLEAR
    return (("left", "right"), ("up", "down"))[axis][int(net[axis] > 0)]


def _jerk(centres: Floats) -> float:
    return float(np.sqrt(np.square(np.diff(centres, n=3, axis=0)).mean())) if len(centres) > 3 else 1.0


def _active(wave: Floats) -> Floats:
    """Without the silence at the end that a container pads with."""
    loud = np.nonzero(np.abs(wave).max(0) > 1e-4)[0]
    return wave[:, : loud[-1] + 1] if len(loud) > 100 else wave


def _pan_error(wave: Floats, x: Floats) -> float:
    """Mean distance between seen x and the x that the loudness left and right says, in 50 ms pieces."""
    active = _active(wave)
    count = max(1, round(wave.shape[1] / 800))
    pieces = list(np.array_split(wave, count, axis=1))[: max(1, active.shape[1] * count // wave.shape[1])]
    heard = [2 / np.pi * np.arctan2(*np.sqrt(np.square(piece).mean(1))[::-1]) for piece in pieces]
    seen = np.interp((np.arange(len(pieces)) + 0.5) / count, (np.arange(len(x)) + 0.5) / len(x), x)
    return float(np.abs(np.array(heard) - seen).mean())
