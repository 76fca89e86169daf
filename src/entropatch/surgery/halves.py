"""A pruned model run in two halves, so that what several settings share is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from entropatch.surgery.state import pruning_of, unwrap


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
    pruning, target = pruning_of(model), unwrap(model)
    early = [stage.block for stage in pruning.stages if stage is not None and stage.block < block]
    if early and not pruning.config.keep_rate == 1:
        raise ValueError(f"block must not lie behind a block that reduces, but got {block}, and block {early[0]} does.")
    model_: Any = target
    return model_.run_first(images, block)


def leave_blocks(model: nn.Module, halfway: Halfway) -> Tensor:
    """Run the rest of a pruned model: the normed tokens, as its `forward_features` gives them."""
    pruning_of(model)
    model_: Any = unwrap(model)
    return model_.run_last(halfway)
