"""How Distilled and the stage-2 LoRA are trained: what they aim at, and what they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.ltx.ltx_util import STAGE2_SIGMAS
from nano import distill, lora, made, nearest, pool, prompts, transformer, upsampler, world
from nano.transformer import LARGE, SMALL

pytest.importorskip("diffusers")
pytest.importorskip("peft")

AIM = 0.5  # every latent of every clip that a prompt can mean, here
ROWS = 40


def write(folder: Path, kind: pool.Kind, index: Sequence[int], video: Tensor) -> None:
    """A pool of so many clips, each with the same number everywhere."""
    target = folder / kind.name
    target.mkdir(parents=True)
    tokens = int(np.prod(kind.grid))
    columns = {
        name: video[:, None, None].repeat(1, count, width)
        for name, count, width in (("video", tokens, 32), ("last", tokens // 4, 32), ("sound", 6, 16))
    }
    save_file({**columns, "index": torch.tensor(index)}, target / "1.safetensors")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools")
    for kind in transformer.LASTING:
        write(folder, kind, range(ROWS), torch.full((ROWS,), AIM))
    for kind in (SMALL, LARGE):
        whole = replace(kind, every=True)
        write(folder, whole, range(len(world.every())), torch.full((len(world.every()),), AIM))
    # Row k of what was made is wrong by 0.1 k.
    write(folder, made.MADE, range(ROWS), AIM + 0.1 * torch.arange(ROWS))
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    return {
        "transformer": transformer.new_transformer().state_dict(),
        "connectors": transformer.new_connectors().state_dict(),
    }


@pytest.fixture
def stage2(pools: Path) -> distill.Stage2:
    return distill.Stage2(pools, upsampler.new_upsampler(), (torch.zeros(32), torch.ones(32)))


@pytest.fixture
def distilled(pools: Path, weights: dict[str, dict[str, Tensor]], stage2: distill.Stage2) -> distill.Distilled:
    return distill.Distilled(pools, weights, stage2)


@pytest.fixture
def task(pools: Path, weights: dict[str, dict[str, Tensor]], stage2: distill.Stage2) -> lora.Lora:
    return lora.Lora(pools, weights, stage2, weights["transformer"])


class Answer:
    """A model that is sure of a clip which has the same number everywhere."""

    rope = transformer.new_transformer().rope

    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, *, hidden_states: Tensor, audio_hidden_states: Tensor, sigma: Tensor, **_: Any) -> Any:
        level = sigma[:, None, None] / 1000
        return (hidden_states - self.number) / level, (audio_hidden_states - self.number) / level


@pytest.mark.parametrize("which", range(len(STAGE2_SIGMAS)))
def test_the_lora_is_right_when_it_makes_a_clip_that_was_meant(
    task: lora.Lora, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "_SIGMAS", np.eye(len(STAGE2_SIGMAS))[which])
    for number in (AIM, AIM + 1):
        task.half = Answer(number)  # type: ignore[assignment]
        for error in task.mending_loss(np.random.default_rng(which)):
            # Of velocities: what a clip is wrong by, over sigma.
            assert float(error) == pytest.approx(((number - AIM) / STAGE2_SIGMAS[which]) ** 2, abs=1e-6)


class Answers(Answer):
    """A model that is sure of one such clip at stage 2's first sigma and of another afterwards."""

    def __init__(self, first: float, then: float) -> None:
        super().__init__(first)
        self.first, self.then = first, then

    def __call__(self, *, sigma: Tensor, **given: Any) -> Any:
        self.number = self.first if float(sigma.max()) > 1000 * STAGE2_SIGMAS[0] - 1 else self.then
        return super().__call__(sigma=sigma, **given)


@pytest.mark.parametrize(
    ("which", "first", "then", "aim"),
    [
        (0, 0.0, 0.0, 1.0),  # at first as the small clip, which is in the second lane, whatever the answer
        (1, 0.6, 0.1, 0.0),  # a doubtful first answer is overruled
        (1, 0.9, 0.4, 1.0),  # a clear one is not
        (2, 0.9, 0.4, 1.0),
        (2, 0.1, 0.3, 0.0),  # nor is it where the small clip is in the other lane
    ],
)
def test_stage_2_keeps_the_lane_of_stage_1_and_afterwards_of_its_first_answer(
    task: lora.Lora, which: int, first: float, then: float, aim: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lane's clips are one higher than the first's."""
    meant = task.meant[LARGE].columns
    meant["video"] = meant["video"].clone()
    meant["video"][:, 1::2] += 1
    monkeypatch.setattr(task.stage2, "raised", lambda small: torch.full((len(small), 256, 32), AIM + 1))
    monkeypatch.setattr(distill, "_SIGMAS", np.eye(len(STAGE2_SIGMAS))[which])
    task.half = Answers(AIM + first, AIM + then)  # type: ignore[assignment]
    seen, _ = task.mending_loss(np.random.default_rng(1))
    answered = then if which else first
    assert float(seen) == pytest.approx(((answered - aim) / STAGE2_SIGMAS[which]) ** 2, rel=1e-3, abs=1e-6)


def test_of_dev_nothing_but_the_lora_is_trained(task: lora.Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    for pictured in (0.0, 1.0):
        monkeypatch.setattr(lora, "_PICTURED", pictured)
        torch.manual_seed(0)
        loss, figures = task.loss(0, np.random.default_rng(0))
        torch.autograd.backward(loss)
        assert np.isfinite(list(figures.values())).all()
    named = dict(task.transformer.named_parameters())
    trained = {name for name, value in named.items() if value.requires_grad}
    assert trained
    assert trained == {name for name in named if ".lora_" in name}
    # B is zero at first, so nothing reaches A yet.
    reached = {name for name in trained if named[name].grad is not None and named[name].grad.any()}
    assert reached == {name for name in trained if ".lora_B." in name}


def test_the_lora_begins_with_what_dev_made_and_with_the_worst_oftenest(task: lora.Lora) -> None:
    order = task.worst.columns["index"].tolist()
    assert order == list(reversed(range(ROWS)))
    rng = np.random.default_rng(4)
    rows = torch.cat([task.made(rng)[0]["index"] for _ in range(1500)])
    for index in (0, 20, 39):
        row = order.index(index)
        meant = ((row + 1) / ROWS) ** 0.5 - (row / ROWS) ** 0.5  # how often a square of chance is in its part
        assert float((rows == index).float().mean()) == pytest.approx(meant, rel=0.25)


def test_guided_steps_are_those_of_the_guided_velocity() -> None:
    """Sure of 1 with a prompt and of 0 without, a model under guidance 3 is sure of 3."""
    columns = {"video": torch.randn(2, 64, 32), "last": torch.randn(2, 16, 32), "sound": torch.randn(2, 6, 16)}
    begun, _, _ = transformer.make_batch(columns, SMALL, torch.ones(2), "text")

    class Told:
        rope = Answer.rope

        def __call__(self, *, number: float, **named: Any) -> Any:
            return Answer(number)(**named)

    text: list[Any] = [{"number": number} for number in (1.0, 0.0)]
    ended = transformer.travelled(Told(), begun, text[0], (1.0, 0.6, 0.2, 0.0), text[1])
    for at in (ended.video, ended.sound):
        torch.testing.assert_close(at, torch.full_like(at, transformer.GUIDANCE), atol=1e-5, rtol=0)
    alone = transformer.travelled(Told(), begun, text[0], (1.0, 0.6, 0.2, 0.0))
    torch.testing.assert_close(alone.video, torch.ones_like(alone.video), atol=1e-5, rtol=0)


def test_workers_make_their_own_clips_of_the_same_scenes(
    tmp_path: Path, weights: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_STEPS", 2)
    write(tmp_path, SMALL, range(6), torch.arange(6.0))
    for rank in range(2):
        made.make(tmp_path, weights, 5, rank=rank, workers=2)
    files = sorted((tmp_path / made.MADE.name).iterdir())
    assert [file.name for file in files] == ["5-0-2.safetensors", "5-1-2.safetensors"]
    made.make(tmp_path, weights, 5, rank=1, workers=2)  # is there, and stays
    both = pool.read(tmp_path, made.MADE)
    assert both.columns["index"].tolist() == [0, 1, 2, 3, 4]
    assert both.columns["video"].shape == (5, 64, 32)
    assert both.columns["sound"].shape == (5, 6, 16)
    again = made.Maker(pool.read(tmp_path, SMALL), weights)([1, 3])
    assert torch.equal(load_file(files[1])["video"], again["video"])
    assert not torch.equal(again["video"][0], again["video"][1])


def test_half_of_the_clips_of_a_motion_go_to_each_lane(pools: Path) -> None:
    """Of clips that all are nearer to the first lane, those to the second which are so the least."""
    meant, lanes, rng = nearest.Meant(pools, SMALL), nearest.Lanes(), np.random.default_rng(0)
    meant.columns["video"] = meant.columns["video"].clone()
    meant.columns["video"][:, 1::2] += 1  # the second lane of every scene
    up, right = (world.placed(world.Scene("ball", "red", "small", motion, "black")) for motion in ("up", "right"))
    scenes, shares = [up] * 6 + [right] * 6, []
    for _ in range(200):
        off = torch.from_numpy(np.concatenate([rng.uniform(0.1, 0.4, 6), rng.uniform(0.7, 0.8, 6)])).float()
        made = (AIM + off)[:, None, None].expand(12, 64, 32)
        aim = meant.nearest(made, scenes, [prompts.plain(scene) for scene in scenes], lanes)
        second = aim.video[:, 0, 0] > AIM + 0.5
        for motion in range(2):
            ours, taken = off[6 * motion :][:6], second[6 * motion :][:6]
            assert not taken.any() or not (~taken).any() or ours[taken].min() > ours[~taken].max()
        shares.append(second.float())
    share = torch.stack(shares[6:])
    assert 0.45 < float(share[:, :6].mean()) < 0.55
    assert 0.45 < float(share[:, 6:].mean()) < 0.55
    plain = meant.nearest(made, scenes, [prompts.plain(scene) for scene in scenes])
    assert (plain.video[:, 0, 0] > AIM + 0.5).tolist() == [False] * 6 + [True] * 6


def test_bounces_have_one_lane() -> None:
    lanes, bounce = nearest.Lanes(), world.Scene("ball", "red", "small", "bouncing", "black")
    assert lanes.middle([bounce] * 3, torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("own", "which", "shared"), [(1.0, 0, True), (0.0, 0, True), (1.0, 3, False), (0.0, 3, False)])
def test_lanes_are_shared_out_at_pure_noise(
    distilled: distill.Distilled, monkeypatch: pytest.MonkeyPatch, own: float, which: int, shared: bool
) -> None:
    distilled.half = Answer(AIM)  # type: ignore[assignment]
    monkeypatch.setattr(distill, "_OWN_NEAREST", own)
    monkeypatch.setattr(distill, "_NEAREST", np.eye(8)[which])
    rng = np.random.default_rng(0)
    columns, said = distilled.stage2.told.draw(rng, 8)
    for error in distilled.nearest_loss(SMALL, columns, said, distilled.embed(said), rng):
        assert float(error) == pytest.approx(0, abs=1e-8)
    assert int(distilled.lanes[SMALL].gaps.isfinite().sum()) == (8 if shared else 0)
    assert not distilled.lanes[LARGE].gaps.isfinite().any()
    assert "128x128x25.gaps" in distilled.modules()["lanes"].state_dict()


@pytest.mark.parametrize(("made", "begun"), [(1.0, AIM + 0.4), (0.0, AIM)])
def test_distilled_mends_in_stage_2_what_it_makes_itself(
    distilled: distill.Distilled, monkeypatch: pytest.MonkeyPatch, made: float, begun: float
) -> None:
    distilled.half = Answer(AIM + 0.4)  # type: ignore[assignment]
    monkeypatch.setattr(distill, "_MADE", made)
    raised: list[Tensor] = []

    def raise_it(small: Tensor) -> Tensor:
        raised.append(small)
        return small.repeat(1, 4, 1)

    monkeypatch.setattr(distilled.stage2, "raised", raise_it)
    monkeypatch.setattr(distill, "_SIGMAS", (0.0, 1.0, 0.0))
    for error in distilled.mending_loss(np.random.default_rng(3)):
        assert float(error) == pytest.approx((0.4 / STAGE2_SIGMAS[1]) ** 2, rel=1e-4)
    [small] = raised
    assert float(small.mean()) == pytest.approx(begun, abs=0.01)
    assert float(small.std()) < (1e-5 if made else 0.1)
