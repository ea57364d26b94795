"""A host's own networks beside the LoRA of stage 2: they act in both stages as they are set, and stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from modules.ltx import borrow
from modules.ltx.errors import RequestError
from modules.ltx.kept import embeds_of
from tests.faults.conftest import Undisturbed
from tests.faults.kit import Place, strike
from tests.faults.seams import FAULTS, Call

pytestmark = pytest.mark.library

Told = dict[str, Any]
LAYERS = ["attn1.to_q", "attn1.to_out.0"]  # fewer than the LoRA of stage 2 has


def wrapped(place: Place) -> dict[str, Any]:
    return {
        name: layer
        for name, layer in place.pipes()[0].transformer.named_modules()
        if isinstance(layer, LoraLayer) and hasattr(layer, "scaling")
    }


def state(place: Place) -> dict[str, Told]:
    """All that peft keeps of each wrapped layer."""
    return {
        name: {
            "active": list(layer.active_adapters),
            "scaling": dict(layer.scaling),
            "disabled": layer.disable_adapters,
            "trainable": {key: value.requires_grad for key, value in layer.named_parameters()},
        }
        for name, layer in wrapped(place).items()
    }


@contextmanager
def networks(place: Place, strengths: dict[str, float], active: list[str]) -> Iterator[None]:
    """Adapters of a host on the transformer, not those of a new model: they change what is made."""
    pipe = place.pipes()[0]
    try:
        for number, (name, strength) in enumerate(strengths.items()):
            torch.manual_seed(number)
            config = LoraConfig(r=2, lora_alpha=4, target_modules=LAYERS, init_lora_weights=False)
            pipe.transformer.add_adapter(config, name)
            pipe.transformer.set_adapters([name], [strength])
        for layer in wrapped(place).values():
            layer.set_adapter(active)
        yield
    finally:
        pipe.unload_lora_weights()


@contextmanager
def watched(place: Place) -> Iterator[list[dict[str, Told]]]:
    """What each layer of theirs had at every call of the transformer."""
    seen: list[dict[str, Told]] = []
    theirs = wrapped(place).keys()

    def note(*_: Any) -> None:
        seen.append({name: told for name, told in state(place).items() if name in theirs})

    handle = place.pipes()[0].transformer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def sampled(place: Place) -> str:
    return place.job(until="refine")


def test_they_act_in_both_stages_as_strong_as_they_were_set(place: Place, undisturbed: Undisturbed) -> None:
    lora = place.plan.stages[-1].lora
    assert lora is not None
    with networks(place, {"mine": 0.7, "off": 0.2, "yours": 0.3}, ["mine", "yours"]):
        before = state(place)
        with watched(place) as calls:
            changed = sampled(place)
        assert state(place) == before
        scales = {"mine": 1.4, "off": 0.4, "yours": 0.6}  # alpha / r is 2
        alone = {"active": ["mine", "yours"], "scaling": scales}
        beside = {"active": ["mine", "yours", "ltx_stage_0"], "scaling": scales | {"ltx_stage_0": lora.strength}}
        acting = [
            {"active": told["active"], "scaling": pytest.approx(told["scaling"])}
            for call in calls
            for told in call.values()
        ]
        assert [one for one in acting if "ltx_stage_0" not in one["active"]] == [alone] * acting.count(alone)
        assert acting.count(alone) + acting.count(beside) == len(acting)
        assert acting.count(beside) >= len(before)
        assert changed != undisturbed.latents
        assert sampled(place) == changed
    assert sampled(place) == undisturbed.latents


@pytest.mark.parametrize("active", [[], ["mine"]])
def test_those_that_do_not_act_are_as_if_they_were_not_there(
    place: Place, undisturbed: Undisturbed, active: list[str]
) -> None:
    """Loaded and not chosen; chosen and turned off."""
    with networks(place, {"mine": 0.7}, active):
        if active:
            place.pipes()[0].disable_lora()
        before = state(place)
        assert sampled(place) == undisturbed.latents
        assert state(place) == before


SEAMS = {
    "LoRA: load_lora_weights": FAULTS[0],
    "LoRA layers": FAULTS[1],  # memory, told as such and not as a LoRA that does not fit
    "LoRA weights": FAULTS[1],
    "LoRA: set_adapters": FAULTS[2],
    "LoRA: removal": FAULTS[5],
    "LoRA: delete_adapters": FAULTS[4],
}


@pytest.fixture
def stage2(place: Place) -> Iterator[Callable[[], str]]:
    """The job from the upsampled latents to those of stage 2."""
    kept = place.kept / "upsampled.safetensors"
    place.job(keep=kept, until="upsample")
    upsampled = kept.read_bytes()

    def job() -> str:
        kept.write_bytes(upsampled)
        return place.job(keep=kept, until="refine")

    yield job
    kept.unlink()
    embeds_of(kept).unlink()


def test_behind_a_fault_they_are_as_they_were(place: Place, stage2: Callable[[], str]) -> None:
    without = stage2()
    with networks(place, {"mine": 0.7, "yours": 0.3}, ["mine", "yours"]):
        before, wanted = state(place), stage2()
        assert wanted != without
        for seam, fault in SEAMS.items():
            found = strike(place, stage2, Call(seam, 1), fault, wanted)
            assert found.struck, found
            assert not found.wrong, found
            assert state(place) == before, found
        assert stage2() == wanted
    assert stage2() == without


def test_one_that_is_fused_is_told_since_ours_would_do_nothing(place: Place, undisturbed: Undisturbed) -> None:
    pipe = place.pipes()[0]
    with networks(place, {"mine": 0.5}, ["mine"]):
        for layer in wrapped(place).values():
            layer.merge()
        with pytest.raises(RequestError, match=r"another one \(mine\) is fused into the model"):
            sampled(place)
        for layer in wrapped(place).values():
            layer.unmerge()
        assert pipe.get_list_adapters() == {"transformer": ["mine"]}


def test_layers_that_only_ours_had_wrapped_are_bare_again(place: Place, undisturbed: Undisturbed) -> None:
    pipe, lora = place.pipes()[0], place.plan.stages[-1].lora
    assert lora is not None
    with networks(place, {"mine": 0.7}, ["mine"]):
        theirs = wrapped(place).keys()
        with borrow.adapters(pipe, [(*place.host.weights(lora), lora.strength)]):
            assert wrapped(place).keys() > theirs
        assert wrapped(place).keys() == theirs
