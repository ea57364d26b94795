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
    "rife.py": """
        model = None
        def load():
            global model
            model = 'weights at random'
            raise OSError('no network')
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
        codec, ext, options = gr.Dropdown(['libx264'], value='libx264'), gr.Textbox('mp4'), gr.Textbox('crf:16')
        ticks = [gr.Checkbox(value) for value in (True, False, False, True)]
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
    def regarded(model, **moved):
        names = [one.control.name for one in ltx_ui.dependent(caps_of(model), {})]
        updates = handlers['regard'](model, *controls(**moved))
        return dict(zip(names, [[update['interactive'], update['info']] for update in updates]))
    def first_words(busy):
        import modules.call_queue
        if busy:
            modules.call_queue.lock.acquire()
        try:
            asked = handlers['run']('task(2)', '', 'a heading', '', '', [], *values, *controls())
            return next(asked)[1]
        finally:
            if busy:
                modules.call_queue.lock.release()
    from modules.ltx.hosts import sdnext_asked, sdnext_prompts
    from modules.ltx.errors import LTXError
    def words(seed, folder=None):
        asked = sdnext_asked.read(nano, ['{a|b} __x__', '{a|b}', ['film'], *values, *controls(seed=seed)], folder)
        return [asked.request.prompt, asked.request.negative, asked.request.seed]
    def network(text):
        try:
            return sdnext_prompts.networks(text)
        except LTXError as error:
            return str(error)
    from modules.ltx.hosts.sdnext_output import Output
    def output(fps=24, more=0, codec='libx264', ext='mp4', options='crf:16', safetensors=False):
        return Output(fps, more, codec, ext, options, True, False, safetensors, True)
    def encoded(*given):
        made = output(24, 0, *given)
        return [made.encoding.codec, made.encoding.crf, made.encoding.preset, made.notes(25)]
    def noted(more, fps):
        try:
            made = output(fps, more)
            made.check()
            return made.notes(25)
        except LTXError as error:
            return str(error)
    by_id = {one.elem_id: one for one in ours if one.elem_id}
    def ran(model, prompt='a ball', codec='libx264', interpolate=0, **moved):
        output = [codec if value == 'libx264' else value for value in values]
        output[1] = interpolate
        return list(handlers['run']('task(1)', '', model, prompt, '', [], *output, *controls(**moved)))[-1][1]
    nano = 'LTX-Nano 2.3 T2V Distilled'
    from types import SimpleNamespace
    first = handlers['restore'](SimpleNamespace(name=made))
    before_random = __import__('random').getstate()
    print(json.dumps({
        'restored': [update.get('value') for update in first], 'empty': handlers['restore'](None)[0]['value'],
        'seed': [handlers['seed_of'](made), handlers['seed_of'](None), handlers['seed_of']('gone.mp4')],
        'gradio': gr.__version__, 'lines': lines, 'ids': [one.elem_id for one in ours if one.elem_id],
        'labels': [one.label for one in ours if getattr(one, 'label', None)],
        'answers': answers, 'handlers': sorted(handlers),
        'followed': [encoded('libsvtav1', 'mp4', 'crf:30,preset=fast'), encoded('h264_nvenc', 'webm', 'cq:20')],
        'interpolated': [noted(2, 24), noted(10, 60), ran(nano, interpolate=2)],
        'rife': sys.modules['modules.rife'].model,
        'tensors': output(24, 2, safetensors=True)._tensors(), 'list': rows,
        'player': by_id['ltx_output_video'].interactive, 'style': by_id['ltx_style'].value,
        'at first': by_id['ltx_plan'].value,
        'info': {one.elem_id: getattr(one, 'info', None) for one in ours if one.elem_id},
        'off': regarded(nano, refine=False), 'on': regarded(nano, refine=True, self_refine='p1'),
        'free': first_words(False), 'busy': first_words(True),
        'sent': [one['js'] for one in page.dependencies if not one['backend_fn']],
        'drawn': [words(5) for _ in range(3)], 'others': [words(seed)[0] for seed in range(1, 30)],
        'seeds': [words(-1)[2], words(-1, made)[2]],
        'random': __import__('random').getstate() == before_random,
        'networks': [network('<lora:nope:abc>'), network('<lora:nope:0.8>'), network('<lora:nope>')],
        'large': plan('LTXVideo 2.3 22B T2V'), 'swapped': handlers['swapped'](3, 4), 'any': handlers['any_seed'](),
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
    assert "LTX video: installed from" in built["lines"][0]
    assert not [line for line in built["lines"] if "could not be built" in line or "not installed," in line]
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


def test_the_plan_is_there_at_first_sight(built: Any) -> None:
    assert "you get 256x256" in built["at first"]
    assert "nothing to download" in built["at first"]


def test_every_control_has_its_explanation(built: Any) -> None:
    for one in shown(next(caps for caps in all_caps() if caps.id == "nano-2.3-distilled-t2v")):
        if one.control.kind not in ("image", "files", "video"):
            assert built["info"][f"ltx_{one.control.name}"] == one.words


def test_controls_without_effect_are_greyed_as_one_goes(built: Any) -> None:
    assert built["off"]["stage2_steps"] == [False, "Denoising steps of stage 2. No effect while two stages are off."]
    assert built["on"]["stage2_steps"] == [True, "Denoising steps of stage 2."]
    assert [built[name]["self_refine_plan"][0] for name in ("off", "on")] == [False, True]
    assert built["on"]["audio_stg_scale"][0] is False


def test_the_click_is_answered_at_once(built: Any) -> None:
    assert any("sent, waiting" in script and "is still running" in script for script in built["sent"])
    assert all("class='working'" in built[name] for name in ("free", "busy"))
    assert not any("class='working'" in last for last in built["runs"])
    assert "starting" in built["free"]
    assert "waiting for another job to end" in built["busy"]


def test_models_stand_under_headings_the_small_ones_first(built: Any) -> None:
    names = built["list"]
    assert names[0] == "─── LTX-Nano: small test models, nothing to download ───"
    assert names[1] == "LTX-Nano 2.3 T2V Distilled"
    headings = [name for name in names if name.startswith("───")]
    assert len(set(headings)) == len(headings)
    generations = [name.split()[2] for name in headings[1:]]
    assert generations == sorted(generations, reverse=True)
    assert len(set(names)) == len(names)


def test_a_download_is_announced(built: Any) -> None:
    assert "GB to download first" in built["large"]
    assert "to be downloaded first" in built["answers"]["LTXVideo 2.3 22B T2V"][0]["value"]


def test_words_are_drawn_by_the_seed(built: Any) -> None:
    assert built["drawn"][0] == built["drawn"][1] == built["drawn"][2]
    assert {word[0] for word in built["others"]} == {"a", "b"}
    assert all(word.endswith(", film") and "{" not in word and "__" not in word for word in built["others"])
    none, drawn = built["seeds"]
    assert none is None  # of a plan
    assert drawn > 0  # of a job, before its words are drawn
    assert built["random"]


def test_all_that_is_wrong_with_a_network_is_said(built: Any) -> None:
    both, name, plain = built["networks"]
    assert "lists no network 'nope'" in both
    assert "the strength 'abc' is not a number" in both
    assert "strength" not in name + plain


def test_styles_stand_once_in_the_page(built: Any) -> None:
    assert ".ltx-panel .wrong" in built["style"]
    for html in (built["plan"], built["wrong"], *built["runs"]):
        assert "<style" not in html
    assert built["player"] is False  # no place to drop a video
    assert (built["swapped"], built["any"]) == ([4, 3], -1)


def test_the_output_tab_is_followed_or_a_sentence_says_what_is_not(built: Any) -> None:
    whole, none = built["followed"]
    assert whole == ["av1", 30, "fast", []]
    assert none[:3] == ["h264", 18, "medium"]
    assert none[3] == [
        "Output tab: codec h264_nvenc is not available here (H.264, H.265 and AV1 are), the file is H.264; format webm"
        " is not available here, the file is mp4; video options cq are not used (crf, preset and pix_fmt are)"
    ]
    assert built["tensors"] == {
        "format": "video",
        "codec": "h264",
        "options": "crf:16",
        "ext": "mp4",
        "fps": "72",
        "interpolate": "2",
    }


def test_interpolation_keeps_the_duration_and_needs_its_model(built: Any) -> None:
    note, refused, missing = built["interpolated"]
    assert note == ["interpolation: 75 frames at 72 fps, the duration stays the same"]
    assert "makes 660 frames per second, more than a video can have (240)" in refused
    assert "RIFE model cannot be loaded (no network)" in missing
    assert built["rife"] is None  # not left half loaded for the next job
