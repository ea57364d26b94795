"""What the command line shows a person: tables, a plan in words, a progress bar with time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from modules.ltx.ltx_capabilities import Caps
from modules.ltx.plan import Plan, StagePlan
from modules.ltx.state import Event, State, Timing

PHASES = {
    "load": "loading the model",
    "encode": "reading the prompt",
    "sample": "stage 1",
    "upsample": "upsampling",
    "refine": "stage 2",
    "decode": "decoding and writing",
}


WIDE = 120  # columns from which the host's labels fit beside the ids


def models_table(rows: Sequence[Caps], width: int) -> Table:
    """Every variant on one line each; on a wide terminal with its label."""
    caption = "name one by its id or its label: --model ID" + ("" if width >= WIDE else " (--json shows the labels)")
    table = Table(title="LTX variants", caption=caption, expand=False)
    table.add_column("id", no_wrap=True)
    if width >= WIDE:
        table.add_column("label", no_wrap=True)
    for column in ("takes", "sound", "stages", "steps", "here"):
        table.add_column(column)
    for caps in rows:
        label = (caps.label,) if width >= WIDE else ()
        stages = "1 or 2" if caps.supports_two_stage_refine else "1"
        sound = "yes" if caps.supports_audio else "no"
        here = "; ".join(caps.unavailable) or "ready"
        table.add_row(caps.id, *label, takes(caps), sound, stages, str(caps.default_steps), here)
    return table


def models_markdown(rows: Sequence[Caps]) -> str:
    """The README's table: a line a repo, generated so that it cannot go stale."""
    head = "| variants (labels) | weights | takes | sound | stages | steps, cfg |\n|---|---|---|---|---|---|"
    by_repo: dict[tuple[str, str], list[Caps]] = {}
    for caps in rows:
        by_repo.setdefault((caps.source, caps.transformer), []).append(caps)
    lines = [_markdown_row(group) for group in by_repo.values()]
    return "\n".join([head, *lines])


def _markdown_row(group: Sequence[Caps]) -> str:
    first = group[0]
    labels = "<br>".join(caps.label for caps in group)
    inputs = ", ".join(dict.fromkeys(takes(caps) for caps in group))
    stages = "1 or 2" if first.supports_two_stage_refine else "1"
    nano = "random, built here" if first.is_random else "trained, in this project"
    weights = nano if first.source.startswith("nano:") else f"`{first.source}`"
    sound = "yes" if first.supports_audio else "no"
    return f"| {labels} | {weights} | {inputs} | {sound} | {stages} | {first.default_steps}, {first.default_cfg:g} |"


def takes(caps: Caps) -> str:
    """What goes in: text alone, text and a first image, or text and images at any frame."""
    if caps.supports_multi_condition:
        return "images"
    return "image" if caps.is_i2v else "text"


def plan_text(plan: Plan, console: Console) -> None:
    """A plan as a person reads it: headline, stages, notes."""
    console.print(f"[bold]{plan.caps.label}[/bold]: {plan.notes[0]}", highlight=False)
    table = Table()
    for column in ("stage", "size", "steps", "evaluations", "guidance", "with"):
        table.add_column(column)
    for stage in plan.stages:
        steps = str(len(stage.sigmas)) if stage.sigmas else "-"
        size = f"{stage.width}x{stage.height}"
        table.add_row(stage.name, size, steps, str(stage.evaluations), guidance_words(stage), extras(stage))
    console.print(table)
    for note in plan.notes[1:]:
        console.print(f"- {note}", highlight=False, markup=False)


def guidance_words(stage: StagePlan) -> str:
    """A stage's guidance in a few words."""
    guidance = stage.guidance
    if guidance is None:
        return "-"
    parts = [f"cfg {guidance.guidance_scale:g}"] if guidance.guidance_scale > 1 else []
    if guidance.stg_blocks:
        parts.append(f"stg {guidance.stg_scale:g} at block {','.join(map(str, guidance.stg_blocks))}")
    if guidance.modality_scale > 1:
        parts.append(f"modality {guidance.modality_scale:g}")
    if guidance.guidance_rescale > 0:
        parts.append(f"rescale {guidance.guidance_rescale:g}")
    return ", ".join(parts) or "none"


def extras(stage: StagePlan) -> str:
    """What a stage brings along."""
    if stage.upsampler:
        return f"{stage.upsampler}, {2**stage.upsample_passes}x"
    loras = [*stage.loras, *([stage.lora] if stage.lora else [])]
    return "; ".join(f"{lora.repo} at {lora.strength:g}" for lora in loras) or "-"


def timings_text(state: State) -> str:
    """Where the time went, in one line."""
    return ", ".join(f"{PHASES[t.phase]} {t.seconds:.1f} s" for t in state.timings)


def memory_text(timings: Sequence[Timing]) -> str:
    """The most memory that was held, and when; empty where nobody knows."""
    known = [(t.peak, t.phase) for t in timings if t.peak]
    if not known:
        return ""
    most, phase = max(known)
    return f"{most / 1e9:.1f} GB of memory at most ({PHASES[phase]})"


class Bar:
    """Events on a progress bar; nothing at all where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (
            *(TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()),
            *(TextColumn("{task.fields[evals]}"), TimeRemainingColumn(compact=True), TextColumn("{task.fields[left]}")),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._progress.add_task("starting", total=None, evals="", left="")
        self._phase = ""

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """One event: a new phase starts a new bar."""
        if event.phase != self._phase:
            self._phase = event.phase
            self._progress.reset(self._task, total=event.of or None, description=PHASES[event.phase])
        left = "left in this phase" if event.of else ""
        again = f", pass {event.run} of {event.runs}" if event.runs > 1 else ""
        evals = f"evaluation {event.evaluations} of {event.planned}{again}" if event.planned else ""
        self._progress.update(self._task, completed=event.step, total=event.of or None, evals=evals, left=left)
        if event.message and event.phase != "load":
            self._progress.console.print(f"- {event.message}", markup=False)
