"""How many heads the attention of a block has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.state import pruned_part, pruning_of

_NAMES = ("num_heads", "num_attention_heads")


def heads_of(adapter: Adapter, block: nn.Module) -> int | None:
    """Of a block, wrapped or not; None where its attention does not say."""
    attention = adapter.attention_of(adapter.unwrapped(block))
    return next((getattr(attention, name) for name in _NAMES if hasattr(attention, name)), None)


def fewest_heads(model: nn.Module, blocks: Sequence[int] | None) -> int | None:
    """Of these blocks of a pruned or watched model, None meaning all; None where no attention says."""
    part = pruned_part(model)
    adapter = pruning_of(part).adapter
    there = adapter.blocks(part)
    counts = [heads_of(adapter, there[block]) for block in (range(len(there)) if blocks is None else blocks)]
    return min((count for count in counts if count is not None), default=None)
