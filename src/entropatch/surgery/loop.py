"""The loop over the blocks of a pruned model, the same for every model library.

For each block: attention half -> visit (look, score, count, plan, reduce) -> MLP half. Images that keep different
numbers of tokens go on in groups of one size, each a dense batch, and groups of one size are joined again; results are
put back in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from entropatch.config import Stage
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.detour import detoured, rejoined
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.opening import Opening, unparked
from entropatch.surgery.reduced import Reduced
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.state import ATTRIBUTE, PREFIX, Pruning, Recorder, Watch
from entropatch.surgery.streams import Stream, leaving, regrouped
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens

# Runs block number i on tokens x, which stand for `tokens`: call(i, x, visit).
Call = Callable[[int, Tensor, Visit], Tensor]


class Passed:
    """One forward pass through the blocks of a pruned model, block by block.

    Args:
        model: the pruned model.
        x: the tokens that enter the first block, (batch, prefix + patches, width).
        grid: (H, W), or (T, H, W) of a video: the patch grid of the input.
        patches: how many must enter; None for all of the grid. Fewer under patch dropout.
        taken: blocks whose output is wanted.
        followed: whether the place of every patch is asked for, although nobody records the pass.
        valid: which of the patches are no padding, (batch, patches); None for all.

    Attributes:
        streams: what came out of the last block that ran.
        reduced: what the stages did, in order, if it was recorded.
        taken: what came out of the blocks asked for.
    """

    modules: list[nn.Module]
    grid: tuple[int, ...]
    prefix: int
    has_class_token: bool
    recorder: Recorder | None
    watches: list[Watch]
    recorded: bool
    streams: list[Stream]

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        grid: tuple[int, ...],
        *,
        patches: int | None = None,
        taken: Collection[int] = (),
        followed: bool = False,
        valid: Tensor | None = None,
    ):
        self.pruning: Pruning = vars(model)[ATTRIBUTE]
        adapter, observers = self.pruning.adapter, self.pruning.observers
        own: Any = model._modules.get(PREFIX)
        self.modules, self.grid = adapter.blocks(model), grid
        self.prefix, self.has_class_token = adapter.num_prefix_tokens(model), adapter.has_class_token(model)
        self.recorder, self.watches = observers.recorder(), observers.watching()
        self.recorded = self.recorder is not None or len(taken) > 0 or followed
        self.opening: Opening = Opening(own, len(self.modules), model.training, self.recorded)
        self.reduced: list[Reduced] = []
        self.taken: dict[int, list[Stream]] = {}
        self._wanted = taken
        if not torch.compiler.is_compiling():
            _refuse_stock(self.modules, adapter)
        self.streams = [Stream(x, replace(_entering(x, self.prefix, grid, patches, self.recorded), valid=valid))]
        if self.recorder is not None:
            self.recorder.begin(self.pruning.config, grid, self.prefix)

    def step(self, i: int, call: Call) -> None:
        """Run block number i on all images."""
        looking = [watch for watch in self.watches if watch.blocks is None or i in watch.blocks]
        for watch in looking:  # at each block, since a hook may have run the model on another input meanwhile
            watch.grid = self.grid
        after: list[Stream] = []
        stage = self.pruning.stage(i)
        streams = self._entering(i, stage)
        opened = [stream.tokens.n for stream in streams] != [stream.tokens.n for stream in self.streams]
        for stream in streams:
            entering = detoured(stage, stream)
            visit = Visit(
                i,
                entering.tokens,
                None if stage is not None and (stage.reduction.detours or stage.criterion.before) else stage,
                proportional=self.pruning.proportional,
                watches=looking,
                recorded=self.recorded,
                has_class_token=self.has_class_token,
                backend=self.pruning.config.backend,
                rows=stream.rows,
                followers=self.pruning.followers_of(i),
                projection=_projection(self.pruning.adapter, self.modules[i], stage, len(looking) > 0),
            )
            visit.opened = opened or entering is not stream
            after += leaving(entering, visit, call(i, entering.x, visit), self.reduced)
        self.streams = after if len(after) == 1 else regrouped(after)
        if i == len(self.modules) - 1:
            self.streams = [rejoined(stream, self.reduced if self.recorded else None) for stream in self.streams]
            if self.pruning.closer is not None:
                self.streams = self.opening.closed(self.pruning.closer, self.streams)
        if i in self._wanted:
            self.taken[i] = [rejoined(stream, None) for stream in self.streams]

    def _entering(self, i: int, stage: Stage | None) -> list[Stream]:
        """What enters block number i: less what its stage drops before it; what waited is back, if it is to be."""
        streams = self.streams
        if stage is not None:
            streams = [rejoined(stream, self.reduced if self.recorded else None) for stream in streams]
        if i == len(self.modules) - 1 and self.pruning.parker is not None:
            record = self.reduced if self.recorded else None
            joined = [unparked(stream, self.pruning.parker, i, record) for stream in streams]
            streams = joined if len(joined) == 1 else regrouped(joined)
        return self.opening.opened(stage, streams, self.reduced)

    def end(self) -> None:
        """The last block ran."""
        for learner in self.pruning.observers.learning():
            learner.end(self.opening.notes, self.streams)
        for watch in self.watches:
            watch.grid = self.grid
        if self.recorder is not None:
            self.recorder.end(self.pruning.config, self.grid, self.prefix, self.reduced)


def run_blocks(
    model: nn.Module,
    x: Tensor,
    grid: tuple[int, int],
    call: Call | None = None,
    *,
    patches: int | None = None,
    last: int | None = None,
    taken: Collection[int] = (),
) -> Passed:
    """Run the blocks of a pruned model.

    Args:
        model, x, grid, patches, taken: as of `Passed`.
        call: runs one block; None calls it with its tokens and its visit.
        last: the block after which it ends; None for the last one.
    """
    passed = Passed(model, x, grid, patches=patches, taken=taken)
    pruning, modules, recorded = passed.pruning, passed.modules, passed.recorded

    def plain(i: int, x: Tensor, visit: Visit) -> Tensor:
        return modules[i](x, visit=visit)

    begin = 0
    sharer = pruning.observers.sharer() if last is None and not taken else None
    if sharer is not None:
        begin, streams, reduced = sharer.resume(pruning, recorded)
        if begin:
            passed.streams, passed.reduced = streams, reduced
    for i in range(begin, len(modules) if last is None else last + 1):
        if sharer is not None:
            sharer.keep(pruning, recorded, i, passed.streams, passed.reduced)
        passed.step(i, plain if call is None else call)
    passed.end()
    return passed


def _refuse_stock(modules: Sequence[nn.Module], adapter: Adapter) -> None:
    """Raise RuntimeError for a block that lost its swapped class, or was put in after the model was pruned."""
    for i, block in enumerate(modules):
        if not isinstance(block, SplitBlock) and not adapter.is_swapped(block):
            raise RuntimeError(
                f"block {i} ({type(block).__name__}) of a pruned model is not pruned: it was replaced, its class was "
                "changed, or a copy that shares it was unpruned; call entropatch.prune_ on the model again."
            )


def in_order(streams: Sequence[Stream], outputs: Sequence[Any]) -> Any:
    """One output for each stream as one for the batch, in its order; outputs are tensors or nests of them.

    Tokens, (images, n, width), are filled up to the most with NaN, so that whoever reads the padding notices.
    """
    if streams[0].rows is None:  # the whole batch; groups that met again are in an order of their own
        return outputs[0]
    rows = torch.cat([stream.rows for stream in streams if stream.rows is not None]).argsort()
    return tree_map(lambda *parts: torch.cat(_padded(parts)).index_select(0, rows), *outputs)


def _padded(parts: Sequence[Tensor]) -> list[Tensor]:
    if parts[0].ndim != 3:
        return list(parts)
    longest = max(part.shape[1] for part in parts)
    return [nn.functional.pad(part, (0, 0, 0, longest - part.shape[1]), value=float("nan")) for part in parts]


def _entering(x: Tensor, prefix: int, grid: tuple[int, ...], patches: int | None, followed: bool) -> Tokens:
    n = x.shape[1] - prefix
    if n != (prod(grid) if patches is None else patches):
        left = "" if patches is None else f", of which patch dropout leaves {patches}"
        size = " × ".join(map(str, grid))
        raise ValueError(
            f"{n} tokens beside {prefix} prefix tokens enter the first block, but the grid has {size} patches{left}: "
            "tokens were added or removed before the blocks (prompt tuning, a hook), and could not be "
            "told from patches. Remove what does it, or entropatch.unprune_ the model."
        )
    return Tokens(prefix, n, n, followed=followed, grid=grid if patches is None else None)


def _projection(adapter: Adapter, block: nn.Module, stage: Stage | None, watched: bool) -> Tensor | None:
    """The weight of the output projection, where a criterion asks for it, or somebody who looks may.

    Not the module that has it: compiled code of a single block must not meet itself in what it is given.
    """
    if stage is not None and stage.reduction.needs_scores and stage.criterion.needs_projection:
        return adapter.output_projection(block)
    if watched and not torch.compiler.is_compiling():
        try:
            return adapter.output_projection(block)
        except UnsupportedModelError:
            return None
    return None
