"""How a model of another library than timm takes its images: by that library's own transform, carried by the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

ATTRIBUTE = "_entropatch_preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """A model's own preprocessing for testing.

    Attributes:
        transform: RGB image -> (3, H, W), float32, as the model takes it: the library's own.
        size: (H, W), in pixels.
        mean, std: what it subtracts and divides by, of values in 0 … 1.
        interpolation: "bicubic", "bilinear", …: how it resizes; for training transforms.
        crop_share: the share of the resized image's short side that is left by the crop; None where the whole image is
            squeezed, or padded, into the input.
    """

    transform: Callable[[Image.Image], Tensor]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_share: float | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Preprocessing:
        return self  # never changed, and shared by the copies of a model

    @property
    def config(self) -> dict[str, Any]:
        """The same in the words of timm's data config."""
        return {
            "input_size": (3, *self.size),
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_share or 1.0,
            "crop_mode": "squash" if self.crop_share is None else "center",
        }

    def tensor(self, image: Image.Image) -> Tensor:
        """An RGB image as the model takes it. Raises ValueError if the transform gives something else."""
        found = self.transform(image)
        if not isinstance(found, Tensor) or found.shape != (3, *self.size):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the model's preprocessing must give {(3, *self.size)} for an image, but gave {shape}.")
        return found.float()

    def pixels(self, image: Image.Image) -> Tensor:
        """The very pixels the model sees, before they are normalised: (3, H, W), uint8."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((self.tensor(image) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def carry(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Let a model, and its copies, carry their own preprocessing."""
    vars(model)[ATTRIBUTE] = preprocessing


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """What the model carries; None for a timm model, whose data config says it."""
    return vars(model).get(ATTRIBUTE)
