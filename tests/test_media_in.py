"""Images read in: every format that is promised, and sentences for everything else."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.ltx.ltx_util import file_digest
from modules.ltx.media_in import load_image
from tests.media_kit import (
    moving,
    refusal,
)


def picture(size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.fromarray(next(moving(1, size=size))[0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_images_of_all_formats_load(tmp_path: Path, suffix: str) -> None:
    picture().save(tmp_path / f"in.{suffix}")
    image = load_image(tmp_path / f"in.{suffix}")
    assert (image.mode, image.size) == ("RGB", (40, 20))
    tolerance = 12 if suffix in ("jpg", "webp", "gif") else 0
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture())).mean() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture().convert(mode).save(tmp_path / "in.tif")
    assert load_image(tmp_path / "in.tif").mode == "RGB"


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a quarter to the right makes it upright
    picture().save(tmp_path / "in.png", exif=exif)
    upright = load_image(tmp_path / "in.png")
    assert upright.size == (20, 40)
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(picture()), -1))


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(tmp_path / "half.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png", transparency=0)
    assert np.abs(np.asarray(load_image(tmp_path / "half.png")).astype(int) - (100, 50, 25)).max() <= 1
    assert np.asarray(load_image(tmp_path / "clear.png")).max() == 0
    assert np.asarray(load_image(tmp_path / "palette.png")).max() == 0


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "in.png")
    back = np.asarray(load_image(tmp_path / "in.png"))
    np.testing.assert_array_equal(back[..., 0], np.arange(256).reshape(16, 16))


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_001)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    started = time.process_time()
    for name in ("large.png", "bomb.png"):
        assert "megapixels" in refusal(load_image, tmp_path / name)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"%PDF-1.4\n",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.png").write_bytes(content)
    assert "PNG" in refusal(load_image, tmp_path / "in.png")


def test_formats_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    for suffix in ("ppm", "tga", "ico", "eps"):
        picture().save(tmp_path / f"in.{suffix}")
        refusal(load_image, tmp_path / f"in.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in range(0, len(whole) * 3 // 4, max(1, len(whole) // 40)):
        cut.write_bytes(whole[:length])
        refusal(load_image, cut)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes by name here")
    os.mkfifo(tmp_path / "in.png")
    assert "not a file" in refusal(load_image, tmp_path / "in.png")


def test_digest_is_sha256(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 5)
    (tmp_path / "in").write_bytes(content)
    assert file_digest(tmp_path / "in") == hashlib.sha256(content).hexdigest()
