"""Whom a reduction takes first where scores alone do not say: the best of each cell, or those already chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from entropatch.tokens import highest


def covering(scores: Tensor, positions: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Priorities by which `select` takes the best patch of each cell of the grid before any second one.

    The grid of original patches is cut into cells of side × side from its upper left corner; cells at the right and
    the lower edge are smaller where the grid is not divisible. The best patch of a cell is the present one with the
    highest score, of equal ones that with the lower index. First come the cells' best by their scores, then all others
    by theirs: where k is below the number of cells that hold a patch, the best k of the cells' best stay. Each image
    for itself.

    Args:
        scores: importance of the tokens present, (batch, n), larger = keep.
        positions: the original patch at which each stands, (batch, n), int64; -1 for a token at no place, which is in
            no cell.
        grid: (H, W), in patches.
        side: of a cell, in patches.

    Returns:
        Whole numbers, all different, (batch, n), float32 (exact up to 2²³ tokens); only their order means anything.
    """
    n = scores.shape[1]
    order = highest(scores, n)
    ranks = torch.arange(n, device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, ranks)
    rows, columns = (-(-length // side) for length in grid)
    cell = positions // grid[1] // side * columns + positions % grid[1] // side
    nowhere = positions < 0
    cell = torch.where(nowhere, rows * columns, cell)  # a cell of its own, without a best
    first = rank.new_full((scores.shape[0], rows * columns + 1), n).scatter_reduce(1, cell, rank, "amin")
    best = (rank == first.gather(1, cell)) & ~nowhere
    return -(rank + torch.where(best, 0, n)).float()


def preferring(scores: Tensor, first: Tensor) -> Tensor:
    """Priorities by which `select` takes the tokens `first` marks before any other, each part by its scores.

    Both (batch, n), `first` bool; whole numbers, all different, float32, as in `covering`.
    """
    n = scores.shape[1]
    order = highest(scores, n)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(n, device=scores.device).expand_as(order))
    return -(rank + torch.where(first, 0, n)).float()
