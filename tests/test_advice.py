"""What is advised where a job cannot be done: the button's values make a request that can."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.ltx import advice, styles
from modules.ltx.errors import HostError, OutOfMemory, RequestError
from modules.ltx.ltx_capabilities import Caps, all_caps, caps_for, effective
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request

ROWS = all_caps()


def planned(model: str, **options: object) -> Plan:
    caps = caps_for(model)[0]
    return plan(Request.parse({"model": caps.id, "prompt": "a ball", **options}), caps)


def out_of(phase: str) -> OutOfMemory:
    return OutOfMemory("out of memory", phase=phase)


def test_out_of_memory_while_sampling_predicts_one_at_a_time_first() -> None:
    given = advice.for_job(out_of("sample"), planned("2.3-dev-t2v"), ROWS)
    assert given is not None
    assert (given.label, given.values) == ("Predict one at a time", {"guided_batch": "one"})


def test_out_of_memory_while_sampling_halves_the_pixels_then_the_frames() -> None:
    alone = {"refine": True, "guided_batch": "one"}
    made = planned("2.3-dev-t2v", width=1536, height=1024, frames=121, **alone)
    sizes = []
    for _ in range(20):
        given = advice.for_job(out_of("sample"), made, ROWS)
        assert given is not None
        asked = {"width": made.width, "height": made.height, "frames": made.frames, **alone}
        smaller = planned("2.3-dev-t2v", **asked | dict(given.values))
        assert smaller.width * smaller.height * smaller.frames < made.width * made.height * made.frames
        assert all(f"{value}" in given.label for value in given.values.values())
        assert (smaller.width, smaller.height, smaller.frames) == tuple((asked | dict(given.values)).values())[:3]
        made = smaller
        sizes.append((made.width, made.height, made.frames))
        if made.width * made.height <= 128 * 128:
            break
    assert sizes[0] == (1088, 704, 121)  # 0.7 of each side, on the grid of two stages
    assert (sizes[1][2], sizes[-1][2]) == (121, 25)


def test_out_of_memory_while_decoding_takes_smaller_tiles_first() -> None:
    options = {"width": 1280, "height": 704, "frames": 121}
    said = []
    for _ in range(9):
        given = advice.for_job(out_of("decode"), planned("2.3-dev-t2v", **options), ROWS)
        assert given is not None
        said.append(given.label)
        options |= dict(given.values)
        if "width" in given.values:
            break
    assert said == [
        "Decode in tiles of 384 pixels and 32 frames",
        "Decode in tiles of 256 pixels and 24 frames",
        "Make it 896x480",
    ]


def test_a_model_that_does_not_fit_is_taken_smaller_where_there_is_one() -> None:
    given = advice.for_job(out_of("load"), planned("2.3-dev-t2v"), ROWS)
    assert given is not None
    assert given.model == "2.3-dev-t2v-sdnq"
    assert advice.for_job(out_of("load"), planned("2.3-dev-t2v-sdnq"), ROWS) is None
    assert advice.for_job(out_of("encode"), planned("0.9.0-t2v"), ROWS) is None


@pytest.mark.parametrize("row", [row for row in ROWS if not row.source.startswith("nano:")], ids=lambda row: row.id)
def test_a_model_that_is_not_to_be_had_gives_way_to_nano_of_its_kind(row: Caps) -> None:
    given = advice.nano(row, ROWS)
    assert given is not None
    assert given.model is not None
    other = caps_for(given.model)[0]
    assert other.source.startswith("nano:")
    assert other.is_ltx_2_3
    assert (other.mode, other.is_distilled) == (row.mode, row.is_distilled)
    lacking = effective(row, {f"generation {row.generation}": "too old"})
    assert advice.for_request(Request(model=row.id), lacking, ROWS) == given


def test_advice_is_for_what_it_is_about() -> None:
    nano = caps_for("nano-2.3-distilled-i2v")[0]
    given = advice.for_request(Request(model=nano.id), nano, ROWS)
    assert given is not None
    assert given.model == "nano-2.3-distilled-t2v"
    text = caps_for("nano")[0]
    assert advice.for_request(Request(model=text.id, width=33), text, ROWS) is None
    assert advice.for_job(HostError("the disk is full"), planned("nano"), ROWS) is None
    missing = advice.for_job(RequestError("not downloaded yet"), planned("2.5-dev-t2v"), ROWS)
    assert missing is not None
    assert missing.model == "nano-2.3-dev-t2v"


def test_styles_of_a_file_are_added_to_both_prompts(tmp_path: Path) -> None:
    file = tmp_path / styles.NAME
    assert styles.read(file) == {}
    table = 'name,prompt,negative_prompt,more\nfilm,"{prompt}, on film","video",x\nslow,in slow motion,\n,lost,\n'
    file.write_text("\ufeff" + table, encoding="utf-8")
    known = styles.read(file)
    assert list(known) == ["film", "slow"]
    assert styles.styled("a ball", "blur", ["film", "slow"], known) == (
        "a ball, on film, in slow motion",
        "blur, video",
    )
    assert styles.styled("a ball", "", ["slow", "film"], known) == ("a ball, in slow motion, on film", "video")
    assert styles.styled(" as it is ", "", [], known) == (" as it is ", "")
    with pytest.raises(RequestError, match="style 'gone'"):
        styles.styled("a ball", "", ["gone"], known)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"no,table\n1,2\n", b'"never closed'])
def test_other_files_hold_no_styles(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "styles.csv").write_bytes(data)
    assert styles.read(tmp_path / "styles.csv") == {}
