"""Calibration in several processes, each with its share of every batch of images."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_count() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of(batch: Tensor) -> Tensor:
    """Every n-th image, this process's."""
    rank, count = rank_and_count()
    return batch[rank::count]


def gathered(values: np.ndarray) -> np.ndarray:
    """Values of all processes' images, in the order of the whole batch."""
    _, count = rank_and_count()
    if count == 1:
        return values
    parts: list[np.ndarray] = [values] * count
    dist.all_gather_object(parts, values)
    whole = np.empty(sum(map(len, parts)), dtype=values.dtype)
    for rank, part in enumerate(parts):
        whole[rank::count] = part
    return whole


def from_first(value: T) -> T:
    """What the first process holds, in all of them."""
    if rank_and_count()[1] == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]
