"""Two tabs of the page: the queue, and drafts to choose from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from modules.ltx import panel
from modules.ltx.errors import LTXError
from modules.ltx.serve_jobs import Job
from modules.ltx.serve_request import in_words
from modules.ltx.web.desk import Desk, Form

_BEAT = 0.5  # seconds between two looks at drafts that are being made
_QUIET: dict[str, Any] = {"show_progress": "hidden"}


class Queue:
    """What runs and waits, and what can be done about it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        with gr.Tab("Queue", id="queue") as self.tab:
            self.table = gr.HTML(desk.line(), elem_id="ltx_line")
            self.chosen = gr.Dropdown(desk.waiting(), value=None, label="A job that waits or runs", elem_id="ltx_job")
            with gr.Row():
                self.first = gr.Button("Make it the next", elem_id="ltx_first")
                self.drop = gr.Button("Cancel it", variant="stop", elem_id="ltx_drop")
                self.hold = gr.Button("Begin no further job", elem_id="ltx_hold")
            self.said = gr.HTML()

    def wire(self) -> None:
        shown = [self.table, self.chosen, self.hold, self.said]
        self.tab.select(self._shown, None, shown, **_QUIET)
        for button, act in ((self.first, self.desk.first), (self.drop, self.desk.drop)):
            button.click(self._done(act), self.chosen, shown, **_QUIET)
        self.hold.click(lambda: self._shown(self.desk.hold()), None, shown, **_QUIET)
        gr.Timer(2.0).tick(self.desk.line, None, self.table, queue=False, **_QUIET)

    def _done(self, act: Callable[[str], None]) -> Callable[[str | None], list[Any]]:
        def do(job: str | None) -> list[Any]:
            if not job:
                return self._shown("choose a job first.")
            try:
                act(job)
            except LTXError as error:
                return self._shown(str(error))
            return self._shown()

        return do

    def _shown(self, said: str = "") -> list[Any]:
        held = "Go on" if self.desk.jobs.store.paused else "Begin no further job"
        told = panel.words_html(in_words(said)) if said else ""
        return [self.desk.line(), gr.update(choices=self.desk.waiting(), value=None), held, told]


class Drafts:
    """Stage 1 alone for several seeds, as pictures; the one that is chosen is finished."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        with gr.Tab("Drafts", id="drafts"):
            told = "Stage 1 alone, in half the size, for several seeds; the one you choose is made in full"
            with gr.Row():
                self.count = gr.Slider(1, 16, 4, step=1, label="How many", info=told, elem_id="ltx_drafts")
                self.make = gr.Button("Make drafts", elem_id="ltx_draft")
            self.state = gr.HTML(elem_id="ltx_drafting")
            self.gallery = gr.Gallery(label="Choose one", columns=4, elem_id="ltx_sketches", allow_preview=False)
            self.finish = gr.Button("Make the video of it", interactive=False, variant="primary", elem_id="ltx_finish")
        self.made: Any = gr.State([])  # (id, seed) of each, as they are shown
        self.picked = gr.State("")

    def wire(self, form: list[Any], read: Callable[[Any], Form]) -> None:
        def drafted(count: float, *values: Any) -> Iterator[list[Any]]:
            try:
                job = self.desk.draft(read(values), int(count))
            except LTXError as error:
                yield [panel.error_html(in_words(str(error))), gr.skip(), [], gr.update(interactive=False)]
                return
            yield from self._followed(job)

        shown = [self.state, self.gallery, self.made, self.finish]
        self.make.click(drafted, [self.count, *form], shown, **_QUIET)
        self.gallery.select(self._chosen, self.made, [self.picked, self.finish, self.state], **_QUIET)

    def _followed(self, job: Job) -> Iterator[list[Any]]:
        """The drafts as they come."""
        while job.running and not self.desk.jobs.closing:
            yield [self.desk.running(job), *self._pictures(job), gr.skip()]
            time.sleep(_BEAT)
        last = job.events[-1]
        told = "" if last["state"] == "done" else panel.error_html(str(last["message"]))
        yield [told, *self._pictures(job), gr.update(interactive=False)]

    def _pictures(self, job: Job) -> tuple[Any, list[tuple[str, int]]]:
        done = [(name, path, seed) for name, path, seed in self.desk.drafts(job) if path]
        shown = [(Image.open(path), f"seed {seed}") for _, path, seed in done]
        return shown, [(name, seed) for name, _, seed in done]

    def _chosen(self, made: list[tuple[str, int]], event: gr.SelectData) -> tuple[str, Any, str]:
        name, seed = made[event.index]
        said = f"number {event.index + 1}, seed {seed}, is chosen"  # captions are cut where seeds are long
        return name, gr.update(interactive=True), panel.words_html(said)
