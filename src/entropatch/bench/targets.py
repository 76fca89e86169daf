"""Rows of a benchmark that are compared at one cost: the keep rate at which each method meets a budget."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch import Tensor, nn

from entropatch.measure import count_flops
from entropatch.measure.budget import rate_for_gflops
from entropatch.measure.variants import Variant, pruned_copy


def meeting(variant: Variant, model: nn.Module, images: Tensor, dense: float, near: float | None = None) -> Variant:
    """The variant at the largest keep rate of four decimals whose multiply-adds are at most its target.

    Args:
        variant: with a target; its method takes a keep rate.
        model: dense.
        images: what multiply-adds are counted on, (batch, channels, H, W).
        dense: 10⁹ multiply-adds per image of the dense model.
        near: a keep rate to begin with, such as another method's at this target.

    Raises:
        BudgetError: no keep rate meets the target, or every one does.
        UnsupportedModelError, ValueError: the model does not allow the method.
    """
    assert variant.target is not None

    @cache
    def gflops(rate: float) -> float:
        config = replace(variant, keep_rate=rate).config()
        return count_flops(pruned_copy(model, config), images).total / 1e9

    return replace(variant, keep_rate=rate_for_gflops(gflops, dense, variant.target, near))
