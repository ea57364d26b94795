"""Counting what LTX-Nano makes: scenes, shares, measures, the table and the contact sheet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.ltx import ltx_capabilities
from nano import evaluate, parts, sheet, weights, world
from nano.loop import averaged_weights


def row(**changes: Any) -> dict[str, Any]:
    right = dict.fromkeys((*world.ATTRIBUTES, "all", "pitch"), True)
    measures = dict.fromkeys(evaluate.MEASURES, 0.5)
    return {"held_out": False, **right, **measures, "pan_error": float("nan"), "seconds": 2.0, **changes}


def test_half_of_the_scenes_were_never_trained_and_they_are_the_same_every_time() -> None:
    scenes = evaluate.scenes(20)
    assert [scene.combination in world.HELD_OUT for scene in scenes] == [False, True] * 10
    assert scenes == evaluate.scenes(20)
    assert scenes[:10] == evaluate.scenes(10)


def test_shares_and_means() -> None:
    rows = [row(), row(shape=False, all=False, edge=1.5), row(held_out=True, pitch=False, pan_error=0.1)]
    told = evaluate.summary(rows)
    right = dict.fromkeys((*world.ATTRIBUTES, "pitch", "side"), 1.0)
    assert told["seen"] == {**right, "shape": 0.5, "all": 0.5, "clips": 2}
    assert told["held_out"]["clips"] == 1
    assert told["held_out"]["pitch"] == 0.0
    assert told["edge"] == pytest.approx(2.5 / 3, abs=1e-5)
    assert told["pan_error"] == 0.1  # silent clips have none
    assert "psnr_first" not in told
    head, _, line = evaluate.table({"a mode": told})
    assert head.count("|") == line.count("|")
    assert "| a mode | 50 / 100 |" in line
    json.dumps(told)


def test_what_stage_2_moves_and_where_the_sound_comes_from() -> None:
    rows = [row(pan_error=0.02, moved=0.03), row(pan_error=0.4, moved=0.4), row(moved=0.1)]
    told = evaluate.summary([*rows, row(held_out=True, moved=0.0)])
    assert (told["seen"]["side"], told["seen"]["kept"]) == (0.66667, 0.66667)
    assert (told["held_out"]["side"], told["held_out"]["kept"]) == (1.0, 1.0)
    assert told["moved"] == pytest.approx(0.53 / 4, abs=1e-5)
    *_, line = evaluate.table({"two stages": told})
    assert line.count("| 67 / 100 ") == 2


def test_of_two_stages_the_first_is_looked_at_too() -> None:
    """An object that stage 2 draws in another place is as right to the judge as one that stays."""
    scene = world.Scene("ball", "red", "small", "up", "black", across=0.0)
    clip, other = (world.pixels(replace(scene, across=across), 25, width=128, height=128) for across in (0.0, 1.0))
    far = world.path(replace(scene, across=1.0), 25)[0, 0] - world.path(scene, 25)[0, 0]
    silence = np.zeros((2, 16000))
    for frames, moved in ((clip, 0.0), (other, far)):
        made = evaluate.Made(frames, silence, 16000, 1.0, draft=clip[:, ::2, ::2])
        judged = evaluate.assess(evaluate.MODES[0], scene, made)
        assert judged["all"]
        assert judged["moved"] == pytest.approx(moved, abs=0.01)
    assert "moved" not in evaluate.assess(evaluate.MODES[0], scene, replace(made, draft=None))


def test_two_modes_are_compared_clip_by_clip() -> None:
    one, other = evaluate.COMPARED[0]
    # Clips differ by much, the modes always by 0.2: only a paired interval is as narrow as that.
    edges = np.linspace(1, 9, 50)
    rows = {
        one: [row(edge=edge - 0.2, all=index % 2 == 0) for index, edge in enumerate(edges)],
        other: [row(edge=edge, all=False) for edge in edges],
    }
    (told,) = evaluate.differences(rows).values()
    np.testing.assert_allclose(told["edge"], -0.2, atol=1e-5)
    mean, low, high = told["all"]
    assert mean == 0.5
    # Half of 50: the normal approximation is 0.5 +- 1.96 * sqrt(0.25 / 50).
    assert low == pytest.approx(0.361, abs=0.025)
    assert high == pytest.approx(0.639, abs=0.025)
    assert evaluate.differences({one: rows[one]}) == {}


def test_psnr() -> None:
    assert evaluate.psnr(np.zeros((2, 2)), np.full((2, 2), 0.1)) == pytest.approx(20)


def test_enlarged_frames_are_twice_as_large() -> None:
    clip = world.pixels(world.Scene("ball", "red", "big", "still", "black"), 2, width=32, height=64)
    assert evaluate.enlarged(clip).shape == (2, 128, 64, 3)


@pytest.mark.parametrize("arguments", [["--modes", "magic"], ["--clips", "1"], ["--workers", "0"]])
def test_bad_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(arguments)
    assert caught.value.code == 2
    assert "magic" in capsys.readouterr().err or arguments[0] != "--modes"


@pytest.mark.parametrize("name", ["distilled, 128x128", "condition, two stages"])
def test_a_mode_makes_a_clip_with_sound_and_it_is_judged(name: str, tmp_path: Path, cache: Path) -> None:
    mode = next(each for each in evaluate.MODES if each.name == name)
    scene = world.Scene("ball", "red", "small", "right", "black")
    made = evaluate.Maker(tmp_path, cache).make(mode, scene, seed=1)
    side = 128 if "128" in name else 256
    assert (made.frames.shape, made.frames.dtype) == ((25, side, side, 3), np.uint8)
    assert (made.wave.shape[0], made.rate) == (2, 16000)
    assert made.seconds > 0
    assert (made.draft is not None) == ("two stages" in name)
    assert made.draft is None or made.draft.shape == (25, 128, 128, 3)
    judged = evaluate.assess(mode, scene, made)
    assert ("moved" in judged) == ("two stages" in name)
    assert not judged["held_out"]
    assert set(world.ATTRIBUTES) < set(judged)
    assert ("psnr_first" in judged) == bool(mode.given)


def test_kept_rows_are_read_and_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clips", "2", "--modes", "distilled, 128x128", "--keep", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])["modes"]["distilled, 128x128"]
    (kept,) = tmp_path.iterdir()
    rows = json.loads(kept.read_text())
    assert [row["held_out"] for row in rows] == [False, True]
    rows[0]["edge"] += 10.0
    kept.write_text(json.dumps(rows))
    assert evaluate.main(arguments) == 0
    read = json.loads(capsys.readouterr().out.splitlines()[-1])["modes"]["distilled, 128x128"]
    assert read["edge"] == pytest.approx(made["edge"] + 5.0, abs=1e-4)
    assert read["seconds"] == made["seconds"]


def test_other_options_or_scenes_are_other_files() -> None:
    names = [evaluate.chunk_name(mode, start, 10) for mode in evaluate.MODES for start in (0, 10)]
    assert len(set(names)) == 2 * len(evaluate.MODES)


def test_rows_of_another_recipe_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = evaluate.MODES[0]
    before, (row, notes) = evaluate.chunk_name(mode, 0, 10), ltx_capabilities.caps_for(mode.model)
    assert evaluate.chunk_name(mode, 0, 10) == before
    other = replace(row, stg_default_blocks=(1,))
    monkeypatch.setattr(ltx_capabilities, "caps_for", lambda name: (other, notes))
    assert evaluate.chunk_name(mode, 0, 10) != before


def test_a_contact_sheet_has_a_row_a_prompt(tmp_path: Path) -> None:
    clip = np.zeros((25, 64, 64, 3), np.uint8)
    page = sheet.sheet([("one", clip), ("two", clip + 255)])
    assert page.size == (7 * 116 + 4, 2 * 134 + 4)
    assert page.getpixel((60, 60)) == (0, 0, 0)
    assert page.getpixel((60, 134 + 60)) == (255, 255, 255)
    with pytest.raises(SystemExit):
        sheet.main([str(tmp_path / "a.png"), "--mode", "magic"])


def test_shipped_weights_become_checkpoints_and_are_exported_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from modules.ltx.hosts import nano_parts

    weights.unpack(tmp_path)
    kept = averaged_weights(tmp_path, "vocoder", "vocoder")
    shipped = nano_parts.trained("vocoder")
    assert kept.keys() == shipped.keys()
    assert all(value.equal(kept[name]) for name, value in shipped.items())
    for stage in ("dev", "captions"):  # what Distilled and the LoRA begin with, and what is shipped
        assert averaged_weights(tmp_path, stage, "transformer").keys() == nano_parts.trained("transformer-dev").keys()
    names = weights.export(tmp_path, tmp_path / "again")
    kept_parts = set(nano_parts.TRAINED) - {"lora"}  # it is always trained anew
    assert kept_parts <= set(names)
    for name in kept_parts:
        first, again = (
            load_file(nano_parts.WEIGHTS / f"{name}.safetensors"),
            load_file(tmp_path / "again" / f"{name}.safetensors"),
        )
        assert first.keys() == again.keys()
        assert all(value.equal(again[key]) for key, value in first.items()), name


def test_the_parts_are_measured_without_a_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    assert parts.main(["--clips", "2"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["clips"] == 2
    assert told["256x256"]["psnr"] > told["256x256"]["psnr_worst"] > 10
    assert told["sound"]["pitch"] == 1.0
