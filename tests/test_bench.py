"""The benches' own parts: gates that can fail, slopes of known curves, and full-size models as published."""

from __future__ import annotations

import json

import pytest

from bench import growth, kit, sizes


def test_a_gate_that_fails_makes_a_bench_fail(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = kit.Gate("time", 1.0, 1.1), kit.Gate("parts shared", 4, 5, least=True)
    assert kit.end("one", {"seconds": [1]}, [good]) == 0
    assert kit.end("one", {}, [good, bad]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [gate["ok"] for gate in told["gates"]] == [True, False]


def test_calls_are_taken_in_turn_and_compared_with_their_neighbours() -> None:
    seen: list[str] = []
    found = kit.in_turn({"a": lambda n: seen.append(f"a{n}"), "b": lambda n: seen.append(f"b{n}")}, 3)
    assert seen == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [len(times) for times in found.values()] == [3, 3]
    assert kit.ratio({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 3.0


def test_a_slope_is_the_exponent() -> None:
    xs = [1.0, 2.0, 4.0, 8.0]
    assert growth.slope(xs, [3 * x**1.5 for x in xs]) == pytest.approx(1.5)
    assert growth.slope(xs, [7.0] * 4) == pytest.approx(0.0)


@pytest.mark.parametrize("name", sizes.SIZES)
def test_full_size_transformers_have_the_published_number_of_parameters(name: str) -> None:
    """Built without memory."""
    import torch

    size = sizes.SIZES[name]
    model = sizes.transformer(size, "meta", torch.bfloat16)
    billions = sum(weight.numel() for weight in model.parameters()) / 1e9
    assert billions == pytest.approx(size.billions, rel=0.02)
