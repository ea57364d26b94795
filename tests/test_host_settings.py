"""Our settings in the web UI: saved in a file of their own, so that the UI never reads a name it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ui_kit import UI, in_ui

OPTION = """
    class OptionInfo:
        def __init__(self, default, label, component, component_args, section):
            self.default, self.section, self.args = default, section, component_args
        def validate(self, name, value):
            return not ('maximum' in self.args and value > self.args['maximum'])
"""
STARTED = """
    from modules.shared import opts
    start()
    from modules.ltx.hosts import sdnext_settings
    from modules.ltx.hosts.sdnext import resident
    def built():
        for call in list(modules.script_callbacks.heard):
            if call is sdnext_settings.add:
                call()
    def told(**more):
        def read(name):
            try:
                return json.loads(open(name).read())
            except (OSError, ValueError):
                return None
        print(json.dumps({'theirs': read('config.json'), 'ours': read('config.ltx.json'), 'lines': lines,
                          'crf': sdnext_settings.crf(''), **more}))
"""


def ui(folder: Path, code: str, **changed: str) -> Any:
    return in_ui(folder, STARTED + code, **{"options.py": OPTION, **changed})


def files(folder: Path, theirs: Any = None, ours: str | None = None) -> None:
    if theirs is not None:
        (folder / "config.json").write_text(json.dumps(theirs))
    if ours is not None:
        (folder / "config.ltx.json").write_text(ours)


def test_settings_are_saved_beside_the_uis_own_and_read_again(tmp_path: Path) -> None:
    set_one = """
    built()
    opts.data.update(theirs=1, ltx_output_crf=30, ltx_tab_audio=True)
    opts.save_atomic()
    told(names=sorted(set(opts.data_labels) ^ set(sdnext_settings.NAMES)))
    """
    first = ui(tmp_path, set_one)
    assert first["theirs"] == {"theirs": 1}
    assert first["ours"] == {"ltx_output_crf": 30}  # a default is not kept
    assert first["names"] == []
    assert ui(tmp_path, "    built()\n    told()")["crf"] == 30
    assert ui(tmp_path, "    told()")["crf"] == 30  # before the UI has built its settings, and without a page
    back = ui(tmp_path, "    built()\n    opts.data['ltx_output_crf'] = 18\n    opts.save_atomic()\n    told()")
    assert (back["ours"], back["theirs"]) == (None, {"theirs": 1})


def test_what_an_older_version_left_in_the_uis_file_is_moved(tmp_path: Path) -> None:
    """It was written later than what is in ours: by a version that was installed in between."""
    files(tmp_path, {"theirs": 1, "ltx_output_crf": 25}, json.dumps({"ltx_output_crf": 30, "ltx_tab_audio": False}))
    now = ui(tmp_path, "    told()")
    assert now["theirs"] == {"theirs": 1}
    assert now["ours"] == {"ltx_output_crf": 25, "ltx_tab_audio": False}
    assert now["crf"] == 25


def test_nothing_is_saved_by_a_frozen_ui(tmp_path: Path) -> None:
    files(tmp_path, {"ltx_output_crf": 25})
    frozen = {"shared.py": UI["shared.py"].replace("freeze=False", "freeze=True")}
    now = ui(tmp_path, "    opts.save_atomic()\n    told()", **frozen)
    assert (now["theirs"], now["ours"], now["crf"]) == ({"ltx_output_crf": 25}, None, 25)


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_damaged_file_is_reported_and_the_defaults_are_used(tmp_path: Path, text: str) -> None:
    files(tmp_path, ours=text)
    now = ui(tmp_path, "    built()\n    told()")
    assert now["crf"] == 18
    assert "config.ltx.json could not be read" in now["lines"][0]
    assert (tmp_path / "config.ltx.json").read_text() == text


@pytest.mark.parametrize("value", ['"x"', "99"])
def test_a_value_that_a_setting_does_not_take_is_reported(tmp_path: Path, value: str) -> None:
    files(tmp_path, ours=f'{{"ltx_output_crf": {value}, "ltx_tab_audio": false, "unknown": 1}}')
    now = ui(tmp_path, "    built()\n    told(audio=sdnext_settings.start_of('audio', True), data=opts.data)")
    assert (now["crf"], now["audio"]) == (18, False)
    assert any("setting ltx_output_crf" in line and "the default is 18" in line for line in now["lines"])
    assert "unknown" not in now["data"]


def test_where_our_file_cannot_be_written_the_uis_own_keeps_the_settings(tmp_path: Path) -> None:
    (tmp_path / "config.ltx.json").mkdir()
    now = ui(tmp_path, "    opts.data['ltx_output_crf'] = 30\n    opts.save_atomic()\n    told()")
    assert now["theirs"] == {"ltx_output_crf": 30}
    assert any("could not be saved" in line for line in now["lines"])


def test_taken_out_again_the_ui_has_none_of_it(tmp_path: Path) -> None:
    files(tmp_path, {"theirs": 1}, '{"ltx_output_crf": 30}')
    now = ui(
        tmp_path,
        """
    built()
    from modules import sd_samplers_diffusers as samplers
    had = list(samplers.config)
    resident().fall_back()
    opts.save_atomic()
    print(json.dumps({'had': had, 'config': samplers.config, 'data': opts.data, 'labels': list(opts.data_labels),
                      'own': sorted(vars(opts)), 'theirs': json.loads(open('config.json').read()),
                      'ours': json.loads(open('config.ltx.json').read())}))
    """,
    )
    assert now["had"] == ["Euler FlowMatch", "Euler FlowMatch Self-Refine"]
    assert now["config"] == {"Euler FlowMatch": {"shift": 1}}
    assert (now["data"], now["theirs"], now["labels"]) == ({"theirs": 1}, {"theirs": 1}, [])
    assert now["own"] == ["data", "data_labels", "filename"]
    assert now["ours"] == {"ltx_output_crf": 30}
