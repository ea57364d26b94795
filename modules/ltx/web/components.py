"""Controls of `ltx_controls.py` as components of current gradio, the page's looks, and its few lines of script."""

from __future__ import annotations

from typing import Any

import gradio as gr

from modules.ltx import ltx_ui, panel
from modules.ltx.serve_request import in_words

# Fonts of the machine alone: the page loads nothing from elsewhere.
_FONT, _MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
CSS = (
    panel.CSS
    + """.ltx-about {opacity: .85; padding: 0 .6em}
.ltx-panel table, .ltx-panel tr {border: none !important}
.ltx-panel th, .ltx-panel td {border: none !important; border-bottom: 1px solid rgba(128, 128, 128, .3) !important}
footer {display: none !important}
"""
)
KEYS = """() => document.addEventListener('keydown', (event) => {
    const press = (id) => document.querySelector(`#${id}:not([disabled])`)?.click();
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) press('ltx_generate');
    if (event.key === 'Escape') press('ltx_cancel');
})"""
# What one of the two players does, the other does too; events of media do not bubble, but they are captured. What
# was done to the other makes events as well: they must not be followed back, or they would undo the next thing done.
IN_STEP = """() => {
    const pair = () => ['ltx_video', 'ltx_other'].map((id) => document.querySelector(`#${id} video`));
    const owed = new WeakMap();
    const of = (player) => owed.get(player) ?? owed.set(player, {}).get(player);
    const align = (from, to, apart) => {
        if (Math.abs(to.currentTime - from.currentTime) <= apart) return;
        of(to).seeked = to.currentTime = from.currentTime;
    };
    const follow = {
        play: (from, to) => {
            of(to).play = true;
            align(from, to, 0.04);
            to.play().catch(() => { of(to).play = false; });
        },
        pause: (from, to) => { of(to).pause = true; to.pause(); align(from, to, 0.04); },
        ratechange: (from, to) => { to.playbackRate = from.playbackRate; },
        // The start of a loop is a seek too, and may come in the middle of one that was asked for.
        seeked: (from, to) => { if (!from.seeking && !to.seeking) align(from, to, 0.04); },
        // While they play only a drift that can be seen is worth a jump.
        timeupdate: (from, to) => { if (from === pair()[0] && !from.paused && !to.seeking) align(from, to, 0.15); },
    };
    const owes = (player, name) => {
        const was = of(player)[name];
        of(player)[name] = undefined;
        return name === 'seeked' ? Math.abs(was - player.currentTime) < 0.04 : was;
    };
    const moved = {play: (one) => !one.paused, pause: (one) => one.paused};
    for (const [name, react] of Object.entries(follow))
        document.addEventListener(name, (event) => {
            const [one, two] = pair(), from = event.target, to = from === one ? two : from === two ? one : null;
            if (to && to.offsetParent && !owes(from, name) && !moved[name]?.(to)) react(from, to);
        }, true);
}"""


def theme() -> Any:
    return gr.themes.Default(font=_FONT, font_mono=_MONO)


def component(one: ltx_ui.Shown) -> Any:
    """A control as gradio has it."""
    control = one.control
    low, high, step = control.span or (0, 1, 1)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "slider": (gr.Slider, {"minimum": low, "maximum": high, "step": step}),
        "number": (gr.Number, {"precision": 0}),
        "checkbox": (gr.Checkbox, {}),
        "choice": (gr.Dropdown, {"choices": [(name or "none", name) for name in control.choices]}),
        "image": (gr.Image, {"type": "filepath", "height": 220}),
        "files": (gr.File, {"file_count": "multiple", "file_types": ["image"]}),
        "video": (gr.Video, {"height": 220}),
        "text": (gr.Textbox, {"max_lines": 1}),
        "lines": (gr.Textbox, {"lines": 2}),
    }
    kind, given = kinds[control.kind]
    label = control.label.removeprefix("LTX ")
    label = label[0].upper() + label[1:]
    if _worded(one):
        given |= {"info": _words(one), "min_width": 160}
    shown = {"visible": one.visible, "interactive": one.live}
    return kind(label=label, value=one.value, elem_id=f"ltx_{control.name}", **shown, **given)


def update(one: ltx_ui.Shown, value: Any) -> Any:
    """The control as another variant has it: shown, or greyed with the reason."""
    words = {"info": _words(one)} if _worded(one) else {}
    return gr.update(visible=one.visible, interactive=one.live, value=value, **words)


def regard(one: ltx_ui.Shown, wrong: str = "") -> Any:
    """The control as it is beside other values: live, or greyed with the reason; `wrong`: a fault of its value."""
    return gr.update(interactive=one.live, info=wrong or _words(one))


def _words(one: ltx_ui.Shown) -> str:
    return in_words(one.words)


def _worded(one: ltx_ui.Shown) -> bool:
    """Whether its help stands at it."""
    return one.control.kind not in ("image", "files", "video")
