"""The web app without a browser: what its desk answers, what its page shows, how time left is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from modules.ltx import advice, ltx_ui, pace, panel
from modules.ltx.errors import RequestError
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_capabilities import all_caps, caps_for
from modules.ltx.media import Encoding
from modules.ltx.plan import Plan, plan
from modules.ltx.request import Request
from modules.ltx.serve_jobs import Job, Jobs
from modules.ltx.state import Event, Timing
from modules.ltx.web.desk import Desk, Form
from modules.ltx.web.page import Page
from tests.conftest import SMALL

REFINED = {"self_refine": "p1", "self_refine_plan": "2-6:2;1-2:3"}


@pytest.fixture(scope="module")
def desk(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    outputs = tmp_path_factory.mktemp("web")
    settings = Settings(outputs, cache=cache, device="cpu", offline=True)
    jobs = Jobs(lambda on_event: EmbeddedHost(settings, on_event), outputs)
    yield Desk(jobs, outputs, outputs / "learned")
    jobs.close()
    jobs.wait()


@pytest.fixture(scope="module")
def page(desk: Desk) -> Page:
    return Page(desk)


def form(model: str = "nano-2.3-distilled-t2v", **moved: Any) -> Form:
    caps = caps_for(model)[0]
    values = {one.control.name: one.value for one in ltx_ui.shown(caps)} | {
        name: SMALL[name] for name in ("width", "height", "frames")
    }
    return Form(caps.id, "a small red ball", "", caps.default_fps, values | {"seed": 1, "refine": False} | moved)


def ended(desk: Desk, job: Job) -> Job:
    assert desk.jobs.wait(120)
    assert job.events[-1]["state"] == "done", job.events[-1]
    return job


def test_the_plan_panel_shows_stages_passes_and_cost(desk: Desk) -> None:
    told = desk.planned(form(width=128, height=128, refine=True, **REFINED))
    shown = told.html
    assert (told.wrong, told.advice) == ("", None)
    assert shown.count("<circle") == 13 + 7
    assert "20 evaluations" in shown
    assert "% more than without the self-refiner" in shown
    for word in ("you get 128x128", "stage1", "upsample", "stage2", "GB free"):
        assert word in shown


@pytest.mark.parametrize(
    ("moved", "sentence", "at_the_field"),
    [
        ({"self_refine": "p1", "self_refine_plan": "2-x:2"}, "plan", True),
        ({"self_refine": "p1", "self_refine_plan": "<b>"}, "&lt;b&gt;", True),
        ({"steps": 5000}, "steps", False),
        ({"loras": "no/such/file.safetensors"}, "no/such/file.safetensors", False),
    ],
)
def test_what_cannot_be_done_is_said_in_place_of_the_plan(
    desk: Desk, moved: dict[str, Any], sentence: str, at_the_field: bool
) -> None:
    told = desk.planned(form(**moved))
    shown = told.html
    assert "role='alert'" in shown
    assert sentence in shown
    assert "--" not in shown.split("</style>")[-1]
    assert bool(told.wrong) == at_the_field
    with pytest.raises(RequestError):
        desk.start(form(**moved))
    assert desk.jobs.running is None


def test_an_image_variant_without_an_image_starts_nothing_and_offers_to_do_without(desk: Desk) -> None:
    asked = form("nano-2.3-distilled-i2v", steps=4, width=96)
    told = desk.planned(asked)
    assert "add an image" in told.html
    assert told.advice is not None
    again, caps = desk.advised(asked, told.advice)
    assert (again.model, caps.mode, again.values["width"]) == ("nano-2.3-distilled-t2v", "T2V", 96)
    assert desk.planned(again).advice is None
    assert "you get 96x" in desk.planned(again).html


def test_a_model_that_cannot_be_had_offers_nano_with_its_own_recipe(desk: Desk) -> None:
    asked = form("2.3-dev-t2v", width=768, height=512, frames=121, steps=30)
    given = advice.nano(caps_for("2.3-dev-t2v")[0], all_caps())
    assert given is not None
    again, caps = desk.advised(asked, given)
    own = {one.control.name: one.value for one in ltx_ui.shown(caps)}
    assert caps.id == "nano-2.3-dev-t2v"
    assert {name: again.values[name] for name in own} == own | {"seed": 1, "refine": False}
    assert again.prompt == asked.prompt


def test_the_file_is_written_as_the_page_says(desk: Desk) -> None:
    plain = form()
    assert desk.encoding(plain) == Encoding()
    assert desk.encoding(
        replace(plain, output={"codec": "av1", "crf": 30, "png_frames": True, "thumbnail": False})
    ) == (Encoding(codec="av1", crf=30, png_frames=True, thumbnail=False))
    assert desk.encoding(replace(plain, output={"codec": "hevc", "crf": -1.0})).crf is None
    with pytest.raises(RequestError, match="crf"):
        desk.encoding(replace(plain, output={"crf": 99}))
    wanted = {one.control.name: one.value for one in ltx_ui.outputs(caps_for("nano")[0])}
    assert desk.encoding(replace(plain, output=wanted)) == Encoding()


def test_styles_reach_the_request(tmp_path: Path, desk: Desk) -> None:
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nfilm,on film,video\n", encoding="utf-8")
    styled = Desk(desk.jobs, desk.outputs, tmp_path, tmp_path / "styles.csv")
    request = styled.request(replace(form("nano-2.3-dev-t2v"), styles=("film",)))
    assert (request.prompt, request.negative) == ("a small red ball, on film", "video")


def test_a_job_is_followed_restored_and_listed(desk: Desk) -> None:
    asked = form(steps=3, prompt_is="unknown names do no harm")
    job = desk.start(replace(asked, output={"codec": "hevc", "crf": 40}))
    assert any(words in desk.running(job) for words in ("waiting", "loading the model", "stage 1"))
    ended(desk, job)
    media = job.states[0].media
    assert media is not None
    told = desk.ended(job)
    learned = pace.read(desk.outputs / "learned")
    assert desk.ended(job) == told  # a page opened anew
    assert pace.read(desk.outputs / "learned") == learned
    assert media.path.name in told
    assert "stage 1" in told
    assert job.preview is not None
    assert max(job.preview.size) == 512
    again, caps, said = desk.restored(media.path)
    assert said == f"the settings of {media.path.name} are in the form now"
    assert caps.id == asked.model
    assert desk.request(again) == desk.request(asked)
    with av.open(str(media.path)) as file:
        assert file.streams.video[0].codec_context.name == "hevc"
    settings = desk.settings(media.path)
    for words in ("<th>steps</th><td>3</td>", "a small red ball", "<th>width</th>"):
        assert words in settings
    assert str(media.path.parent) not in settings
    assert "GB of memory at most" in told
    assert desk.earlier()[0] == (str(media.path), "a small red ball | nano-2.3-distilled-t2v, seed 1")
    assert "about" in desk.planned(asked).html  # how long it takes is known now


def test_drafts_are_chosen_from_and_one_is_finished(desk: Desk) -> None:
    drafts = ended(desk, desk.draft(form(refine=True, width=128, height=128), 2))
    [first, second] = desk.drafts(drafts)
    assert first[2] == 1
    assert second[2] != 1
    for _, picture, _ in (first, second):
        assert picture is not None
        assert Path(picture).is_file()
    assert drafts.states[0].media is None
    job = ended(desk, desk.finish(second[0]))
    assert job.states[0].seed == second[2]
    assert f"seed {second[2]}" in desk.ended(job)
    again = desk.jobs.last
    assert again is not None
    assert again.id == job.id  # drafts are shown by themselves


def test_off_and_on_are_one_job_of_two_videos(desk: Desk) -> None:
    job = ended(desk, desk.start_both(form(steps=None, **REFINED)))
    off, on = job.states
    assert off.media is not None
    assert on.media is not None
    assert off.seed == on.seed
    assert (off.plan.evaluations, on.plan.evaluations) == (8, 13)
    assert off.media.path != on.media.path
    told = desk.ended(job)
    assert "self-refiner, stage1" in told
    with pytest.raises(RequestError, match="nothing is refined"):
        desk.start_both(form())


@pytest.mark.parametrize("data", [b"", b"not a video"])
def test_what_is_no_video_of_ours_is_said_without_its_folder(desk: Desk, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "some.mp4"
    path.write_bytes(data)
    with pytest.raises(RequestError) as told:
        desk.restored(path)
    assert "some.mp4" in str(told.value)
    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize("caps", all_caps(), ids=lambda caps: caps.id)
def test_a_variant_shows_the_controls_it_has(page: Page, caps: Any) -> None:
    updates = page._changed(caps.id)
    groups, controls = updates[4 : 4 + len(page.groups)], updates[4 + len(page.groups) :]
    assert [update["interactive"] for update in controls] == [one.live for one in ltx_ui.shown(caps)]
    assert [update["visible"] for update in controls] == [one.visible for one in ltx_ui.shown(caps)]
    told = [
        update["info"]
        for update, one in zip(controls, ltx_ui.shown(caps), strict=True)
        if not one.applies and one.visible
    ]
    assert all(len(info.partition("Not with this model: ")[2]) > 5 for info in told)
    assert [update["value"] for update in controls] == [one.value for one in ltx_ui.shown(caps)]
    assert dict(zip(page.groups, (update["visible"] for update in groups), strict=True)) == ltx_ui.sections(caps)


def test_models_are_in_order_and_all_there(desk: Desk) -> None:
    names = [name for _, name in desk.models()]
    assert sorted(names) == sorted(caps.id for caps in all_caps())
    assert names[0].startswith("nano-2.3-distilled")
    real = [name for name in names if not name.startswith("nano")]
    assert real[0].startswith("2.5")
    assert real[-1].startswith("0.9.0")


def small_plan(**options: object) -> Plan:
    return plan(Request.parse(SMALL | options), caps_for("nano")[0])


def test_time_left_is_learned_and_forgives_one_slow_job(tmp_path: Path) -> None:
    made, longer = small_plan(steps=8), small_plan(steps=16)
    known = pace.read(tmp_path)
    assert known.seconds(made, "cpu") is None
    assert known.left(made, "cpu", Event("sample", 1, 8), 1.0) is None
    for slow in (1, 1, 50):
        timings = [Timing("load", 9), Timing("encode", 1), Timing("sample", 8 * slow), Timing("decode", 2)]
        known = known.after(made, "cpu", timings)
    pace.write(tmp_path, known)
    known = pace.read(tmp_path)
    assert known.seconds(made, "cpu") == pytest.approx({"encode": 1, "sample": 8, "decode": 2})
    assert known.seconds(longer, "cpu") == pytest.approx({"encode": 1, "sample": 16, "decode": 2})
    assert known.seconds(made, "cuda") is None
    assert known.left(made, "cpu", Event("load"), 0.0) == pytest.approx(11)
    assert known.left(made, "cpu", Event("sample", 0, 8), 0.0) == pytest.approx(10)
    assert known.left(made, "cpu", Event("sample", 4, 8), 20.0) == pytest.approx(22)  # half, in 20 s, and decoding
    for broken in ("{", "[1]", '{"a": ["x"]}'):
        (tmp_path / pace.NAME).write_text(broken)
        assert pace.read(tmp_path).rates == {}


def test_all_that_comes_from_outside_is_escaped() -> None:
    told = {
        "phase": "load",
        "step": 0,
        "of": 0,
        "evaluations": 0,
        "planned": 0,
        "message": "<script>",
        "run": 1,
        "runs": 1,
    }
    for shown in (panel.error_html("<script>"), panel.words_html("<script>"), panel.running_html(told, None)):
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (600, "10 minutes"), (9000, "2.5 hours")])
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert panel.duration(seconds) == said
