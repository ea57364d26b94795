"""The formulas of the self-refiner, against the method written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from extensions.selfrefiner import refiner
from extensions.selfrefiner.refiner import Certainty, sample

SIGMAS = (1.0, 0.9, 0.5)


class Flow:
    """A fixed nonlinear velocity that notes how often it was asked, and noise that comes in order."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mix = torch.randn((4, 4), generator=self.generator)
        self.calls: list[tuple[Tensor, float]] = []
        self.drawn: list[Tensor] = []

    def predict(self, x: Tensor, sigma: float) -> Tensor:
        self.calls.append((x, sigma))
        return torch.tanh(x @ self.mix.to(x.dtype)) + sigma

    def noise(self) -> Tensor:
        self.drawn.append(torch.randn((1, 6, 4), generator=self.generator))
        return self.drawn[-1]


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((1, 6, 4), generator=torch.Generator().manual_seed(9)).to(dtype)


def test_plain_steps_are_euler() -> None:
    flow = Flow()
    made = sample(flow.predict, SIGMAS, start(), (1, 1, 1), noise=flow.noise)
    x = start()
    for s, n, after in zip(SIGMAS, (0.9, 0.5, 0.0), made, strict=True):
        x = x + (n - s) * flow.predict(x, s)
        assert torch.equal(after, x)
    assert len(flow.calls) == 6
    assert not flow.drawn


@pytest.mark.parametrize("norm", refiner.NORMS)
def test_three_passes_by_hand(norm: str) -> None:
    flow = Flow()
    limit = {"p1": 0.9, "p2": 1.1, "p2-wan2gp": 0.55}[norm]
    made = sample(flow.predict, SIGMAS, start(), (1, 3, 1), norm=norm, threshold=limit, certain=2.0, noise=flow.noise)
    by_hand = Flow()
    x = start()
    x = x + (0.9 - 1.0) * by_hand.predict(x, 1.0)
    s, kept = 0.9, torch.zeros(1, 6, dtype=torch.bool)
    xb, vb = x, by_hand.predict(x, s)
    x0b = xb - s * vb
    for drawn in flow.drawn:
        xp = (1 - s) * x0b + s * drawn
        vp = by_hand.predict(xp, s)
        x0p = xp - s * vp
        d = x0p - x0b
        length = {
            "p1": d.abs().sum(-1) / 4,
            "p2": (d * d).sum(-1).sqrt() / 2,
            "p2-wan2gp": (d * d).sum(-1).sqrt() / 4,
        }[norm]
        kept = kept | (length < limit)
        m = kept[..., None]
        xb, vb, x0b = torch.where(m, xb, xp), torch.where(m, vb, vp), torch.where(m, x0b, x0p)
    assert 0 < int(kept.sum()) < 6, "the case must have both"
    assert len(flow.drawn) == 2
    torch.testing.assert_close(made[1], xb + (0.5 - s) * vb, atol=1e-6, rtol=0)


def test_a_step_stops_when_enough_is_certain() -> None:
    flow = Flow()
    sample(flow.predict, SIGMAS, start(), (1, 5, 1), threshold=1e9, certain=0.999, noise=flow.noise)
    assert len(flow.calls) == 1 + 2 + 1, "the first further pass settles everything"
    flow = Flow()
    sample(flow.predict, SIGMAS, start(), (1, 5, 1), threshold=1e9, certain=1.0, noise=flow.noise)
    assert len(flow.calls) == 1 + 5 + 1, "strictly more than the share"


def test_threshold_zero_is_never_certain() -> None:
    made = []
    for passes in (2, 3):
        flow = Flow()
        # A velocity whose x0 is the same wherever it is asked: distance exactly 0.
        made.append(sample(lambda x, s: x / s, SIGMAS, start(), (passes, 1, 1), threshold=0.0, noise=flow.noise))
        assert len(flow.drawn) == passes - 1
    assert torch.equal(made[0][-1], made[1][-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_comes_back_and_is_mixed_in_at_least_float32(dtype: torch.dtype) -> None:
    seen = []

    def predict(x: Tensor, sigma: float) -> Tensor:
        seen.append(x.dtype)
        return torch.tanh(x)

    flow = Flow()
    made = sample(predict, SIGMAS, start(dtype), (1, 3, 2), threshold=0.05, noise=flow.noise)
    assert {x.dtype for x in made} == {dtype} == set(seen)
    exact = sample(predict, SIGMAS, start(dtype).double(), (1, 3, 2), threshold=0.05, noise=iter(flow.drawn).__next__)
    assert float((made[0].double() - exact[0]).abs().max()) < 0.02


def two(video: float, sound: float) -> dict[str, Any]:
    """Streams whose predictions disagree by so much at each pass."""
    scale = {"video": video, "sound": sound}
    calls = []

    def predict(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        calls.append(sigma)
        # x0 = x - sigma v = a number that grows with each pass
        return {name: (value - scale[name] * len(calls)) / sigma for name, value in x.items()}

    return {"predict": predict, "calls": calls}


@pytest.mark.parametrize(
    ("decide", "video", "sound", "used"),
    [
        ("video", 0.0, 9.0, 2),
        ("video", 9.0, 0.0, 4),
        ("both", 0.0, 9.0, 4),
        ("both", 0.0, 0.0, 2),
        ("any", 9.0, 0.0, 2),
        ("any", 9.0, 9.0, 4),
    ],
)
def test_the_deciding_stream_ends_a_step(decide: str, video: float, sound: float, used: int) -> None:
    flow = two(video, sound)
    x = {"video": torch.zeros(1, 4, 2), "sound": torch.zeros(1, 3, 2)}

    def noise() -> dict[str, Tensor]:
        return {name: torch.ones_like(value) for name, value in x.items()}

    made = sample(flow["predict"], (0.8,), x, (4,), threshold=0.1, noise=noise, decide=decide)
    assert len(flow["calls"]) == used
    assert made[0].keys() == x.keys()


def test_samples_of_a_batch_stop_by_themselves() -> None:
    # The first sample always predicts the same, the second always something new.
    def predict(x: Tensor, sigma: float) -> Tensor:
        calls.append(len(x))
        meant = torch.stack([torch.full((3, 2), 1.0), torch.full((3, 2), float(len(calls)))])
        return (x - meant) / sigma

    calls: list[int] = []
    drawn = [torch.randn((2, 3, 2), generator=torch.Generator().manual_seed(k)) for k in range(3)]
    made = sample(predict, (0.8,), torch.zeros(2, 3, 2), (4,), threshold=0.1, noise=iter(drawn).__next__)
    assert len(calls) == 4
    torch.testing.assert_close(made[0][0], torch.full((3, 2), 1.0))
    torch.testing.assert_close(made[0][1], torch.full((3, 2), 4.0))


def test_given_tokens_stay_and_do_not_count() -> None:
    blend = refiner.first(torch.arange(8.0).view(1, 4, 2), torch.zeros(1, 4, 2), 0.5)
    level = torch.tensor([0.0, 0.25, 0.5, 0.5]).view(1, 4, 1)
    noise = torch.full((1, 4, 2), 10.0)
    moved = refiner.perturb(blend, level, noise)
    assert torch.equal(moved[0, 0], blend.x[0, 0])
    torch.testing.assert_close(moved[0, 1], 0.75 * blend.x0[0, 1] + 2.5)
    torch.testing.assert_close(moved[0, 2], 0.5 * blend.x0[0, 2] + 5.0)
    certain = torch.tensor([[True, True, True, False]])
    free = torch.tensor([[False, False, True, True]])
    assert refiner.share(certain, free).item() == 0.5
    assert refiner.share(certain).item() == 0.75


def test_unknown_norms_and_streams_are_refused() -> None:
    for wrong in ({"norm": "p3"}, {"decide": "sound"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            Certainty(**wrong)  # type: ignore[arg-type]
