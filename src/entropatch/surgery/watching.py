"""Looking at the attention of a model's blocks while it runs: `watch`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

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
        ValueError: a block out of range. TypeError: `look` is no function, or `blocks` are no numbers.
        UnsupportedModelError: the model cannot be pruned, and so not be watched either.

    Example:
        >>> entropies = {}
        >>> with entropatch.watch(model, (3, 6), lambda a, tokens: entropies.update({a.block: a.entropy(1.0)})):
        ...     model(images)
    """
    if not callable(look):
        raise TypeError(f"look must be a function of a block's attention and its tokens, but got {look!r}.")
    depth = block_count(model)
    chosen = None if blocks is None else frozenset(checked_numbers("blocks", blocks, depth))
    watching = Watch(look, chosen, gradients, this_thread())
    observers = _open(model, watching)
    try:
        yield watching
    finally:
        _close(model, observers, watching)


def checked_numbers(name: str, given: Any, count: int | None) -> tuple[int, ...]:
    """Blocks or heads as they were given, of which there are `count` (None: that is not known).

    Raises:
        ValueError: one is out of range. TypeError: they are no sequence of numbers.
    """
    numbers = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
    if numbers is None or any(isinstance(one, bool) or not isinstance(one, Integral) for one in numbers):
        alone = f"; for one alone write ({given},)" if isinstance(given, Integral) else ""
        got = repr(given if numbers is None else numbers)
        raise TypeError(f"{name} must be numbers such as (0, 2), or None for all, but got {got}{alone}.")
    if any(one < 0 or (count is not None and one >= count) for one in numbers):
        where = "be 0-based" if count is None else f"lie in 0 … {count - 1}"
        raise ValueError(f"{name} must {where}, but got {numbers}.")
    return tuple(int(one) for one in numbers)


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
