"""What a criterion may learn of a model before it is pruned: a pass over images that keeps every patch.

A criterion knows no model library, so `entropatch.surgery`, which does, says how such a pass is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# (model, images) -> what the model returns; the tokens that enter each block, (batch, prefix + n, width), with a graph
# from them to that; and how many of them are prefix tokens.
DensePass = Callable[[nn.Module, Tensor], tuple[Any, list[Tensor], int]]
_known: list[DensePass] = []


def offer(dense_pass: DensePass) -> None:
    """Used by `entropatch.surgery`: how a dense pass is made."""
    _known[:] = [dense_pass]


def dense_pass(model: nn.Module, images: Tensor) -> tuple[Any, list[Tensor], int]:
    """What a stock or pruned model returns of images, the tokens that enter its blocks, and how many are no patches."""
    return _known[0](model, images)
