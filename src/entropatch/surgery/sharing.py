"""Forward passes of one batch under several settings, which share the blocks before the first difference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from entropatch.config import Stage
from entropatch.schedule import KeepRate
from entropatch.surgery.state import Pruning, among, pruning_of, this_thread


class Shared:
    """What entered the reducing blocks of one batch's forward passes; handed to `sharing` for each of them.

    A pass begins at the last block for which all stages before it are those of an earlier pass. The batch, the model's
    weights and what else decides its output must be the same for all; nothing of it is checked.

    Args:
        bytes_held: the most that is kept; what was not asked for longest goes first.
    """

    bytes_held: int
    thread: int
    blocks_run: int
    blocks_skipped: int

    def __init__(self, bytes_held: int = 2**28):
        self.bytes_held, self.thread = bytes_held, this_thread()
        self.blocks_run = self.blocks_skipped = 0
        self._held: OrderedDict[Hashable, tuple[int, list[Any], list[Any]]] = OrderedDict()

    def resume(self, pruning: Pruning, recorded: bool) -> tuple[int, list[Any], list[Any]]:
        """The block to begin with, the streams that enter it, and what earlier stages did; (0, [], []) for none."""
        for block in range(len(pruning.stages), 0, -1):
            for proportional in (None, pruning.proportional):
                key = self._key(pruning, block, recorded, proportional)
                if key in self._held:
                    self._held.move_to_end(key)
                    _, streams, reduced = self._held[key]
                    self.blocks_skipped += block
                    return block, streams, list(reduced)
        return 0, [], []

    def keep(
        self, pruning: Pruning, recorded: bool, block: int, streams: Sequence[Any], reduced: Sequence[Any]
    ) -> None:
        """Hold what enters a block, if it reduces."""
        self.blocks_run += 1
        if block == 0 or pruning.stage(block) is None:
            return
        # Where nothing was merged, attention that counts sizes is the same as one that does not.
        sized = any(stream.tokens.sizes is not None for stream in streams)
        key = self._key(pruning, block, recorded, pruning.proportional if sized else None)
        size = sum(stream.x.nbytes for stream in streams) + sum(part.tokens.nbytes for part in reduced)
        if key in self._held or size > self.bytes_held:
            return
        self._held[key] = size, list(streams), list(reduced)
        while sum(held[0] for held in self._held.values()) > self.bytes_held:
            self._held.popitem(last=False)

    def _key(self, pruning: Pruning, block: int, recorded: bool, proportional: bool | None) -> Hashable:
        before = tuple(_alone(stage) for stage in pruning.stages[:block] if stage is not None)
        return block, before, recorded, proportional, tuple(pruning.followers_of(block))


@contextmanager
def sharing(model: nn.Module, shared: Shared) -> Iterator[Shared]:
    """Let the forward passes of a pruned model inside the block begin where `shared` allows, and add to it.

    Not with gradients, nor while somebody watches the blocks, which then run whole.

    Raises:
        ValueError: the model is not pruned.
    """
    with among(pruning_of(model).observers.shared, shared):
        yield shared


def _alone(stage: Stage) -> Stage:
    """A stage without what it does not depend on: at a keep rate, how many stages there are."""
    return replace(stage, index=0, count=0, share=1.0) if stage.schedule == KeepRate() else stage
