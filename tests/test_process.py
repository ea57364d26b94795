"""A whole run: same request, same bytes; whatever stops it, nothing is left behind or changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from modules.ltx import compare
from modules.ltx.errors import Cancelled, OutOfMemory, RequestError
from modules.ltx.front import request_of_file, settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_process import drawn, run
from modules.ltx.media import Encoding
from modules.ltx.media_in import read_metadata
from modules.ltx.plan import Plan
from modules.ltx.request import Request
from modules.ltx.state import Event, Media
from tests.host_contract.kit import TrippedEmbedded

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
ALL_NANO = [
    f"nano-{generation}-{mode}"
    for generation in ("2.3-distilled", "2.3-dev", "2.0-distilled", "2.0-dev", "0.9")
    for mode in ("t2v", "i2v", "condition")
]
SHORT = pytest.mark.short
IN_SHORT = ("nano-2.3-distilled-t2v", "nano-2.3-distilled-i2v", "nano-2.3-distilled-condition", "nano-0.9-condition")


def media_of(plan: Plan, host: EmbeddedHost, **options: Any) -> Media:
    media = run(plan, host, **options).media
    assert media is not None
    return media


def streams(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        audio = [(s.rate, float(s.duration * s.time_base)) for s in container.streams.audio]
        return {
            "size": (video.width, video.height),
            "frames": frames,
            "fps": float(video.average_rate),
            "audio": audio,
        }


@pytest.mark.parametrize("model", [pytest.param(one, marks=SHORT) if one in IN_SHORT else one for one in ALL_NANO])
@pytest.mark.parametrize("refine", [False, True], ids=["one stage", "two stages"])
def test_every_nano_variant_makes_a_file(
    host: EmbeddedHost, planned: Planned, picture: Path, model: str, refine: bool
) -> None:
    images: list[dict[str, object]] = [{"path": str(picture)}] if "t2v" not in model else []
    if model.endswith("condition"):
        images.append({"path": str(picture), "frame": -1, "strength": 0.8})
    plan = planned(model, refine=refine, images=images, frames=17)
    media = media_of(plan, host)
    found = streams(media.path)
    assert (found["size"], found["frames"], found["fps"]) == ((64, 64), 17, 24.0)
    if plan.audio_from is None:
        assert found["audio"] == []
    else:
        [(rate, seconds)] = found["audio"]
        assert rate == 16000
        assert abs(seconds - 17 / 24) <= 1 / 24


def test_the_same_request_gives_the_same_bytes_and_another_seed_does_not(host: EmbeddedHost, planned: Planned) -> None:
    first, again = (media_of(planned("nano-2.3-dev-t2v", refine=True), host) for _ in range(2))
    other = media_of(planned("nano-2.3-dev-t2v", refine=True, seed=2), host)
    digests = [(m.video_latents_sha256, m.audio_latents_sha256) for m in (first, again, other)]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]
    assert first.path != again.path
    assert first.path.read_bytes() == again.path.read_bytes()


def test_a_fresh_host_gives_the_same_bytes(host: EmbeddedHost, planned: Planned, cache: Path, tmp_path: Path) -> None:
    plan = planned("nano-2.3-distilled-t2v", refine=True)
    fresh = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True))
    assert media_of(plan, fresh).video_latents_sha256 == media_of(plan, host).video_latents_sha256


def test_the_prompt_and_each_option_reach_the_result(host: EmbeddedHost, planned: Planned) -> None:
    """Every change gives another video: none is silently dropped (the negative prompt is the famous one)."""
    changes: list[dict[str, object]] = [
        {},
        {"prompt": "a blue square"},
        {"negative": "a blue square"},
        {"guidance_scale": 4},
        {"stg_scale": 2},
        {"stg_blocks": "2"},
        {"modality_scale": 2},
        {"guidance_rescale": 0},
        {"audio_guidance_scale": 5},
        {"sampler_shift": 0.5},
        {"dynamic_shift": False},
        {"steps": 4},
        {"fps": 12},
    ]
    # Three steps: the first and the last sigma of a schedule are the same whatever its shift.
    digests = [
        media_of(planned("nano-2.3-dev-t2v", **({"steps": 3} | change)), host).video_latents_sha256
        for change in changes
    ]
    assert len(set(digests)) == len(changes)


@pytest.mark.short
@pytest.mark.parametrize(("ratio", "size"), [(1.5, (96, 96)), (2, (128, 128)), (3, (192, 192))])
def test_upsampling_gives_the_promised_size(
    host: EmbeddedHost, planned: Planned, ratio: float, size: tuple[int, int]
) -> None:
    plan = planned("nano-2.3-distilled-t2v", upsample=ratio)
    media = media_of(plan, host)
    assert (media.width, media.height) == (plan.width, plan.height) == size
    assert media.audio_latents_sha256 is not None  # upsampling alone keeps the sound


@pytest.mark.parametrize(
    ("model", "transformer", "text"),
    [
        # CFG in one call of two, STG, modality: three calls and four streams a step; then one of each in stage 2
        ("nano-2.3-dev-t2v", [2, 1, 1] * 2 + [1] * 3, 2),
        ("nano-2.0-dev-t2v", [2, 1, 1] * 2 + [1] * 3, 2),
        ("nano-2.3-distilled-t2v", [1] * 5, 1),
        ("nano-0.9-condition", [2] * 2 + [1] * 4, 2),
    ],
)
def test_calls_of_a_two_stage_run(
    host: EmbeddedHost, planned: Planned, model: str, transformer: list[int], text: int
) -> None:
    """Evaluations cost what they should, and a prompt is encoded once a job."""
    plan = planned(model, refine=True)
    streams, texts = list[int](), list[None]()
    with host.pipeline(plan.caps, plan.caps.pipeline) as pipe:
        handles = [
            pipe.transformer.register_forward_pre_hook(
                lambda _, args, kwargs: streams.append(len(kwargs["hidden_states"])), with_kwargs=True
            ),
            pipe.text_encoder.register_forward_pre_hook(lambda *_: texts.append(None)),
        ]
    run(plan, host)
    for handle in handles:
        handle.remove()
    assert (streams, len(texts)) == (transformer, text)


def test_embeddings_keep_no_graph_and_wait_on_the_cpu(host: EmbeddedHost, planned: Planned) -> None:
    embeds = run(planned("nano-2.3-dev-t2v"), host).embeds
    assert embeds is not None
    for tensor in (embeds.prompt, embeds.negative):
        assert tensor is not None
        assert not tensor.requires_grad
        assert tensor.device.type == "cpu"


def test_without_sound_there_is_no_sound_stream(host: EmbeddedHost, planned: Planned) -> None:
    assert streams(media_of(planned("nano-2.3-distilled-t2v", audio=False), host).path)["audio"] == []


def test_sound_comes_from_the_stage_the_plan_names(host: EmbeddedHost, planned: Planned) -> None:
    """Dev delivers stage 1's sound, so stage 2 must not change it; Distilled delivers stage 2's."""
    digests = {}
    for kind in ("dev", "distilled"):
        for steps in (2, 3):
            plan = planned(f"nano-2.3-{kind}-t2v", refine=True, stage2_steps=steps)
            digests[kind, steps] = media_of(plan, host).audio_latents_sha256
    assert digests["dev", 2] == digests["dev", 3]
    assert digests["distilled", 2] != digests["distilled", 3]


def test_a_user_lora_acts_with_its_strength(host: EmbeddedHost, planned: Planned, cache: Path) -> None:
    from modules.ltx.hosts import nano

    source = str(nano.ensure("2.3-lora", cache))
    loras: tuple[Any, ...] = ([], [{"source": source, "strength": 1}], [{"source": source, "strength": 0.5}])
    made = [media_of(planned("nano-2.3-distilled-t2v", loras=lora), host) for lora in loras]
    assert len({m.video_latents_sha256 for m in made}) == 3
    zero = media_of(planned("nano-2.3-distilled-t2v", loras=[{"source": source, "strength": 0}]), host)
    assert zero.video_latents_sha256 == made[0].video_latents_sha256


def test_a_lora_of_another_model_is_refused_in_one_sentence(
    host: EmbeddedHost, planned: Planned, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 7)}, path)
    with pytest.raises(RequestError, match=r"other.safetensors.*not one of this model"):
        run(planned("nano-2.3-distilled-t2v", loras=[{"source": str(path)}]), host)
    assert host._resident is not None
    assert not any(any(pipe.get_list_adapters().values()) for pipe in host._resident.pipes.values())


def test_the_file_tells_how_to_make_it_again(host: EmbeddedHost, planned: Planned, picture: Path) -> None:
    images = [{"path": str(picture)}]
    media = media_of(planned("nano-2.3-dev-i2v", images=images, seed=None, prompt='"quoted"\nünïcödé'), host)
    request = Request.parse(request_of_file(media.path))
    again = media_of(settle(request, host), host)
    assert request.prompt == '"quoted"\nünïcödé'
    assert again.path.read_bytes() == media.path.read_bytes()
    stored = read_metadata(media.path)
    assert stored["latents"] == {
        "video_sha256": media.video_latents_sha256,
        "audio_sha256": media.audio_latents_sha256,
    }


def test_a_changed_image_is_noticed(host: EmbeddedHost, planned: Planned, picture: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(picture.read_bytes())
    media = media_of(planned("nano-2.3-dev-i2v", images=[{"path": str(mine)}]), host)
    mine.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(RequestError, match=r"mine.png is missing or was changed"):
        request_of_file(media.path)


def test_a_long_prompt_is_cut_with_a_note(host: EmbeddedHost, planned: Planned) -> None:
    state = run(planned("nano-2.3-distilled-t2v", prompt="red ball " * 12_000), host)
    assert any("the first 64 are read" in note for note in state.notes)


def test_events_count_what_is_done(cache: Path, planned: Planned, tmp_path: Path) -> None:
    seen: list[Event] = []
    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=seen.append)
    run(planned("nano-2.3-dev-t2v", refine=True), host)
    phases = list(dict.fromkeys(event.phase for event in seen))
    assert phases == ["load", "encode", "sample", "upsample", "refine", "decode"]
    counts = [event.evaluations for event in seen]
    assert counts == sorted(counts)
    assert counts[-1] == seen[-1].planned == 5
    assert all(0 <= event.step <= event.of for event in seen if event.of)


def test_what_a_killed_run_left_is_cleared_after_a_day(host: EmbeddedHost, planned: Planned, tmp_path: Path) -> None:
    old, young = tmp_path / f".a.{'0' * 12}.part.mp4", tmp_path / f".a.{'1' * 12}.part.mp4"
    for left in (old, young):
        left.touch()
    os.utime(old, (0, 0))
    run(planned("nano"), host, path=tmp_path / "b.mp4")
    assert not old.exists()
    assert young.exists()


def test_a_taken_name_is_noticed_before_anything_is_computed(cache: Path, planned: Planned, tmp_path: Path) -> None:
    seen: list[Event] = []
    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=seen.append)
    (tmp_path / "a-frames").mkdir()
    with pytest.raises(RequestError, match="a-frames is already there"):
        run(planned("nano"), host, path=tmp_path / "a.mp4", encoding=Encoding(png_frames=True))
    assert seen == []


@pytest.fixture(scope="module")
def tripping(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrippedEmbedded:
    outputs = tmp_path_factory.mktemp("tripping")
    return TrippedEmbedded(Settings(outputs, cache=cache, device="cpu", offline=True))


def test_out_of_memory_names_its_phase(tripping: TrippedEmbedded, planned: Planned) -> None:
    tripping.arm(4, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory, match="out of memory in sample") as caught:
        run(planned("nano-2.3-distilled-t2v"), tripping)
    assert (caught.value.phase, caught.value.exit_code) == ("sample", 4)
    tripping.arm(0, None)


def test_a_clip_on_its_way_is_drawn_as_it_would_be_decoded(host: EmbeddedHost, planned: Planned) -> None:
    plan = planned(
        "nano-2.3-distilled-t2v", refine=True, width=128, height=128, frames=25, prompt="a big red square", steps=None
    )
    picture = np.asarray(drawn(run(plan, host, until="sample"), host)).astype(int)
    assert picture.shape == (64, 3 * 64, 3)  # stage 1 is half the size
    alone = planned("nano-2.3-distilled-t2v", width=64, height=64, frames=25, prompt="a big red square", steps=None)
    assert [stage.sigmas for stage in alone.stages] == [plan.stages[0].sigmas]
    whole = np.concatenate(list(compare.frames(media_of(alone, host, encoding=Encoding(crf=1)).path))).astype(int)
    for place, number in enumerate((0, 12, 24)):
        assert np.abs(picture[:, 64 * place : 64 * (place + 1)] - whole[number]).mean() < 6  # the mp4 has less colour


def test_a_cancel_from_another_thread_stops_the_run(cache: Path, planned: Planned, tmp_path: Path) -> None:
    def cancel_in_stage_2(event: Event) -> None:
        if event.phase == "refine" and event.step == 1:
            host.cancel()

    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), on_event=cancel_in_stage_2)
    with pytest.raises(Cancelled, match="nothing was written"):
        run(planned("nano-2.3-distilled-t2v", refine=True), host)
    assert list(tmp_path.iterdir()) == []


def test_switching_models_drops_the_old_one_first(cache: Path, planned: Planned, tmp_path: Path) -> None:
    import weakref

    old: list[weakref.ref[Any]] = []
    gone: list[bool] = []

    def told(event: Event) -> None:
        if event.message.startswith("loading"):  # before anything of the new one is read
            gone.extend(model() is None for model in old)

    host = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", offline=True), told)
    run(planned("nano-2.3-distilled-t2v"), host)
    assert host._resident is not None
    old.append(weakref.ref(host._resident.pipes["LTX2Pipeline"].transformer))
    run(planned("nano-2.0-distilled-t2v"), host)
    assert gone == [True]


def test_classes_of_one_repo_share_every_component(host: EmbeddedHost, planned: Planned, picture: Path) -> None:
    run(planned("nano-2.3-dev-t2v"), host)
    run(planned("nano-2.3-dev-condition", refine=True, images=[{"path": str(picture)}]), host)
    assert host._resident is not None
    parts = [pipe.components for pipe in host._resident.pipes.values()]
    assert len(parts) >= 2
    shared = set.intersection(*(set(p) for p in parts))
    assert {"transformer", "vae", "text_encoder", "connectors"} <= shared
    assert all(part[name] is parts[0][name] for part in parts for name in shared)


PEAK = """
import sys
from pathlib import Path
from modules.ltx.front import settle
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.ltx_process import drawn, run
from modules.ltx.request import Request

host = EmbeddedHost(Settings(Path(sys.argv[2]), cache=Path(sys.argv[3]), device="cpu", offline=True))
request = {"frames": sys.argv[1], "steps": 1, "seed": 1, "width": 256, "height": 256}
timings = run(settle(Request.parse(request), host), host).timings
print(max(timing.peak for timing in timings))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most that a process held is asked of Linux")
def test_a_long_video_is_never_held_as_float(cache: Path, tmp_path: Path) -> None:
    """The peak of 241 frames is above that of 25 by less than the 241 frames as float alone would take."""
    root = Path(__file__).resolve().parent.parent
    # Large blocks of their own, given back as soon as they are freed: without it a peak varies by 60 MB, by what malloc
    # keeps for later.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    peaks = []
    for frames in (25, 241):
        command = [sys.executable, "-c", PEAK, str(frames), str(tmp_path), str(cache)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 0.8 * 241 * 256 * 256 * 3 * 4
