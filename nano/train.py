"""`python -m nano.train STAGE`: makes every file of LTX-Nano 2.3 from nothing but a seed.

Stages, in order; each needs what stands before it:
  vae         the video VAE
  audio_vae   the audio VAE
  vocoder     the vocoder
  pool        scenes as latents, for the stages below
  upsampler   the 2x latent upsampler
  dev         the Dev transformer and the text connectors
  distilled   the Distilled transformer, from Dev
  captions    Dev goes on, with captions that are sometimes wrong: what is shipped as Dev
  made        small clips as Dev makes them, for the LoRA to mend
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STAGES = ("vae", "audio_vae", "vocoder", "pool", "upsampler", "dev", "distilled", "captions", "made", "lora", "export")
_SHARED = ("vae", "pool", "dev", "distilled", "captions", "made", "lora")  # stages that gain from several workers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nano.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*STAGES, "all", "unpack"), metavar="STAGE", help="what to train, see above")
    parser.add_argument("--folder", type=Path, default=Path(".training"), help="checkpoints and latents (.training)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share a stage; one a core is best (1)")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of the published number")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer first: minutes, then 1.4 times as fast; needs g++",
    )
    asked = parser.parse_args(argv)
    if asked.workers < 1 or (asked.steps is not None and asked.steps < 1):
        parser.error("--workers and --steps are counts: 1 or more")
    for stage in STAGES if asked.stage == "all" else (asked.stage,):
        order = Order(stage, asked.folder, asked.workers if stage in _SHARED else 1, asked.steps, asked.compile)
        if order.workers == 1:
            run(order)
        else:
            from torch.multiprocessing.spawn import spawn

            # Killed by a signal it must take its workers along, or they would go on writing checkpoints.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            spawn(_worker, (order,), order.workers, daemon=True)  # type: ignore[no-untyped-call]
    return 0


@dataclass(frozen=True)
class Order:
    """One stage as it was asked for; `steps` None is the published number."""

    stage: str
    folder: Path
    workers: int = 1
    steps: int | None = None
    compiled: bool = False


def _worker(rank: int, order: Order) -> None:
    import torch

    order.folder.mkdir(parents=True, exist_ok=True)
    meeting = (order.folder / f".meeting-{os.getppid()}-{order.stage}").resolve()
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=order.workers)
    try:
        run(order, rank)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
        if rank == 0:
            meeting.unlink(missing_ok=True)


def run(order: Order, rank: int = 0) -> None:
    """One stage in this process, as worker `rank`."""
    import torch

    from nano import made, weights
    from nano.loop import Worker, train

    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(1 if order.workers > 1 else max(1, threads))
    if order.stage == "export":
        print(f"written: {', '.join(weights.export(order.folder))}")
    elif order.stage == "unpack":
        weights.unpack(order.folder)
    elif order.stage == "pool":
        _pool(order.folder, rank, order.workers)
    elif order.stage == "made":
        made.make(order.folder / "pool", _dev(order.folder, "captions"), rank=rank, workers=order.workers)
    else:
        task = _task(order)
        task.steps = order.steps or task.steps
        train(task, order.folder, Worker(rank, order.workers))


def _pool(folder: Path, rank: int, workers: int) -> None:
    import torch

    from nano import pool, weights, world
    from nano.transformer import KINDS, LARGE, SMALL

    if rank > 0:
        torch.distributed.barrier()  # the first worker measures the statistics, the others read them
    vae, audio_vae = weights.vaes(folder)
    if rank == 0 and workers > 1:
        torch.distributed.barrier()
    for kind, share in KINDS.items():
        pool.make(folder / "pool", kind, share.clips, vae, audio_vae, rank=rank, workers=workers)
    for kind in (SMALL, LARGE):
        whole = replace(kind, every=True)
        pool.make(folder / "pool", whole, len(world.every()), vae, audio_vae, rank=rank, workers=workers)


def _task(order: Order) -> Any:
    from nano import weights
    from nano.audio import AudioVae, Vocoder
    from nano.captions import Captions
    from nano.distill import Distilled, Stage2
    from nano.loop import averaged_weights
    from nano.lora import Lora
    from nano.transformer import Dev
    from nano.upsampler import Upsampler, new_upsampler
    from nano.video_vae import VideoVae

    stage, folder, compiled = order.stage, order.folder, order.compiled
    pools = folder / "pool"
    first = {"vae": VideoVae, "audio_vae": AudioVae, "vocoder": Vocoder}
    if stage in first:
        return first[stage]()
    if stage == "dev":
        return Dev(pools, compiled=compiled)
    vae, _ = weights.vaes(folder)
    statistics = (vae.latents_mean, vae.latents_std)
    if stage == "upsampler":
        return Upsampler(pools, statistics)
    dev = _dev(folder, "dev")
    if stage == "captions":
        return Captions(pools, dev, compiled=compiled)
    upsampler = new_upsampler()
    upsampler.load_state_dict(averaged_weights(folder, "upsampler", "upsampler"))
    stage2 = Stage2(pools, upsampler, statistics)
    if stage == "distilled":
        return Distilled(pools, dev, stage2, compiled=compiled)
    return Lora(pools, dev, stage2, _dev(folder, "captions")["transformer"], compiled=compiled)


def _dev(folder: Path, stage: str) -> dict[str, Any]:
    """Dev as it is behind this stage; the connectors are the same behind both."""
    from nano.loop import averaged_weights

    homes = {"transformer": stage, "connectors": "dev"}
    return {name: averaged_weights(folder, stage, name) for name, stage in homes.items()}


if __name__ == "__main__":
    sys.exit(main())
