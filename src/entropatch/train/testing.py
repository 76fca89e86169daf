"""Accuracy on the test set, over all processes of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from entropatch.measure.evaluation import Correct, count_correct


def tested(model: nn.Module, testing: DataLoader, accelerator: Any) -> Correct:
    """Top-1 and top-5 of a model over the whole test set, each process testing its share.

    Raises:
        ValueError: no image could be read.
    """
    with accelerator.autocast():
        part = count_correct({"": model}, testing, accelerator.device)[""]
    counts = torch.tensor([part.top1, part.top5, part.images], device=accelerator.device)
    top1, top5, images = accelerator.reduce(counts, "sum").tolist()
    damaged = tuple(gathered(list(part.damaged)))
    if not images:
        raise ValueError(f"no image of the test set could be read, of {len(damaged)}; the first: {damaged[0]}.")
    return Correct(top1, top5, images, damaged)


def gathered(names: list[str]) -> list[str]:
    """The lists of all processes as one."""
    from accelerate.utils import gather_object

    return gather_object(names)
