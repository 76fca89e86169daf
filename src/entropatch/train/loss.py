"""The training loss: mixed images and soft targets, cross entropy, and optionally the dense teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.data.seeding import seeded
from entropatch.train.recipe import Recipe


class TrainingLoss:
    """timm's Mixup and CutMix, cross entropy on the resulting targets, and distillation from a dense teacher.

    loss = CE(student, target) + w · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

    (Hinton et al. 2015; DynamicViT uses w = 0.5, T = 1.) The teacher sees the mixed images too.
    """

    smoothing: float
    weight: float
    temperature: float
    mixup: Any

    def __init__(self, recipe: Recipe, num_classes: int, teacher: nn.Module | None = None):
        from timm.data.mixup import Mixup

        self.smoothing = recipe.label_smoothing
        self.weight, self.temperature = recipe.distillation, recipe.distillation_temperature
        self.teacher = teacher
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )

    def mix(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images and targets, mixed as the seed says: (batch, …) and (batch,) -> (batch, …) and (batch, classes)."""
        if self.mixup is None:
            return images, labels
        with seeded(seed):
            return self.mixup(images, labels)

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The mean loss over the batch. `targets` are class numbers, or probabilities that are smoothed already."""
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images)  # also where only its tokens are learned from, by the method's own loss
        if not self.weight:
            return loss
        t = self.temperature
        divergence = F.kl_div(
            F.log_softmax(logits.float() / t, dim=-1),
            F.log_softmax(taught.float() / t, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        return loss + self.weight * t**2 * divergence
