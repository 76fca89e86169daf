"""Image files of every odd kind, and agreement with timm's own transform."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from entropatch.data import images
from entropatch.data.images import ImageError, cropped, load_image, read_image, sample_photographs, to_tensor


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8))


def colours(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


# ------------------------------------------------------------------------------------------------- odd but sound


def test_a_plain_picture_comes_back_unchanged_and_without_notes(tmp_path):
    gradient().save(tmp_path / "a.png")
    image, notes = read_image(tmp_path / "a.png")
    assert np.array_equal(colours(image), np.asarray(gradient()))
    assert notes == []
    assert np.array_equal(colours(load_image(str(tmp_path / "a.png"))), np.asarray(gradient()))


def test_sixteen_bits_keep_their_brightness(tmp_path):
    # Pillow's own conversion clips every value above 255 to white.
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert colours(load_image(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_big_endian_sixteen_bits(tmp_path):
    values = np.array([[0, 32768, 65535]], dtype=">u2")
    Image.frombytes("I;16B", (3, 1), values.tobytes()).save(tmp_path / "a.tif")
    assert colours(load_image(tmp_path / "a.tif"))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_natural_range_are_stretched_and_noted(tmp_path, dtype):
    Image.fromarray(np.array([[-1000, 0, 1000]], dtype=dtype)).save(tmp_path / "a.tif")
    image, notes = read_image(tmp_path / "a.tif")
    assert colours(image)[0, :, 0].tolist() == [0, 128, 255]
    assert notes == ["values from -1000 to 1000 stretched to 0 … 255"]


def test_infinite_and_missing_values(tmp_path):
    Image.fromarray(np.array([[0, 1, np.inf, -np.inf, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert colours(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255, 255, 0, 0]
    Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"b\.tif: .*no pixel has a finite value"):
        load_image(tmp_path / "b.tif")


def test_cmyk(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = colours(load_image(tmp_path / "a.jpg"))[10, 10].tolist()
    assert red > 230
    assert max(green, blue) < 25


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.png")
    gradient().convert(mode).save(path, quality=100)
    expected = np.asarray(gradient().convert(mode).convert("RGB")).astype(float)
    assert np.abs(colours(load_image(path)) - expected).mean() < 4  # a JPEG halves the resolution of its colours


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    for name in ("a.png", "a.webp", "a.tif"):
        Image.fromarray(pixels, "RGBA").save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
        got = colours(load_image(tmp_path / name))[0]
        assert got[0].tolist() == [255, 0, 0], name
        assert got[1].tolist() == [255, 255, 255], name
        assert np.abs(got[2].astype(int) - 127).max() <= 1, name


def test_transparency_of_grey_palette_and_keyed_files(tmp_path):
    Image.fromarray(np.array([[[0, 255], [0, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "p.gif", transparency=1)
    Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3]]], dtype=np.uint8)).save(tmp_path / "k.png", transparency=(1, 2, 3))
    for name in ("la.png", "p.png", "p.gif", "k.png"):
        assert colours(load_image(tmp_path / name))[0].tolist() == [[0, 0, 0], [255, 255, 255]], name


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_of_several_frames_is_taken_and_noted(tmp_path, name):
    first, second = Image.new("RGB", (9, 9), (250, 0, 0)), Image.new("RGB", (9, 9), (0, 0, 250))
    first.save(tmp_path / name, save_all=True, append_images=[second, first])
    image, notes = read_image(tmp_path / name)
    assert colours(image)[4, 4, 0] > 200
    assert colours(image)[4, 4, 2] < 50
    assert notes == ["3 frames or pages; the first is used"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(np.kron(np.array([[0, 80, 120], [160, 200, 240]], np.uint8), np.ones((8, 8), np.uint8)))
    stored = {  # how a camera held so stores the upright scene: the inverse of what a viewer must do
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if stored is None else upright.transpose(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(colours(load_image(tmp_path / "a.png"))[..., 0], np.asarray(upright))


def test_broken_exif_does_not_spoil_sound_pixels(tmp_path):
    gradient().save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    image, _ = read_image(tmp_path / "a.png")
    assert np.array_equal(colours(image), np.asarray(gradient()))


def test_unreadable_orientation_is_noted(tmp_path, monkeypatch):
    gradient().save(tmp_path / "a.png")

    def fail(image):
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", fail)
    image, notes = read_image(tmp_path / "a.png")
    assert np.array_equal(colours(image), np.asarray(gradient()))
    assert notes == ["its EXIF orientation is unreadable; shown as stored"]


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    model = timm.create_model("test_vit")
    tensor = to_tensor(load_image(tmp_path / "a.png"), model)
    assert tensor.shape == (3, 160, 160)
    assert colours(cropped(load_image(tmp_path / "a.png"), model))[80, 80].tolist() == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- beyond repair


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_a_truncated_file_is_named(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind))
    for share in (0.9, 0.3):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        with pytest.raises(ImageError, match=rf"cut\.{kind}: ") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "zeros.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "folder.png").mkdir()
    names = {"missing.png": "no such file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names["pipe.png"] = "not a regular file"
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    names |= {
        "empty.png": "the file is empty",
        "text.jpg": "not an image file",
        "zeros.png": "cannot be read|not an image",
        "folder.png": "a folder",
        "a.eps": "PostScript",
    }
    for name, reason in names.items():
        with pytest.raises(ImageError, match=rf"{name}: .*{reason}|{name}: {reason}"):
            load_image(tmp_path / name)


def test_a_name_with_a_line_break_makes_a_one_line_message(tmp_path):
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)
    assert "two\\nlines.png" in str(caught.value)


def test_a_name_no_file_can_have():
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    gradient(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30)
    assert load_image(tmp_path / "a.png").size == (40, 30)
    for limit in (40 * 30 - 1, 100):  # where Pillow itself would only warn, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"a\.png: too large"):
            load_image(tmp_path / "a.png")


# ------------------------------------------------------------------------------------------------- as the model sees it


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",  # crop_pct 0.9, mean 0.5
        "vit_small_patch16_384",  # crop_pct 1.0
        "vit_base_patch16_siglip_224",  # squashed
        "deit_tiny_patch16_224",  # ImageNet's mean
    ],
)
@pytest.mark.parametrize("size", [(640, 427), (90, 300), (31, 31)])
def test_the_tensor_is_that_of_timms_own_transform(name, size):
    with torch.device("meta"):
        model = timm.create_model(name)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    image = gradient(*size)
    assert torch.equal(to_tensor(image, model), transform(image))


def test_the_models_real_input_size_counts():
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_dinov2", img_size=(70, 140))
    assert resolve_model_data_config(model)["input_size"] == (3, 518, 518)
    assert to_tensor(gradient(), model).shape == (3, 70, 140)
    assert cropped(gradient(), model).size == (140, 70)


def test_cropped_shows_the_very_pixels_of_the_tensor():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    image = gradient(300, 200)
    pixels = torch.from_numpy(np.asarray(cropped(image, model)).copy()).permute(2, 0, 1) / 255
    assert torch.allclose((pixels - 0.5) / 0.5, to_tensor(image, model), atol=1e-6)


def test_a_long_strip_is_cut_to_its_middle_first():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    strip = gradient(12 * 50, 12)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    assert images.MAX_ASPECT < 50
    assert torch.allclose(to_tensor(strip, model), transform(strip), atol=2 / 255)
    # Without the cut this one would need some 30 GB.
    assert to_tensor(Image.new("RGB", (1, 200_000), (9, 9, 9)), model).shape == (3, 224, 224)


def test_models_that_do_not_take_three_channels_are_refused():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", in_chans=1)
    with pytest.raises(ValueError, match="takes 1"):
        to_tensor(gradient(), model)


# ------------------------------------------------------------------------------------------------- photographs


def test_the_six_photographs_come_from_the_installed_packages():
    pytest.importorskip("skimage")
    photographs = sample_photographs()
    assert {name: image.size for name, image in photographs.items()} == {
        "astronaut": (512, 512),
        "cat": (451, 300),
        "coffee": (600, 400),
        "rocket": (640, 427),
        "china": (640, 427),
        "flower": (640, 427),
    }
    assert all(np.asarray(image).std() > 20 for image in photographs.values())


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"skimage is needed here.*\.\[demo\]"):
        sample_photographs()
