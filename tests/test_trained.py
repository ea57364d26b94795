"""What the shipped LTX-Nano 2.3 can do, judged from pixels and sound. The figures over many prompts are in
docs/nano.md; these few clips notice when loading, planning or sampling stops doing it justice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.ltx.hosts import nano_parts
from nano import evaluate, judge, pool, sound, world

pytestmark = pytest.mark.library

SCENES = (
    world.Scene("ball", "red", "small", "right", "black"),
    world.Scene("square", "green", "big", "up", "white"),
    world.Scene("triangle", "blue", "big", "left", "gray"),
    world.Scene("ball", "yellow", "big", "bouncing", "black"),
)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> evaluate.Maker:
    return evaluate.Maker(tmp_path_factory.mktemp("made"), cache=cache)


def mode(name: str) -> evaluate.Mode:
    return next(each for each in evaluate.MODES if each.name == name)


def rows(maker: evaluate.Maker, name: str) -> list[dict[str, Any]]:
    return [
        evaluate.assess(mode(name), scene, maker.make(mode(name), scene, seed=index))
        for index, scene in enumerate(SCENES)
    ]


def test_the_files_stay_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in nano_parts.WEIGHTS.iterdir()) < 40e6


def test_the_vae_keeps_what_a_clip_shows() -> None:
    import torch

    vae = nano_parts.build(nano_parts.spec("2.3")["vae"])
    for scene in SCENES:
        clip = world.render(scene, 25, width=128, height=128)
        pixels = torch.from_numpy(clip.transpose(3, 0, 1, 2) * 2 - 1)[None].contiguous()
        with torch.no_grad():
            again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        made = ((again[0].permute(1, 2, 3, 0).numpy() + 1) / 2).clip(0, 1)
        assert evaluate.psnr(made, clip) > 22
        assert all(judge.verdict(judge.look((made * 255).round().astype(np.uint8)), scene).values())


def test_latents_are_normalised_by_their_own_statistics() -> None:
    import torch

    vae, audio_vae = (nano_parts.build(nano_parts.spec("2.3")[name]) for name in ("vae", "audio_vae"))
    clips = [pool.clip(pool.scene(index), pool.Kind(128, 128, 25)) for index in range(12)]
    made = pool.encode(vae, audio_vae, *(torch.stack(column) for column in zip(*clips, strict=True)))
    for latents in (made["video"], made["sound"]):
        assert abs(float(latents.mean())) < 0.3
        assert 0.7 < float(latents.std()) < 1.3
    with torch.no_grad():
        assert float(vae.encode(clips[0][0][None]).latent_dist.std.max()) < 0.01


@pytest.mark.parametrize("frames", [25, 49])
def test_the_audio_parts_keep_pitch_and_side(frames: int) -> None:
    import torch

    vae, vocoder = (nano_parts.build(nano_parts.spec("2.3")[name]) for name in ("audio_vae", "vocoder"))
    for scene in SCENES:
        meant = sound.wave(scene, sound.MEL_FRAMES[frames] * sound.HOP, frames=frames)
        with torch.no_grad():
            mel = torch.from_numpy(sound.mel(meant))[None]
            heard = vocoder(vae.decode(vae.encode(mel).latent_dist.mode()).sample)[0].numpy()
        told = judge.listen(heard, sound.RATE, world.path(scene, frames)[:, 0])
        assert told.pitch == scene.shape
        assert told.pan_error < 0.05


def test_two_stages_make_what_is_asked(maker: evaluate.Maker) -> None:
    made = rows(maker, "distilled, two stages")
    for row in made:
        assert row["colour"]
        assert row["size"]
        assert row["motion"]
        assert row["background"]
        assert row["pitch"]
        assert row["shape"]  # docs/nano.md: 199 of 200 are


def test_a_given_picture_is_kept_and_moves_as_asked(maker: evaluate.Maker) -> None:
    for row in rows(maker, "i2v, two stages"):
        assert row["all"]
        assert row["pitch"]
        assert row["psnr_first"] > 24


@pytest.mark.parametrize(("index", "attribute"), [(9, "colour"), (17, "background"), (22, "background")])
def test_guidance_makes_it_follow_the_prompt(maker: evaluate.Maker, index: int, attribute: str) -> None:
    """Dev's captions were wrong at times, so it takes a prompt for a hint unless it is guided. Chosen from the clips
    that `nano.evaluate` counts: at this size one in four of them is another than was asked for without guidance."""
    scene = evaluate.scenes(index + 1)[index]
    free, led = (
        evaluate.assess(each, scene, maker.make(each, scene, seed=index))
        for each in (mode("dev, 128x128, cfg 1"), mode("dev, 128x128"))
    )
    assert not free[attribute]
    assert led["all"]
