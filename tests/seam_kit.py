"""Bare pipelines of every LTX class to attach the self-refiner to, and what counts their work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

from extensions.selfrefiner.seam import Refiner, Session, attach
from modules.ltx.hosts import nano
from modules.ltx.ltx_util import DISTILLED_SIGMAS
from modules.ltx.scheduler import planned
from tests.guidance_kit import GUIDED, UNGUIDED
from tests.library_kit import condition, first_image

CLASSES_2 = ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline")
CLASSES_09 = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
FOUR_WAY = {**GUIDED, "negative_prompt": ""}
PLAIN = (1,) * 8


def picture(seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


class Bench:
    """One pipeline, called again and again with the same arguments; counts forwards."""

    def __init__(self, kind: str, cache: Path, model: str | None = None) -> None:
        self.kind = kind
        self.old = kind in CLASSES_09
        name = model or ("0.9" if self.old else "2.3-dev")
        self.pipe = getattr(diffusers, kind).from_pretrained(nano.ensure(name, cache))
        self.pipe.set_progress_bar_config(disable=True)
        self.forwards = 0
        self.pipe.transformer.register_forward_pre_hook(self._count)
        self.make: Callable[[Any, Any], Any] = planned
        self.sigmas: tuple[float, ...] = DISTILLED_SIGMAS

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def arguments(self, *, guided: bool = False, seed: int = 1, **more: Any) -> dict[str, Any]:
        """Of a call; pictures for the classes that want them."""
        asked: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 17, "prompt": "a red ball moving right"}
        asked.update(frame_rate=24.0, num_inference_steps=len(self.sigmas), output_type="latent", return_dict=False)
        asked.update(max_sequence_length=64, generator=torch.Generator().manual_seed(seed))
        if self.old:
            asked.update(guidance_scale=3.0 if guided else 1.0)
        else:
            asked.update(FOUR_WAY if guided else UNGUIDED)
        if self.kind == "LTX2ConditionPipeline":
            asked.update(conditions=[condition(picture())])
        elif self.kind == "LTXConditionPipeline":
            asked.update(conditions=[LTXVideoCondition(image=picture(), frame_index=0)], image_cond_noise_scale=0.0)
        elif "ImageToVideo" in self.kind:
            asked.update({"image": picture()} if self.old else first_image(picture()))
        return {**asked, **more}

    @contextmanager
    def scheduled(self) -> Iterator[Any]:
        """The pipeline with a scheduler of the plan's sigmas."""
        theirs = self.pipe.scheduler
        self.pipe.scheduler = self.make(theirs, self.sigmas)
        try:
            yield self.pipe
        finally:
            self.pipe.scheduler = theirs

    def run(self, refiner: Refiner | None = None, **more: Any) -> tuple[tuple[Any, ...], Session | None]:
        """Latents (video, and sound of 2.x), and the session where there was one."""
        self.forwards = 0
        with self.scheduled() as pipe:
            if refiner is None:
                return _tensors(pipe(**self.arguments(**more))), None
            strength = more.get("denoise_strength")
            generator = more.get("generator") if more.get("image_cond_noise_scale") else None
            with attach(pipe, refiner, denoise_strength=strength, generator=generator) as session:
                made = _tensors(pipe(**self.arguments(**more)))
                session.finish()
                return made, session


def _tensors(made: Any) -> tuple[Any, ...]:
    return tuple(value for value in made if value is not None)


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def apart(one: tuple[Any, ...], other: tuple[Any, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
