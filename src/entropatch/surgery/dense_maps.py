"""Dense maps of what came out of blocks in between, although blocks reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from entropatch.surgery.loop import Passed, in_order
from entropatch.surgery.restoring import to_grid


def dense_maps(
    passed: Passed, blocks: Sequence[int], prefix: int, norm: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Patch maps (batch, H·W, width) and prefix tokens of each of the blocks, both normed.

    A pruned patch shows the last value it had.

    Args:
        passed: a pass of `run_blocks` with these blocks among `taken`.
        blocks: those wanted.
        prefix: how many prefix tokens there are.
        norm: what maps and prefix tokens are put through.
    """
    maps, prefixes = [], []
    for block in blocks:
        streams = passed.taken[block]
        tokens = in_order(streams, [stream.x for stream in streams])
        reduced = [part for part in passed.reduced if part.stage.block <= block]
        maps.append(norm(to_grid(tokens[:, prefix:], reduced, None, nn.Identity())))
        prefixes.append(norm(tokens[:, :prefix]))
    return maps, prefixes
