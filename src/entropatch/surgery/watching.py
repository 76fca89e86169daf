"""Looking at the attention of a model's blocks while it runs: `watch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.surgery.prune import block_count, prune_, unprune_
from entropatch.surgery.state import Watch, among, is_pruned, pruning_of, this_thread
from entropatch.tokens import Tokens


@contextmanager
def watch(
    model: nn.Module,
    blocks: Sequence[int] | None = None,
    look: Callable[[BlockAttention, Tokens], object] | None = None,
    *,
    gradients: bool = False,
) -> Iterator[Watch]:
    """Call `look` with each block's attention whenever the model runs inside the `with` block.

    A pruned model is watched as it prunes; a stock model keeps all its patches and its outputs, and is a stock model
    again afterwards. What `look` does not ask the attention for is never computed. Forward passes of the thread that
    opened the watch are seen.

    Args:
        model: as `entropatch.prune_` takes it, stock or pruned.
        blocks: 0-based blocks; None means all of them.
        look: called with the `BlockAttention` of each, and with the `Tokens` that say what its tokens stand for.
        gradients: whether what `look` computes, such as `attention.entropy(1.0)`, shall carry gradients.

    Yields:
        A `Watch`; its `grid` is the patch grid (H, W) of the last input.

    Raises:
        ValueError: a block out of range, or no `look`.
        UnsupportedModelError: the model cannot be pruned, and so not be watched either.

    Example:
        >>> entropies = {}
        >>> with entropatch.watch(model, (3, 6), lambda a, tokens: entropies.update({a.block: a.entropy(1.0)})):
        ...     model(images)
    """
    if look is None:
        raise ValueError("look must be a function of a block's attention and its tokens, but got none.")
    depth = block_count(model)
    if blocks is not None and any(block not in range(depth) for block in blocks):
        raise ValueError(f"blocks must lie in 0 … {depth - 1}, but got {tuple(blocks)}.")
    stock = not is_pruned(model)
    if stock:
        prune_(model, PruneConfig(keep_rate=1.0))
    try:
        wanted = None if blocks is None else frozenset(blocks)
        with among(pruning_of(model).observers.watches, Watch(look, wanted, gradients, this_thread())) as watching:
            yield watching
    finally:
        if stock and is_pruned(model):
            unprune_(model)
