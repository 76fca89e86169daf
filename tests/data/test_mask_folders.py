"""Segmentation folders: their layouts, every file that is not as it should be, and image and mask moved together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from entropatch.data import DataError
from entropatch.data.images import ImageError
from entropatch.data.mask_folders import TrainingMasks, masked_listing_hash, open_mask_folder, segmentation_transform
from entropatch.data.masks import MaskError
from entropatch.data.scenes import write_digit_scenes

NAMES = ("a", "b", "c")


def fill(folder: Path, names: Any = NAMES, size: tuple[int, int] = (6, 4), mode: str = "L") -> Path:
    """Images of (width, height) and masks whose rows are classes 0 … 3, the last pixel 255."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, "red").save(folder / "images" / f"{name}.jpg")
        numbers = np.arange(size[1], dtype=np.uint8)[:, None].repeat(size[0], 1)
        numbers[-1, -1] = 255
        mask = Image.fromarray(numbers)
        if mode == "P":
            mask = Image.frombytes("P", size, numbers.tobytes())
            mask.putpalette([5, 9, 200] * 256)
        mask.save(folder / "masks" / f"{name}.png")
    return folder


def test_splits_or_every_fifth(tmp_path: Path) -> None:
    fill(tmp_path / "two/train", mode="P")
    fill(tmp_path / "two/validation", ("d",), size=(9, 4))
    found = open_mask_folder(tmp_path / "two", 4)
    assert (len(found.train), len(found.test), len(found.classes)) == (3, 1, 4)
    image, mask = found.train.pair(1)
    assert (image.size, mask.shape, mask.dtype) == ((6, 4), (4, 6), np.uint8)
    assert mask[:, 0].tolist() == [0, 1, 2, 3]
    assert mask[3, 5] == 255
    assert found.test.pair(0)[1].shape == (4, 9)
    fill(tmp_path / "one", [f"{i:02d}" for i in range(11)])
    (tmp_path / "one/classes.txt").write_text("sky\nsea\n\nsand\nrock\n")
    found = open_mask_folder(tmp_path / "one")
    assert found.classes == ("sky", "sea", "sand", "rock")
    assert [path.stem for path in found.test.images] == ["00", "05", "10"]
    assert len(found.train) == 8
    assert masked_listing_hash(found.train) != masked_listing_hash(found.test)


def spoil(folder: Path, what: str) -> None:
    mask = folder / "masks/b.png"
    if what == "missing":
        mask.unlink()
    elif what == "twice":
        Image.new("L", (6, 4)).save(folder / "masks/b.bmp")
    elif what == "size":
        Image.new("L", (4, 6)).save(mask)
    elif what == "number":
        Image.new("L", (6, 4), 4).save(mask)
    elif what == "colour":
        Image.new("RGB", (6, 4)).save(mask)
    elif what == "damaged":
        mask.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("missing", MaskError, r"masks must hold a mask named as each image, but has none for .*b\.jpg"),
        ("twice", MaskError, r"b\.jpg: one mask is needed"),
        ("size", MaskError, r"b\.png: the mask must have the size of its image, 6×4, but has 4×6"),
        ("number", MaskError, r"b\.png: a mask must hold class numbers 0 … 3, or 255 .* holds 4"),
        ("colour", MaskError, r"b\.png: a mask of classes must be grey or of a palette.* mode RGB"),
        ("damaged", ImageError, r"b\.png: not an image file"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named(tmp_path: Path, what: str, kind: type, message: str) -> None:
    spoil(fill(tmp_path / "train"), what)
    fill(tmp_path / "val", ("d",))
    with pytest.raises(kind, match=message):
        open_mask_folder(tmp_path, 4).train.pair(1)


def test_a_folder_that_is_not_as_it_should_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must exist"):
        open_mask_folder(tmp_path / "nowhere", 4)
    fill(tmp_path / "train")
    with pytest.raises(DataError, match="of val, validation, test it has none"):
        open_mask_folder(tmp_path, 4)
    fill(tmp_path / "val", ("d",))
    with pytest.raises(DataError, match="how many classes there are must be said"):
        open_mask_folder(tmp_path)
    for classes in (1, 256, ["one"]):
        with pytest.raises(DataError, match="2 … 255 classes"):
            open_mask_folder(tmp_path, classes)
    fill(tmp_path / "test", ("d",))
    with pytest.raises(DataError, match="it has val, test"):
        open_mask_folder(tmp_path, 4)
    (tmp_path / "test/masks/d.png").unlink()
    (tmp_path / "test/masks").rmdir()
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="has no masks"):
        open_mask_folder(tmp_path, 4)


def test_image_and_mask_are_cut_and_turned_together() -> None:
    rows = np.zeros((40, 60), np.uint8)
    rows[:20, :30], rows[:20, 30:], rows[20:, :30], rows[20:, 30:] = 0, 1, 2, 3
    rows[:4] = 255
    image = Image.fromarray((60 * np.minimum(rows, 4)).astype(np.uint8)[..., None].repeat(3, 2))
    apply = segmentation_transform(32, [0.0] * 3, [1.0] * 3, crop_scale=(0.2, 1.0), horizontal_flip=0.5)
    seen, apart = set(), []
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, mask = apply(image, rows)
        assert (pixels.shape, mask.shape, mask.dtype) == ((3, 32, 32), (32, 32), torch.int64)
        assert type(pixels) is type(mask) is torch.Tensor
        assert {*mask.unique().tolist()} <= {0, 1, 2, 3, 255}  # nothing between two classes
        seen |= {tuple(mask[[16, 16], [1, 30]].tolist())}
        meant = 60 * mask.clamp(max=4) / 255
        apart.append(((pixels[0] - meant).abs() > 0.1).float().mean().item())
    assert max(apart) < 0.2  # but at the edges
    assert len(seen) > 2
    pixels, mask = segmentation_transform(20, [0.5] * 3, [0.5] * 3)(image, rows)
    assert mask[10:, :10].unique().tolist() == [2]
    assert pixels[0, 15, 5] == pytest.approx((120 / 255 - 0.5) / 0.5, abs=1e-5)


def test_a_training_image_depends_on_its_place_alone(tmp_path: Path) -> None:
    data = open_mask_folder(fill(tmp_path, [f"{i}" for i in range(6)], size=(40, 30)), 30)
    apply = segmentation_transform(16, [0.5] * 3, [0.5] * 3, crop_scale=(0.2, 1.0), horizontal_flip=0.5)
    one, other = (TrainingMasks(data.train, apply, seed=3) for _ in range(2))
    first = one[1, 2]
    torch.rand(5)
    other[0, 1]
    for a, b in zip(first, other[1, 2], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[1], one[2, 2][1])


def test_digit_scenes_are_the_same_each_time_and_sound(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_digit_scenes(tmp_path / name, 3, 1, size=40, seed=2)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 9
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "other" / path).read_bytes() for path in files)
    found = open_mask_folder(tmp_path / "one")
    assert found.classes[:2] == ("ground", "0")
    masks = [found.train.pair(i)[1] for i in range(3)]
    assert all({0, 255} < {*np.unique(mask)} <= {*range(11), 255} for mask in masks)
    with pytest.raises(ValueError, match="size must be at least 32"):
        write_digit_scenes(tmp_path / "x", 1, 1, size=8)
