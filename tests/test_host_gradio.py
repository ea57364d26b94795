"""The web UI's tab under gradio 3.43.2, as SD.Next has it: a process with that version first in its path.

That version ignores arguments that it does not know with no more than a warning, so its warnings are errors here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.ltx_ui import CONTROLS, sections, shown
from modules.ltx.media import write_video
from tests.media_kit import FAST, moving
from tests.ui_kit import UI, in_ui

WANTED = Path(__file__).with_name("host_gradio.txt")
MORE = {
    "shared.py": UI["shared.py"]
    + """
        Options.aspect_ratios, Options.hfcache_dir = '1:1, 16:9', 'nowhere'
        class Styles:
            def find_style(self, name): return type('Style', (), {'wildcards': ''})
            def apply_styles_to_prompt(self, prompt, names, wildcards): return ', '.join([prompt, *names])
            apply_negative_styles_to_prompt = apply_styles_to_prompt
        prompt_styles = Styles()
    """,
    "call_queue.py": "import threading\nlock = threading.Lock()\ndef get_lock(): return lock",
    "styles.py": """
        import random
        def apply_curly_braces_to_prompt(prompt, seed):
            return prompt.replace('{a|b}', random.choice('ab'))
        def apply_wildcards_to_prompt(prompt, wildcards, seed):
            return prompt.replace('__x__', random.choice('xyz'))
    """,
    "ui_components.py": "import gradio\nclass ToolButton(gradio.Button): pass",
    "ui_symbols.py": "switch, random, loading = 'swap', 'any', 'load'",
    "lora/__init__.py": "",
    "lora/lora_load.py": "available_networks = {}",
    "errors.py": "def display(error, name): raise error",
    "progress.py": UI["progress.py"].replace("():", "(name):") + "\npending_tasks = {}",
}
BUILT = """
    import warnings
    import gradio as gr
    from gradio.deprecation import GradioDeprecationWarning, GradioUnusedKwargWarning
    for kind in (GradioDeprecationWarning, GradioUnusedKwargWarning):
        warnings.simplefilter('error', kind)
    start()
    import modules.ltx.ltx_ui as ltx_ui
    from modules.ltx.hosts import sdnext_tab
    with gr.Blocks() as page:
        prompt, negative, styles = gr.Textbox(), gr.Textbox(), gr.Dropdown(choices=['film'], multiselect=True)
        fps, interpolate = gr.Slider(1, 60, 24), gr.Slider(0, 8, 0)
        codec, ext, options = gr.Dropdown(['libx264']), gr.Dropdown(['mp4']), gr.Textbox('crf:16')
        ticks = [gr.Checkbox() for _ in range(4)]
        theirs = [prompt, negative, styles, gr.Dropdown([]), fps, interpolate, codec, ext, options, *ticks]
        assert len(theirs) == 13
        before = len(page.blocks)
        with gr.Tab('LTX', id='ltx-tab'):
            ltx_ui.create_ui(*theirs)
    ours = list(page.blocks.values())[before:]
    handlers = {one.fn.__name__: one.fn for one in page.fns if one.fn is not None}
"""


@pytest.fixture(scope="module")
def old_gradio() -> Path:
    """A folder with that gradio; installed once, under its name when it is complete."""
    folder = Path(sys.prefix) / f"host-gradio-{hash_of(WANTED)}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as made:
            wanted = ["--no-deps", "--target", f"{made}/all", "-r", str(WANTED)]
            pip = [sys.executable, "-m", "pip", "install", "-q", *wanted]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"gradio 3.43.2 cannot be installed here: {done.stderr.strip()[-200:]}")
            if not folder.is_dir():  # another worker may have been first
                shutil.move(f"{made}/all", folder)
    return folder


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes() + sys.version.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def built(old_gradio: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the page of such a UI holds, and what its handlers answer."""
    folder = tmp_path_factory.mktemp("ui")
    request = {"model": "nano-2.3-dev-condition", "prompt": "a blue square", "seed": 77, "steps": 5}
    request |= {"images": [{"path": "/gone/first.png", "frame": 0}], "fps": 24}
    metadata = {"request": request, "media": {"/gone/first.png": "0"}}
    write_video(folder / "made.mp4", moving(2), fps=24, sound=None, metadata=metadata, encoding=FAST)
    code = (
        f"    made = {str(folder / 'made.mp4')!r}\n"
        + BUILT
        + """
    from modules.ltx.hosts.sdnext_rows import caps_of
    rows = [name for name in next(b for b in ours if b.elem_id == 'ltx_model').choices]
    rows = [row[0] if isinstance(row, (list, tuple)) else row for row in rows]
    answers = {}
    for row in rows:
        caps = caps_of(row)
        if caps is not None:
            answers[caps.label] = handlers['change'](row)
    values = [24, 0, 'libx264', 'mp4', 'crf:16', True, False, False, False]
    def controls(**moved):
        return [moved.get(one.name, None) for one in ltx_ui.CONTROLS]
    def plan(model, **moved):
        return handlers['planned'](model, 'a red ball', '', ['film'], *values, *controls(**moved))
    def ran(model, prompt='a ball', codec='libx264', **moved):
        output = [codec if value == 'libx264' else value for value in values]
        return list(handlers['run']('task(1)', '', model, prompt, '', [], *output, *controls(**moved)))[-1][1]
    nano = 'LTX-Nano 2.3 T2V Distilled'
    from types import SimpleNamespace
    first = handlers['restore'](SimpleNamespace(name=made))
    print(json.dumps({
        'restored': [update.get('value') for update in first], 'empty': handlers['restore'](None)[0]['value'],
        'seed': [handlers['seed_of'](made), handlers['seed_of'](None), handlers['seed_of']('gone.mp4')],
        'gradio': gr.__version__, 'lines': lines, 'ids': [one.elem_id for one in ours if one.elem_id],
        'labels': [one.label for one in ours if getattr(one, 'label', None)],
        'answers': answers, 'handlers': sorted(handlers),
        'plan': plan(nano, self_refine='p1', self_refine_plan='2-6:2'),
        'wrong': plan(nano, self_refine='p1', self_refine_plan='2-x:2'),
        'none': plan('a heading'), 'image': plan('LTX-Nano 2.3 I2V Distilled'),
        'runs': [ran('a heading'), ran('LTX-Nano 2.3 I2V Distilled'), ran(nano, codec='none'),
                 ran(nano, prompt='<lora:gone:1> <b>'), ran(nano, self_refine='p1', self_refine_plan='<b>')],
    }))
    """
    )
    return in_ui(folder, code, str(old_gradio), **MORE)


def test_the_tab_is_built_with_what_the_ui_looks_for(built: Any) -> None:
    assert built["gradio"] == "3.43.2"
    assert all("installed from" in line for line in built["lines"])
    assert {"ltx_generate_btn", "ltx_settings", "ltx-output-column"} <= set(built["ids"])
    assert {f"ltx_{control.name}" for control in CONTROLS} <= set(built["ids"])
    ours = [label for label in built["labels"] if label in {control.label for control in CONTROLS}]
    assert len(ours) == len(set(ours)) == len(CONTROLS)
    assert {"change", "planned", "run"} <= set(built["handlers"])


def test_each_variant_has_the_controls_it_has(built: Any) -> None:
    known = {caps.label: caps for caps in all_caps() if not caps.unavailable}
    assert len(built["answers"]) >= len(known) - 6  # a machine may lack what some need
    for label, (about, media, *updates) in built["answers"].items():
        caps = known[label]
        assert label in about["value"]
        assert ("<li>" in media["value"]) == caps.supports_input_media
        groups, controls = updates[: len(sections(caps))], updates[len(sections(caps)) :]
        assert [update["visible"] for update in groups] == list(sections(caps).values())
        assert [update["interactive"] for update in controls] == [one.live for one in shown(caps)], label
        assert [update["visible"] for update in controls] == [one.visible for one in shown(caps)], label


def test_a_video_restores_its_settings(built: Any) -> None:
    said, model, prompt, _, _, _, *updates = built["restored"]
    assert "the settings of made.mp4 are in the form now; first.png is not where it was any more" in said
    assert (model, prompt) == ("LTX-Nano 2.3 Condition Dev", "a blue square")
    values = dict(zip((control.name for control in CONTROLS), updates[-len(CONTROLS) :], strict=True))
    assert (values["seed"], values["steps"], values["first_image"]) == (77, 5, None)
    assert "there is no video yet" in built["empty"]
    assert built["seed"] == [77, -1, -1]


def test_plans_and_refusals_are_shown(built: Any) -> None:
    assert built["plan"].count("<circle") == 13
    assert "you get" in built["plan"]
    for name, sentence in {"wrong": "2-x", "none": "no model is selected", "image": "add an image"}.items():
        assert "role='alert'" in built[name]
        assert sentence in built[name]
    sentences = ("no model is selected", "starts from an image", "nothing would be saved", "lora:gone", "plan")
    for told, sentence in zip(built["runs"], sentences, strict=True):
        assert sentence in told
        assert "<b>" not in told
