"""Uniformly random scores: the floor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores: the honest lower bound for accuracy and upper bound for speed.

    With a seed, the scores depend only on (seed, block, place in the batch, patch): every forward pass, device and
    recomputation under gradient checkpointing drops the same patches. With `seed=None` every call draws anew from
    PyTorch's global generator, as one wants while training.
    """

    knows_padding: ClassVar[bool] = True

    seed: int | None = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (Integral, type(None))):
            raise TypeError(f"seed must be an integer, or None for PyTorch's generator, but got {self.seed!r}.")
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))

    def importance(self, attention: BlockAttention) -> Tensor:
        batch, n, device = attention.q.shape[0], attention.num_patches, attention.q.device
        if self.seed is None:
            return torch.rand(batch, n, device=device)
        rows = torch.arange(batch, device=device)[:, None]
        key = (self.seed * 0x9E3779B1 + attention.block) & 0x7FFFFFFF
        patches = torch.arange(n, device=device)[None]
        return _hash(_hash(_hash(patches) ^ rows) ^ key).float()


def _hash(x: Tensor) -> Tensor:
    """A 31-bit integer hash (multiply and xor-shift rounds), the same on every device."""
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * multiplier) & 0x7FFFFFFF
    return x ^ (x >> 15)
