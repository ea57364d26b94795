"""`python -m bench.caches`: what caches between steps are worth on LTX-Nano, beside simply taking fewer steps.

The same prompts and seeds with and without: time of sampling in the process's own seconds on a core (the median ratio
over prompts, the settings of a prompt one behind another), the distance of the latents as a share of their norm, and
whether the judge sees what the prompt says, as a paired difference with its 95 % bootstrap interval. Diffusers' caches
that cannot run LTX-2.x are tried and named with what they say. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.kit import Gate, end

LEAST = 1.3  # below this a cache is not worth its error
SIZE = {"width": 128, "height": 128, "frames": 25}
Use = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Setting:
    """A way to make a clip: options of the request, and what is done to the pipeline's transformer meanwhile."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    use: Use = lambda _: nullcontext()


def cached(make: Callable[[Any], Any]) -> Use:
    """One of diffusers' caches; `make`: its config, of the pipeline."""

    @contextmanager
    def use(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(make(pipe))
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return use


def taylor(_: Any) -> Any:
    """TaylorSeer as the plan's own (`caching.extrapolated`), begun early enough for eight steps."""
    import torch
    from diffusers.hooks import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=3,
        taylor_factors_dtype=torch.float32,
        skip_predict_identifiers=[r"transformer_blocks\.\d+"],
        cache_identifiers=["proj_out", "audio_proj_out"],
    )


def broadcast(pipe: Any) -> Any:
    """Pyramid attention broadcast, every second attention, at all levels of noise."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    "nano-2.3-dev-t2v": (
        Setting("off, 30 steps"),
        Setting("taylorseer", {"cache": "taylorseer"}),
        Setting("guidance", {"cache": "guidance"}),
        Setting("17 steps", {"steps": 17}),
    ),
    "nano-2.3-distilled-t2v": (
        Setting("off, 8 steps"),
        Setting("TaylorSeer from step 4 on", use=cached(taylor)),
        Setting("attention broadcast", use=cached(broadcast)),
        Setting("5 steps", {"steps": 5}),
    ),
}


@dataclass(frozen=True)
class Made:
    """One clip: its latents, the seconds of sampling, whether all of it is right."""

    latents: Any
    seconds: float
    right: bool


class Maker:
    """Holds one host, so that models stay loaded between clips."""

    def __init__(self, folder: Path, cache: Path | None) -> None:
        from modules.ltx.hosts.embedded import EmbeddedHost, Settings

        self.host = EmbeddedHost(Settings(folder, cache=cache, device="cpu", offline=True))

    def make(self, model: str, setting: Setting, scene: Any, seed: int) -> Made:
        import torch

        from modules.ltx import stages
        from modules.ltx.front import settle
        from modules.ltx.request import Request
        from modules.ltx.state import State
        from nano import judge, prompts

        asked = {"model": model, "prompt": prompts.plain(scene), "seed": seed, **SIZE, **setting.options}
        plan = settle(Request.parse(asked), self.host)
        (_, encode), (_, sample) = stages.ordered(plan)
        state = encode(State(plan, seed=seed), self.host)
        with self.host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
            with setting.use(pipe):
                began = time.process_time()
                latents = sample(state, self.host).video_latents
                seconds = time.process_time() - began
            with torch.no_grad():
                pixels = pipe.vae.decode(latents).sample[0].permute(1, 2, 3, 0)
        frames = (pixels.mul(0.5).add(0.5).clamp(0, 1) * 255).round().byte().numpy()
        return Made(latents, seconds, all(judge.verdict(judge.look(frames), scene).values()))

    def refused(self, model: str) -> dict[str, str]:
        """What diffusers' other caches say of this model's transformer, by name; they change nothing."""
        from diffusers import hooks

        from modules.ltx.front import settle
        from modules.ltx.request import Request

        plan = settle(Request.parse({"model": model, "prompt": "a ball", **SIZE}), self.host)
        configs = {
            "FirstBlockCache": hooks.FirstBlockCacheConfig(),
            "MagCache": hooks.MagCacheConfig(calibrate=True),
            "SeaCache": hooks.SeaCacheConfig(),
        }
        told = {}
        with self.host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
            for name, config in configs.items():
                try:
                    pipe.transformer.enable_cache(config)
                    pipe.transformer.disable_cache()
                except ValueError as error:
                    told[name] = str(error).replace("<", "").replace(">", "")
        return told


def row(made: Sequence[Made], plain: Sequence[Made]) -> dict[str, Any]:
    """A setting's figures against those of the same prompts without it."""
    from nano.evaluate import interval

    apart = [float((a.latents - b.latents).norm() / b.latents.norm()) for a, b in zip(made, plain, strict=True)]
    right = np.array([one.right for one in made], float)
    better = interval(right - np.array([one.right for one in plain], float))
    speed = statistics.median(b.seconds / a.seconds for a, b in zip(made, plain, strict=True))
    return {
        "speed": round(speed, 2),
        "distance": round(float(np.mean(apart)), 4),
        "right": round(float(right.mean()), 3),
        "against_off": better,
    }


def measure(maker: Maker, model: str, clips: int) -> dict[str, Any]:
    """A row a setting of a model, by name."""
    from nano import evaluate

    made: dict[str, list[Made]] = {setting.name: [] for setting in SETTINGS[model]}
    maker.make(model, SETTINGS[model][0], evaluate.scenes(1)[0], 0)  # loads the model
    for seed, scene in enumerate(evaluate.scenes(clips, seed=17)):
        for setting in SETTINGS[model]:
            made[setting.name].append(maker.make(model, setting, scene, seed))
        print(f"{model}: {seed + 1} of {clips}", file=sys.stderr, flush=True)
    plain = made[SETTINGS[model][0].name]
    return {name: row(rows, plain) for name, rows in made.items()}


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    yield "| model | setting | speed | distance of latents | all right | against off |"
    yield "|---|---|---|---|---|---|"
    for model, rows in told.items():
        for name, one in rows.items():
            mean, low, high = (100 * x for x in one["against_off"])
            yield (
                f"| {model} | {name} | {one['speed']:.2f} | {100 * one['distance']:.1f} % |"
                f" {100 * one['right']:.0f} % | {mean:+.0f} [{low:+.0f}, {high:+.0f}] |"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.caches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=24, help="prompts (24)")
    parser.add_argument("--cache", type=Path, help="where LTX-Nano is built (the user's cache)")
    parser.add_argument("--quick", action="store_true", help="a clip for each setting, in seconds: speed only")
    asked = parser.parse_args(argv)
    dev, distilled = SETTINGS
    clips = {dev: 1, distilled: 1} if asked.quick else {dev: asked.clips, distilled: asked.clips}
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder), asked.cache)
        refused = maker.refused(dev)
        told = {model: measure(maker, model, count) for model, count in clips.items()}
    print("\n".join(table(told)))
    for name, why in refused.items():
        print(f"{name}: {why}")
    offered = ("taylorseer", "guidance")  # what is offered must be worth it
    gates = [Gate(f"speed of Dev with cache {name}", told[dev][name]["speed"], LEAST, least=True) for name in offered]
    return end("caches", {"clips": clips, "refused": refused, "models": told}, gates)


if __name__ == "__main__":
    sys.exit(main())
