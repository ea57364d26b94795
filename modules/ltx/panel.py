"""Pictures in words and lines for a page: what a plan will do, what a job is doing, what it did.

Plain HTML and SVG with the page's own colours; every text that comes from outside is escaped. Knows neither gradio nor
hosts, and reads nothing from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from modules.ltx.cli_show import PHASES, extras, guidance_words, memory_text
from modules.ltx.jobs import Row
from modules.ltx.ltx_capabilities import Caps
from modules.ltx.plan import Plan, StagePlan
from modules.ltx.recipe import memory_gb
from modules.ltx.serve_request import in_words
from modules.ltx.speed import activations_gb
from modules.ltx.state import Refinement, State

_WIDTH, _HEIGHT, _PAD = 640, 150, 26  # of the drawing
# Once in every page that shows panels. Its own colours where they carry meaning: a theme need not have any.
CSS = """
.ltx-panel table{border-collapse:collapse;width:100%;font-size:.9em}
.ltx-panel th,.ltx-panel td{text-align:left;padding:.15em .6em .15em 0;border-bottom:1px solid rgba(128,128,128,.3)}
.ltx-panel ul{margin:.4em 0;padding-left:1.2em}
.ltx-panel svg{width:100%;height:auto;max-height:13em}
.ltx-panel .bar{background:rgba(128,128,128,.3);border-radius:.3em;height:.6em;overflow:hidden}
.ltx-panel .bar div{background:#2a9d8f;height:100%}
.ltx-panel .wrong{border-left:.3em solid #d64933;background:rgba(214,73,51,.18);padding:.5em .8em;font-weight:600}
.ltx-sigmas polyline{fill:none;stroke:currentColor;stroke-opacity:.5}
.ltx-sigmas circle{fill:currentColor}
.ltx-sigmas .again{fill:#e76f51}
.ltx-sigmas text{fill:currentColor;font-size:12px}
"""


@dataclass(frozen=True)
class Around:
    """What a plan panel says about the machine: GB to download (None: nobody knows), GB free on the disk of the videos,
    seconds that it is likely to take (None: not learned yet)."""

    download: float | None = 0.0
    free: float | None = None
    seconds: float | None = None


def about_html(caps: Caps, here: bool) -> str:
    """What a variant is and needs, in a line; `here`: its weights are on this machine."""
    kind = "Distilled (fast, without guidance)" if caps.is_distilled else "Dev (with guidance)"
    first = "text and a first image" if caps.is_i2v else "text"
    takes = "text and images at any frame" if caps.supports_multi_condition else first
    why = f"<br><b>Cannot run here: {escape('; '.join(caps.unavailable))}.</b>" if caps.unavailable else ""
    sound = "with sound" if caps.supports_audio else "without sound"
    name = f"<b>{escape(caps.label)}</b>: LTX {escape(caps.generation)} {kind}."
    made = f"Input: {takes}. Output: video {sound}. {_weights(caps, here)}{why}"
    return f"<div class='ltx-panel'>{name} {made}</div>"


def _weights(caps: Caps, here: bool) -> str:
    """How large the weights are, and whether they are to be downloaded."""
    need = memory_gb(caps)["weights"]
    if need < 0.1:
        return "A small test model that is included: nothing to download."
    return f"Weights: {need:g} GB, " + ("on this machine." if here else "<b>to be downloaded first</b>.")


def help_html(several: Sequence[tuple[str, str]]) -> str:
    """Labels and their explanations, for controls that have no place for words."""
    lines = "".join(f"<li><b>{escape(label)}</b>: {escape(words)}</li>" for label, words in several)
    return _panel(f"<ul>{lines}</ul>") if lines else ""


def plan_html(plan: Plan, around: Around | None = None) -> str:
    """What will be done, before it is; `around`: what is known of the machine."""
    facts = [
        f"{plan.evaluations} evaluations"
        + (f", {plan.refiner_cost} % more than without the self-refiner" if plan.refiner else ""),
        _needs(plan),
        *(_surroundings(around) if around is not None else ()),
    ]
    rows = "".join(_row(stage) for stage in plan.stages)
    heads = "".join(f"<th>{name}</th>" for name in ("stage", "size", "steps", "evaluations", "guidance", "with"))
    said = [*_given(plan), *(in_words(note) for note in plan.notes[1:])]
    notes = "".join(f"<li>{escape(note)}</li>" for note in said)
    return _panel(
        f"<p><b>{escape(in_words(plan.notes[0]))}</b></p><p>{escape('; '.join(facts))}</p>"
        f"<table><tr>{heads}</tr>{rows}</table>{sigma_svg(plan)}<ul>{notes}</ul>"
    )


def _given(plan: Plan) -> Iterator[str]:
    """Which picture stands at which frame."""
    for image in plan.images:
        last = image.frame in (-1, plan.frames - 1)
        held = "" if image.strength == 1 else f", strength {image.strength:g}"
        yield f"{Path(image.path).name} at frame {plan.frames - 1 if last else image.frame}{held}"


def error_html(sentence: str) -> str:
    """Why it cannot be done."""
    return _panel(f"<p class='wrong' role='alert'>{escape(in_words(sentence))}</p>")


def _panel(inner: str) -> str:
    return f"<div class='ltx-panel'>{inner}</div>"


def _row(stage: StagePlan) -> str:
    cells = (
        stage.name,
        f"{stage.width}x{stage.height}",
        str(len(stage.sigmas)) if stage.sigmas else "-",
        str(stage.evaluations),
        guidance_words(stage),
        extras(stage),
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _needs(plan: Plan) -> str:
    need = memory_gb(plan.caps)
    if need["weights"] < 0.1:
        return "under 1 GB of memory"
    sampling = activations_gb(plan.caps, plan.stages)
    return (
        f"{need['weights']:g} GB of weights, {need['largest_part']:g} GB of them at once with offload, and about"
        f" {sampling:g} GB for sampling"
    )


def _surroundings(around: Around) -> Iterator[str]:
    yield _download(around.download)
    if around.free is not None:
        yield f"{around.free:.0f} GB free on the disk"
    if around.seconds is not None:
        yield f"about {duration(around.seconds)} on this machine"


def _download(size: float | None) -> str:
    if size is None:
        return "the model must be downloaded first"
    return f"{size:.3g} GB to download first" if size else "nothing to download"


def sigma_svg(plan: Plan) -> str:
    """Sigmas over the steps of the sampling stages; a refined step has a dot a pass, above each other."""
    stages = [stage for stage in plan.stages if stage.sigmas]
    count = sum(len(stage.sigmas) for stage in stages)
    gap = (_WIDTH - 2 * _PAD) / max(count + len(stages) - 2, 1)
    drawn, at = [], 0.0
    for stage in stages:
        points = [(_PAD + gap * (at + step), _y(sigma)) for step, sigma in enumerate(stage.sigmas)]
        drawn.append(f"<polyline points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in points)}'/>")
        for (x, y), sigma, passes in zip(points, stage.sigmas, _passes(stage), strict=True):
            title = f"{stage.name}: sigma {sigma:.4g}" + (f", {passes} passes" if passes > 1 else "")
            for n in range(passes):
                again = " class='again'" if n else ""
                drawn.append(
                    f"<circle cx='{x:.1f}' cy='{y - 9 * n:.1f}' r='3.5'{again}><title>{title}</title></circle>"
                )
        drawn.append(f"<text x='{points[0][0]:.1f}' y='{_HEIGHT - 4}'>{escape(stage.name)}</text>")
        at += len(stage.sigmas) + 1
    told = "; ".join(f"{stage.name}: {len(stage.sigmas)} steps, {stage.evaluations} evaluations" for stage in stages)
    return (
        f"<svg class='ltx-sigmas' viewBox='0 -30 {_WIDTH} {_HEIGHT + 30}' role='img' "
        f"aria-label='Sigmas. {escape(told)}'>{''.join(drawn)}</svg>"
    )


def _y(sigma: float) -> float:
    return _PAD + (1 - sigma) * (_HEIGHT - 2 * _PAD)


def _passes(stage: StagePlan) -> Sequence[int]:
    return stage.passes or (1,) * len(stage.sigmas)


def running_html(told: Mapping[str, Any], left: float | None) -> str:
    """A job at work; `told` is its last event as JSON values."""
    share = told["step"] / told["of"] if told.get("of") else 0.0
    words = [PHASES.get(str(told.get("phase")), str(told.get("phase", "")))]
    if told.get("of"):
        words.append(f"{told['step']} of {told['of']}")
    if told.get("runs", 1) > 1:
        words.append(f"pass {told['run']} of {told['runs']}")
    if told.get("planned"):
        words.append(f"evaluation {told['evaluations']} of {told['planned']}")
    if left is not None:
        words.append(f"about {duration(left)} left")
    message = f"<p>{escape(str(told['message']))}</p>" if told.get("message") else ""
    bar = (
        f"<div class='bar' role='progressbar' aria-valuemax='100' aria-valuenow='{round(100 * share)}'>"
        f"<div style='width:{100 * share:.1f}%'></div></div>"
    )
    return _panel(f"<p>{escape(', '.join(words))}</p>{bar}{message}")


def words_html(sentence: str) -> str:
    """A sentence."""
    return _panel(f"<p>{escape(in_words(sentence))}</p>")


def working_html(sentence: str) -> str:
    """What a job is at, until it ends: a page can find it by its class."""
    return _panel(f"<p class='working' role='status'>{escape(in_words(sentence))}</p>")


def result_html(state: State, more: Sequence[str] = ()) -> str:
    """What a job delivered: the file, its stages and times, what the self-refiner did, notes; `more`: further notes."""
    media, plan = state.media, state.plan
    if media is None:
        return ""
    total = sum(timing.seconds for timing in state.timings)
    times = ", ".join(f"{PHASES[timing.phase]} {timing.seconds:.1f} s" for timing in state.timings)
    sound = "with sound" if media.sample_rate else "without sound"
    size = f"{media.width}x{media.height}, {media.frames} frames, {media.frames / media.fps:.2f} s, {sound}"
    stages = "; ".join(
        f"{stage.name} {stage.width}x{stage.height}, {stage.evaluations} evaluations" for stage in plan.stages
    )
    lines = [
        f"<p><b>{escape(media.path.name)}</b>: {size}, seed {state.seed}</p>",
        f"<p>{escape(plan.caps.label)}: {escape(stages)}</p><p>{total:.1f} s in all: {escape(times)}</p>",
        f"<p>{escape(memory_text(state.timings))}</p>",
        *(_refined(done) for done in state.refined),
    ]
    notes = "".join(f"<li>{escape(in_words(note))}</li>" for note in (*plan.notes[1:], *state.notes, *more))
    return _panel("".join(lines) + (f"<ul>{notes}</ul>" if notes else ""))


def line_html(rows: Sequence[Row], paused: bool) -> str:
    """The queue as a table: what runs, then what waits in its order, then what ended, newest first."""
    if not rows:
        return _panel("<p>The queue is empty; jobs that you start are listed here.</p>")
    heads = "".join(f"<th>{name}</th>" for name in ("state", "what", "prompt", "model", "seed"))
    held = "<p><b>The queue is paused: no further job is started.</b></p>" if paused else ""
    return _panel(f"{held}<table><tr>{heads}</tr>{''.join(map(_line, rows))}</table>")


def _line(row: Row) -> str:
    said = row.error["message"] if row.state == "failed" and row.error else row.request.get("prompt", "")
    cells = (row.state, row.kind, said[:120], row.request.get("model", "nano"), row.request.get("seed", ""))
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def settings_html(name: str, asked: Mapping[str, Any]) -> str:
    """The request that a video was made with, as a table; only what was asked, not every default."""
    words = {key: value for key, value in asked.items() if value not in (None, "", False, [], ())}
    rows = "".join(
        f"<tr><th>{escape(key.replace('_', ' '))}</th><td>{escape(_said(value))}</td></tr>"
        for key, value in words.items()
    )
    return _panel(f"<p><b>{escape(name)}</b></p><table>{rows}</table>")


def _said(value: Any) -> str:
    """A value of a request's JSON, as people write it; files by their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_said, value))
    return "yes" if value is True else Path(value).name if _is_path(value) else _number(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _refined(done: Refinement) -> str:
    """The self-refiner's report of a stage as a table."""
    names = list(dict.fromkeys(key for row in done.rows for key in row))
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_number(row.get(name)))}</td>" for name in names) + "</tr>" for row in done.rows
    )
    return (
        f"<details><summary>self-refiner, {escape(done.stage)}</summary><table><tr>{heads}</tr>{rows}</table></details>"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_number, value)) if isinstance(value, (list, tuple)) else str(value)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
