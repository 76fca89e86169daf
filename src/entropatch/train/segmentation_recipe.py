"""How a segmenter is trained: the settings, its optimiser, and whether patches leave at exits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entropatch.config import PruneConfig
from entropatch.criteria import EarlyExit
from entropatch.segmenter import Segmenter
from entropatch.surgery import own_parameters


@dataclass(frozen=True)
class SegmentationRecipe:
    """What is computed in training a segmenter. A small recipe of this package's own, for AdamW and a plain ViT.

    Attributes:
        epochs: in all.
        exit_epochs: how many of them, the last, patches leave at the exits of an `EarlyExit`; before, none leaves and
            the auxiliary heads learn beside. That is the paper's DToP@Finetune, in one run; 0 is its @Direct, where
            patches leave only once the model is trained. None: a quarter of the epochs.
        batch_size: even.
        image_size: side of the square input.
        learning_rate: of the backbone, for this batch size; falls as (1 - t / T)^0.9.
        head_rate: how many times that the heads have, the auxiliary ones too.
        weight_decay: but of biases and norms.
        clip_norm: largest norm of the gradient.
        crop_scale, horizontal_flip: of the random crop's share of the area; probability.
    """

    epochs: int = 20
    exit_epochs: int | None = None
    batch_size: int = 16
    image_size: int = 224
    learning_rate: float = 1e-4
    head_rate: float = 10.0
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    crop_scale: tuple[float, float] = (0.25, 1.0)
    horizontal_flip: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        for name in ("epochs", "batch_size", "image_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but got {value!r}.")
        late = self.exit_epochs
        if late is not None and (isinstance(late, bool) or not isinstance(late, int) or not 0 <= late <= self.epochs):
            raise ValueError(f"exit_epochs must lie in 0 … {self.epochs}, the epochs, but got {late!r}.")
        for name in ("learning_rate", "head_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, but got {value!r}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two shares 0 < low ≤ high ≤ 1, but got {self.crop_scale}.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability, but got {self.horizontal_flip!r}.")

    @property
    def first_exit_epoch(self) -> int:
        """The epoch, from 0, in which patches begin to leave."""
        return self.epochs - (self.epochs // 4 if self.exit_epochs is None else self.exit_epochs)


def optimizer_of(segmenter: Segmenter, recipe: SegmentationRecipe) -> torch.optim.AdamW:
    """AdamW over backbone and heads at their peak learning rates ("peak" of each group)."""
    own = {id(parameter) for parameter in (*own_parameters(segmenter), *segmenter.head.parameters())}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in segmenter.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in own, parameter.ndim < 2), []).append(parameter)
    described = []
    for (of_heads, plain), parameters in groups.items():
        peak = recipe.learning_rate * (recipe.head_rate if of_heads else 1.0)
        decay = 0.0 if plain else recipe.weight_decay
        described.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW(described)


def has_exits(prune: PruneConfig | None) -> bool:
    """Whether patches leave at exits under a setting."""
    return prune is not None and isinstance(prune.criterion, EarlyExit)
