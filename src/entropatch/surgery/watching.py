"""Looking at the attention of a model's blocks while it runs: `watch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.surgery.prune import block_count, prune_, unprune_
from entropatch.surgery.state import ATTRIBUTE, Watch, among, is_pruned, pruning_of, this_thread, unwrap
from entropatch.tokens import Tokens


@contextmanager
def watch(
    model: nn.Module,
    blocks: Sequence[int] | None,
    look: Callable[[BlockAttention, Tokens], object],
    *,
    gradients: bool = False,
) -> Iterator[Watch]:
    """Call `look` with each block's attention whenever the model runs inside the `with` block.

    A pruned model is watched as it prunes; a stock model keeps all its patches and its outputs, and is a stock model
    again when the last watch ends, unless it was pruned meanwhile. What `look` does not ask the attention for is never
    computed. Forward passes of the thread that opened the watch are seen.

    Args:
        model: as `entropatch.prune_` takes it, stock or pruned.
        blocks: 0-based blocks; None means all of them.
        look: called with the `BlockAttention` of each, and with the `Tokens` that say what its tokens stand for.
        gradients: whether what `look` computes, such as `attention.entropy(1.0)`, shall carry gradients.

    Yields:
        A `Watch`; its `grid` is the patch grid (H, W) of the last input.

    Raises:
        ValueError: a block out of range. TypeError: `look` is no function.
        UnsupportedModelError: the model cannot be pruned, and so not be watched either.

    Example:
        >>> entropies = {}
        >>> with entropatch.watch(model, (3, 6), lambda a, tokens: entropies.update({a.block: a.entropy(1.0)})):
        ...     model(images)
    """
    if not callable(look):
        raise TypeError(f"look must be a function of a block's attention and its tokens, but got {look!r}.")
    depth = block_count(model)
    if blocks is not None and any(block not in range(depth) for block in blocks):
        raise ValueError(f"blocks must lie in 0 … {depth - 1}, but got {tuple(blocks)}.")
    if not is_pruned(model):
        prune_(model, PruneConfig(keep_rate=1.0))
        vars(unwrap(model))[ATTRIBUTE] = replace(pruning_of(model), temporary=True)
    try:
        wanted = None if blocks is None else frozenset(blocks)
        with among(pruning_of(model).observers.watches, Watch(look, wanted, gradients, this_thread())) as watching:
            yield watching
    finally:
        if is_pruned(model) and pruning_of(model).temporary and not pruning_of(model).observers.watches:
            unprune_(model)
