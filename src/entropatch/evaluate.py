"""How well and how fast: top-1, top-5, multiply-adds and images per second, dense beside pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from entropatch.data.loaders import Batch


@dataclass(frozen=True)
class Correct:
    """Counts of one pass over a test set, or of one process's share of it.

    Attributes:
        top1, top5: images whose class was the first, or among the first five, of the scores.
        images: images tested. Damaged ones are not among them.
        damaged: names of the images that could not be read.
    """

    top1: int
    top5: int
    images: int
    damaged: tuple[str, ...] = ()

    @property
    def top1_percent(self) -> float:
        return 100 * self.top1 / self.images

    @property
    def top5_percent(self) -> float:
        return 100 * self.top5 / self.images


def count_correct(
    model: nn.Module,
    batches: Iterable[Batch],
    device: str | torch.device = "cpu",
    on_batch: Callable[[], None] | None = None,
) -> Correct:
    """Test a model, in eval mode and without gradients; its mode is put back afterwards.

    A prediction counts by how many classes score higher than the right one, and classes that score the same and come
    before it in order: ties go to the lower class, on every device.

    Args:
        model: images (batch, 3, H, W) -> scores (batch, classes).
        batches: as `entropatch.data.evaluation_loader` yields them.
        device: where the model is.
        on_batch: called after each batch.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    top1 = top5 = images = 0
    damaged: list[str] = []
    try:
        with torch.no_grad():  # not inference mode: what a model caches must stay usable in training
            for batch in batches:
                damaged += batch.damaged
                if len(batch.labels):
                    labels = batch.labels.to(device, non_blocking=True)
                    place = _rank(model(batch.images.to(device, non_blocking=True)).float(), labels)
                    top1 += int((place < 1).sum())
                    top5 += int((place < 5).sum())
                    images += len(labels)
                if on_batch is not None:
                    on_batch()
    finally:
        for module, training in modes.items():
            module.training = training
    return Correct(top1, top5, images, tuple(damaged))


def _rank(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one: (batch, classes), (batch,) -> (batch,). A NaN never wins."""
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    right = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    before = (scores > right) | ((scores == right) & earlier)
    # A row without any finite score has no prediction: it counts as wrong.
    lost = torch.isneginf(right[:, 0])
    return before.sum(1) + lost * scores.shape[1]
