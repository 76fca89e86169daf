"""The images of a split as tensors, read once and kept in a file, and the random crops that training takes of them.

The images are those named in files/, of the official archive or of a copy in folders.

What is tested is what `entropatch evaluate` sees: the package's own evaluation transform. What is trained on is the
middle square of each image at 8/7 of the model's size, of which every step takes a random crop on the device.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchvision.transforms import v2

from entropatch.data import open_data
from entropatch.data.base import DataSet, LabelledImages, listing_hash
from entropatch.data.loaders import data_config, evaluation_loader, evaluation_transform

FILES = Path(__file__).parent / "files"


def listed(data: str, root: Path, **limits: int) -> DataSet:
    """The images of a data set that its list in files/ names; all of them where it has no list."""
    options = {"split": str(file)} if (file := FILES / f"{data}.txt").is_file() else {}
    return open_data("folder" if (root / "train").is_dir() else data, root, **limits, **options)


def packed(folder: Path, data: str, root: Path, size: int, model: nn.Module, workers: int = 0) -> dict[str, Tensor]:
    """Training images (N, 3, 8/7·size, 8/7·size) in bytes, test images (M, 3, size, size) normalised, and labels.

    Read from the folder's file if a call before has written it for the same images; damaged images are refused.
    """
    opened = listed(data, root)
    names = [str(root.resolve()), listing_hash(opened.train), listing_hash(opened.test)]
    file = folder / f"{data}-{size}-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]}.pt"
    if not file.exists():
        side = size * 8 // 7
        square = v2.Compose([v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side), v2.PILToTensor()])
        train, train_labels = _read(opened.train, square, workers)
        test, test_labels = _read(opened.test, evaluation_transform(data_config(model, size)), workers)
        tensors = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        torch.save(tensors, draft)
        draft.rename(file)
    return torch.load(file, mmap=True)


def _read(images: LabelledImages, transform: object, workers: int) -> tuple[Tensor, Tensor]:
    batches = list(evaluation_loader(images, transform, 64, workers=workers))  # pyright: ignore[reportArgumentType]
    if damaged := [name for batch in batches for name in batch.damaged]:
        raise ValueError(f"{len(damaged)} images are damaged, the first: {damaged[0]}.")
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def random_crops(
    images: Tensor, size: int, scale: tuple[float, float], mean: Tensor, std: Tensor, generator: torch.Generator
) -> Tensor:
    """Random resized crops, half of them mirrored: bytes (B, 3, S, S) -> normalised (B, 3, size, size).

    A crop has a share of the area drawn evenly from `scale` and sides in a ratio drawn log-evenly from 3/4 … 4/3, as
    torchvision's RandomResizedCrop has them, and is sampled bilinearly. The numbers are drawn on the CPU.
    """
    batch = len(images)
    draw = torch.rand(5, batch, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * draw[0]
    ratio = (4 / 3) ** (2 * draw[1] - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(draw[2] < 0.5, -1.0, 1.0)
    zero = torch.zeros(batch)
    x, y = (1 - width) * (2 * draw[3] - 1), (1 - height) * (2 * draw[4] - 1)
    theta = torch.stack((torch.stack((width * mirror, zero, x), 1), torch.stack((zero, height, y), 1)), 1)
    grid = F.affine_grid(theta.to(images.device), [batch, 3, *to_2tuple(size)], align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (pixels - mean) / std
