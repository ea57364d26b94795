"""The entry script of SD.Next, in a process with a make-believe UI: mounting, refusing, and leaving no trace."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from modules.ltx import library_features
from tests.ui_kit import ROOT, in_ui


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
    first, found, *missing = told["lines"][: len(told["lines"]) // 2]  # it is installed twice here
    assert "installed from" in first
    assert f"diffusers {importlib.metadata.version('diffusers')}" in found
    assert missing == [f"LTX video: {line}" for line in library_features.report()]


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
