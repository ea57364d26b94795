"""Prompts that were read before are not read again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.ltx.embeddings import Embeddings, Key
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_process import run
from modules.ltx.plan import Plan

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
Texts = list[str]


@pytest.fixture
def host(cache: Path, tmp_path: Path) -> EmbeddedHost:
    return EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True))


@contextmanager
def encoded(host: EmbeddedHost) -> Iterator[list[int]]:
    """How often the text encoder in memory runs meanwhile."""
    assert host._resident is not None
    encoder = next(iter(host._resident.pipes.values())).text_encoder
    calls: list[int] = []
    handle = encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def digest(host: EmbeddedHost, plan: Plan) -> str:
    media = run(plan, host).media
    assert media is not None
    return media.video_latents_sha256


@pytest.mark.parametrize("model", ["nano-2.3-dev-t2v", "nano-0.9-t2v"])
def test_only_texts_that_are_new_are_read(
    host: EmbeddedHost, cache: Path, tmp_path: Path, planned: Planned, model: str
) -> None:
    digest(host, planned(model, prompt="a ball", steps=2))
    asked: list[tuple[dict[str, Any], int]] = [
        ({"seed": 5}, 0),
        ({"negative": "blur"}, 1),  # the prompt is known
        ({"prompt": "a square", "negative": "blur"}, 1),  # the negative prompt is
        ({"prompt": "a square", "negative": "blur", "guidance_scale": 1.0, "seed": 9}, 0),
        ({"prompt": "blur", "negative": "a ball"}, 0),  # both, the other way round
    ]
    fresh = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True))
    for options, times in asked:
        plan = planned(model, **{"prompt": "a ball", "steps": 2, **options})
        with encoded(host) as calls:
            told = digest(host, plan)
        assert len(calls) == times, options
        fresh._embeddings = Embeddings()
        assert told == digest(fresh, plan), options


class Counting(Embeddings):
    """Which texts were new."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Texts = []

    def put(self, key: Key, made: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.made.append(key.text)
        super().put(key, made)


def test_another_encoder_has_read_nothing(host: EmbeddedHost, planned: Planned) -> None:
    host._embeddings = counting = Counting()
    plans = [planned(model, prompt="a ball", steps=1) for model in ("nano-2.3-distilled-t2v", "nano-0.9-t2v")]
    digests = [digest(host, plan) for plan in (*plans, *plans)]
    assert counting.made.count("a ball") == 4
    assert digests[:2] == digests[2:]


def kept(*names: str, most: int) -> Texts:
    """Which texts, of 100 bytes each, are left."""
    store, encoder = Embeddings(most), torch.nn.Identity()
    for name in names:
        if store.of(encoder).get(Key("P", name, 8)) is None:
            store.put(Key("P", name, 8), (torch.zeros(90, dtype=torch.uint8), torch.zeros(10, dtype=torch.uint8)))
    return [key.text for key in store._kept]


def test_what_was_asked_for_last_is_kept_within_its_bytes() -> None:
    assert kept("a", "b", "c", most=200) == ["b", "c"]
    assert kept("a", "b", "a", "c", most=200) == ["a", "c"]
    assert kept("a", most=99) == []
    store, one, two = Embeddings(), torch.nn.Identity(), torch.nn.Identity()
    store.of(one).put(Key("P", "a", 8), (torch.zeros(1), torch.zeros(1)))
    assert store.of(one).get(Key("P", "a", 8)) is not None
    for other in (Key("P", "a", 9), Key("Q", "a", 8), Key("P", "b", 8)):
        assert store.get(other) is None
    assert store.of(two).get(Key("P", "a", 8)) is None
    assert store.of(one).get(Key("P", "a", 8)) is None


def test_classes_that_encode_otherwise_do_not_share(host: EmbeddedHost, planned: Planned, picture: Path) -> None:
    """LTXConditionPipeline masks the padding from T5, LTXImageToVideoPipeline does not."""
    images = [{"path": str(picture)}]
    condition = planned("nano-0.9-condition", images=images, steps=2)
    alone = digest(host, condition)
    host._embeddings = Embeddings()
    run(planned("nano-0.9-i2v", images=images, steps=2), host)
    assert digest(host, condition) == alone
