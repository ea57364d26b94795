"""Trains the Dev transformer and the text connectors by flow matching, on pools of latents.

x_sigma = (1 - sigma) x0 + sigma noise, and the model learns the velocity noise - x0 for picture and sound
at one common sigma. A batch is one of: text only; first frame given; first and last, or only the last,
given as pictures. Given tokens have timestep 0, as in diffusers' image and condition pipelines. Text is
dropped at times, so that guidance has something to compare with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.ltx.hosts import nano_parts, nano_text
from nano import pool
from nano.half import Compiled, Half
from nano.pool import Kind, Pool

SMALL = Kind(128, 128, 25)
LARGE = Kind(256, 256, 25)
SHORT = Kind(256, 256, 9)
SMALL_ANYWHERE = Kind(128, 128, 25, anywhere=True)
LARGE_ANYWHERE = Kind(256, 256, 25, anywhere=True)


@dataclass(frozen=True)
class Share:
    """Clips in a pool, how often a batch is of it, and how often such a batch is given pictures."""

    clips: int
    often: float
    pictured: float = 0.0


# Shapes are the hardest thing to learn, and hardest where they cover most tokens; short clips show twice as many of
# them in a batch. Pictures may show an object anywhere; what is made from words alone is in a few places only.
KINDS = {
    SMALL: Share(2400, 0.18),
    SMALL_ANYWHERE: Share(2400, 0.05, 1.0),
    Kind(128, 128, 49): Share(240, 0.03, 0.3),
    Kind(192, 128, 25): Share(200, 0.02, 0.3),
    Kind(128, 192, 25): Share(200, 0.02, 0.3),
    LARGE: Share(1600, 0.33),
    LARGE_ANYWHERE: Share(1600, 0.07, 1.0),
    SHORT: Share(2400, 0.25),
    Kind(256, 256, 49): Share(60, 0.05, 0.3),
}
# Short clips are for Dev's first training alone, which has to see many shapes.
LASTING = tuple(kind for kind in KINDS if kind != SHORT)
OFTEN = (64, 128, 256, 320)  # tokens of those that are worth compiling for; 320 with a last picture
_TOKENS_PER_BATCH = 64 * 32
# More noise than the model is told of: what it predicts then trusts its input less, and may mend what went wrong in
# the steps before (Ning et al. 2023, arXiv 2301.11706). Whether it helped here is not shown: docs/nano-training.md.
_SPREAD = 1.15
_DROP_TEXT = 0.12
_ISOLATE = 0.06  # batches in which picture and sound do not see each other, for modality guidance
SOUND_WEIGHT = 0.4
GUIDANCE = 3.0
# The means of LTX-2's time shift at its smallest and largest token count, and how often each is drawn. What gets
# lost at 256x256 gets lost above 0.9: of clips noised to 0.909 Dev kept 97 % of the shapes, of pure noise it made 75 %,
# and 88 % after 3600 steps with the second of the two.
_SHIFTS = ((0.95, 0.3), (2.05, 0.4), (3.0, 0.3))


def new_text_encoder() -> Any:
    """The frozen encoder: random weights, which tell words apart as well as any; once shipped, those."""
    part = nano_parts.spec("2.3")["text_encoder"]
    there = (nano_parts.WEIGHTS / f"{part.trained}.safetensors").exists()
    return nano_parts.build(part if there else replace(part, trained=""))


class Text:
    """Prompts to what the connectors take, with the frozen encoder. Short prompts are encoded short and
    padded afterwards: the encoder sees no padding, so the result is the same."""

    def __init__(self) -> None:
        self.tokenizer = nano_text.worldly_tokenizer()
        self.encoder = new_text_encoder()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(batch, 128, hidden x layers) and the mask (batch, 128)."""
        tokens = self.tokenizer(
            [prompt.strip() for prompt in prompts],
            padding="longest",
            truncation=True,
            max_length=nano_text.MAX_TOKENS,
            return_tensors="pt",
        )
        states = self.encoder.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states
        stacked = torch.stack(states, dim=-1).flatten(2, 3)
        missing = nano_text.MAX_TOKENS - stacked.shape[1]
        padded = torch.nn.functional.pad(stacked, (0, 0, missing, 0))
        return padded, torch.nn.functional.pad(tokens.attention_mask, (missing, 0))


def embedded(said: Sequence[str], text: Text, connectors: Any) -> dict[str, Tensor]:
    """Prompts as what a transformer is called with, by the names of its arguments."""
    video, heard, kept = connectors(*text(said))
    return {
        "encoder_hidden_states": video,
        "audio_encoder_hidden_states": heard,
        "encoder_attention_mask": kept,
        "audio_encoder_attention_mask": kept,
    }


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes, and what it should answer. `free` marks tokens that are to be made."""

    video: Tensor
    sound: Tensor
    sigma: Tensor  # (batch,)
    free: Tensor  # (batch, tokens): 1 to be made, 0 given
    grid: tuple[int, int, int]
    keyframes: int = 0  # tokens of a last picture, appended

    def forward(self, transformer: Any, text: Mapping[str, Tensor], *, isolate: bool = False) -> tuple[Tensor, Tensor]:
        """Velocities of picture and sound."""
        frames, rows, columns = self.grid
        time = self.sigma * 1000
        coords = transformer.rope.prepare_video_coords(len(time), frames, rows, columns, self.video.device, fps=24.0)
        if self.keyframes:
            coords = torch.cat([coords, keyframe_coords(frames, rows, columns).expand(len(time), -1, -1, -1)], dim=2)
        every = bool(self.free.all())
        answer: tuple[Tensor, Tensor] = transformer(
            hidden_states=self.video,
            audio_hidden_states=self.sound,
            timestep=time[:, None] if every else time[:, None] * self.free,
            audio_timestep=time[:, None],
            sigma=time,
            num_frames=frames,
            height=rows,
            width=columns,
            fps=24.0,
            audio_num_frames=self.sound.shape[1],
            video_coords=coords,
            isolate_modalities=isolate,
            use_cross_timestep=True,
            return_dict=False,
            **text,
        )
        return answer

    def guided(
        self, transformer: Any, text: Mapping[str, Tensor], empty: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Velocities of picture and sound under guidance 3, away from `empty`."""
        pairs = zip(self.forward(transformer, text), self.forward(transformer, empty), strict=True)
        video, sound = (away.float() + GUIDANCE * (told.float() - away.float()) for told, away in pairs)
        return video, sound

    def error(self, made: Tensor, meant: Tensor) -> Tensor:
        """Mean squared difference of velocities (batch, tokens, channels) over the tokens that are to be made."""
        free = self.free[..., None]
        return ((made.float() - meant).square() * free).sum() / (free.sum() * made.shape[-1])


@torch.no_grad()
def travelled(
    transformer: Any,
    batch: Batch,
    text: Mapping[str, Tensor],
    levels: Sequence[float],
    empty: Mapping[str, Tensor] | None = None,
) -> Batch:
    """Where the way through falling `levels` ends, by Euler steps; guided away from `empty`, if that is given. `batch`
    is at the first of them."""
    at = batch
    for sigma, following in itertools.pairwise(levels):
        video, sound = at.forward(transformer, text) if empty is None else at.guided(transformer, text, empty)
        at = replace(
            at,
            sigma=torch.full_like(at.sigma, following),
            video=at.video + (following - sigma) * video.float() * at.free[..., None],
            sound=at.sound + (following - sigma) * sound.float(),
        )
    return at


def keyframe_coords(frames: int, rows: int, columns: int) -> Tensor:
    """(1, 3, rows x columns, 2): where LTX2ConditionPipeline puts a picture for the last latent frame."""
    y, x = torch.meshgrid(torch.arange(rows) * 32.0, torch.arange(columns) * 32.0, indexing="ij")
    start = (frames - 2) * 8 + 1.0
    first = torch.stack([torch.full_like(y, start / 24), y, x]).flatten(1)
    last = torch.stack([torch.full_like(y, (start + 1) / 24), y + 32, x + 32]).flatten(1)
    return torch.stack([first, last], dim=-1)[None]


def make_batch(
    columns: Mapping[str, Tensor], kind: Kind, sigma: Tensor, mode: str, *, spread: float = 1.0
) -> tuple[Batch, Tensor, Tensor]:
    """The noised batch and the velocities it should answer. `mode`: text, first, last, both. `spread`: of the noise."""
    video, heard = columns["video"], columns["sound"]
    noise, hiss = spread * torch.randn_like(video), spread * torch.randn_like(heard)
    at = sigma[:, None, None]
    free = torch.ones(video.shape[:2])
    frame = kind.grid[1] * kind.grid[2]
    if mode in ("first", "both"):
        free[:, :frame] = 0
    noisy = torch.where(free[..., None] > 0, (1 - at) * video + at * noise, video)
    velocity = noise - video
    extra = 0
    if mode in ("last", "both"):
        extra = frame
        noisy = torch.cat([noisy, columns["last"]], dim=1)
        velocity = torch.cat([velocity, torch.zeros_like(columns["last"])], dim=1)
        free = torch.cat([free, torch.zeros(len(free), extra)], dim=1)
    batch = Batch(noisy, (1 - at) * heard + at * hiss, sigma, free, kind.grid, extra)
    return batch, velocity, hiss - heard


def draw_mode(rng: np.random.Generator, pictured: float) -> str:
    """What a batch is given, see `make_batch`; pictures in a share of `pictured`."""
    return str(rng.choice(("first", "last", "both"), p=(0.54, 0.14, 0.32))) if rng.random() < pictured else "text"


def draw_sigma(rng: np.random.Generator, count: int) -> Tensor:
    """Logit-normal, a fifth uniform, then shifted towards noise as LTX-2's schedules are."""
    normal = 1 / (1 + np.exp(-rng.standard_normal(count)))
    level = np.where(rng.random(count) < 0.2, rng.random(count), normal)
    shifts, shares = zip(*_SHIFTS, strict=True)
    shift = np.exp(rng.choice(shifts, count, p=shares))
    return torch.tensor(shift * level / (1 + (shift - 1) * level), dtype=torch.float32).clamp(1e-3, 1.0)


def new_transformer() -> Any:
    part = nano_parts.spec("2.3", "dev")["transformer"]
    with nano_parts.seeded(part.seed), torch.no_grad():
        transformer = nano_parts.component_class(part.kind)(**part.config)
        for name in ("proj_out", "audio_proj_out"):
            getattr(transformer, name).weight.mul_(0.1)
    return transformer.train()


def new_connectors() -> Any:
    part = nano_parts.spec("2.3")["connectors"]
    with nano_parts.seeded(part.seed), torch.no_grad():
        connectors = nano_parts.component_class(part.kind)(**part.config)
        for connector in (connectors.video_connector, connectors.audio_connector):
            connector.learnable_registers.mul_(0.02)
    return connectors.train()


class Dev:
    name = "dev"
    lr = 6e-3
    # The step from which on the connectors stay as they are, so that Distilled and the LoRA, which share them, outlast
    # further training of Dev.
    connectors_until = 13600

    def __init__(
        self, pools: Path, steps: int = 19800, kinds: Sequence[Kind] = tuple(KINDS), *, compiled: bool = False
    ) -> None:
        self.steps = steps
        self.transformer, self.connectors = new_transformer(), new_connectors()
        self.half = Compiled(self.transformer, OFTEN) if compiled else Half(self.transformer)
        self.half_connectors = Half(self.connectors)
        self.text = Text()
        self.pools: list[tuple[Pool, float]] = [(pool.read(pools, kind), KINDS[kind].often) for kind in kinds]

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"transformer": self.transformer, "connectors": self.connectors}

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        self.connectors.requires_grad_(step < self.connectors_until)
        shared = np.random.default_rng(step)  # workers with batches of one sort do not wait for each other
        kind, columns, said = self.draw(shared, rng, _TOKENS_PER_BATCH)
        said = self.captions(said, rng)
        mode = draw_mode(shared, KINDS[kind].pictured)
        batch, velocity, hiss = make_batch(columns, kind, draw_sigma(rng, len(said)), mode, spread=_SPREAD)
        video, heard = batch.forward(self.half, self.embed(said), isolate=bool(shared.random() < _ISOLATE))
        seen = batch.error(video, velocity)
        sound_error = (heard.float() - hiss).square().mean()
        figures = {"video": float(seen.detach()), "sound": float(sound_error.detach())}
        return seen + SOUND_WEIGHT * sound_error, figures

    def captions(self, said: Sequence[str], rng: np.random.Generator) -> list[str]:
        """What the model is told of clips that `said` describes: at times nothing."""
        return ["" if rng.random() < _DROP_TEXT else prompt for prompt in said]

    def draw(
        self, shared: np.random.Generator, rng: np.random.Generator, tokens: int
    ) -> tuple[Kind, dict[str, Tensor], list[str]]:
        """Clips of one size, which `shared` chooses, about `tokens` tokens of them, and their prompts."""
        shares = np.array([share for _, share in self.pools])
        chosen = self.pools[int(shared.choice(len(shares), p=shares / shares.sum()))][0]
        columns, said = chosen.draw(rng, max(2, tokens // math.prod(chosen.kind.grid)))
        return chosen.kind, columns, said

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return embedded(prompts, self.text, self.half_connectors)
