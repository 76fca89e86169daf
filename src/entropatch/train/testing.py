"""Accuracy on the test set, over all processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from entropatch.measure.evaluation import Correct, count_correct
from entropatch.records.correct import Bits


def tested(model: nn.Module, testing: DataLoader[Any], accelerator: Any, on_batch: Callable[[], None]) -> Correct:
    """Top-1 and top-5 of a model over the whole test set, each process testing every so many-th image.

    `on_batch` is called after each batch of this process.

    Raises:
        ValueError: no image could be read.
    """
    with accelerator.autocast():
        part = count_correct({"": model}, testing, accelerator.device, on_batch=on_batch)[""]
    counts = torch.tensor([part.top1, part.top5, part.images], device=accelerator.device)
    top1, top5, images = accelerator.reduce(counts, "sum").tolist()
    damaged = tuple(gathered(list(part.damaged)))
    if not images:
        raise ValueError(f"no image of the test set could be read, of {len(damaged)}; the first: {damaged[0]}.")
    shares = gathered([(accelerator.process_index, part.right, part.tested)])
    right, tested = (_interleaved({share[0]: share[which] for share in shares}) for which in (1, 2))
    return Correct(top1, top5, images, damaged, right, tested)


def _interleaved(shares: dict[int, Bits]) -> Bits:
    """The shares of all processes in the order of the list, of which process p has the images p, p + P, …"""
    whole = np.zeros(sum(map(len, shares.values())), bool)
    for process, share in shares.items():
        whole[process :: len(shares)] = share
    return whole


def gathered(names: list[Any]) -> list[Any]:
    """The lists of all processes as one."""
    from accelerate.utils import gather_object

    return gather_object(names)
