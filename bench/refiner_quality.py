"""`python -m bench.refiner_quality`: whether the self-refiner makes better video on LTX-Nano, and at what cost.
With `--model samplers`: the same question of the samplers.

The same prompts and seeds for every setting, through the project's own plans and stages; judged from pixels and sound
by `nano/judge.py`. Half of the prompts are of combinations that were never trained. Intervals are 95 % bootstrap
intervals over prompts (a prompt's seeds stay together); differences to "off" are paired. Prints a table and, as its
last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from nano import evaluate
from nano.evaluate import Maker, Mode, interval

FIGURES = ("all", "shape", "motion", "outline", "area_drift", "jerk")
BETTER = {"all": 1, "shape": 1, "motion": 1, "outline": 1, "area_drift": -1, "jerk": -1}


@dataclass(frozen=True)
class Setting:
    """One way to spend evaluations. `best_of` seeds are made and the best is kept, as a person would choose."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    best_of: int = 1


def refined(norm: str = "p1", **more: object) -> dict[str, object]:
    return {"self_refine": norm, **{f"self_refine_{name}": value for name, value in more.items()}}


DISTILLED = (
    Setting("off"),
    Setting("light", refined(preset="light")),
    Setting("strong", refined(preset="strong")),
    Setting("paper", refined(preset="paper")),
    Setting("default plan (1-5:3)", refined(plan="1-5:3")),
    Setting("13 steps", {"steps": 13}),
    Setting("best of 2 seeds", best_of=2),
    Setting("light, p2", refined("p2", preset="light")),
    Setting("light, threshold 0 (all replaced)", refined(preset="light", threshold=0.0)),
    Setting("light, threshold 0.25", refined(preset="light", threshold=0.25)),
    Setting("1-5:3, threshold 0.25", refined(plan="1-5:3", threshold=0.25)),
)
DEV = (
    Setting("off", {"steps": 8}),
    Setting("2-6:2", {"steps": 8, **refined(plan="2-6:2")}),
    Setting("2-6:2, reuse", {"steps": 8, **refined(plan="2-6:2", guidance="reuse")}),
    Setting("13 steps", {"steps": 13}),
)
SAMPLERS = (
    Setting("off", {"steps": 30}),  # Euler
    Setting("euler, 40", {"steps": 40}),
    Setting("euler, 15", {"steps": 15}),
    Setting("gradient_estimation, 30", {"steps": 30, "sampler": "gradient_estimation"}),
    Setting("euler_ancestral, 30", {"steps": 30, "sampler": "euler_ancestral"}),
    Setting("heun, 15 (29 evaluations)", {"steps": 15, "sampler": "heun"}),
    Setting("res_2s, 15 (31 evaluations)", {"sampler": "res_2s"}),
    Setting(
        "res_2s, 15, Euler's guidance",
        {"sampler": "res_2s", "stg_scale": 1.0, "audio_stg_scale": 1.0, "guidance_rescale": 0.7},
    ),
)
MODELS = {
    "samplers": ("nano-2.3-dev-t2v", SAMPLERS),
    "distilled": ("nano-2.3-distilled-t2v", DISTILLED),
    "dev": ("nano-2.3-dev-t2v", DEV),
}


def share(asked: argparse.Namespace, rank: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of this worker, by setting; `prompt` numbers the prompt of a row."""
    import torch

    model, prompts, seeds, workers = asked.model, asked.prompts, asked.seeds, asked.workers
    torch.set_num_threads(1 if workers > 1 else torch.get_num_threads())
    name, every = MODELS[model]
    settings = [setting for setting in every if setting.name in (asked.settings or [s.name for s in every])]
    rows: dict[str, list[dict[str, Any]]] = {setting.name: [] for setting in settings}
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        for setting in settings:
            mode = Mode(setting.name, name, {"width": asked.side, "height": asked.side, **setting.options})
            for index, scene in list(enumerate(evaluate.scenes(prompts, seed=11)))[rank::workers]:
                for seed in range(seeds):
                    tries = [
                        evaluate.assess(mode, scene, maker.make(mode, scene, seed=1000 * index + seed + 500 * again))
                        for again in range(setting.best_of)
                    ]
                    best = max(tries, key=lambda row: (row["all"], row["outline"]))
                    rows[setting.name].append({**best, "prompt": index})
            print(f"{model}, {setting.name}: done by worker {rank}", file=sys.stderr, flush=True)
    return rows


def by_prompt(rows: Sequence[Mapping[str, Any]], figure: str) -> np.ndarray:
    """The mean of a figure for each prompt, in the prompts' order."""
    numbers = sorted({row["prompt"] for row in rows})
    means = [np.mean([float(row[figure]) for row in rows if row["prompt"] == number]) for number in numbers]
    return np.array(means)


def summary(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """For each setting: its figures, and their differences to "off", with intervals."""
    told: dict[str, Any] = {}
    for name, part in rows.items():
        figures = {figure: interval(by_prompt(part, figure)) for figure in FIGURES}
        deltas = {
            figure: interval(by_prompt(part, figure) - by_prompt(rows["off"], figure))
            for figure in FIGURES
            if name != "off"
        }
        seconds = float(np.mean([row["seconds"] for row in part]))
        told[name] = {"clips": len(part), "seconds": round(seconds, 3), "figures": figures, "against_off": deltas}
    return told


def table(told: Mapping[str, Any]) -> list[str]:
    """Markdown: means, and the difference to "off" with its interval; bold where the interval leaves out 0."""
    lines = ["| setting | " + " | ".join(FIGURES) + " |", "|" + " --- |" * (len(FIGURES) + 1)]
    for name, row in told.items():
        cells = []
        for figure in FIGURES:
            mean = row["figures"][figure][0]
            cell = f"{mean:.4f}" if figure in ("jerk", "area_drift", "outline") else f"{100 * mean:.1f} %"
            if figure in row["against_off"]:
                delta, low, high = row["against_off"][figure]
                scale = 1 if figure in ("jerk", "area_drift", "outline") else 100
                digits = 4 if scale == 1 else 1
                said = f"{scale * delta:+.{digits}f} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
                cell += f"<br>**{said}**" if low > 0 or high < 0 else f"<br>{said}"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.refiner_quality", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="distilled", help="which LTX-Nano (distilled)")
    parser.add_argument("--prompts", type=int, default=100, help="prompts (100)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds for each prompt (3)")
    parser.add_argument("--side", type=int, default=256, help="pixels a side (256: what two stages make, in one)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the clips (1)")
    parser.add_argument("--settings", nargs="*", metavar="NAME", help="some of the model's settings, off among them")
    asked = parser.parse_args()
    known = [setting.name for setting in MODELS[asked.model][1]]
    if asked.settings and (not set(asked.settings) <= set(known) or "off" not in asked.settings):
        parser.error(f"--settings: off and any of: {'; '.join(known)}")
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        shares = list(pool.map(share, [asked] * asked.workers, range(asked.workers)))
    rows = {name: [row for part in shares for row in part[name]] for name in shares[0]}
    told = summary(rows)
    print("\n".join(table(told)))
    setup = {"model": asked.model, "side": asked.side, "prompts": asked.prompts, "seeds": asked.seeds}
    print(json.dumps({**setup, "settings": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
