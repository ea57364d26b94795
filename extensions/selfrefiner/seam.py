"""`with attach(pipe, refiner): pipe(...)`: the self-refiner in any diffusers flow-matching pipeline.

The pipeline's own loop does the work. A scheduler wrapper shows it each refined step several times over, at the same
sigma, so that it predicts again with its own guidance, masks, sound and batching; between those passes `step` hands
back the perturbed latents, and behind the last one the inner scheduler steps once, from the blend. No pipeline code
is copied, and every solver that takes one `step` an evaluation works. The transformer's class is borrowed as well:
it sees each token's own noise level, and answers nothing at all, at no cost, once a step has settled.

Knows diffusers' shapes and habits; the formulas are in `refiner.py`. Everything borrowed is given back on every
way out.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modules.ltx.errors import RequestError

from . import noise, refiner
from .refiner import Blend
from .reuse import check_reuse
from .session import Entry, Refined, Refiner, Session, as_given, channels_last

__all__ = ["FlowMatchRefiningScheduler", "Refined", "Refiner", "Session", "attach", "check", "unrolled"]

_TRANSFORMERS = ("transformer", "transformer_2")


class FlowMatchRefiningScheduler:
    """The inner scheduler, each refined step shown several times. Everything else is the inner one's."""

    def __init__(self, inner: Any, session: Session, stream: str) -> None:
        self.inner, self.session, self.stream = inner, session, stream
        self.blend: Blend | None = None
        self.free: Tensor | None = None
        self.cursor = 0
        self.timesteps = torch.empty(0)
        session.streams[stream] = self
        # Pipelines look at signatures to learn what a scheduler takes.
        self.set_timesteps = _signed(self._set_timesteps, inner.set_timesteps)
        self.step = _signed(self._step, inner.step)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # a half-made copy
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowMatchRefiningScheduler:
        """LTX-2 pipelines copy the scheduler for the sound: the copy is the second stream of the same steps."""
        return FlowMatchRefiningScheduler(copy.deepcopy(self.inner, memo), self.session, "sound")

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.inner.set_timesteps(*args, **kwargs)
        rounds, padding = unrolled(self.inner, self.session.asked.passes, self.session.strength)
        index = torch.tensor([entry.index for entry in rounds], device=self.inner.timesteps.device)
        self.timesteps = self._shown(rounds)[index]
        self.sigmas = torch.cat([self.inner.sigmas[index.to(self.inner.sigmas.device)], self.inner.sigmas[-1:]])
        self.num_inference_steps = len(rounds)
        self.cursor, self.blend = padding, None
        if padding:
            self.inner.set_begin_index(rounds[padding].index)
        if self.stream == "video":
            self.session.restart(rounds)

    def _shown(self, rounds: Sequence[Entry]) -> Tensor:
        """The timesteps of the inner schedule. Those of UniPC are rounded to whole numbers, which is not the sigma
        that the passes mix at."""
        steps: Tensor = self.inner.timesteps
        if steps.is_floating_point() or all(entry.of == 1 for entry in rounds):
            return steps
        exact: Tensor = self.inner.sigmas[: len(steps)].to(steps.device) * self.inner.config.num_train_timesteps
        return exact

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where in the shown schedule the loop starts. Raises RequestError in the middle of a step."""
        rounds = self.session.rounds or [Entry(0)]
        if begin_index and (begin_index >= len(rounds) or rounds[begin_index].number):
            raise RequestError("self-refiner: this pipeline starts in the middle of a refined step; refine later ones.")
        self.cursor = begin_index
        self.inner.set_begin_index(rounds[begin_index].index if begin_index else 0)

    def _step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        session.enter(self.cursor)
        entry, self.cursor = session.entry, self.cursor + 1
        session.reuse.told = ()  # the round's predictions have been made
        x, v = sample, model_output
        last = entry.number == entry.of - 1
        if entry.of > 1:
            self._absorb(entry, model_output, sample, kwargs.get("per_token_timesteps"))
            assert self.blend is not None
            if not last:
                if self.stream == "video":
                    session.rewind()
                return _answer(self._perturbed(entry, sample), kwargs)
            x, v = as_given(self.blend.x, sample), as_given(self.blend.v, model_output)
        after = self.inner.step(v, self.inner.timesteps[entry.index], x, *args, **kwargs)
        if self.stream == "video":
            session.mark()
        return after

    def _absorb(self, entry: Entry, model_output: Tensor, sample: Tensor, per_token: Tensor | None) -> None:
        """This pass into the blend, unless the step has settled."""
        session = self.session
        if session.skip:
            return
        x, v = channels_last(sample), channels_last(model_output)
        sigma: Any = self.inner.sigmas[entry.index].to(x.device)
        if per_token is not None:  # 0.9 Condition: minus the velocity, and each token's own sigma
            sigma = -per_token[..., None].to(x.device) / self.inner.config.num_train_timesteps
        if entry.number == 0:
            self.blend = refiner.first(x, v, sigma)
            self.free = self._free(x)
            return
        assert self.blend is not None
        over = session.over if session.over is not None else torch.zeros(len(x), dtype=torch.bool)
        self.blend = refiner.again(self.blend, x, v, sigma=sigma, rule=session.asked.rule, over=over.to(x.device))
        if session.asked.keep_map:
            known = session.settled.setdefault(self.stream, torch.zeros(x.shape[1:-1], dtype=torch.int8))
            fresh = self.blend.certain[0].cpu() & (known == 0)
            session.settled[self.stream] = torch.where(fresh, torch.tensor(entry.number, dtype=torch.int8), known)

    def _free(self, x: Tensor) -> Tensor | None:
        """Tokens (batch, tokens) at the step's own noise level: those that are to be made. None: all."""
        ratio = self._ratio(x)
        return None if ratio is None else ratio >= 1 - 1e-6

    def _ratio(self, x: Tensor) -> Tensor | None:
        """Each token's noise level in units of the step's, (batch, tokens), where the transformer was told one."""
        ratio = self.session.levels
        if self.stream != "video" or ratio is None or x.ndim != 3 or ratio.shape[1] != x.shape[1]:
            return None
        return ratio[: len(x)].to(x.device)

    def _perturbed(self, entry: Entry, sample: Tensor) -> Tensor:
        blend, asked = self.blend, self.session.asked
        assert blend is not None
        if self.session.skip:
            return as_given(blend.x, sample)
        key = (asked.purpose, self.stream, entry.step, entry.number + 1)
        drawn = channels_last(noise.draw(sample, asked.seed, key))
        sigma = self.inner.sigmas[entry.index].to(blend.x.device)
        ratio = self._ratio(blend.x)
        level = sigma if ratio is None else sigma * ratio[..., None]
        return as_given(refiner.perturb(blend, level, drawn), sample)


def _signed(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """`ours` under the signature of `theirs`."""

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    return call


def unrolled(inner: Any, passes: Sequence[int], strength: float | None) -> tuple[list[Entry], int]:
    """The rounds of the pipeline's loop, and how many of them in front it will cut away.

    `strength` is LTXConditionPipeline's `denoise_strength`, which keeps int(rounds * strength) of the rounds: counted
    behind the unrolling, so as many are put in front as make that the rounds that are meant.
    """
    count = len(inner.timesteps)
    starts = set(getattr(inner, "step_starts", None) or range(0, count, getattr(inner, "order", 1)))
    begin = 0 if strength is None or strength >= 1 else count - int(count * strength)
    rounds, step = [], -1
    for index in range(begin, count):
        step += index in starts
        times = passes[step] if index in starts and step < len(passes) else 1
        rounds += [Entry(index, step, number, times) for number in range(times)]
    if not begin:
        return rounds, 0
    assert strength is not None
    total = next(n for n in range(len(rounds), int(len(rounds) / strength) + 3) if int(n * strength) == len(rounds))
    return [Entry(0)] * (total - len(rounds)) + rounds, total - len(rounds)


def _answer(sample: Tensor, kwargs: Mapping[str, Any]) -> Any:
    """What a scheduler's `step` returns."""
    if not kwargs.get("return_dict", True):
        return (sample,)
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    return SchedulerOutput(prev_sample=sample)


@contextlib.contextmanager
def attach(
    pipe: Any,
    asked: Refiner,
    *,
    denoise_strength: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Session]:
    """Refine the calls of `pipe` inside the `with`; the session tells what was done.

    `denoise_strength`: what LTXConditionPipeline is called with, if it is. `generator`: the one the pipeline is
    called with, if it draws from it in its loop (0.9 Condition with image_cond_noise_scale): a further pass then
    gets the draw of the first, and whoever draws next what it would have got anyway. Raises RequestError where the
    pipeline lacks what is needed; nothing has been changed then.
    """
    check(pipe, asked)
    session = Session(asked, skipped=denoise_strength, generator=generator)
    scheduler, sound = pipe.scheduler, getattr(pipe, "audio_scheduler", None)
    with contextlib.ExitStack() as undo:
        undo.callback(setattr, pipe, "scheduler", scheduler)
        pipe.scheduler = FlowMatchRefiningScheduler(scheduler, session, "video")
        if sound is not None:
            undo.callback(setattr, pipe, "audio_scheduler", sound)
            pipe.audio_scheduler = FlowMatchRefiningScheduler(sound, session, "sound")
        for name in _TRANSFORMERS:
            if isinstance(getattr(pipe, name, None), torch.nn.Module):
                undo.enter_context(_watched(pipe, getattr(pipe, name), session))
        if generator is not None:
            undo.enter_context(_marked(pipe, session))
        yield session


def check(pipe: Any, asked: Refiner) -> None:
    """Raise RequestError, in a sentence, for a pipeline that cannot be refined as asked."""
    name, scheduler = type(pipe).__name__, getattr(pipe, "scheduler", None)
    if isinstance(scheduler, FlowMatchRefiningScheduler):
        raise RequestError(f"self-refiner: it is attached to this {name} already; detach it first.")
    if not isinstance(getattr(pipe, "transformer", None), torch.nn.Module):
        raise RequestError(f"self-refiner: {name} has no transformer to refine with; turn it off for this model.")
    missing = [n for n in ("set_timesteps", "step", "config") if not hasattr(scheduler, n)]
    kind = type(scheduler).__name__
    flow = "FlowMatch" in kind or getattr(scheduler, "config", {}).get("prediction_type") == "flow_prediction"
    if missing or not flow:
        raise RequestError(
            f"self-refiner: {name} runs {kind}, which does no flow matching; choose a flow-match sampler."
        )
    if any(count < 1 for count in asked.passes):
        raise RequestError(f"self-refiner: passes {asked.passes}: a step takes at least one.")
    check_reuse(pipe, asked.guidance)


@contextlib.contextmanager
def _watched(pipe: Any, transformer: torch.nn.Module, session: Session) -> Iterator[None]:
    """The transformer with a class of the same name whose call sees every round before it runs.

    A forward hook would run too late to skip a forward, and a replaced `.forward` is lost when accelerate adds its
    own; `__call__` is looked up on the class.
    """
    kind = type(transformer)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        session.enter(session.streams["video"].cursor)
        session.levels = _ratios(session, kwargs.get("timestep"))
        forward = functools.partial(kind.__call__, self)
        return session.reuse.answer(pipe, session, forward, args, kwargs)

    try:
        transformer.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        yield
    finally:
        transformer.__class__ = kind


def _ratios(session: Session, timestep: Any) -> Tensor | None:
    """Each token's noise level in units of the step's, where the pipeline gives every token its own timestep."""
    if not isinstance(timestep, Tensor) or timestep.ndim != 2 or timestep.shape[1] < 2:
        return session.levels if session.skip else None
    shown = session.streams["video"].timesteps[session.at]
    ratio: Tensor = (timestep / shown.to(timestep)).clamp(max=1.0)
    return ratio


@contextlib.contextmanager
def _marked(pipe: Any, session: Session) -> Iterator[None]:
    """`pipe.progress_bar` is the last thing a pipeline calls before its loop: the first round starts there."""
    theirs, own = pipe.progress_bar, vars(pipe).get("progress_bar")

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        session.mark()
        return theirs(*args, **kwargs)

    try:
        pipe.progress_bar = progress_bar
        yield
    finally:
        vars(pipe).pop("progress_bar", None)
        if own is not None:  # a host's own
            pipe.progress_bar = own
