"""What the processes of one video do in tests/test_together.py, each of them: `python -m tests.together_kit FOLDER`.

Runs of the project and single transformers, whose results are kept as files for the test, which makes the same ones
alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel, LTXVideoTransformer3DModel

from modules.ltx.__main__ import main
from modules.ltx.errors import OutOfMemory
from modules.ltx.front import settle
from modules.ltx.hosts import ranks, splitting
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_process import run
from modules.ltx.quiet import quiet_libraries
from modules.ltx.request import Request

BALL: Mapping[str, object] = MappingProxyType({"prompt": "a red ball", "width": 64, "height": 64, "frames": 9})
# 27 tokens, which two processes cannot share evenly, with all guidance; then two stages, refined, from an image, whose
# tokens have levels of their own.
CASES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "plain": {"model": "nano-2.3-dev-t2v", "width": 96, "height": 96, "frames": 17, "steps": 1},
        "refined": {"model": "nano-2.3-distilled-i2v", "steps": 3, "refine": True, "self_refine": "p2"},
    }
)
COMMAND = ["generate", *("--model", "nano-2.3-distilled-t2v", "--prompt", "a red ball", "--seed", "5", "--steps", "2")]
COMMAND += ["--width", "64", "--height", "64", "--frames", "9", "--device", "cpu", "--offline", "--png", "--json"]


def latents_of(name: str, host: EmbeddedHost, picture: Path) -> list[torch.Tensor]:
    """A case's video and sound."""
    given = {"images": [{"path": str(picture)}]} if "i2v" in str(CASES[name]["model"]) else {}
    plan = settle(Request.parse({**BALL, **CASES[name], **given, "seed": 3}), host)
    state = run(plan, host, until="refine" if "refine" in CASES[name] else "sample")
    assert state.video_latents is not None
    assert state.audio_latents is not None
    return [state.video_latents, state.audio_latents]


def transformers() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Small transformers with random weights, and what to call them with: 15 tokens, each with its own timestep."""
    torch.manual_seed(0)
    size = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
    sound = {"audio_in_channels": 8, "audio_num_attention_heads": 4, "audio_attention_head_dim": 16}
    sound |= {"audio_out_channels": 8, "audio_cross_attention_dim": 64}
    call = {
        "hidden_states": torch.randn(2, 15, 8),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
        "timestep": torch.rand(2, 15) * 1000,
        **{"num_frames": 3, "height": 1, "width": 5, "return_dict": False},
    }
    heard = {
        "audio_hidden_states": torch.randn(2, 7, 8),
        "audio_encoder_hidden_states": torch.randn(2, 6, 32),
        "audio_encoder_attention_mask": call["encoder_attention_mask"],
        "audio_timestep": torch.tensor([500.0, 300.0]),
        "audio_num_frames": 7,
    }
    old = LTXVideoTransformer3DModel(**size, cross_attention_dim=64, caption_channels=32)
    made = {"0.9": (old, call)}
    for rope in ("interleaved", "split"):
        new = LTX2VideoTransformer3DModel(
            **size, **sound, cross_attention_dim=64, caption_channels=32, rope_type=rope, perturbed_attn=True
        )
        made[rope] = (new, {**call, **heard})
    return made


def alone_and_together(transformer: Any, call: dict[str, Any], count: int) -> dict[str, list[torch.Tensor]]:
    """What a transformer answers alone, split, and split without any exchange between the processes."""
    with torch.no_grad():
        alone = list(transformer(**call))
        splitting.split(transformer, count, "cpu")
        together = list(transformer(**call))
        for block in transformer.transformer_blocks:
            block.attn1.processor._parallel_config = None
        return {"alone": alone, "together": together, "apart": list(transformer(**call))}


def work(folder: Path) -> None:
    """All of it; then the second process fails on purpose."""
    place = ranks.here()
    assert place is not None
    quiet_libraries()
    told: dict[str, Any] = {}
    with ranks.joined(place, "cpu"):
        told["code"] = main([*COMMAND, "-o", str(folder / "video.mp4"), "--outputs", str(folder)])
        told["models"] = {name: alone_and_together(*made, place.count) for name, made in transformers().items()}
        host = EmbeddedHost(Settings(folder / "none", device="cpu", offline=True, processes=place.count))
        told["cases"] = {name: latents_of(name, host, folder / "picture.png") for name in CASES}
        told["machine"] = dict(host.machine())
        told["same"] = ranks.same(place.rank + 7)
    torch.save(told, folder / f"told-{place.rank}.pt")
    if not place.first:
        ranks.report(OutOfMemory("out of memory, as the test wants it", phase="sample"))
        sys.exit(OutOfMemory.exit_code)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
