"""A pruned model run in two halves, so that what several settings share is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.state import pruned_part, pruning_of


@dataclass(frozen=True)
class Halfway:
    """Images on their way through a model, before a block.

    Attributes:
        x: the tokens that enter it, (batch, prefix + patches, width).
        inputs: what else the blocks are given, as the model's class knows it.
        grid: (H, W), the patch grid.
        block: which block is next.
    """

    x: Tensor
    inputs: Any
    grid: tuple[int, int]
    block: int


def enter_blocks(model: nn.Module, images: Tensor, block: int) -> Halfway:
    """Run a pruned model up to `block`, which must not lie behind a block that reduces.

    Raises:
        ValueError: the model is not pruned, or an earlier block reduces.
    """
    pruning_of(model)
    return _halves_of(model).run_first(images, block)


def leave_blocks(model: nn.Module, halfway: Halfway) -> Tensor:
    """Run the rest of a pruned model: the normed tokens, as its `forward_features` gives them."""
    pruning_of(model)
    return _halves_of(model).run_last(halfway)


def _halves_of(model: nn.Module) -> Any:
    """The pruned model, whose class must have `run_first(images, block)` and `run_last(halfway)`."""
    target = pruned_part(model)
    if not hasattr(target, "run_first"):
        raise UnsupportedModelError(f"{type(target).__name__} cannot be run in halves: its adapter does not offer it.")
    return target
