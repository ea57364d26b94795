"""How LTX-Nano is trained: the optimizer, a loop that resumes exactly, and batches as the pipelines see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.ltx.hosts import nano_parts
from nano import captions, half, loop, nearest, pool, prompts, train, transformer, world
from nano.muon import Muon, orthogonal

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("shape", [(32, 32), (16, 80), (80, 16)])
def test_orthogonal_brings_every_singular_value_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(-0.5, 0.5, shape[1]))
    values = torch.linalg.svdvals(orthogonal(matrix))
    # The published coefficients trade exactness for speed: 0.7 to 1.2 (Jordan et al. 2024).
    assert values.min() > 0.5
    assert values.max() < 1.35


def test_matrices_in_a_stack_are_made_orthogonal_each_by_itself() -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, 24, 160)
    together = orthogonal(stack)
    for matrix, made in zip(stack, together, strict=True):
        torch.testing.assert_close(made, orthogonal(matrix), atol=2e-2, rtol=0)  # bfloat16 inside


def test_muon_solves_what_it_should() -> None:
    torch.manual_seed(0)
    target, inputs = torch.randn(24, 32), torch.randn(256, 32)
    layer = torch.nn.Linear(32, 24)
    optimizer = Muon(layer.parameters(), lr=0.2)
    errors = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / 150)
        error = (layer(inputs) - inputs @ target.T).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 1e-2 * errors[0]


class Line:
    """A task of one layer, with chance both from numpy and from torch."""

    name = "line"
    lr = 0.01

    def __init__(self, steps: int) -> None:
        self.steps = steps
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(16, 16)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"layer": self.layer}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        inputs = torch.randn(8, 16) + float(rng.random())
        error = (self.layer(inputs) - inputs).square().mean()
        return error, {"error": float(error.detach())}


def test_an_interrupted_training_takes_the_same_steps(tmp_path: Path) -> None:
    loop.train(Line(30), tmp_path / "whole", every=10)

    class Interrupted(Line):
        def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
            if step == 25:
                raise KeyboardInterrupt
            return super().loss(step, rng)

    with pytest.raises(KeyboardInterrupt):
        loop.train(Interrupted(30), tmp_path / "parts", every=10)
    loop.train(Line(30), tmp_path / "parts", every=10)
    whole, parts = (loop.averaged_weights(tmp_path / name, "line", "layer") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() == {"weight", "bias"}
    for name, value in whole.items():
        assert torch.equal(value, parts[name])


def test_training_changes_something_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    task = Line(40)
    before = task.layer.weight.detach().clone()
    loop.train(task, tmp_path)
    assert not torch.equal(before, task.layer.weight)
    stamp = (tmp_path / "line.pt").stat().st_mtime_ns
    loop.train(Line(40), tmp_path)
    assert (tmp_path / "line.pt").stat().st_mtime_ns == stamp


def _averaging(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    used, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    used.grad = torch.full((3,), 1.0 + rank)
    if rank == 1:
        unused.grad = torch.full((2,), 6.0)
    loop.Worker(rank, 2).average([unused, used])
    torch.save((used.grad, unused.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_workers_average_gradients_that_only_one_of_them_has(tmp_path: Path) -> None:
    # A batch of separated streams leaves the cross attention without gradients in one worker alone.
    from torch.multiprocessing.spawn import spawn

    spawn(_averaging, (str(tmp_path),), 2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        used, unused = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(used, torch.full((3,), 1.5))
        assert torch.equal(unused, torch.full((2,), 3.0))


def test_keyframes_stand_where_the_condition_pipeline_puts_them() -> None:
    stub = type("Stub", (), {})()
    stub.transformer_spatial_patch_size = stub.transformer_spatial_patch_size_t = 1
    stub.transformer_temporal_patch_size = 1
    stub.vae_temporal_compression_ratio, stub.vae_spatial_compression_ratio = 8, 32
    theirs = diffusers.LTX2ConditionPipeline._prepare_keyframe_coords(
        stub,
        keyframe_latent_num_frames=1,
        keyframe_latent_height=3,
        keyframe_latent_width=4,
        pixel_frame_idx=(3 - 1) * 8 + 1,  # the last of four latent frames, as prepare_latents computes it
        num_pixel_frames=1,
        fps=24.0,
        device=torch.device("cpu"),
    )
    torch.testing.assert_close(transformer.keyframe_coords(4, 3, 4), theirs)


def test_short_prompts_are_encoded_as_the_pipeline_encodes_them() -> None:
    text = transformer.Text()
    parts = nano_parts.spec("2.0", "dev")
    pipe = diffusers.LTX2Pipeline(
        **{name: nano_parts.build(part) for name, part in parts.items() if name != "text_encoder"},
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
    )
    prompts = ["a red ball", "a small green triangle moving right on a white background", ""]
    theirs, mask, _, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=64)
    ours, our_mask = text(prompts)
    assert torch.equal(mask, our_mask)
    kept = mask.bool()
    torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["text", "first", "last", "both"])
def test_a_batch_noises_what_is_to_be_made_and_nothing_else(mode: str) -> None:
    torch.manual_seed(0)
    kind = pool.Kind(128, 128, 25)
    columns = {
        "video": torch.randn(2, 64, 32),
        "last": torch.randn(2, 16, 32),
        "sound": torch.randn(2, 6, 16),
    }
    sigma = torch.tensor([0.25, 1.0])
    batch, velocity, hiss = transformer.make_batch(columns, kind, sigma, mode)
    given = batch.free == 0
    assert int(given.sum()) == 2 * {"text": 0, "first": 16, "last": 16, "both": 32}[mode]
    clean = torch.cat([columns["video"], columns["last"]], dim=1)[:, : batch.video.shape[1]]
    assert torch.equal(batch.video[given], clean[given])
    # Along the straight line x0 + sigma v.
    made = ~given
    torch.testing.assert_close((batch.video - sigma[:, None, None] * velocity)[made], clean[made], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.sound - sigma[:, None, None] * hiss, columns["sound"], atol=1e-5, rtol=0)


def test_a_way_through_levels_ends_where_the_velocities_lead() -> None:
    """Velocity x / sigma is that of a clean clip of nothing: Euler steps of any size end at x times last / first."""
    kind = pool.Kind(128, 128, 25)
    columns = {"video": torch.randn(2, 64, 32), "last": torch.randn(2, 16, 32), "sound": torch.randn(2, 6, 16)}
    begun, _, _ = transformer.make_batch(columns, kind, torch.full((2,), 0.9), "first")

    class Nothing:
        rope = transformer.new_transformer().rope

        def __call__(self, *, hidden_states: Tensor, audio_hidden_states: Tensor, sigma: Tensor, **_: object) -> object:
            level = sigma[:, None, None] / 1000
            return hidden_states / level, audio_hidden_states / level

    ended = transformer.travelled(Nothing(), begun, {}, (0.9, 0.7, 0.6, 0.3))
    free = begun.free[..., None] > 0
    assert 0 < int(free.sum()) < free.numel()
    torch.testing.assert_close(ended.video, torch.where(free, begun.video / 3, begun.video))
    torch.testing.assert_close(ended.sound, begun.sound / 3)
    assert transformer.travelled(Nothing(), begun, {}, (0.9,)) is begun


def test_half_precision_on_full_weights_answers_the_same() -> None:
    model = transformer.new_transformer()
    text = {
        name: torch.randn(1, 64, width)
        for name, width in (("encoder_hidden_states", 160), ("audio_encoder_hidden_states", 64))
    }
    columns = {"video": torch.randn(1, 64, 32), "last": torch.randn(1, 16, 32), "sound": torch.randn(1, 6, 16)}
    batch, _, _ = transformer.make_batch(columns, pool.Kind(128, 128, 25), torch.tensor([0.5]), "both")
    with torch.no_grad():
        full = batch.forward(model, text)
        halved = batch.forward(half.Half(model), text)
    for wide, narrow in zip(full, halved, strict=True):
        assert float((wide - narrow.float()).norm() / wide.norm()) < 0.03
    answer = batch.forward(half.Half(model), text)[0].float()
    torch.autograd.backward(answer.square().mean())
    assert model.proj_out.weight.grad is not None
    assert model.proj_out.weight.grad.dtype == torch.float32


def test_attention_for_compiled_blocks_is_attention() -> None:
    torch.manual_seed(0)
    model = transformer.new_transformer().eval()
    text = {
        name: torch.randn(2, 64, width)
        for name, width in (("encoder_hidden_states", 160), ("audio_encoder_hidden_states", 64))
    }
    mask = torch.ones(2, 64)
    mask[1, :20] = 0
    text |= dict.fromkeys(("encoder_attention_mask", "audio_encoder_attention_mask"), (1 - mask[:, None]) * -10000.0)
    columns = {"video": torch.randn(2, 64, 32), "last": torch.randn(2, 16, 32), "sound": torch.randn(2, 6, 16)}
    batch, _, _ = transformer.make_batch(columns, pool.Kind(128, 128, 25), torch.tensor([0.5, 0.9]), "text")
    with torch.no_grad():
        plain = batch.forward(half.Half(model), text)
        ours = batch.forward(half.Compiled(model, often=()), text)
    for theirs, made in zip(plain, ours, strict=True):
        assert float((theirs - made).float().norm() / theirs.float().norm()) < 0.02


def test_packing_is_the_pipelines() -> None:
    video, heard = torch.randn(2, 32, 4, 3, 5), torch.randn(2, 4, 6, 4)
    assert torch.equal(pool.pack(video), diffusers.LTX2Pipeline._pack_latents(video, 1, 1))
    assert torch.equal(pool.pack_sound(heard), diffusers.LTX2Pipeline._pack_audio_latents(heard))


def test_bad_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nothing"], ["vae", "--workers", "0"], ["vae", "--steps", "0"]):
        with pytest.raises(SystemExit) as caught:
            train.main(arguments)
        assert caught.value.code == 2
    assert "1 or more" in capsys.readouterr().err


@pytest.fixture
def meant(tmp_path: Path) -> nearest.Meant:
    """Every scene of one size; the latents of scene k are k everywhere."""
    kind = pool.Kind(64, 64, 9)
    folder = tmp_path / replace(kind, every=True).name
    folder.mkdir()
    number = torch.arange(float(len(world.every())))
    columns = {name: number[:, None, None].repeat(1, 8, 2) for name in ("video", "last", "sound")}
    save_file({**columns, "index": number.long()}, folder / "1.safetensors")
    return nearest.Meant(tmp_path, kind)


def test_every_scene_that_words_can_mean_is_there_once() -> None:
    scenes = world.every()
    assert not {scene.combination for scene in scenes} & world.HELD_OUT
    rng = np.random.default_rng(3)
    by_chance = {world.placed(replace(world.draw_scene(rng), silent=False)) for _ in range(20000)}
    assert len(set(scenes)) == len(scenes) == (108 - 11) * 2 * 3 * 2
    assert by_chance <= set(scenes)


def test_the_nearest_clip_is_of_what_was_said_and_of_either_lane(meant: nearest.Meant) -> None:
    scenes = world.every()
    left, right = 400, 401  # the two lanes of one scene
    assert replace(scenes[left], across=1.0) == scenes[right]
    said = prompts.plain(scenes[left])
    for made, expected in ((left - 90.0, left), (left + 0.4, left), (left + 0.6, right), (right + 90.0, right)):
        aim = meant.nearest(torch.full((1, 8, 2), made), [scenes[left]], [said])
        assert torch.equal(aim.video, torch.full((1, 8, 2), float(expected)))
        assert torch.equal(aim.sound, aim.video)


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("a little yellow square moving up on gray", 2),
        ("Yellow square, moving up, gray background", 4),
        ("the small yellow square up", 6),
        ("yellow square up", 12),
    ],
)
def test_what_is_left_unsaid_leaves_more_clips_possible(said: str, count: int) -> None:
    scene = world.Scene("square", "yellow", "small", "up", "gray")
    meant = [at for at, yes in zip(world.every()[:12], nearest.possible(scene, said), strict=True) if yes]
    assert len(meant) == count
    for attribute, word in (("size", "small"), ("size", "little"), ("background", "gray")):
        if word in said.lower():
            assert {getattr(at, attribute) for at in meant} == {getattr(scene, attribute)}


def test_some_captions_are_another_clip_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_DROP_TEXT", 0.0)
    said = [str(number) for number in range(64)]
    rng = np.random.default_rng(0)
    task = captions.Captions.__new__(captions.Captions)
    told = [task.captions(said, rng) for _ in range(200)]
    wrong = np.mean([[a != b for a, b in zip(said, row, strict=True)] for row in told])
    assert {word for row in told for word in row} <= set(said)
    assert 0.18 < wrong < 0.215  # a fifth, less the few that stay where they are
