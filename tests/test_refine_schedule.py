"""The plan text of the self-refiner: what it means, what it costs, and what is wrong with a wrong one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions.selfrefiner import schedule
from extensions.selfrefiner.schedule import RefinePlan, Steps, Window, parse, passes
from modules.ltx.errors import RequestError
from modules.ltx.ltx_util import DISTILLED_SIGMAS, STAGE2_SIGMAS


def counted(text: str, sigmas: tuple[float, ...] = DISTILLED_SIGMAS, stage: int = 1) -> int:
    plan = parse(text)
    return sum(passes(plan.stage1 if stage == 1 else plan.stage2, sigmas)[0])


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("", 18, 3),
        ("1-5:3,6-13:1", 18, 3),
        ("2-6:2", 13, 3),
        ("2-8:2", 14, 3),
        ("0:1", 8, 3),
        ("2-6:2;1-2:2", 13, 5),
        ("2-8:2;1-2:2", 14, 5),
        (";1-2:2", 8, 5),
        ("2-6:2;", 13, 3),
        ("2-6:+1", 13, 3),
        ("2-6:+2", 18, 3),
        ("0.8..0.985:3", 14, 3),
        (" 2 - 6 : 2 ; 1-2 : 2 ", 13, 5),
    ],
)
def test_evaluations_on_eight_and_three_steps(text: str, first: int, second: int) -> None:
    assert counted(text) == first
    assert counted(text, STAGE2_SIGMAS, stage=2) == second


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("2-6", "'2-6'"),
        ("2-6:2,5", "'5'"),
        ("a-b:2", "'a-b:2'"),
        ("1:x", "'1:x'"),
        ("1:2.5", "'1:2.5'"),
        ("1.5:2", "'1.5:2'"),
        ("-1:2", "'-1:2'"),
        ("6-2:2", "'6-2:2'"),
        ("0.9..0.8:2", "'0.9..0.8:2'"),
        ("0.9..1.2:2", "'0.9..1.2:2'"),
        ("2-6:0", "'2-6:0'"),
        ("2-6:17", "'2-6:17'"),
        ("2-6:+16", "'2-6:+16'"),
        ("1000:2", "'1000:2'"),
        ("9" * 5000 + ":2", "9999"),
        ("1:" + "9" * 5000, "9999"),
        ("2-6:2,4-8:3", "2-6:2 and 4-8:3"),
        ("1:2,1:3", "step 1"),
        ("0.1..0.5:2,0.5..0.9:3", "0.1..0.5:2 and 0.5..0.9:3"),
        ("1:2;1:2;1:2", "3 parts"),
        (";", "no entry"),
        ("2-6:2,", "''"),
        ("٣:2", "'٣:2'"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 320


def test_steps_that_do_not_exist_are_dropped_with_a_note() -> None:
    planned, notes = passes(parse("2-8:3").stage1, DISTILLED_SIGMAS)
    assert planned == (1, 1, 3, 3, 3, 3, 3, 3)
    assert notes == ("self-refiner: 2-8:3 on 8 steps: step 8 does not exist",)
    plan = parse("2-8:3;2-4:2")
    assert passes(plan.stage2, STAGE2_SIGMAS) == (
        (1, 1, 2),
        ("self-refiner: 2-4:2 on 3 steps: steps 3 to 4 do not exist",),
    )
    assert passes(parse("").stage1, DISTILLED_SIGMAS)[1] == (), "its last entry is of plain steps"


def test_pure_noise_and_windows_that_miss_are_told() -> None:
    assert "another sample" in passes(parse("0:2").stage1, DISTILLED_SIGMAS)[1][0]
    assert passes(parse("1:2").stage1, DISTILLED_SIGMAS)[1] == (), "0.99375"
    assert passes(parse("0.1..0.2:2").stage1, DISTILLED_SIGMAS)[1] == (
        "self-refiner: no step of this schedule lies in 0.1..0.2",
    )


def test_a_window_and_a_step_that_meet_are_refused() -> None:
    with pytest.raises(RequestError, match=r"4:2 and 0.9..1:3 both reach step 4"):
        passes(parse("4:2,0.9..1:3").stage1, DISTILLED_SIGMAS)
    assert sum(passes(parse("7:2,0.9..0.98:3").stage1, DISTILLED_SIGMAS)[0]) == 8 + 1 + 4


def test_the_papers_plan() -> None:
    assert schedule.paper_text(DISTILLED_SIGMAS) == "3:4,4:2"
    assert counted(schedule.paper_text(DISTILLED_SIGMAS)) == 12
    assert schedule.paper_text(STAGE2_SIGMAS) == "0:2"
    assert schedule.paper_text((0.5, 0.2)) == "0:1", "nothing in its window"


@pytest.mark.parametrize("name", schedule.PRESETS)
def test_presets_parse(name: str) -> None:
    text = schedule.PRESETS[name] or schedule.paper_text(DISTILLED_SIGMAS)
    assert str(parse(text)) == text


steps = st.builds(
    lambda first, more, n: Steps(first, first + more, n),
    st.integers(0, 900),
    st.integers(0, 99),
    st.integers(1, schedule.MAX_PASSES),
)
levels = st.floats(0, 1, allow_nan=False)
windows = st.builds(lambda a, b, n: Window(min(a, b), max(a, b), n), levels, levels, st.integers(1, 16))


def parses(text: str) -> RefinePlan | None:
    try:
        return parse(text)
    except RequestError:
        return None


@given(st.lists(st.one_of(steps, windows), min_size=1, max_size=4), st.lists(steps, max_size=2))
def test_printing_is_stable(first: list[Steps | Window], second: list[Steps]) -> None:
    plan = parses(str(RefinePlan(tuple(first), tuple(second))))
    if plan is not None:  # they may overlap
        assert parse(str(plan)) == plan
        assert str(parse(str(plan))) == str(plan)


@given(st.one_of(st.text(max_size=40), st.text("0123456789-:;,.+ ", max_size=24)))
def test_any_text_parses_or_is_refused(text: str) -> None:
    plan = parses(text)
    if plan is not None:
        assert parse(str(plan)) == plan
        for entries in (plan.stage1, plan.stage2):
            try:
                planned, notes = passes(entries, DISTILLED_SIGMAS)
            except RequestError:
                continue
            assert len(planned) == 8
            assert all(1 <= count <= schedule.MAX_PASSES for count in planned)
            assert all(isinstance(note, str) for note in notes)
