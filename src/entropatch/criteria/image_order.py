"""The order of the entropy chosen for each image, by how clearly its scores fall into two groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.criteria.renyi import concentration
from entropatch.entropy import check_order


@dataclass(frozen=True)
class PerImageOrder(Criterion):
    """`Renyi(order)` with an order for each image and block: the one whose scores fall into two groups most clearly.

    Pruning splits the patches of an image in two, so the order is taken whose scores are closest to two values: with
    the highest `separability` (Otsu 1979), which neither shift nor scale of the scores changes, so that orders compare
    although their entropies differ in size. Of equal ones the first. Each order beyond the first costs another pass
    over the patches' logits.

    Args:
        orders: to choose from, each in (0, ∞].

    Raises:
        TypeError, ValueError: not a sequence of different orders, or fewer than two.
    """

    orders: tuple[float, ...] = (1.0, 2.0, math.inf)

    def __post_init__(self) -> None:
        given: Any = self.orders
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"orders must be a sequence of orders in (0, ∞], but got {given!r}.")
        orders = tuple(check_order(order) for order in given)
        if len(orders) < 2 or len(set(orders)) < len(orders):
            raise ValueError(
                f"orders must be two or more different ones to choose from, but got {given!r}; use Renyi for one."
            )
        object.__setattr__(self, "orders", orders)

    @property
    def label(self) -> str:
        *some, last = ("∞" if math.isinf(order) else f"{order:.6g}" for order in self.orders)
        return f"Rényi, order {', '.join(some)} or {last} by image"

    def importance(self, attention: BlockAttention) -> Tensor:
        scores = torch.stack([-attention.entropy(order).mean(1) for order in self.orders])
        best = torch.stack([separability(each) for each in scores]).argmax(0)
        return scores[best, torch.arange(scores.shape[1], device=scores.device)]

    def level(self, scores: Tensor) -> Tensor:
        """1 - H / log n, H of the order chosen: 0 where the patch attends evenly, 1 where it attends to one."""
        return concentration(scores)


def separability(scores: Tensor) -> Tensor:
    """How close the scores of each image are to two values: (batch, n) -> (batch,), float64, in [0, 1].

    The variance that the best split into two groups explains, of all: max over j of w (1 - w) (m - m')² / variance,
    with the j highest in one group, w = j / n, and m, m' the means of the two (Otsu 1979). 1 for two values, ¾ for
    evenly spread ones; 0 where all are equal, or one is no number.
    """
    away = scores.double() - scores.double().mean(1, keepdim=True)
    n = scores.shape[1]
    higher = torch.arange(1, n, device=scores.device, dtype=torch.float64)
    # Around their mean the groups' sums are S and -S, so their means differ by S (1/j + 1/(n - j)) = S n / (j (n - j)).
    sums = away.sort(dim=1, descending=True).values.cumsum(1)[:, :-1]
    explained = sums.square() / (higher * (n - higher))
    variance = away.square().mean(1)
    found = explained.amax(1) / variance if n > 1 else torch.zeros_like(variance)
    return found.nan_to_num(nan=0.0)
