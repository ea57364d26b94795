"""`python -m nano.train STAGE`: makes every file of LTX-Nano 2.3 from nothing but a seed.

Stages, in order; each needs what stands before it:
  vae         the video VAE
  audio_vae   the audio VAE
  vocoder     the vocoder
  pool        scenes as latents, for the stages below
  upsampler   the 2x latent upsampler
  dev         the Dev transformer and the text connectors
  distilled   the Distilled transformer, from Dev
  lora        the stage-2 LoRA of Dev
  export      writes the trained weights to where the project ships them
  all         everything
  unpack      the other way: takes the shipped weights for checkpoints, so that a stage goes on from them
A stage that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

STAGES = ("vae", "audio_vae", "vocoder", "pool", "upsampler", "dev", "distilled", "lora", "export")
_SHARED = ("vae", "pool", "dev", "distilled", "lora")  # stages that gain from several workers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nano.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*STAGES, "all", "unpack"), metavar="STAGE", help="what to train, see above")
    parser.add_argument("--folder", type=Path, default=Path(".training"), help="checkpoints and latents (.training)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share a stage; one a core is best (1)")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of the published number")
    asked = parser.parse_args(argv)
    if asked.workers < 1 or (asked.steps is not None and asked.steps < 1):
        parser.error("--workers and --steps are counts: 1 or more")
    for stage in STAGES if asked.stage == "all" else (asked.stage,):
        workers = asked.workers if stage in _SHARED else 1
        if workers == 1:
            run(stage, asked.folder, 0, 1, asked.steps)
        else:
            from torch.multiprocessing.spawn import spawn

            arguments = (stage, asked.folder, workers, asked.steps)
            # Killed by a signal it must take its workers along, or they would go on writing checkpoints.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            spawn(_worker, arguments, workers, daemon=True)  # type: ignore[no-untyped-call]
    return 0


def _worker(rank: int, stage: str, folder: Path, workers: int, steps: int | None) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    meeting = (folder / f".meeting-{os.getppid()}-{stage}").resolve()
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    try:
        run(stage, folder, rank, workers, steps)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
        if rank == 0:
            meeting.unlink(missing_ok=True)


def run(stage: str, folder: Path, rank: int, workers: int, steps: int | None) -> None:
    """One stage in this process, as worker `rank` of `workers`."""
    import torch

    from nano import weights
    from nano.loop import Worker, train

    torch.set_num_threads(
        1 if workers > 1 else max(1, int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)
    )
    if stage == "export":
        print(f"written: {', '.join(weights.export(folder))}")
    elif stage == "unpack":
        weights.unpack(folder)
    elif stage == "pool":
        _pool(folder, rank, workers)
    else:
        task = _task(stage, folder)
        task.steps = steps or task.steps
        train(task, folder, Worker(rank, workers))


def _pool(folder: Path, rank: int, workers: int) -> None:
    import torch

    from nano import pool, weights
    from nano.transformer import KINDS

    if rank > 0:
        torch.distributed.barrier()  # the first worker measures the statistics, the others read them
    vae, audio_vae = weights.vaes(folder)
    if rank == 0 and workers > 1:
        torch.distributed.barrier()
    for kind, (count, _) in KINDS.items():
        pool.make(folder / "pool", kind, count, vae, audio_vae, rank=rank, workers=workers)


def _task(stage: str, folder: Path) -> Any:
    from nano import weights
    from nano.audio import AudioVae, Vocoder
    from nano.distill import Distilled, Lora, Stage2
    from nano.loop import averaged_weights
    from nano.transformer import LARGE, SMALL, Dev
    from nano.upsampler import Upsampler, new_upsampler
    from nano.video_vae import VideoVae

    pools = folder / "pool"
    first = {"vae": VideoVae, "audio_vae": AudioVae, "vocoder": Vocoder}
    if stage in first:
        return first[stage]()
    if stage == "dev":
        return Dev(pools)
    vae, _ = weights.vaes(folder)
    statistics = (vae.latents_mean, vae.latents_std)
    if stage == "upsampler":
        return Upsampler(pools, statistics)
    from nano import pool

    upsampler = new_upsampler()
    upsampler.load_state_dict(averaged_weights(folder, "upsampler", "upsampler"))
    stage2 = Stage2(pool.read(pools, SMALL), pool.read(pools, LARGE), upsampler, statistics)
    trained = {name: averaged_weights(folder, "dev", name) for name in ("transformer", "connectors")}
    return (Distilled if stage == "distilled" else Lora)(pools, trained, stage2)


if __name__ == "__main__":
    sys.exit(main())
