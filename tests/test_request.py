"""Every option: what it takes, what it refuses, and that a request survives the round trip to JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.ltx.errors import RequestError
from modules.ltx.request import BY_NAME, OPTIONS, Option, Request

NUMBERS = [o for o in OPTIONS if o.kind in ("int", "float")]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("option", NUMBERS, ids=lambda o: o.name)
def test_a_number_keeps_its_range(option: Option) -> None:
    assert option.low is not None
    assert option.high is not None
    assert option.parse(option.low) == option.low
    assert option.parse(str(option.high)) == option.high
    for outside in (option.low - 1, option.high + 1, option.high * 10 + 1):
        with pytest.raises(RequestError, match=f"{option.flag}.*{option.high}"):
            option.parse(outside)


@pytest.mark.parametrize("option", NUMBERS, ids=lambda o: o.name)
@pytest.mark.parametrize("bad", ["abc", "", "nan", "inf", "-inf", math.nan, True, [1], {}, "1e999"])
def test_a_number_refuses_what_is_none(option: Option, bad: object) -> None:
    with pytest.raises(RequestError, match=option.flag):
        option.parse(bad)


def test_every_option_is_declared_once_with_help() -> None:
    assert len({o.flag for o in OPTIONS}) == len(OPTIONS)
    assert all(len(o.help) > 10 for o in OPTIONS)


@given(st.dictionaries(st.sampled_from([o.name for o in OPTIONS] + ["images", "loras", "other"]), JSON))
def test_garbage_parses_or_raises_request_error(values: dict[str, Any]) -> None:
    try:
        request = Request.parse(values)
    except RequestError:
        return
    assert Request.parse(json.loads(json.dumps(request.to_json()))) == request


def test_a_full_request_survives_json() -> None:
    values: dict[str, object] = {
        "model": "nano",
        "prompt": 'quotes " and \n newlines, ünïcödé',
        "seed": 2**62,
        "fps": 23.976,
        "refine": True,
        "stg_blocks": "3,4",
        "audio": False,
        "dynamic_shift": False,
        "images": [{"path": "a b.png", "frame": -1, "strength": 0.5}],
        "loras": [{"source": "x.safetensors", "strength": "-0.25"}],
    }
    request = Request.parse(values)
    assert request.stg_blocks == (3, 4)
    assert request.loras[0].strength == -0.25
    assert Request.parse(json.loads(json.dumps(request.to_json()))) == request


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(RequestError, match="'stepz'.*steps"):
        Request.parse({"stepz": 3})


def test_an_unpaired_surrogate_in_the_prompt_does_no_harm() -> None:
    prompt = BY_NAME["prompt"].parse("a\udcffb")
    assert prompt.encode("utf-8")
