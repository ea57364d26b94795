"""`python -m bench.two_stage`: the two-stage recipe from prompt to file, against the bare calls of diffusers.

The bare calls are those of diffusers' documentation, written out: pipeline, latent upsampler, LoRA, pipeline, arrays,
`encode_video`. Same weights, same steps, same guidance, in turn; the latents of the two must be the same bits. The
files are each one's own: `encode_video` writes 1 Mbit/s with x264's macroblock tree and no tags of colour; ours CRF 18
without that tree, so that it is reproducible, with a thumbnail, checksums and settings, and waits for the disk. All of
that is in ours' time; what it comes to is told in seconds, because a share depends on how long a clip takes. With
--quick too, stage 1 has the recipe's own steps. Then the most that a process of its own holds for either. Prints a
table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kit import Gate, child, end, held, in_turn, most, ratio

OVERHEAD = 0.03  # of the bare calls' time
STEPS = 30
PROMPTS = ("a big red ball moving right on black", "a small blue square moving up on white", "a cyan triangle still")
GUIDED = {
    **{"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7},
    **{"audio_guidance_scale": 7.0, "audio_stg_scale": 1.0, "audio_modality_scale": 3.0},
    **{"audio_guidance_rescale": 0.7, "spatio_temporal_guidance_blocks": [4]},
}
UNGUIDED = {
    **{"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0},
    **{"audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0},
    **{"audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None},
}


@dataclass(frozen=True)
class Work:
    """What both do."""

    side: int
    frames: int
    steps: int


class Ours:
    def __init__(self, work: Work, folder: Path) -> None:
        from modules.ltx.hosts.embedded import EmbeddedHost, Settings

        self.host = EmbeddedHost(Settings(folder, device="cpu", offline=True))
        self.work, self.folder = work, folder

    def plan(self, number: int) -> Any:
        from modules.ltx.front import settle
        from modules.ltx.request import Request

        work = self.work
        asked = {
            **{"model": "nano-2.3-dev-t2v", "prompt": f"{PROMPTS[number % 3]} {number}", "seed": number},
            **{"width": work.side, "height": work.side, "frames": work.frames, "steps": work.steps, "refine": True},
        }
        return settle(Request.parse(asked), self.host)

    def make(self, number: int) -> Any:
        return self.made(number).video_latents

    def made(self, number: int) -> Any:
        from modules.ltx.ltx_process import run

        return run(self.plan(number), self.host, path=self.folder / f"ours-{number}.mp4")


class Bare:
    """The same by hand. The plan is asked for its numbers alone: sigmas, scales and the negative prompt."""

    def __init__(self, work: Work, folder: Path, plans: Ours) -> None:
        import diffusers
        from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

        from modules.ltx.hosts import nano

        cache = plans.host.settings.cache_folder
        self.plan, self.work, self.folder = plans.plan, work, folder
        self.pipe = diffusers.LTX2Pipeline.from_pretrained(nano.ensure("2.3-dev", cache))
        self.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        self.pipe.set_progress_bar_config(disable=True)
        model = LTX2LatentUpsamplerModel.from_pretrained(
            nano.ensure("2.3-upsampler", cache), subfolder="latent_upsampler"
        )
        self.upsampler = diffusers.LTX2LatentUpsamplePipeline(vae=self.pipe.vae, latent_upsampler=model)
        self.upsampler.set_progress_bar_config(disable=True)
        self.lora = str(nano.ensure("2.3-lora", cache))

    def make(self, number: int) -> Any:
        import torch

        from modules.ltx.ltx_util import seed_for
        from modules.ltx.stages import negative_prompt

        plan = self.plan(number)
        one, two = plan.stages[0], plan.stages[-1]
        shared = {
            **{"prompt": plan.prompt, "num_frames": self.work.frames, "frame_rate": 24.0, "return_dict": False},
            **{"max_sequence_length": plan.caps.max_sequence_length, "use_cross_timestep": True},
        }
        video, audio = self.pipe(
            **shared,
            **GUIDED,
            negative_prompt=negative_prompt(plan),
            width=self.work.side // 2,
            height=self.work.side // 2,
            sigmas=list(one.sigmas),
            generator=torch.Generator().manual_seed(seed_for(number, "stage1")),
            output_type="latent",
        )
        video = self.upsampler(latents=video, latents_normalized=False, output_type="latent", return_dict=False)[0]
        self.pipe.load_lora_weights(self.lora, adapter_name="stage2")
        self.pipe.set_adapters("stage2", 1.0)
        latents, _ = self.pipe(
            **shared,
            **UNGUIDED,
            width=self.work.side,
            height=self.work.side,
            latents=video,
            audio_latents=audio,
            sigmas=list(two.sigmas),
            noise_scale=two.sigmas[0],
            generator=torch.Generator().manual_seed(seed_for(number, "stage2")),
            output_type="latent",
        )
        self.pipe.unload_lora_weights()
        self._write(latents, audio, number)
        return latents

    def _write(self, latents: Any, audio: Any, number: int) -> None:
        """As the pipeline decodes: all at once, as floats; then the file."""
        import torch
        from diffusers.utils import encode_video

        pipe = self.pipe
        with torch.no_grad():
            plain = pipe._denormalize_latents(
                latents, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor
            )
            pixels = pipe.video_processor.postprocess_video(
                pipe.vae.decode(plain, None, return_dict=False)[0], output_type="np"
            )
            sound = pipe.vocoder(pipe.audio_vae.decode(audio, return_dict=False)[0])
        frames = torch.from_numpy((pixels * 255).round().astype("uint8"))
        encode_video(
            frames[0],
            fps=24,
            audio=sound[0].float(),
            audio_sample_rate=pipe.vocoder.config.output_sampling_rate,
            output_path=str(self.folder / f"bare-{number}.mp4"),
        )


def memory(which: str, work: Work) -> dict[str, int]:
    """The most that a process holds that makes one clip, and what it held with everything loaded."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(work, Path(folder))
        subject = ours if which == "ours" else Bare(work, Path(folder), ours)
        if which == "ours":
            plan = ours.plan(0)
            with ours.host.pipeline(plan.caps, plan.caps.pipeline):
                pass
        loaded = held()
        if which == "bare":
            subject.make(0)
            return {"loaded": loaded, "peak": held()}
        return {"loaded": loaded, "peak": most(ours.made(0))}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.two_stage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of stage 1 ({STEPS}, the recipe's)")
    parser.add_argument("--rounds", type=int, help="clips of each, of which the median counts (9; quick 5)")
    parser.add_argument("--memory", choices=("ours", "bare"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.memory:
        return end("two_stage_memory", memory(asked.memory, Work(512, 97, 2)))
    import torch

    work = Work(256, 25, asked.steps)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(work, Path(folder))
        bare = Bare(work, Path(folder), ours)
        made: dict[str, Any] = {}

        def keep(name: str, subject: Ours | Bare) -> Any:
            return lambda number: made.__setitem__(f"{name} {number}", subject.make(number))

        cases = {"ours": keep("ours", ours), "bare": keep("bare", bare)}
        for call in cases.values():
            call(1000)
        found = in_turn(cases, asked.rounds or (5 if asked.quick else 9))
    same = all(torch.equal(made[f"ours {n}"], made[f"bare {n}"]) for n in range(len(found["ours"])))
    peaks = {name: child("bench.two_stage", "--memory", name) for name in ("ours", "bare")}
    over = ratio(found, "ours", "bare") - 1
    fixed = statistics.median(a - b for a, b in zip(found["ours"], found["bare"], strict=True))
    for name in cases:
        above = (peaks[name]["peak"] - peaks[name]["loaded"]) / 2**20
        took = statistics.median(found[name])
        print(f"{name}: median {took:.2f} s; 512x512x97: {above:.0f} MiB above the loaded model")
    print(f"ours is {fixed:+.3f} s a clip of {asked.steps} + 3 steps, {100 * over:+.1f} %")
    gates = [
        Gate("latents of the two differ", float(not same), 0),
        Gate("ours over the bare calls", over, OVERHEAD),
        Gate("peak memory, ours over the bare calls'", peaks["ours"]["peak"] / peaks["bare"]["peak"], 1.0),
    ]
    told = {"seconds": found, "memory": peaks, "overhead": round(over, 4), "fixed": round(fixed, 4), "same": same}
    return end("two_stage", told, gates)


if __name__ == "__main__":
    sys.exit(main())
