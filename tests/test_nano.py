"""LTX-Nano folders load as the real pipeline classes do, give usable noise, and are the same every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.ltx.errors import HostError, RequestError
from modules.ltx.hosts import nano, nano_parts, nano_text
from nano import prompts, world
from tests.guidance_kit import UNGUIDED
from tests.library_kit import condition, first_image

pytestmark = pytest.mark.library

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"width": 64, "height": 64}
FPS = 24.0
VIDEO_2 = ("2.0-dev", "2.0-distilled", "2.3-dev", "2.3-distilled")
DEV_2 = ("2.0-dev", "2.3-dev")
CLASSES_2 = ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline")
CLASSES_09 = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")

Load = Callable[..., Any]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nano")


@pytest.fixture(scope="session")
def load(cache: Path) -> Load:
    import diffusers

    def from_pretrained(name: str, kind: str) -> Any:
        pipe = getattr(diffusers, kind).from_pretrained(nano.ensure(name, cache), local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return from_pretrained


def run_2(pipe: Any, **changes: Any) -> Any:
    import torch

    asked: dict[str, Any] = {**SIZE, **UNGUIDED, "num_frames": 17, "frame_rate": FPS}
    asked.update(prompt="a red ball moving right", max_sequence_length=64)
    asked.update(num_inference_steps=2, output_type="latent")
    return pipe(**{**asked, "generator": torch.Generator().manual_seed(7), **changes})


def run_09(pipe: Any, **changes: Any) -> Any:
    import torch

    asked: dict[str, Any] = {**SIZE, "num_frames": 9, "num_inference_steps": 2, "output_type": "pt"}
    asked.update(prompt="a red ball moving right", max_sequence_length=64, decode_timestep=0.05)
    return pipe(**{**asked, "generator": torch.Generator().manual_seed(7), **changes}).frames


def picture() -> Any:
    """A red disc on black, which the trained VAE knows."""
    import PIL.Image
    import PIL.ImageDraw

    image = PIL.Image.new("RGB", (64, 64), "black")
    PIL.ImageDraw.Draw(image).ellipse((20, 20, 44, 44), fill=(230, 30, 30))
    return image


def start_picture(kind: str) -> dict[str, Any]:
    """How each class takes a first picture; crf=0 keeps H.264 out of it, which would need PyAV."""

    if kind in ("LTXPipeline", "LTX2Pipeline"):
        return {}
    if kind == "LTX2ConditionPipeline":
        return {"conditions": [condition(picture())]}
    return first_image(picture()) if kind == "LTX2ImageToVideoPipeline" else {"image": picture()}


def without_dynamic_shifting(pipe: Any) -> Any:
    """LTXConditionPipeline passes no `mu`, so the shipped 0.9.0/0.9.1 scheduler config stops it."""
    kind = type(pipe.scheduler)
    changes = {"use_dynamic_shifting": False, "shift_terminal": None}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    return pipe


def assert_alive(values: Any, low: float, high: float) -> None:
    assert values.isfinite().all()
    assert values.float().std() > 0.01
    assert low <= values.min()
    assert values.max() <= high


def difference(one: Any, other: Any) -> float:
    return float((one.float() - other.float()).abs().mean())


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", CLASSES_2)
@pytest.mark.parametrize("name", VIDEO_2)
def test_2_makes_picture_and_sound(load: Load, name: str, kind: str) -> None:
    pipe = load(name, kind)
    # What is trained answers two steps with the gray mean of everything, and does not know clips of 64x64.
    side, steps = (64, 2) if name.startswith("2.0") else (128, 8)
    size = {"width": side, "height": side, "num_inference_steps": steps}
    # Of 2.3 Dev one unguided clip in seven is another than was asked for, and it knows silent ones.
    led = {"guidance_scale": 3.0, "audio_guidance_scale": 3.0} if name == "2.3-dev" else {}
    made = run_2(pipe, output_type="pt", **size, **led, **start_picture(kind))
    assert made.frames.shape == (1, 17, 3, side, side)
    assert_alive(made.frames, 0.0, 1.0)
    assert pipe.vocoder.config.output_sampling_rate == 16000
    assert made.audio.shape[:2] == (1, 2)
    assert_alive(made.audio, -1.0, 1.0)
    # Sound comes in whole latents, 0.04 s of it on 2.0 and 0.2 s on 2.3: as many as come nearest to the clip.
    latent = 0.04 if name.startswith("2.0") else 0.2
    assert made.audio.shape[-1] / 16000 == pytest.approx(17 / FPS, abs=latent / 2 + 0.03)


@pytest.mark.parametrize("kind", CLASSES_09)
def test_09_makes_picture(load: Load, kind: str) -> None:
    pipe = load("0.9", kind)
    if kind == "LTXConditionPipeline":
        with pytest.raises(ValueError, match="mu"):
            run_09(pipe, **start_picture(kind))
        without_dynamic_shifting(pipe)
    video = run_09(pipe, **start_picture(kind))
    assert video.shape == (1, 9, 3, 64, 64)
    assert_alive(video, 0.0, 1.0)


def test_09_decoder_listens_to_its_timestep(load: Load) -> None:
    pipe = load("0.9", "LTXPipeline")
    early = run_09(pipe, decode_timestep=0.05, decode_noise_scale=0.025)
    late = run_09(pipe, decode_timestep=0.5, decode_noise_scale=0.025)
    assert difference(early, late) > 0.01


def test_09_prompt_matters(load: Load) -> None:
    pipe = load("0.9", "LTXPipeline")
    assert difference(run_09(pipe), run_09(pipe, prompt="a blue square moving left")) > 0.005


def test_2_random_latents_stay_near_unit_deviation(load: Load) -> None:
    pipe = load("2.0-dev", "LTX2Pipeline")
    guided = {"guidance_scale": 3.0, "audio_guidance_scale": 7.0, "guidance_rescale": 0.7}
    made = run_2(pipe, num_inference_steps=6, **guided)
    mean, std = (buffer.view(1, -1, 1, 1, 1) for buffer in (pipe.vae.latents_mean, pipe.vae.latents_std))
    assert 0.7 < float(((made.frames - mean) / std).std()) < 1.6
    assert 0.7 < float(made.audio.std()) < 2.0


@pytest.mark.parametrize("name", DEV_2)
def test_2_prompt_and_guidance_matter(load: Load, name: str) -> None:
    pipe = load(name, "LTX2Pipeline")
    plain = run_2(pipe)
    other = run_2(pipe, prompt="a blue square moving left")
    assert difference(plain.frames, other.frames) > 0.003
    assert difference(plain.audio, other.audio) > 0.003
    cfg = run_2(pipe, guidance_scale=4.0, negative_prompt="")
    assert difference(plain.frames, cfg.frames) > 0.01
    isolated = run_2(pipe, modality_scale=3.0)
    assert difference(plain.frames, isolated.frames) > 0.01


@pytest.mark.parametrize("name", DEV_2)
def test_2_seed_changes_what_is_seen_and_heard(load: Load, name: str) -> None:
    import torch

    pipe = load(name, "LTX2Pipeline")
    one = run_2(pipe, output_type="pt")
    other = run_2(pipe, output_type="pt", generator=torch.Generator().manual_seed(8))
    assert difference(one.frames, other.frames) > 0.05
    # The trained one makes the tone of a ball from any seed.
    assert difference(one.audio, other.audio) > (0.01 if name.startswith("2.0") else 0.001)


@pytest.mark.parametrize(("name", "works"), [("2.0-dev", False), ("2.3-dev", True)])
def test_2_stg_works_where_the_real_config_allows_it(load: Load, name: str, works: bool) -> None:
    pipe = load(name, "LTX2Pipeline")
    plain = run_2(pipe)
    perturbed = run_2(pipe, stg_scale=1.0, spatio_temporal_guidance_blocks=[nano_parts.BLOCKS - 2])
    nowhere = run_2(pipe, stg_scale=1.0, spatio_temporal_guidance_blocks=[nano_parts.BLOCKS])
    # Guidance turns a velocity into a picture and back, which costs a bit of rounding.
    assert (difference(plain.frames, perturbed.frames) > 0.01) is works
    assert difference(plain.frames, nowhere.frames) < 1e-5


@pytest.mark.parametrize("name", VIDEO_2)
def test_2_lora_changes_the_video_and_leaves_no_trace(load: Load, cache: Path, name: str) -> None:
    pipe = load(name, "LTX2Pipeline")
    before = run_2(pipe)
    folder = nano.ensure(f"{name[:3]}-lora", cache)
    file = next(folder.glob("*.safetensors")).name
    pipe.load_lora_weights(folder, weight_name=file, adapter_name="nano", local_files_only=True)
    changed = run_2(pipe)
    assert difference(before.frames, changed.frames) > 0.01
    assert difference(before.audio, changed.audio) > 0.01
    pipe.unload_lora_weights()
    after = run_2(pipe)
    assert after.frames.equal(before.frames)
    assert after.audio.equal(before.audio)


@pytest.mark.parametrize("generation", ["0.9", "2.0", "2.3"])
def test_upsampler_doubles_height_and_width(load: Load, generation: str) -> None:
    import torch

    kind = "LTXLatentUpsamplePipeline" if generation == "0.9" else "LTX2LatentUpsamplePipeline"
    pipe = load(f"{generation}-upsampler", kind)
    small = torch.randn((1, nano_parts.LATENT_CHANNELS, 2, 2, 3), generator=torch.Generator().manual_seed(1))
    large = pipe(latents=small, height=64, width=96, output_type="latent").frames
    assert large.shape == (1, nano_parts.LATENT_CHANNELS, 2, 4, 6)
    assert large.isfinite().all()
    assert 0.5 < float(large.std()) < 2.0


def test_upsamplers_load_from_their_subfolder_and_differ(cache: Path) -> None:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel

    def first_weights(name: str) -> Any:
        folder = nano.ensure(name, cache)
        options = {"subfolder": "latent_upsampler", "local_files_only": True}
        return LTX2LatentUpsamplerModel.from_pretrained(folder, **options).initial_conv.weight

    assert not first_weights("2.0-upsampler").equal(first_weights("2.3-upsampler"))


@pytest.mark.parametrize(("name", "kind"), [("0.9", "LTXPipeline"), ("2.0-dev", "LTX2Pipeline")])
def test_vae_statistics_are_not_neutral_and_encoding_is_quiet(load: Load, name: str, kind: str) -> None:
    import torch

    vae = load(name, kind).vae
    assert vae.latents_mean.unique().numel() > 5
    assert vae.latents_std.unique().numel() > 5
    assert 0.79 < float(vae.latents_std.min()) < float(vae.latents_std.max()) < 1.21
    video = torch.rand((1, 3, 9, 64, 64), generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(video).latent_dist
    assert 0.4 < float(encoded.mode().std()) < 2.0
    assert float(encoded.std.max()) < 0.01


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_dev_and_distilled_differ_in_the_transformer_only(cache: Path, generation: str) -> None:
    dev = hashes(nano.ensure(f"{generation}-dev", cache))
    distilled = hashes(nano.ensure(f"{generation}-distilled", cache))
    different = {file for file in dev if dev[file] != distilled.get(file)}
    assert dev.keys() == distilled.keys()
    assert different == {"transformer/diffusion_pytorch_model.safetensors"}


def test_builds_are_identical_small_and_leave_the_generator_alone(cache: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    for name in nano.NAMES:
        first, second = nano.ensure(name, cache), nano.ensure(name, tmp_path)
        assert first.name == second.name
        assert hashes(first) == hashes(second)
        assert sum(path.stat().st_size for path in first.rglob("*") if path.is_file()) < 40e6
    assert torch.random.get_rng_state().equal(state)
    assert len(list(tmp_path.iterdir())) == len(nano.NAMES), "a build left something behind"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("2.3-upsampler", "model_index.json"),
        ("0.9", "vae/diffusion_pytorch_model.safetensors"),
        ("2.0-lora", nano.LORA_FILE),
    ],
)
def test_half_made_folder_is_built_again(tmp_path: Path, name: str, file: str) -> None:
    folder = nano.ensure(name, tmp_path)
    whole = hashes(folder)
    (folder / file).unlink()
    assert nano.ensure(name, tmp_path) == folder
    assert hashes(folder) == whole
    (folder / file).write_bytes(b"cut short")
    assert hashes(nano.ensure(name, tmp_path)) == whole
    assert list(tmp_path.iterdir()) == [folder]


def test_finished_folder_is_not_touched_again(cache: Path) -> None:
    folder = nano.ensure("2.0-lora", cache)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    nano.ensure("2.0-lora", cache)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_processes_building_at_once_end_with_one_whole_folder(cache: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from modules.ltx.hosts import nano; "
    code += "nano.ensure('2.3-upsampler', Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    builders = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0]
    (folder,) = tmp_path.iterdir()
    assert hashes(folder) == hashes(nano.ensure("2.3-upsampler", cache))


def test_names_and_finished_folders_need_no_torch(cache: Path) -> None:
    nano.ensure("2.0-lora", cache)
    code = "import sys; from pathlib import Path; from modules.ltx.hosts import nano; assert nano.NAMES; "
    code += "nano.ensure('2.0-lora', Path(sys.argv[1])); assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(cache)], cwd=ROOT, check=True, timeout=60)


def test_unknown_name_says_what_exists(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"2\.3-distilled"):
        nano.ensure("2.3", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unusable_cache_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError, match=r"2\.0-lora"):
        nano.ensure("2.0-lora", tmp_path / "file")


def test_gemma_tokenizer_knows_the_words_and_survives_any_text(load: Load) -> None:
    tokenizer = load("2.3-dev", "LTX2Pipeline").tokenizer
    sentence = "small red ball moving left on a black background"
    assert [token.strip("▁") for token in tokenizer.tokenize(sentence)] == sentence.split()
    padded = tokenizer("red", padding="max_length", max_length=8, return_tensors="pt")
    assert padded.attention_mask.tolist() == [[0] * 6 + [1, 1]]
    assert padded.input_ids[0, 6] == tokenizer.bos_token_id
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert tokenizer.unk_token_id not in tokenizer("Zoë's naïve 象\n").input_ids
    assert tokenizer.model_max_length == nano_text.MAX_TOKENS


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Photo of a small red Ball moving right on black, 4k, (best:1.2)", "a small red ball moving right on black"),
        ("At the end of the street, on the left bank: the square!", "the left the square"),
        ("up to the\nBLUE   circle and on with it.", "up the blue circle"),
        ("red-and-green", "red green"),
        ("the best thing on a Tuesday", ""),
        ("Zoë's naïve 象\n", ""),
    ],
)
def test_words_of_another_world_change_nothing(load: Load, said: str, read: str) -> None:
    tokenizer = load("2.3-dev", "LTX2Pipeline").tokenizer
    assert tokenizer(said).input_ids == tokenizer(read).input_ids
    assert tokenizer(read).input_ids == nano_text.gemma_tokenizer()(read).input_ids


def test_what_was_trained_is_read_as_it_was_written() -> None:
    spelled, read = nano_text.gemma_tokenizer(), nano_text.worldly_tokenizer()
    rng = np.random.default_rng(0)
    for _ in range(300):
        said = prompts.varied(world.draw_scene(rng), rng)
        assert read(said).input_ids == spelled(said.strip()).input_ids


def test_t5_tokenizer_knows_the_words(load: Load) -> None:
    tokenizer = load("0.9", "LTXPipeline").tokenizer
    sentence = "small red ball moving left on a black background"
    assert tokenizer.tokenize(sentence) == ["▁" + word for word in sentence.split()]
    assert tokenizer("red").input_ids[-1] == tokenizer.eos_token_id
