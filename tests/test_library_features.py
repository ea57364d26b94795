"""What is asked of the installed diffusers, and that a release without an answer is helped out or refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modules.ltx import library_features
from modules.ltx.errors import RequestError
from modules.ltx.front import settle
from modules.ltx.hosts import loading, machine, nano
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.hosts.quantizing import component
from modules.ltx.image_compression import compressed
from modules.ltx.library_features import CONDITION_CRF, FEATURES, IMAGE_CRF, LTX_25, Feature, Question, has
from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.ltx_util import get_conditions
from modules.ltx.request import Request

SOURCE = '''
"""A module.

Text that names class Named: and def it(self).
"""
from dataclasses import dataclass


@dataclass
class Record:
    """Fields."""

    frames: int
    crf: int | None = None


class Pipeline(Record):
    kind = "x"

    @torch.no_grad()
    @other("text")
    def __call__(
        self,
        image=None,
        *,
        image_crf: int | None = None,
        **kwargs,
    ) -> tuple | None:
        """A docstring with crf2: int in it."""
        kwargs.pop("dtype", None)

        def inner(hidden):
            return hidden

        return None

    def later(self, last): ...


def alone(one, /, two): ...
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "module.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("Record",), True),
        (("Record", "", "crf"), True),
        (("Record", "", "strength"), False),
        (("Pipeline", "__call__", "image_crf"), True),
        (("Pipeline", "__call__", "image"), True),
        (("Pipeline", "__call__", "hidden"), False),
        (("Pipeline", "__call__", "crf2"), False),
        (("Pipeline", "__call__", "dtype"), True),
        (("Pipeline", "__call__", "last"), False),
        (("Pipeline", "later", "last"), True),
        (("Pipeline", "__init__", "image"), False),
        (("Pipe",), False),
        (("alone",), True),
        (("alone", "", "two"), True),
    ],
)
def test_a_question_is_answered_by_the_source(package: Path, question: tuple[str, ...], answer: bool) -> None:
    assert Question("module.py", *question).answered(package) is answer


def test_a_file_that_is_missing_answers_no(package: Path) -> None:
    assert not Question("other.py", "Record").answered(package)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_the_source_says_what_the_imported_classes_say(feature: Feature) -> None:
    """The same questions, put to the classes themselves."""

    def answered(question: Question) -> bool:
        try:
            module = importlib.import_module(f"diffusers.{question.file.removesuffix('.py').replace('/', '.')}")
        except ImportError:
            return False
        owner = getattr(module, question.owner, None)
        if owner is None or not question.parameter:
            return owner is not None
        if question.method:
            method = getattr(owner, question.method)
            popped = f'kwargs.pop("{question.parameter}"' in inspect.getsource(method)
            return popped or question.parameter in inspect.signature(method).parameters
        return question.parameter in {field.name for field in dataclasses.fields(owner)}

    assert has(feature) == all(answered(question) for question in feature.questions)


def test_a_release_without_a_feature_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_features, "has", lambda feature: feature is not LTX_25)
    assert library_features.missing(LTX_25) == "needs diffusers >= 0.40"
    assert library_features.missing(IMAGE_CRF) == ""
    assert library_features.report() == (f"no {LTX_25.name}: {LTX_25.without}",)


def test_without_its_classes_ltx_25_is_refused_and_nothing_else(
    host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_features, "has", lambda feature: False)
    assert machine.lacks()["generation 2.5"] == "needs diffusers >= 0.40"
    with pytest.raises(RequestError, match=r"needs diffusers >= 0\.40"):
        settle(Request.parse({"model": "2.5-dev-t2v"}), host)
    assert settle(Request.parse({"model": "2.3-dev-t2v"}), host).caps.unavailable == ()


def test_conditions_name_a_crf_only_where_the_class_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    module = importlib.import_module("diffusers.pipelines.ltx2.pipeline_ltx2_condition")
    monkeypatch.setattr(module, "LTX2VideoCondition", lambda **given: seen.append(given))
    for known in (True, False):
        monkeypatch.setattr("modules.ltx.ltx_util.has", lambda feature, known=known: known and feature is CONDITION_CRF)
        get_conditions("2.x", [(Image.new("RGB", (8, 8)), 0, 1.0)], frames=9)
    assert [one.get("crf") for one in seen] == [0, None]


def test_the_compression_is_that_of_diffusers() -> None:
    if not has(IMAGE_CRF):
        pytest.skip("this diffusers compresses no images")
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    for size in ((64, 48), (65, 49), (2, 2)):
        image = Image.effect_noise(size, 80).convert("RGB")
        for crf in (18, 33):
            theirs = apply_image_conditioning_crf(np.array(image), crf)
            assert np.array_equal(np.asarray(compressed(image, crf)), theirs)
            assert not np.array_equal(theirs, np.asarray(image)[: size[1] // 2 * 2, : size[0] // 2 * 2])
    assert compressed(image, 0) is image


def test_a_model_comes_in_the_dtype_that_is_asked_for(cache: Path) -> None:
    """Under the name that the installed release takes, without a warning."""
    folder = nano.ensure("2.3-distilled", cache)
    wanted = machine.Machine("cpu", "bfloat16", "none", 10**10)
    caps = caps_for("nano-2.3-distilled-t2v")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        models = [component(folder, part, part, None, torch.bfloat16) for part in ("vae", "text_encoder")]
        pipe = loading.load(caps, folder, wanted)
        up = loading.upsampler(caps, nano.ensure("2.3-upsampler", cache), pipe.vae, wanted)
    for model in (*models, pipe.transformer, pipe.text_encoder, pipe.vae, up.latent_upsampler):
        assert next(iter(model.parameters())).dtype == torch.bfloat16


def test_what_the_extension_does_itself_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_features, "has", lambda feature: False)
    done, refused = library_features.report()
    assert done.startswith("this diffusers lacks ")
    assert all(feature.name in done for feature in FEATURES if feature.ours)
    assert refused == f"no {LTX_25.name}: {LTX_25.without}"
