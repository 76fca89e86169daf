"""Looking at the attention of a model's blocks while it runs: `watch`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.surgery.prune import block_count, prune_, unprune_
from entropatch.surgery.state import Observers, Watch, is_pruned, pruning_of, remove, this_thread
from entropatch.tokens import Tokens

_LOCK = threading.RLock()  # watches of one stock model may open and close in several threads


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
    again after its last watch, unless it was pruned meanwhile. What `look` does not ask the attention for is never
    computed. Forward passes of the thread that opened the watch are seen; no other thread may run a stock model while
    its first watch opens or its last one closes. Under gradient checkpointing a block runs again for its gradients:
    with `gradients` it is looked at again then, otherwise not.

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
    watching = Watch(look, None if blocks is None else frozenset(blocks), gradients, this_thread())
    observers = _open(model, watching)
    try:
        yield watching
    finally:
        _close(model, observers, watching)


def _open(model: nn.Module, watching: Watch) -> Observers:
    with _LOCK:
        if not is_pruned(model):
            lent = PruneConfig(keep_rate=1.0)
            prune_(model, lent)
            pruning_of(model).observers.lent = lent
        observers = pruning_of(model).observers
        observers.watches.append(watching)
    return observers


def _close(model: nn.Module, observers: Observers, watching: Watch) -> None:
    """The last watch of a stock model gives it back, unless somebody pruned it meanwhile."""
    with _LOCK:
        remove(observers.watches, watching)
        lent = observers.lent
        if lent is not None and not observers.watches and is_pruned(model) and pruning_of(model).config is lent:
            unprune_(model)
