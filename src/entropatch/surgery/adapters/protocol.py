"""What one model library's file offers to surgery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Adapter(Protocol):
    """All functions take the model, stock or pruned.

    A library's file swaps the classes of a model and of its blocks for subclasses of theirs. The model's subclass gives
    its own loop over the blocks to `entropatch.surgery.loop.run_blocks`; a block's is a `SplitBlock`.

    Attributes:
        supported: the classes that are understood, in words, for refusals.
    """

    supported: str

    def recognises(self, model: nn.Module) -> bool:
        """Whether the model is of a class this file understands, stock or swapped."""
        ...

    def refuse_parts(self, model: nn.Module) -> None:
        """Raise UnsupportedModelError for a part of a stock model that is not understood, by name."""
        ...

    def swap(self, model: nn.Module) -> list[tuple[nn.Module, type]]:
        """Swap the classes of the model and of its blocks that are stock; returns each part with its class before."""
        ...

    def unswap(self, model: nn.Module) -> None:
        """The stock classes again. Raises UnsupportedModelError, changing nothing, where that is not possible."""
        ...

    def is_swapped(self, part: nn.Module) -> bool:
        """Whether a model or a block, past its wrappers, is of a swapped class."""
        ...

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks in the order they run, wrappers included."""
        ...

    def stock_block(self, block: nn.Module) -> type:
        """The class a block has without pruning."""
        ...

    def check_inputs(self, model: nn.Module, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        """Random tokens for a block, (1, prefix + patches, width), and what else the block is given."""
        ...

    def surroundings(self, model: nn.Module) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """The model without its blocks on one image, as the library runs it and as the swapped class does."""
        ...

    def num_prefix_tokens(self, model: nn.Module) -> int: ...
    def has_class_token(self, model: nn.Module) -> bool: ...
    def is_rotary(self, model: nn.Module) -> bool: ...
    def norm(self, model: nn.Module) -> nn.Module:
        """The final norm, which `restore` puts the values of pruned patches through."""
        ...
