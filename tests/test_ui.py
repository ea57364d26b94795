"""The tab's declaration of controls: for every variant what applies, with its defaults, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modules.ltx import ltx_ui
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
        "text": lambda one: "2-6:2",
        "image": lambda one: str(picture),
        "files": lambda one: [str(picture)],
        "video": lambda one: str(picture),
    }
    needs_company = {"prefix_frames", "prefix_skip"}  # only with a video
    for one in ltx_ui.shown(caps):
        value = moved[one.control.kind](one)
        company = {"prefix_video": str(picture)} if one.control.name in needs_company else {}
        after = asked(caps, **{**pictures(caps, picture), **company, one.control.name: value})
        base = asked(caps, **{**pictures(caps, picture), **company})
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
    assert len(set(labels)) == len(labels)
    assert all(label.startswith("LTX ") for label in labels)  # a web UI keeps values by label
    for control in ltx_ui.CONTROLS:
        assert control.help or control.name in ltx_ui.MEDIA
