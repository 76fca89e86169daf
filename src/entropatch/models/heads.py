"""Modules around a model of another library, so that images go in and one tensor comes out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ImageModel(nn.Module):
    """A transformers model: images -> the scores of its classes, or where it has none what it pools."""

    model: nn.Module
    num_classes: int

    entropatch_tower: ClassVar[str] = "model"

    def __init__(self, model: nn.Module, num_classes: int):
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, images: Tensor) -> Tensor:
        output: Any = self.model(pixel_values=images)
        for name in ("logits", "image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None:
                return getattr(output, name)
        return output.last_hidden_state.mean(1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        what = "enable" if enable else "disable"
        newer = getattr(self.model, f"activation_checkpointing_{what}", None)
        (newer or getattr(self.model, f"gradient_checkpointing_{what}"))()


class ZeroShotClassifier(nn.Module):
    """A tower of OpenCLIP's and what its text tower makes of the classes: images -> scale · cosine with each class.

    Args:
        visual: the image tower.
        classes: unit vectors, (width, classes).
        scale: exp of the model's logit scale.
    """

    visual: nn.Module
    scale: float
    num_classes: int

    entropatch_tower: ClassVar[str] = "visual"
    classes: Tensor

    def __init__(self, visual: nn.Module, classes: Tensor, scale: float):
        super().__init__()
        self.visual, self.scale, self.num_classes = visual, scale, classes.shape[1]
        self.register_buffer("classes", classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * F.normalize(pooled(self.visual(images)), dim=-1) @ self.classes


class TowerClassifier(nn.Module):
    """A tower of OpenCLIP's with a new linear classifier, to be trained."""

    visual: nn.Module
    num_classes: int
    head: nn.Linear

    entropatch_tower: ClassVar[str] = "visual"

    def __init__(self, visual: nn.Module, width: int, num_classes: int):
        super().__init__()
        self.visual, self.num_classes = visual, num_classes
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(pooled(self.visual(images)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        visual: Any = self.visual
        visual.set_grad_checkpointing(enable)


def pooled(output: Any) -> Tensor:
    """The pooled output of a tower, which may give its tokens beside it."""
    features = output[0] if isinstance(output, tuple) else output
    return torch.as_tensor(features)
