"""Scenes made of handwritten digits on textured grounds, with masks that are known exactly: for quick trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from entropatch.data.base import LabelledImages
from entropatch.data.digits import open_digits
from entropatch.data.mask_folders import IGNORED, IMAGES, MASKS, NAMES
from entropatch.data.seeding import derived_seed
from entropatch.records.files import replacing, write_text

CLASSES = ("ground", *map(str, range(10)))


def write_digit_scenes(root: str | Path, train: int, test: int, size: int = 96, seed: int = 0) -> Path:
    """A segmentation folder (`open_mask_folder`) of such scenes: 11 classes, the ground and ten digits.

    One to three of scikit-learn's digits, 8 × 8, enlarged to ¼ … ½ of the side, in colours of their own, on a coarse
    texture with noise. Ink of more than half marks the digit; ink between ¼ and ½ is 255, which does not count. What
    later ones cover of earlier ones is theirs. Digits of training and of test scenes are different ones. The same
    arguments give the same files.

    Args:
        root: made if missing; files of the same names are written anew.
        train, test: how many scenes.
        size: side in pixels, at least 32.
        seed: of all that is drawn.

    Raises:
        ImportError: scikit-learn is not installed. ValueError: a number out of range.
    """
    if size < 32 or train < 1 or test < 1:
        raise ValueError(f"size must be at least 32 and both splits hold a scene, but got {size}, {train}, {test}.")
    root, data = Path(root), open_digits()
    for number, (split, count, digits) in enumerate((("train", train, data.train), ("val", test, data.test))):
        for index in range(count):
            image, mask = digit_scene(digits, size, derived_seed(seed, number, index))
            for folder, picture in ((IMAGES, image), (MASKS, mask)):
                with replacing(root / split / folder / f"{index:05d}.png") as temporary:
                    picture.save(temporary)
    write_text(root / NAMES, "\n".join(CLASSES) + "\n")
    return root


def digit_scene(digits: LabelledImages, size: int, seed: int) -> tuple[Image.Image, Image.Image]:
    """One scene, RGB, and its mask, grey: see `write_digit_scenes`; `digits` are labelled images."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(40, 140, (6, 6, 3), np.uint8))
    pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float64)
    pixels = pixels + draw.normal(0, 12, (size, size, 1))
    numbers = np.zeros((size, size), np.uint8)
    for _ in range(draw.integers(1, 4)):
        which = int(draw.integers(len(digits)))
        side = int(draw.integers(size // 4, size // 2 + 1))
        grey = digits.image(which).convert("L").resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(grey).astype(np.float64) / 255
        top, left = (int(draw.integers(size - side + 1)) for _ in range(2))
        place = (slice(top, top + side), slice(left, left + side))
        colour = draw.integers(150, 256, 3)
        pixels[place] += ink[..., None] * (colour - pixels[place])
        own = numbers[place]
        own[ink > 0.25] = IGNORED
        own[ink > 0.5] = 1 + digits.label(which)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), Image.fromarray(numbers)
