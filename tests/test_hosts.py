"""Folders, machines and loading: what a model folder is taken for, and which choice fits the memory."""

from __future__ import annotations

import gc
import json
import mmap
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.ltx.borrow import check_writable
from modules.ltx.errors import HostError, RequestError
from modules.ltx.front import mode_of, resolve, settle
from modules.ltx.hosts import folders, loading, machine, nano
from modules.ltx.hosts.embedded import EmbeddedHost, Settings, slug
from modules.ltx.ltx_capabilities import caps_for
from modules.ltx.ltx_process import run
from modules.ltx.plan import LoraPlan, Plan
from modules.ltx.request import Request

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]
GB = 2**30


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    """A copy of the 2.3 Dev model in a folder of the user's, with a space in its name."""
    return Path(shutil.copytree(nano.ensure("2.3-dev", cache), tmp_path / "my model"))


def test_a_local_folder_runs_through_the_very_same_code(host: EmbeddedHost, planned: Planned, folder: Path) -> None:
    """By its own config it is a 2.3; told its variant, it gives the same bytes as the model it is a copy of."""
    media = run(planned("nano-2.3-dev-t2v"), host).media
    copied = planned(str(folder), variant="nano-2.3-dev-t2v")
    assert any("taken as LTX-Nano 2.3 T2V Dev" in note for note in copied.notes)
    again = run(copied, host).media
    assert media is not None
    assert again is not None
    assert again.video_latents_sha256 == media.video_latents_sha256
    by_itself = planned(str(folder), stg_blocks="4")
    assert (by_itself.caps.generation, by_itself.caps.num_blocks) == ("2.3", 6)
    assert "does not say whether it is distilled" in by_itself.notes[1]


def test_the_careful_stg_block_of_a_smaller_model_is_refused_not_ignored(planned: Planned, folder: Path) -> None:
    with pytest.raises(RequestError, match="blocks 0 to 5"):
        planned(str(folder))


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_0_9_folder_is_decoded_as_its_vae_wants(
    host: EmbeddedHost, cache: Path, planned: Planned, tmp_path: Path, conditioned: bool
) -> None:
    """0.9.0 and 0.9.1 have one class and one config of the transformer; their VAEs differ."""
    copy = Path(shutil.copytree(nano.ensure("0.9", cache), tmp_path / "m"))
    config = json.loads((copy / "vae" / "config.json").read_text())
    assert config["timestep_conditioning"] is True
    if conditioned:
        plan = planned(str(copy))
        assert (plan.decode.timestep, plan.decode.noise_scale) == (0.05, 0.025)
        assert run(plan, host).media is not None
        return
    (copy / "vae" / "config.json").write_text(json.dumps(config | {"timestep_conditioning": False}))
    assert planned(str(copy)).decode.timestep is None
    with pytest.raises(RequestError, match="does not have it"):
        planned(str(copy), decode_timestep=0.1)


def test_a_variant_needs_a_folder_or_repo(planned: Planned) -> None:
    with pytest.raises(RequestError, match="no such folder or repo"):
        planned("no-such-thing", variant="nano-2.3-dev-t2v")


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", "x/", "C:\\x", ".\\x"])
def test_what_is_written_as_a_path_is_a_path(name: str) -> None:
    assert folders.is_folder_name(name)


@pytest.mark.parametrize("name", ["Lightricks/LTX-2", "nano", "LTXVideo 2.3 22B T2V", "2.3-dev-t2v"])
def test_names_are_not_paths(name: str) -> None:
    assert not folders.is_folder_name(name)


def test_a_folder_without_an_index_is_no_model(tmp_path: Path, planned: Planned) -> None:
    for content in (None, "not json", "[]"):
        if content is not None:
            (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(RequestError, match=r"no readable model_index.json"):
            planned(str(tmp_path))


def test_pickled_weights_are_refused_before_anything_is_read(
    host: EmbeddedHost, planned: Planned, folder: Path
) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(RequestError, match=r"vae: its weights are pickled"):
        run(planned(str(folder), variant="nano-2.3-dev-t2v"), host)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", r"my model/transformer/diffusion_pytorch_model.safetensors: the file is damaged or cut short"),
        ("missing", r"my model/transformer: there is no diffusion_pytorch_model.safetensors"),
        ("config", r"my model/transformer/config.json: the file is damaged"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    host: EmbeddedHost, planned: Planned, folder: Path, damage: str, said: str
) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "transformer" / "config.json").write_text("{")
    with pytest.raises(HostError, match=said):
        run(planned(str(folder), variant="nano-2.3-dev-t2v"), host)
    plan = planned("nano-2.3-dev-t2v")
    assert run(plan, host).media is not None  # the host is as good as before


def test_pinned_off_dynamic_shift_is_for_0_9_only(host: EmbeddedHost) -> None:
    for name, shifting in (("nano-0.9-t2v", False), ("nano-2.3-dev-t2v", True)):
        caps, _ = caps_for(name)
        with host.pipeline(caps, caps.pipeline) as pipe:
            assert pipe.scheduler.config.use_dynamic_shifting is shifting


def test_a_vae_that_must_stay_float32_does(host: EmbeddedHost, cache: Path) -> None:
    from dataclasses import replace

    caps = replace(caps_for("nano-0.9-i2v")[0], vae_dtype="float32")
    where = machine.Machine("cpu", "bfloat16", "none", 0)
    pipe = loading.load(caps, nano.ensure("0.9", cache), where)
    assert (pipe.vae.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)


def test_bfloat16_runs_end_to_end(cache: Path, planned: Planned, tmp_path: Path) -> None:
    half = EmbeddedHost(Settings(tmp_path, cache=cache, device="cpu", dtype="bfloat16", offline=True))
    for model in ("nano-2.3-dev-t2v", "nano-0.9-t2v"):
        assert run(planned(model, refine=True), half).media is not None
    assert half.machine()["dtype"] == "bfloat16"


def test_a_transformer_from_another_subfolder(host: EmbeddedHost, cache: Path, folder: Path) -> None:
    """2.5 keeps Dev beside Distilled in one repo."""
    from dataclasses import replace

    distilled = nano.ensure("2.3-distilled", cache) / "transformer"
    shutil.copytree(distilled, folder / "transformer_full")
    caps = replace(caps_for("nano-2.3-dev-t2v")[0], source=str(folder), transformer="transformer_full")
    where = machine.Machine("cpu", "float32", "none", 0)
    both = [loading.load(c, folder, where).transformer for c in (caps, replace(caps, transformer="transformer"))]
    for loaded, wanted in zip(both, ("2.3-distilled", "2.3-dev"), strict=True):
        theirs = loading.load(caps_for("nano-2.3-dev-t2v")[0], nano.ensure(wanted, cache), where).transformer
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("device", "total", "largest", "free", "chosen"),
    [
        ("cpu", 90, 60, 1, "none"),
        ("cuda", 10, 6, 24, "none"),
        ("cuda", 68, 17, 24, "model"),
        ("cuda", 68, 44, 24, "sequential"),
        ("mps", 10, 6, 11, "model"),
    ],
)
def test_the_least_offload_that_fits(device: str, total: int, largest: int, free: int, chosen: str) -> None:
    assert machine.choose_offload(None, device, total * GB, largest * GB, free * GB) == chosen


def test_the_users_offload_wins() -> None:
    assert machine.choose_offload("group", "cuda", 1, 1, 100) == "group"


@pytest.mark.parametrize(
    ("device", "weights", "free", "dtype"),
    [("cpu", 1, 24, "float32"), ("cpu", 20, 24, "bfloat16"), ("cuda:0", 1, 24, "bfloat16"), ("xpu", 1, 1, "bfloat16")],
)
def test_dtype_by_device_and_memory(device: str, weights: int, free: int, dtype: str) -> None:
    assert machine.choose_dtype(None, device, weights * GB, free * GB) == dtype


def test_weight_sizes_are_those_of_the_files(folder: Path) -> None:
    sizes = folders.weight_bytes(folder)
    assert sizes["transformer"] == (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert "scheduler" not in sizes


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "hf auth login"), (403, "accept its licence"), (404, "no such repo"), (500, "network")],
)
def test_why_a_repo_cannot_be_had(status: int, sentence: str) -> None:
    class Answer:
        status_code = status

    class Refused(OSError):
        response = Answer()

    said = folders.unreachable("org/repo", Refused(), offline=False)
    assert sentence in said
    assert said.startswith("org/repo: ")


def test_lora_sources(tmp_path: Path) -> None:
    def where(source: str, **more: Any) -> tuple[str, dict[str, Any]]:
        return folders.lora_file(LoraPlan(source, 1.0, **more), offline=True)

    (tmp_path / "a.safetensors").touch()
    (tmp_path / "pickle.pt").touch()
    assert where(str(tmp_path / "a.safetensors")) == (str(tmp_path), {"weight_name": "a.safetensors"})
    assert where(str(tmp_path)) == (str(tmp_path), {"weight_name": "a.safetensors"})
    (tmp_path / "b.safetensors").touch()
    assert where(str(tmp_path), file="b.safetensors")[1] == {"weight_name": "b.safetensors"}
    for bad, sentence in [
        (str(tmp_path), "it holds: a.safetensors, b.safetensors"),
        (str(tmp_path / "pickle.pt"), "only .safetensors"),
        (str(tmp_path / "none.safetensors"), "no such file"),
        ("org/repo", "offline"),
    ]:
        with pytest.raises(RequestError, match=sentence):
            where(bad)


def test_output_names_are_ours_and_never_taken_twice(planned: Callable[..., Plan], tmp_path: Path) -> None:
    mine = EmbeddedHost(Settings(tmp_path))
    plan = planned("nano")
    for _ in range(3):
        path = mine.output_path(plan)
        assert path.parent == tmp_path
        assert path.name.endswith((".mp4",))
        path.touch()
    assert len(list(tmp_path.iterdir())) == 3
    from dataclasses import replace

    assert slug(replace(plan.caps, id="../../etc/passwd")) == "ltx-2.3"


def test_checking_a_folder_leaves_it_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"):
        check_writable(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("images", "mode"),
    [
        ([], "T2V"),
        ([{"path": "a"}], "I2V"),
        ([{"path": "a", "strength": 0.5}], "Condition"),
        ([{"path": "a", "frame": -1}], "Condition"),
        ([{"path": "a"}, {"path": "b", "frame": 8}], "Condition"),
    ],
)
def test_nano_follows_what_the_request_brings(host: EmbeddedHost, images: list[dict[str, object]], mode: str) -> None:
    request = Request.parse({"images": images})
    assert mode_of(request) == mode
    assert resolve(request, host)[0].mode == mode


def test_what_this_machine_lacks_is_said_where_it_matters(host: EmbeddedHost) -> None:
    class Older(EmbeddedHost):
        def lacks(self) -> dict[str, str]:
            return {"generation 2.5": "needs diffusers >= 0.42", "sdnq-int4": "needs the package sdnq"}

    older = Older(host.settings)
    for model, reason in (("2.5-dev-t2v", "diffusers >= 0.42"), ("2.3-dev-t2v-sdnq", "package sdnq")):
        with pytest.raises(RequestError, match=reason):
            settle(Request.parse({"model": model}), older)
    assert settle(Request.parse({"model": "2.3-dev-t2v"}), older).caps.unavailable == ()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the most that a process held")
def test_the_most_memory_is_that_since_it_was_last_asked() -> None:
    gc.collect()  # what other tests left must not be given back in the middle of this one
    machine.empty_cache("cpu")
    machine.peak_memory("cpu")
    before = machine.peak_memory("cpu")
    # From the system itself: an array may lie in the heap, in what other tests left free, and stay there when freed.
    with mmap.mmap(-1, 100_000_000, flags=mmap.MAP_PRIVATE) as held:
        held[:: mmap.PAGESIZE] = b"." * len(range(0, len(held), mmap.PAGESIZE))
    with_it, after = machine.peak_memory("cpu"), machine.peak_memory("cpu")
    assert before is not None
    assert with_it is not None
    assert after is not None
    assert with_it - before > 90_000_000
    assert with_it - after > 90_000_000


def test_versions_are_recorded(host: EmbeddedHost) -> None:
    assert set(machine.versions()) == {"torch", "diffusers", "transformers", "av"}
    assert json.dumps(dict(host.machine()))
