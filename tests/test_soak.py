"""Jobs one behind the other in one process leave nothing behind; `python -m bench.soak 200` does many more."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.soak import GROWTH, MIB, Count, draw, trial, wrong

CALM = Count(500 * MIB, Counter({"/a": 2}), Counter({"MainThread": 1}), Counter(), ())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process holds")
def test_eight_jobs_leave_nothing_open_running_or_lying_about(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTX_CACHE", str(cache))
    found = trial(tmp_path, 8, random.Random(5), warm=4, window=2, models="nano-2.3-distilled-t2v")
    assert found["wrong"] == []
    assert found["jobs"] == sum(found["ended"].values()) == len(found["curve"]) == 8
    assert len(found["ended"]) >= 2  # one failed


@pytest.mark.parametrize(
    ("leaking", "said"),
    [
        (lambda n: replace(CALM, memory=CALM.memory + n * GROWTH // 4), "memory grew by"),
        (lambda n: replace(CALM, files=Counter({"/a": 2 + n})), "left open: /a (3)"),
        (lambda n: replace(CALM, threads=Counter({"MainThread": 1, "job": n // 5})), "left running: job (1)"),
        (lambda n: replace(CALM, hooks=Counter(["vae: hook"] * (n // 9))), "behind job 9: hook vae: hook"),
        (lambda n: replace(CALM, temporary=("/tmp/x",) * (n // 9)), "left behind: /tmp/x"),
        (lambda n: replace(CALM, files=Counter({"/a": 2 + n % 2})), None),
        (lambda n: replace(CALM, memory=CALM.memory + n % 2 * GROWTH), None),
    ],
)
def test_what_leaks_is_found_and_what_comes_and_goes_is_not(leaking: object, said: str | None) -> None:
    assert callable(leaking)
    found = wrong([], [leaking(n) for n in range(10)], 2, 3)
    assert [one[: len(said or "")] for one in found] == ([said] if said else [])


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    draw([450, 520, 510, 515], 2, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
