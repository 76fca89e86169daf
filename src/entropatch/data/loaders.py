"""From labelled images to batches of tensors: timm's transforms, PyTorch's loader, damaged images counted.

With `workers` above 0 images are read by processes of PyTorch's `DataLoader`. On Linux it forks them (before Python
3.14), and each computes on one thread: in a forked process an operator on several OpenMP threads hangs for ever in
PyTorch itself, once the parent has run a forward pass. A transform or data set of one's own must therefore not call
`torch.set_num_threads` there; `torch.multiprocessing.set_start_method("spawn")` before the first loader avoids forks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from entropatch.data.base import DataError, LabelledImages
from entropatch.data.batches import TrainingBatches
from entropatch.data.preprocessing import preprocessing_of
from entropatch.data.seeding import derived_seed, seeded

# After so many damaged images in a row the folder, not an image, is at fault.
MOST_IN_A_ROW = 10

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images (batch, 3, height, width), labels (batch,), and the names of the damaged images met on the way.

    `sound` tells for each image that was asked for, in order, whether it is among them; None: all of them are.
    """

    images: Tensor
    labels: Tensor
    damaged: tuple[str, ...] = ()
    sound: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Called by PyTorch's loader."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.damaged, self.sound)


def data_config(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Mean, standard deviation, interpolation and crop of the model, in timm's words, at this image size.

    Raises ValueError where the model carries a preprocessing for another size.
    """
    own = preprocessing_of(model)
    if own is not None:
        if own.size != (image_size, image_size):
            raise ValueError(
                f"the model takes images of {own.size} pixels, but image_size is {image_size}; load it for that size."
            )
        return own.config
    from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    return resolve_model_data_config(model) | {"input_size": (3, image_size, image_size)}


def training_transform(
    config: dict[str, Any],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    horizontal_flip: float = 0.5,
    random_erasing: float = 0.0,
    auto_augment: str | None = None,
    color_jitter: float = 0.0,
) -> Transform:
    """timm's training transform: random resized crop of `scale` of the area, flip, and what is above zero."""
    from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]

    transform: Any = create_transform(
        input_size=config["input_size"],
        is_training=True,
        scale=scale,
        hflip=horizontal_flip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        re_prob=random_erasing,
        re_mode="pixel",
    )
    return transform


def evaluation_transform(config: dict[str, Any]) -> Transform:
    """timm's test transform: resize, centre crop, normalise."""
    from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]

    transform: Any = create_transform(**config, is_training=False)
    return transform


def evaluation_transform_of(model: nn.Module, image_size: int) -> Transform:
    """The test transform of a model: timm's, or the one it carries. Errors as of `data_config`."""
    own, config = preprocessing_of(model), data_config(model, image_size)
    return evaluation_transform(config) if own is None else own.tensor


class TrainingImages(Dataset[Any]):
    """Augmented images by (epoch, number), each with random numbers of its own, so that order and place do not matter.

    A damaged image is replaced by the next sound one of the list, and its name comes along. Ten next to each other
    (`MOST_IN_A_ROW`) raise `DataError`, since then the data set is at fault.
    """

    images: LabelledImages
    transform: Transform
    seed: int

    def __init__(self, images: LabelledImages, transform: Transform, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, tuple[str, ...]]:
        epoch, number = key
        damaged: list[str] = []
        for step in range(min(MOST_IN_A_ROW, len(self.images))):
            place = (number + step) % len(self.images)
            image = _sound_image(self.images, place)
            if image is not None:
                with seeded(derived_seed(self.seed, epoch, number)):
                    return self.transform(image), self.images.label(place), tuple(damaged)
            damaged.append(self.images.name(place))
        raise DataError(f"{len(damaged)} images in a row are damaged; repair the data set. The first: {damaged[0]}.")


class EvaluationImages(Dataset[Any]):
    """Images as they are tested. A damaged one is None, so that it is not counted, and its name comes along."""

    images: LabelledImages
    transform: Transform

    def __init__(self, images: LabelledImages, transform: Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor | None, int, tuple[str, ...]]:
        image = _sound_image(self.images, number)
        if image is None:
            return None, -1, (self.images.name(number),)
        return self.transform(image), self.images.label(number), ()


def training_loader(
    images: LabelledImages, transform: Transform, batches: TrainingBatches, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """Yields a `Batch` for each piece that `batches` plans; `workers` processes read ahead (see above on forks)."""
    return DataLoader(
        TrainingImages(images, transform, batches.seed),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader draws from the global random numbers
    )


def evaluation_loader(
    images: LabelledImages,
    transform: Transform,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Yields each image once, in order; with several processes each gets every `processes`-th, none twice.

    `workers` processes read ahead (see above on forks).
    """
    return DataLoader(
        EvaluationImages(images, transform),
        batch_size=batch_size,
        sampler=range(process, len(images), processes),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def collate(samples: Sequence[tuple[Tensor | None, int, tuple[str, ...]]]) -> Batch:
    """A batch of the sound samples; empty if there is none."""
    sound = [(image, label) for image, label, _ in samples if image is not None]
    images = torch.stack([image for image, _ in sound]) if sound else torch.empty(0)
    labels = torch.tensor([label for _, label in sound], dtype=torch.long)
    damaged = tuple(name for _, _, names in samples for name in names)
    return Batch(images, labels, damaged, torch.tensor([image is not None for image, _, _ in samples]))


def _sound_image(images: LabelledImages, number: int) -> Image.Image | None:
    """The image, or None if it is damaged. A missing file or a failing disk is an error, not a damaged image."""
    from entropatch.data.images import ImageError

    try:
        return images.image(number)
    except ImageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
            raise error.__cause__ from error
        return None
