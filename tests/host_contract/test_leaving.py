"""What a real SD.Next lists with us, where it keeps our settings, and what it says when we are gone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.ltx.hosts import sdnext_rows, sdnext_samplers, sdnext_settings
from modules.ltx.hosts.sdnext import ENGINE, ui
from modules.ltx.hosts.sdnext_kept import settings_file
from modules.ltx.hosts.sdnext_settings import NAMES, SAMPLER, _declared
from modules.ltx.ltx_capabilities import all_caps, as_variant, caps_for
from tests.host_contract.conftest import needs_sdnext
from tests.host_contract.kit import SDNext
from tests.host_contract.test_page import serving

EXTENSION = "sdnext-ltx"


def test_the_names_are_those_of_the_section(sdnext: SDNext) -> None:
    assert list(_declared()) == list(NAMES)


def test_every_list_of_samplers_has_the_entry(sdnext: SDNext) -> None:
    """The page's, that of the API, the one that the API checks names against, and the map of the grid script."""

    def lists() -> dict[str, set[str]]:
        samplers, endpoints = ui("sd_samplers"), ui("api.endpoints")
        return {
            "page": {one.name for one in samplers.visible_samplers()},
            "image to image": {one.name for one in samplers.visible_samplers(img=True)},
            "api": {one["name"] for one in endpoints.get_samplers()},
            "schedulers": {one["name"] for one in endpoints.get_schedulers()},
            "names": set(samplers.all_samplers_map),
        }

    for name, found in lists().items():
        assert SAMPLER in found, name
    assert ui("api.helpers").validate_sampler_name(SAMPLER) == SAMPLER
    ui("sd_samplers").set_samplers()  # `get_schedulers` empties the map
    grid = ui("sd_samplers").samplers_map
    assert grid[SAMPLER.lower()] == SAMPLER
    options = {one["name"]: one["options"] for one in ui("api.endpoints").get_samplers()}
    assert options[SAMPLER] == options[sdnext_samplers.PLAIN]
    try:
        sdnext_samplers.remove_sampler()
        assert not [name for name, found in lists().items() if SAMPLER in found]
    finally:
        sdnext_samplers.add_sampler()
    assert SAMPLER.lower() in ui("sd_samplers").samplers_map  # the grid script finds it again


def test_a_setting_is_saved_in_our_file_alone(sdnext: SDNext) -> None:
    opts = sdnext.opts
    theirs, ours = Path(opts.filename), settings_file(opts)
    sdnext_settings.add()  # as the UI's page does when it is built
    try:
        assert opts.set("ltx_output_crf", 30)
        opts.save_atomic()
        assert json.loads(ours.read_text()) == {"ltx_output_crf": 30}
        assert "ltx_" not in theirs.read_text()
        assert json.loads(opts.dumpjson())["metadata"]["ltx_output_crf"]["is_stored"]  # marked as changed on the page
    finally:
        opts.set("ltx_output_crf", opts.get_default("ltx_output_crf"))
        opts.save_atomic()
        sdnext_settings.remove()
    assert not ours.exists()


@contextmanager
def listing(rows: list[Any]) -> Iterator[Any]:
    """The UI's models with these rows in place of its LTX ones, of the class of the first."""
    models = ui("video_models.models_def")
    kind, had = models.Model, models.models[ENGINE]
    try:
        models.Model, models.models[ENGINE] = type(rows[0]), list(rows)
        yield models
    finally:
        models.Model, models.models[ENGINE] = kind, had


def newer(model: type) -> type:
    """The UI's row with a field that may be left out and one that must not."""

    @dataclass
    class Row(model):  # type: ignore[misc]
        flow_shift: float | None = None

    return Row


def labels(models: Any) -> list[str]:
    return [row.name for row in models.models[ENGINE]]


def test_rows_merge_with_those_of_a_newer_host(sdnext: SDNext) -> None:
    """It lists the 2.5 variants itself, from repos and with fields that we do not know."""
    models_def = ui("video_models.models_def")
    ours = [row for row in models_def.models[ENGINE] if row.name.startswith(("LTX-Nano", "─"))]
    theirs = [row for row in models_def.models[ENGINE] if row not in ours]
    kind, gemma = newer(models_def.Model), "Gemma4ForConditionalGeneration"
    new = [
        kind(name=caps.label, repo="theirs/LTX-2.5", repo_cls=caps.pipeline, dit_cls="LTX2VideoTransformer3DModel")
        for caps in all_caps()
        if caps.generation == "2.5"
    ]
    for row in new:
        row.flow_shift, row.te_cls = 5.0, gemma
    assert len(new) == 6
    # Where this diffusers can run 2.5, those rows were added to the list already.
    left_out = {"LTXVideo 2.3 22B T2V", *(row.name for row in new)}
    rows = [*new, *(kind(**vars(row)) for row in theirs if row.name not in left_out)]
    with listing(rows) as models:
        before = [dict(vars(row)) for row in rows]
        made = sdnext_rows.add_rows(models)
        assert len(labels(models)) == len(set(labels(models)))
        assert [vars(row) for row in rows] == before
        added = {row.name: row for row in made}
        assert added["LTXVideo 2.3 22B T2V"].te_cls is not None
        assert added["LTXVideo 2.3 22B T2V"].te_cls != gemma  # of the first row of that pipeline, which is a 2.5 one
        assert {row.flow_shift for row in made} == {None}
        caps = caps_for(new[-1].name)[0]
        loaded = sdnext_rows.row_to_load(caps, None)
        assert vars(loaded) == vars(new[-1])
        assert loaded is not new[-1]
        # Dev of 2.5 is in a subfolder of our repo; theirs is read as the UI reads it.
        assert sdnext_rows.load_override(loaded, {}) == {}
        elsewhere = sdnext_rows.row_to_load(as_variant(caps, "/folder"), "/folder")
        assert (elsewhere.repo, elsewhere.te_cls, elsewhere.name) == ("/folder", None, f"{caps.label} in /folder")
        sdnext_rows.remove_rows(models, made)
        assert models.models[ENGINE] == rows


def test_rows_are_made_for_a_host_whose_rows_have_other_fields(sdnext: SDNext) -> None:
    """One that must be given is as in the UI's first row; one of ours that is not there is left out."""

    @dataclass
    class Row:
        name: str
        licence: str
        repo: str | None = None
        repo_cls: Any = None
        dit_cls: Any = None

    first = Row("LTXVideo 2.3 22B T2V", "theirs", "OzzyGT/LTX-2.3", "LTX2Pipeline", "LTX2VideoTransformer3DModel")
    with listing([first]) as models:
        made = sdnext_rows.add_rows(models)
        nano = next(row for row in made if row.name == "LTX-Nano 2.3 T2V Distilled")
        assert (nano.licence, nano.dit_cls, hasattr(nano, "te_cls")) == ("theirs", first.dit_cls, False)
        assert replace(first) == models.models[ENGINE][0]


@pytest.mark.parametrize("way", ["disabled", "removed"])
def test_without_the_extension_the_host_says_nothing_of_it(way: str, tmp_path: Path) -> None:
    root, data = needs_sdnext(), tmp_path / "data"
    with serving(root, data) as url:
        changed = {"ltx_output_crf": 30, "disabled_extensions": [EXTENSION] if way == "disabled" else []}
        answer = httpx.post(f"{url}/sdapi/v1/options", json=changed, timeout=60)
        assert answer.status_code == 200
        until_saved(data / "config.ltx.json", "ltx_output_crf")  # the UI's own file is written after ours
        until_saved(data / "config.json", EXTENSION if way == "disabled" else "")
    if way == "removed":
        (data / "extensions" / EXTENSION).unlink()
    before = (data / "log.txt").stat().st_size
    with serving(root, data) as url:
        assert SAMPLER not in httpx.get(f"{url}/sdapi/v1/samplers", timeout=60).text
    said = (data / "log.txt").read_bytes()[before:].decode()
    assert "Startup time" in said
    assert not re.search(r"Setting validation|ltx_output", said)
    assert json.loads((data / "config.ltx.json").read_text()) == {"ltx_output_crf": 30}


def until_saved(file: Path, word: str) -> None:
    """The UI saves in a thread of its own."""
    end = time.monotonic() + 20
    while not (file.exists() and word in file.read_text()):
        assert time.monotonic() < end, f"{file.name} was not saved"
        time.sleep(0.1)
