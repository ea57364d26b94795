"""Calls of diffusers' classes with a given image, in the words of whatever release is installed."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

from modules.ltx.image_compression import compressed
from modules.ltx.library_features import CONDITION_CRF, IMAGE_CRF, LTX_25, has, missing

needs_25 = pytest.mark.skipif(bool(missing(LTX_25)), reason=f"{LTX_25.name}: {missing(LTX_25)}")


def condition(frames: Any, index: int = 0, strength: float = 1.0, crf: int = 0) -> Any:
    """A condition of LTX2ConditionPipeline; where that compresses no image, a single one is compressed here."""
    if has(CONDITION_CRF):
        return LTX2VideoCondition(frames, index, strength, crf)
    alone = not isinstance(frames, list)
    return LTX2VideoCondition(compressed(frames, crf) if alone else frames, index, strength)


def first_image(image: Any, crf: int = 0) -> dict[str, Any]:
    """The arguments of LTX2ImageToVideoPipeline for a first image."""
    if has(IMAGE_CRF):
        return {"image": image, "image_crf": crf}
    return {"image": compressed(image, crf)}


def default_of(pipeline: str, name: str) -> Any:
    """What a pipeline's call takes for an argument that is not given."""
    return inspect.signature(getattr(diffusers, pipeline).__call__).parameters[name].default
