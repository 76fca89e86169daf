"""Entropy and reach of attention over many images, seen one batch at a time; memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.entropy import check_order
from entropatch.extras import require
from entropatch.look.distance import attention_distance
from entropatch.look.observation import observe

BINS = 60


@dataclass(frozen=True)
class BatchStatistics:
    """One batch of images in the unpruned model.

    Attributes:
        maps: entropy of each patch, mean over heads, in nats: (batch, orders, blocks, H, W), float32.
        entropy: entropy per head, mean over images and patches: (orders, blocks, heads), float64.
        distance: attention distance per head, mean over images and query patches, in patches: (blocks, heads), float64.
    """

    maps: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray


def batch_statistics(model: nn.Module, images: Tensor, orders: Sequence[float]) -> BatchStatistics:
    """Entropies and distances of one batch at every block, from one forward pass.

    Args:
        model: as `entropatch.prune_` takes it; left as it was found.
        images: (batch, 3, height, width), prepared as the model wants them.
        orders: each in (0, ∞].

    Raises:
        ValueError: no order, or one out of range.
        UnsupportedModelError: the model cannot be looked into.
    """
    if not orders:
        raise ValueError("orders must name at least one order of the entropy, such as 2.0, but got none.")
    checked = [check_order(order) for order in orders]

    def look(attention: BlockAttention, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entropy = torch.stack([attention.entropy(order) for order in checked], dim=1).float()  # (B, orders, heads, n)
        q, k = (x[:, :, attention.num_prefix_tokens :] for x in (attention.q, attention.k))
        distance = attention_distance(q, k, grid, attention.scale)
        maps = entropy.mean(2).cpu().numpy()
        per_head = entropy.double().mean((0, 3)).cpu().numpy()
        return maps.reshape(*maps.shape[:2], *grid), per_head, distance.double().mean((0, 2)).cpu().numpy()

    maps, entropy, distance = zip(*observe(model, images, look).blocks.values(), strict=True)
    return BatchStatistics(np.stack(maps, axis=2), np.stack(entropy, axis=1), np.stack(distance))


def rank_correlation(entropy: np.ndarray, distance: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of one shape; NaN where one of them is constant or has one value.

    Raises:
        ImportError: SciPy is not installed.
    """
    stats: Any = require("scipy.stats", "figures")
    if entropy.size < 2 or np.ptp(entropy) == 0 or np.ptp(distance) == 0:
        return math.nan
    return float(stats.spearmanr(entropy.ravel(), distance.ravel()).statistic)


class RunningStatistics:
    """Sums and histograms over batches.

    Attributes:
        orders: orders of the entropies.
        images: how many were seen.
        edges: of the histograms' bins in nats, (bins + 1,), from 0 to log n; None before the first batch.
        counts: patches in each bin, of the entropy averaged over heads, which is what pruning ranks by:
            (orders, blocks, bins), int64.
    """

    orders: tuple[float, ...]
    bins: int
    images: int

    def __init__(self, orders: Sequence[float], bins: int = BINS):
        self.orders, self.bins = tuple(orders), bins
        self.images = 0
        self.edges: np.ndarray | None = None
        self.counts: np.ndarray = np.zeros(0, np.int64)
        self._entropy: np.ndarray = np.zeros(0)
        self._distance: np.ndarray = np.zeros(0)

    def add(self, batch: BatchStatistics) -> None:
        """Count a batch in. Raises ValueError for one of another number of orders, blocks, heads or patches."""
        images, orders, blocks, height, width = batch.maps.shape
        if self.edges is None:
            # Every entropy lies in [0, log n] whatever its order, so the bins are known before the images.
            self.edges = np.linspace(0, math.log(height * width) or 1.0, self.bins + 1)
            self.counts = np.zeros((orders, blocks, self.bins), np.int64)
            self._entropy, self._distance = np.zeros_like(batch.entropy), np.zeros_like(batch.distance)
        expected = (len(self.orders), *self._distance.shape)
        if batch.entropy.shape != expected or self.edges[-1] != (math.log(height * width) or 1.0):
            raise ValueError(
                f"all batches must have the same orders, blocks, heads {expected} and patches, "
                f"but got {batch.entropy.shape} and {height * width} patches."
            )
        values = np.clip(batch.maps, 0, self.edges[-1])  # rounding may carry an even attention past log n
        for order in range(orders):
            for block in range(blocks):
                self.counts[order, block] += np.histogram(values[:, order, block], self.edges)[0]
        self._entropy += images * batch.entropy
        self._distance += images * batch.distance
        self.images += images

    @property
    def entropy(self) -> np.ndarray:
        """Entropy per head in nats, mean over images and patches: (orders, blocks, heads)."""
        return self._entropy / self._checked_images()

    @property
    def distance(self) -> np.ndarray:
        """Attention distance per head in patches, mean over images and query patches: (blocks, heads)."""
        return self._distance / self._checked_images()

    def _checked_images(self) -> int:
        if not self.images:
            raise ValueError("no batch was added yet.")
        return self.images
