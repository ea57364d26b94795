"""What a plan tells its user in words: what one gets, what was adjusted, what it costs. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modules.ltx.plan import Plan, StagePlan
    from modules.ltx.request import Request


def headline(settled: Plan) -> str:
    sound = "with sound" if settled.audio_from else "without sound"
    size = f"{settled.width}x{settled.height}"
    about = "about " if settled.predicts_frames else ""
    return f"you get {size}, {about}{settled.frames} frames, {settled.seconds:.2f} s at {settled.fps:g} fps, {sound}"


def refiner_notes(settled: Plan) -> list[str]:
    """What the self-refiner costs, before it is paid."""
    if settled.refiner is None:
        return []
    sampling = [stage for stage in settled.stages if stage.sigmas]
    if all(stage.evaluations == stage.plain_evaluations for stage in sampling):
        return [f"self-refiner: {settled.refiner.text} refines no step here"]
    told = ", ".join(_evaluations(stage, named=len(sampling) > 1) for stage in sampling)
    return [f"self-refiner {settled.refiner.text}: {told}; {settled.refiner_cost} % more denoising at most"]


def _evaluations(stage: StagePlan, *, named: bool) -> str:
    """`named`: there are two, so it is said which."""
    refined = stage.evaluations > stage.plain_evaluations
    instead = f" instead of {stage.plain_evaluations}" if refined else ""
    where = f" in {stage.name.replace('stage', 'stage ')}" if named else ""
    return f"{stage.evaluations} evaluations{instead}{where}"


def frame_notes(request: Request, frames: int, *, predicted: bool) -> list[str]:
    if predicted:
        return [f"frames: the model predicts the length once it has read the prompt (--frames sets it); {frames} here"]
    if request.frames in (None, frames):
        return []
    return [f"frames: {request.frames} asked, {frames} made: the model makes 8k+1 frames"]


def prompt_notes(settled: Plan) -> list[str]:
    notes = []
    if not settled.prompt.strip():
        notes.append("the prompt is empty: the model makes whatever it likes")
    if settled.caps.is_random:
        notes.append(f"{settled.caps.label} shows noise: its weights are random, it is there for tests")
    # About four characters a token in English; the tokenizer's exact word is an event of the encode stage.
    if len(settled.prompt) > 6 * settled.caps.max_sequence_length:
        kept = settled.caps.max_sequence_length
        notes.append(f"the prompt has {len(settled.prompt)} characters; the text encoder reads its first {kept} tokens")
    if settled.enhances_prompt:
        notes.append("the model's prompt enhancer writes the prompt out first; the metadata holds what it wrote")
    if settled.decode.decoder == "diffusion" and settled.caps.slow_decoder:
        slow = settled.caps.slow_decoder
        notes.append(f"diffusion decoder: its fast kernel {slow}; where memory is too small for it, the VAE decodes")
    if settled.request.negative and not settled.needs_negative:
        notes.append("the negative prompt is not used: no guidance scale is above 1")
    if settled.negative is None and settled.needs_negative:
        notes.append("negative prompt: the one Lightricks publishes for this family (--negative replaces it)")
    if settled.caps.supports_audio and not settled.request.audio:
        notes.append("sound is made with the video in any case; it is only not written")
    return notes
