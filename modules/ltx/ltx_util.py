"""Arithmetic of the recipes: sizes, frame counts, sigma schedules, seeds. No torch, no policy.

Which schedule a variant runs is decided in `plan.py`; here are only the formulas and their sources.
`get_conditions` is the one function that touches diffusers, and imports it when called.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.ltx.errors import RequestError
from modules.ltx.library_features import CONDITION_CRF, has

# Lightricks/LTX-2 ltx_pipelines/utils/constants.py: DISTILLED_SIGMA_VALUES, without the final 0.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
# Same file, STAGE_2_DISTILLED_SIGMA_VALUES: the last three of the list above.
STAGE2_SIGMAS = DISTILLED_SIGMAS[-3:]

# LTX2Scheduler (ltx_core/components/schedulers.py) and the scheduler config of Lightricks/LTX-2.
BASE_SHIFT, MAX_SHIFT = 0.95, 2.05
BASE_TOKENS, MAX_TOKENS = 1024, 4096
TERMINAL = 0.1


def get_bucket(size: int, grid: int) -> int:
    """`size` in pixels floored to the grid, never below one cell of it."""
    return max(size // grid * grid, grid)


def get_frames(frames: int, ratio: int = 8) -> int:
    """`frames` floored to ratio*k + 1, what a causal video VAE of that temporal ratio can make."""
    return (max(frames, 1) - 1) // ratio * ratio + 1


def centre_box(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred box of the aspect ratio width:height in an image of `size`: left, top, right, bottom."""
    across, down = size
    wide, tall = min(across, round(down * width / height)), min(down, round(across * height / width))
    left, top = (across - wide) // 2, (down - tall) // 2
    return left, top, left + max(wide, 1), top + max(tall, 1)


def token_count(width: int, height: int, frames: int, *, spatial: int = 32, temporal: int = 8) -> int:
    """Latent tokens of a clip (patch size 1): latent width x height x frames."""
    return (width // spatial) * (height // spatial) * ((frames - 1) // temporal + 1)


def shift_for_tokens(tokens: int) -> float:
    """m of the LTX-2 schedule, linear in the token count (0.95 at 1024, 2.05 at 4096; not clamped)."""
    return BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)


def shifted_sigmas(steps: int, m: float) -> tuple[float, ...]:
    """The LTX-2 Dev schedule: linspace(1, 0) shifted by e^m, stretched to end at 0.1; without the final 0.

    sigma = e^m / (e^m + 1/t - 1), and 1 - sigma is what gets stretched. It is kept in the form
    a / (1 + a e^-m), a = 1/t - 1, whose factor e^-m the stretch cancels: computed as 1 - sigma, as
    diffusers does in float32, whole runs of steps fall together from about 30000 tokens on.
    """
    ramp = [steps / (steps - i) - 1.0 for i in range(steps)]
    return _stretched([a / (1.0 + a * math.exp(-m)) for a in ramp])


def linear_sigmas(steps: int) -> tuple[float, ...]:
    """The 0.9.0/0.9.1 schedule: linspace(1, 1/steps), stretched to end at 0.1, no shift.

    Their published scheduler config has dynamic shift on and shift_terminal 0.1; dynamic shift is
    pinned off when 0.9 loads, the terminal stays.
    """
    return _stretched([i / steps for i in range(steps)])


def _stretched(complements: Sequence[float]) -> tuple[float, ...]:
    """Sigmas from values proportional to 1 - sigma, scaled so that the last sigma is TERMINAL."""
    last = complements[-1]
    if last <= 0.0:  # a single step starts, and ends, at pure noise: nothing to stretch
        return (1.0,) * len(complements)
    return tuple(1.0 - c * (1.0 - TERMINAL) / last for c in complements)


def linear_quadratic_sigmas(steps: int, threshold: float = 0.025) -> tuple[float, ...]:
    """The 0.9.5+ schedule: 1 - sigma rises linearly to `threshold` in half the steps, then quadratically.

    Source: LTX-Video ltx_video/schedulers/rf.py, linear_quadratic_schedule (arXiv 2410.13720, sec. 3.4.2).
    """
    if steps < 2:
        return (1.0,)
    linear = steps // 2
    quadratic = steps - linear
    slope = threshold / linear
    # a*k^2 + b*k + threshold over k = 0..quadratic, with the slope continuous at k = 0 and 1 at the end
    a = (1.0 - threshold - slope * quadratic) / quadratic**2
    first = [slope * i for i in range(linear)]
    second = [a * k * k + slope * k + threshold for k in range(quadratic)]
    return tuple(1.0 - x for x in first + second)


def resample_sigmas(sigmas: Sequence[float], steps: int) -> tuple[float, ...]:
    """`steps` sigmas along the piecewise-linear curve through `sigmas` and the final 0, same start."""
    curve = [*sigmas, 0.0]
    if steps == len(sigmas):
        return tuple(sigmas)
    positions = [i * len(sigmas) / steps for i in range(steps)]
    return tuple(curve[int(p)] + (curve[int(p) + 1] - curve[int(p)]) * (p - int(p)) for p in positions)


def random_seed() -> int:
    """A seed for a request that names none: 32 bits, short enough to read out and type again."""
    return secrets.randbits(32)


def seed_for(seed: int, purpose: str) -> int:
    """The seed of one draw of a job: `seed` itself for the base pass, a keyed hash for everything else.

    Each stage draws from its own generator, so that a stage can be resumed, repeated or refined
    without moving any noise drawn elsewhere.
    """
    if purpose == "stage1":
        return seed
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: manual_seed takes a signed 64-bit integer


def get_conditions(family: str, images: Sequence[Any], *, frames: int) -> list[Any]:
    """Condition records of diffusers for `images`, a sequence of (PIL image or list of them, frame, strength).

    0.9 wants a pixel frame index; 2.x wants a *latent* index, where a pixel frame f > 0 lies in latent
    (f - 1) // 8 + 1. The images are compressed already, so the record says 0 where it has a CRF.
    """
    if family == "0.9":
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

        return [
            LTXVideoCondition(
                **({"video": image} if isinstance(image, list) else {"image": image}),
                frame_index=frame % frames,
                strength=strength,
            )
            for image, frame, strength in images
        ]
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    done = {"crf": 0} if has(CONDITION_CRF) else {}
    return [
        LTX2VideoCondition(frames=image, index=latent_index(frame, frames), strength=strength, **done)
        for image, frame, strength in images
    ]


def latent_index(frame: int, frames: int, ratio: int = 8) -> int:
    """The latent frame that holds pixel `frame` of a clip of `frames` (-1 = the last)."""
    position = frame % frames
    return (position - 1) // ratio + 1 if position else 0


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes as 64 hex digits. Raises RequestError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give a readable file.") from error
    return digest.hexdigest()
