"""A make-believe web UI in a process of its own: the names that the entry script looks for, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "scripts" / "ltx_extension.py")
UI = {
    "call_queue.py": "def get_lock(): pass",
    "devices.py": "device = dtype = None\ndef inference_context(): pass\ndef torch_gc(): pass",
    "model_quant.py": "def get_dit_args(): pass",
    "logger.py": "import logging\nlog = logging.getLogger('sd')",
    "processing.py": "class StableDiffusionProcessingVideo: pass\ndef create_infotext(): pass\n"
    "def process_images(): pass",
    "progress.py": "def add_task_to_queue(): pass\ndef finish_task(): pass\ndef start_task(): pass",
    "options.py": "class OptionInfo: pass",
    "script_callbacks.py": """
        heard = []
        on_after_process = on_app_started = on_before_process = on_ui_settings = heard.append
        def remove_callbacks_for_function(f): heard[:] = [one for one in heard if one is not f]
    """,
    "sd_samplers.py": "def list_samplers(): pass\ndef set_samplers(): pass",
    "sd_samplers_diffusers.py": """
        from collections import namedtuple
        DiffusionSampler = FlowMatchEulerDiscreteScheduler = object
        samplers_data_diffusers = [namedtuple('SamplerData', 'name constructor')('Euler FlowMatch', None)]
        config = {'Euler FlowMatch': {'shift': 1}}
    """,
    "sd_models.py": "def apply_balanced_offload(): pass\ndef move_model(): pass",
    "shared.py": """
        import json, pathlib, types
        class Options:
            def __init__(self):
                self.filename, self.data_labels, self.data = 'config.json', {}, {}
                file = pathlib.Path(self.filename)
                if file.exists():
                    self.data = json.loads(file.read_text())
            def __getattr__(self, name):
                if name in vars(self).get('data', {}): return self.data[name]
                if name in vars(self).get('data_labels', {}): return self.data_labels[name].default
                raise AttributeError(name)
            def add_option(self, name, info): self.data_labels[name] = info
            def same_type(self, x, y): return type(x) is type(y)
            def save_atomic(self, silent=False):
                if not cmd_opts.freeze:
                    pathlib.Path(self.filename).write_text(json.dumps(self.data))
        opts, cmd_opts = Options(), types.SimpleNamespace(freeze=False)
        class State:
            def begin(self): pass
            def end(self): pass
            def interrupt(self): pass
            def outputs(self): pass
            def skip(self): pass
        state = State()
    """,
    "styles.py": "def apply_curly_braces_to_prompt(): pass\ndef apply_wildcards_to_prompt(): pass",
    "ui_components.py": "class ToolButton: pass",
    "ltx/ltx_ui.py": "def create_ui(): return 'theirs'",
    "ltx/theirs_alone.py": "here = True",
    "video_models/models_def.py": """
        from dataclasses import dataclass
        @dataclass
        class Model:
            name: str
            repo: str = None
            repo_cls: str = None
            dit_cls: str = None
            te_cls: str = None
        models = {'LTX Video': [Model('LTXVideo 2.3 22B T2V', 'OzzyGT/LTX-2.3', 'LTX2Pipeline')]}
    """,
    "video_models/video_load.py": "from modules.video_models import video_overrides\ndef load_model(): pass",
    "video_models/video_save.py": "def get_video_filename(): pass",
    "video_models/video_overrides.py": """
        def load_override(selected, **load_args): return {'theirs': selected.name, **load_args}
        def set_overrides(p, selected): p.append('theirs')
    """,
}


def in_ui(folder: Path, code: str, packages: str = "", **changed: str) -> Any:
    """The JSON that `code` prints in a process of such a UI; `changed` files have other text, a folder of `packages`
    stands before those of this Python."""
    for name, text in {
        **UI,
        "__init__.py": "",
        "ltx/__init__.py": "",
        "video_models/__init__.py": "",
        **changed,
    }.items():
        file = folder / "modules" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    setup = f"""
        import importlib.util, json, logging, sys
        lines = []
        class Keep(logging.Handler):
            def emit(self, record): lines.append(record.getMessage())
        logging.getLogger('sd').addHandler(Keep())
        logging.getLogger('sd').setLevel('INFO')
        import modules.script_callbacks
        def start():
            spec = importlib.util.spec_from_file_location('ltx_extension.py', {SCRIPT!r})
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    """
    script = textwrap.dedent(setup) + textwrap.dedent(code)
    command, environment = [sys.executable, "-c", script], os.environ | ({"PYTHONPATH": packages} if packages else {})
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
