"""Looking into a model during one forward pass, and leaving it as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.surgery import Trace, is_pruned, prune_, pruning_config, run_images, trace, unprune_, watch
from entropatch.tokens import Tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Observation(Generic[T]):
    """What was seen in one forward pass.

    Attributes:
        grid: (H, W), the patch grid.
        blocks: what `look` returned for each block, by its 0-based index, ascending.
    """

    grid: tuple[int, int]
    blocks: dict[int, T]


def observe(
    model: nn.Module,
    images: Tensor,
    look: Callable[[BlockAttention, tuple[int, int]], T],
    blocks: Sequence[int] | None = None,
) -> Observation[T]:
    """Run the unpruned model once and look at the attention of its blocks.

    Args:
        model: as `entropatch.prune_` takes it, stock or pruned; left as it was found.
        images: (batch, 3, height, width), prepared as the model wants them.
        look: called with each block's attention and the patch grid (H, W), without gradients. What it returns is kept,
            so it should be small.
        blocks: 0-based blocks, ascending; None means all of them.

    Raises:
        ValueError: a block out of range.
        UnsupportedModelError: the model cannot be pruned, and so not be looked into either.
    """
    found: dict[int, T] = {}

    def keep(attention: BlockAttention, tokens: Tokens) -> None:
        found[attention.block] = look(attention, _of_images(seen.grid))

    with left_as_found(model):
        prune_(model, PruneConfig(keep_rate=1.0))
        with torch.inference_mode(), watch(model, blocks, keep) as seen:
            _forward(model, images)
    return Observation(_of_images(seen.grid), dict(sorted(found.items())))


def run(model: nn.Module, images: Tensor, config: PruneConfig) -> Trace:
    """The trace of one forward pass under `config`. Errors as of `prune_`."""
    with left_as_found(model):
        prune_(model, config)
        with torch.inference_mode(), trace(model) as seen:
            _forward(model, images)
    return seen


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the model is pruned, or not, and in training mode, or not, as before."""
    before = pruning_config(model) if is_pruned(model) else None
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        if before is not None:
            prune_(model, before)
        elif is_pruned(model):
            unprune_(model)


def grid_of(seen: Trace) -> tuple[int, int]:
    """The patch grid (H, W) of the forward pass that a trace saw."""
    return _of_images(seen.grid)


def _of_images(grid: tuple[int, ...] | None) -> tuple[int, int]:
    if grid is None:
        raise RuntimeError("the model ran without saying what its patch grid is.")
    if len(grid) != 2:
        raise ValueError(f"only what images show can be looked at, but the grid is {grid}: that of a video.")
    return grid[0], grid[1]


def _forward(model: nn.Module, images: Tensor) -> None:
    parameter = next(model.parameters())
    run_images(model, images.to(parameter.device, parameter.dtype))
