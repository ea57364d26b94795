"""The tab's declaration of controls: for every variant what applies, with its defaults, and what becomes of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from modules.ltx import ltx_ui
from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import Caps, all_caps, caps_for
from modules.ltx.plan import plan
from modules.ltx.request import BY_NAME, Request


def asked(caps: Caps, **values: Any) -> Request:
    """What the tab asks for where the controls in `values` were moved and all others stand as shown."""
    untouched = {one.control.name: one.value for one in ltx_ui.shown(caps)}
    words = ltx_ui.Asked(caps.label, "a red ball", "", caps.default_fps, lambda _, value: value)
    return Request.parse(ltx_ui.request_values(caps, words, untouched | values))


def pictures(caps: Caps, picture: Path) -> dict[str, str]:
    return {"first_image": str(picture)} if caps.supports_input_media else {}


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_untouched_controls_ask_for_the_variants_own_recipe(caps: Caps, picture: Path) -> None:
    request = asked(caps, **pictures(caps, picture))
    images = [{"path": str(picture), "frame": 0}] if caps.supports_input_media else []
    plain = Request.parse(
        {
            "model": caps.label,
            "prompt": "a red ball",
            "fps": caps.default_fps,
            "refine": caps.supports_two_stage_refine,
            "images": images,
        }
    )
    assert request == plain
    assert plan(request, caps).stages == plan(plain, caps).stages


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_every_control_that_applies_reaches_the_request_and_no_other(caps: Caps, picture: Path) -> None:
    before = asked(caps, **pictures(caps, picture))
    moved: dict[str, Any] = {
        "slider": lambda one: one.control.span[0] if one.value != one.control.span[0] else one.control.span[1],
        "number": lambda one: 5,
        "checkbox": lambda one: not one.value,
        "choice": lambda one: next(c for c in one.control.choices if c not in (one.value, "", "off")),
        "text": lambda one: {"stg_blocks": "2", "gallery_frames": "8", "gallery_strengths": "0.5"}.get(
            one.control.name, "2-6:2"
        ),
        "lines": lambda one: "some/lora.safetensors:0.5",
        "image": lambda one: str(picture),
        "files": lambda one: [str(picture)],
        "video": lambda one: str(picture),
    }
    video, more, two = {"prefix_video": str(picture)}, {"gallery": [str(picture)]}, {"refine": True}
    company: dict[str, dict[str, Any]] = {  # what they say something about
        "prefix_frames": video,
        "prefix_skip": video,
        "gallery_frames": more,
        "gallery_strengths": more,
        "stage2_steps": two,
        "refine_strength": two,
    }
    for one in ltx_ui.shown(caps):
        value = moved[one.control.kind](one)
        beside = {**pictures(caps, picture), **company.get(one.control.name, {})}
        after = asked(caps, **{**beside, one.control.name: value})
        base = asked(caps, **beside)
        if one.control.name == "first_image":
            base = asked(caps)
        assert (after != base) == one.applies, one.control.name
    assert before == asked(caps, **pictures(caps, picture))


def test_groups_without_a_control_are_hidden() -> None:
    dev, image, old = (caps_for(name)[0] for name in ("2.3-dev-t2v", "2.3-dev-i2v", "0.9.0-t2v"))
    assert not ltx_ui.sections(dev)["Input media"]
    assert ltx_ui.sections(image)["Input media"]
    assert not ltx_ui.sections(old)["Stages"]


def test_what_is_declared_exists() -> None:
    names = [control.name for control in ltx_ui.CONTROLS]
    assert len(set(names)) == len(names)
    assert {name for name in names if name not in BY_NAME} == set(ltx_ui.MEDIA)
    labels = [control.label for control in ltx_ui.CONTROLS]
    sections = [control.section for control in ltx_ui.CONTROLS]
    assert [name for name, _ in itertools.groupby(sections)] == list(ltx_ui.SECTIONS), "a page is laid out by sections"
    assert len(set(labels)) == len(labels)
    assert all(label.startswith("LTX ") for label in labels)  # a web UI keeps values by label
    for control in ltx_ui.CONTROLS:
        assert control.help or control.name in ltx_ui.MEDIA


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_a_request_and_the_controls_values_are_the_same_thing(caps: Caps, picture: Path) -> None:
    """As restored from a video's metadata, and asked again."""
    first = {"path": str(picture), "frame": 0}
    images = [first, {"path": "c.png", "frame": -1}, {"path": "b.png", "frame": 48, "strength": 0.5}]
    said: dict[str, Any] = {"steps": 7, "sampler": "heun", "self_refine": "p2", "self_refine_plan": "2-3:2", "seed": 5}
    if caps.supports_stg:
        said |= {"stg_blocks": [1, 2], "audio_guidance_scale": 4.5}
    if caps.supports_two_stage_refine:
        said |= {"refine": True, "stage2_steps": 2}
    if caps.supports_input_media:
        said["images"] = images if caps.supports_multi_condition else [first]
    if caps.supports_multi_condition:
        said["prefix"] = {"path": "clip.mp4", "frames": 9, "skip": 3}
    said["loras"] = [{"source": "a/b", "strength": 0.5, "stage2": 0.0}, {"source": "C:/x.safetensors"}]
    request = Request.parse({"model": caps.label, "prompt": "a red ball", "fps": caps.default_fps, **said})
    assert asked(caps, **ltx_ui.values_of(request, caps)) == request


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_sizes_by_shape_need_no_note(caps: Caps, picture: Path) -> None:
    for width, height in ltx_ui.presets(caps).values():
        made = plan(asked(caps, **pictures(caps, picture), width=width, height=height), caps)
        assert (made.width, made.height) == (width, height)
        assert 0.75 < made.width * made.height / (caps.default_width * caps.default_height) < 1.25


def test_pictures_and_their_numbers_must_match() -> None:
    caps = caps_for("2.3-dev-condition")[0]
    for text, sentence in (("0, x", "is no list of numbers"), ("0", "1 numbers for 2 pictures")):
        with pytest.raises(RequestError, match=sentence):
            asked(caps, gallery=["a.png", "b.png"], gallery_frames=text)


def live(caps: Caps, **values: Any) -> dict[str, str]:
    """Why controls that the variant has have no effect beside these values, by name."""
    return {one.control.name: one.idle for one in ltx_ui.shown(caps, values) if one.applies and not one.live}


def test_a_control_without_effect_says_so_until_it_has_one(picture: Path) -> None:
    caps = caps_for("nano-2.3-dev-condition")[0]
    video = str(picture)
    pairs: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("stage2_steps", {"refine": True}, "two stages are off"),
        ("self_refine_plan", {"self_refine": "p1"}, "the self-refiner is off"),
        ("self_refine_map", {"self_refine": "p2"}, "the self-refiner is off"),
        ("prefix_frames", {"prefix_video": video}, "without a video"),
        ("prefix_skip", {"prefix_video": video}, "without a video"),
        ("gallery_frames", {"gallery": [video]}, "without additional images"),
        ("gallery_strengths", {"gallery": [video]}, "without additional images"),
        ("image_strength", {"last_image": video}, "without an image"),
        ("image_strength", {"prefix_video": video}, "without an image"),
    )
    off = live(caps, refine=False)
    for name, given, why in pairs:
        assert why in off[name], name
        assert name not in live(caps, **{"refine": False, **given}), name
    assert set(live(caps, refine=True, self_refine="p1", gallery=[video], prefix_video=video)) == set()
    assert "stg_blocks" in live(caps, stg_scale=0, audio_stg_scale=0)
    assert "refine_strength" in live(caps_for("0.9.7-dev")[0], refine=False)


def test_distilled_models_have_guidance_once_its_scale_is_above_1() -> None:
    caps = caps_for("2.3-distilled-t2v")[0]
    eight = [one.control.name for one in ltx_ui.shown(caps) if one.control.section == "Guidance" and one.applies]
    others = [name for name in eight if name != "guidance_scale"]
    assert len(others) == 8  # seven scales and the blocks
    assert set(others) <= set(live(caps))
    assert "guidance_scale" not in live(caps)
    assert not set(others) & set(live(caps, guidance_scale=3.0)) - {"stg_blocks"}
    assert "audio_guidance_scale" not in live(caps, audio_guidance_scale=4.5)  # restored from a video made so
    scale = next(one for one in ltx_ui.shown(caps) if one.control.name == "guidance_scale")
    assert "a value above 1 turns it on and doubles the time" in scale.words
    dev = caps_for("2.3-dev-t2v")[0]
    assert not set(others) & set(live(dev))
    assert "turns it on" not in next(o for o in ltx_ui.shown(dev) if o.control.name == "guidance_scale").words


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_every_control_explains_itself_in_sentences(caps: Caps) -> None:
    for one in (*ltx_ui.shown(caps), *ltx_ui.outputs(caps)):
        assert one.words[0].isupper()
        assert one.words.endswith(".")
        assert "--" not in one.words, one.words  # flags belong to the command line
        if not one.applies:
            assert "Not with this model: " in one.words
