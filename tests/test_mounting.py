"""The entry script of SD.Next, in a process with a make-believe UI: mounting, refusing, and leaving no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

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
    "sd_samplers.py": "def list_samplers(): pass",
    "sd_samplers_diffusers.py": """
        from collections import namedtuple
        DiffusionSampler = FlowMatchEulerDiscreteScheduler = object
        samplers_data_diffusers = [namedtuple('SamplerData', 'name constructor')('Euler FlowMatch', None)]
    """,
    "sd_models.py": "def apply_balanced_offload(): pass\ndef move_model(): pass",
    "shared.py": """
        class Options:
            data_labels = {}
        opts = Options()
        class State:
            def begin(self): pass
            def end(self): pass
            def interrupt(self): pass
            def outputs(self): pass
            def skip(self): pass
        state = State()
    """,
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


def test_ours_stand_before_the_uis_and_nothing_else_changes(tmp_path: Path) -> None:
    told = in_ui(
        tmp_path,
        """
        start()
        start()  # twice does no harm
        import modules.ltx.ltx_ui, modules.ltx.theirs_alone, modules.video_models.video_load as load
        from modules.video_models import models_def, video_overrides
        rows = [row.name for row in models_def.models['LTX Video']]
        wan = models_def.Model('WAN 2.1 14B T2V')
        seen = []
        video_overrides.set_overrides(seen, wan)
        print(json.dumps({
            'ui': modules.ltx.ltx_ui.__file__, 'alone': modules.ltx.theirs_alone.here, 'lines': lines,
            'overrides': load.video_overrides.__file__, 'rows': rows,
            'wan': video_overrides.load_override(wan, local_files_only=True), 'set': seen,
            'paths': list(modules.ltx.__path__)}))
        """,
    )
    assert told["ui"] == str(ROOT / "modules/ltx/ltx_ui.py")
    assert told["overrides"] == str(ROOT / "modules/video_models/video_overrides.py")
    assert told["alone"] is True
    assert told["wan"] == {"theirs": "WAN 2.1 14B T2V", "local_files_only": True}
    assert told["set"] == ["theirs"]
    assert told["rows"][0] == "LTXVideo 2.3 22B T2V"
    assert len(told["rows"]) == len(set(told["rows"]))
    assert "LTX-Nano 2.3 T2V Distilled" in told["rows"]
    assert told["paths"].count(str(ROOT / "modules/ltx")) == 1
    assert all("installed from" in line for line in told["lines"])


@pytest.mark.parametrize(
    ("changed", "before", "reason"),
    [
        ({"progress.py": "def start_task(): pass\ndef finish_task(): pass"}, "", "has no add_task_to_queue"),
        ({"shared.py": "opts = state = None"}, "", "modules.shared.state has no begin"),
        ({"devices.py": "import no_such_module"}, "", "No module named 'no_such_module'"),
        ({"sd_samplers.py": "def list_samplers(): raise OSError('no samplers')"}, "", "OSError: no samplers"),
        ({}, "import modules.ltx.ltx_ui", "modules.ltx.ltx_ui was loaded before it"),
        ({}, "import modules.video_models.video_load", "modules.video_models.video_overrides was loaded before it"),
    ],
)
def test_a_ui_it_does_not_know_keeps_its_own_tab(
    tmp_path: Path, changed: dict[str, str], before: str, reason: str
) -> None:
    told = in_ui(
        tmp_path,
        f"""
        {before or "pass"}
        import modules.ltx, modules.video_models
        paths = [list(modules.ltx.__path__), list(modules.video_models.__path__)]
        start()
        import modules.ltx.ltx_ui
        from modules.video_models import models_def, video_load, video_overrides
        ours = [name for name, module in sys.modules.items()
                if str(getattr(module, '__file__', None) or '').startswith({str(ROOT / "modules")!r})]
        print(json.dumps({{
            'tab': modules.ltx.ltx_ui.create_ui(),
            'loads': video_load.video_overrides.load_override(models_def.Model('WAN')),
            'same': paths == [list(modules.ltx.__path__),
            list(modules.video_models.__path__)], 'ours': ours, 'lines': lines,
            'heard': len(modules.script_callbacks.heard),
            'samplers': len(__import__('modules.sd_samplers_diffusers').sd_samplers_diffusers.samplers_data_diffusers),
            'rows': len(models_def.models['LTX Video'])}}))
        """,
        **changed,
    )
    assert told["tab"] == "theirs"
    assert told["loads"] == {"theirs": "WAN"}
    assert told["same"]
    assert told["ours"] == []
    assert (told["rows"], told["samplers"], told["heard"]) == (1, 1, 0)
    assert len(told["lines"]) == 1
    assert reason in told["lines"][0]
    assert "SD.Next's own LTX tab stays" in told["lines"][0]
