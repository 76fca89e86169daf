"""The loop over the blocks of a pruned model, the same for every model library.

For each block: attention half -> visit (look, score, count, plan, reduce) -> MLP half. Images that keep different
numbers of tokens go on in groups of one size, each a dense batch, and groups of one size are joined again; results are
put back in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from entropatch.config import Stage
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.detour import Detour, detour
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.state import ATTRIBUTE, Pruning, Recorder, Reduced, Watch
from entropatch.surgery.visit import Visit
from entropatch.tokens import Plan, Tokens, join

# Runs block number i on tokens x, which stand for `tokens`: call(i, x, visit).
Call = Callable[[int, Tensor, Visit], Tensor]


@dataclass(frozen=True)
class Stream:
    """Images of one batch on their way through the blocks, with equally many tokens.

    Attributes:
        x: (images, prefix + n, width).
        tokens: what they stand for.
        rows: numbers of these images in the batch, (images,); None for the whole batch.
    """

    x: Tensor
    tokens: Tokens
    rows: Tensor | None = None


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
        self.modules, self.grid = adapter.blocks(model), grid
        self.prefix, self.has_class_token = adapter.num_prefix_tokens(model), adapter.has_class_token(model)
        self.recorder, self.watches = observers.recorder(), observers.watching()
        self.recorded = self.recorder is not None or len(taken) > 0 or followed
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
        for stream in self.streams:
            around = detour(stage, stream.x, stream.tokens)
            entering = stream if around is None else replace(stream, x=around.x, tokens=around.tokens)
            visit = Visit(
                i,
                entering.tokens,
                None if stage is not None and stage.reduction.detours else stage,
                proportional=self.pruning.proportional,
                watches=looking,
                recorded=self.recorded,
                has_class_token=self.has_class_token,
                backend=self.pruning.config.backend,
                rows=stream.rows,
                followers=self.pruning.followers_of(i),
                projection=_projection(self.pruning.adapter, self.modules[i], stage, len(looking) > 0),
            )
            left = _leaving(entering, visit, call(i, entering.x, visit), self.reduced)
            after += left if around is None else [_rejoined(stream, around, left[0], visit, self.reduced)]
        self.streams = after if len(after) == 1 else _regrouped(after)
        if i in self._wanted:
            self.taken[i] = self.streams

    def end(self) -> None:
        """The last block ran."""
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
    blocks: range | None = None,
    taken: Collection[int] = (),
) -> Passed:
    """Run the blocks of a pruned model.

    Args:
        model, x, grid, patches, taken: as of `Passed`.
        call: runs one block; None calls it with its tokens and its visit.
        blocks: which blocks; None for all.
    """
    passed = Passed(model, x, grid, patches=patches, taken=taken)
    pruning, modules, recorded = passed.pruning, passed.modules, passed.recorded

    def plain(i: int, x: Tensor, visit: Visit) -> Tensor:
        return modules[i](x, visit=visit)

    if blocks is not None and blocks.start > 0 and pruning.followers_of(blocks.start):
        raise UnsupportedModelError(
            f"{', '.join(pruning.followers_of(blocks.start))} looks at every block from the first, so the model cannot "
            f"be run from block {blocks.start} on; run it whole."
        )
    sharer = pruning.observers.sharer() if blocks is None and not taken else None
    if sharer is not None:
        begin, streams, reduced = sharer.resume(pruning, recorded)
        if begin:
            passed.streams, passed.reduced, blocks = streams, reduced, range(begin, len(modules))
    for i in range(len(modules)) if blocks is None else blocks:
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
    """One output for each stream as one for the batch, in its order; outputs are tensors or nests of them."""
    if streams[0].rows is None:  # the whole batch; groups that met again are in an order of their own
        return outputs[0]
    rows = torch.cat([stream.rows for stream in streams if stream.rows is not None]).argsort()
    return tree_map(lambda *parts: torch.cat(parts).index_select(0, rows), *outputs)


def padded(streams: Sequence[Stream]) -> list[Tensor]:
    """The tokens of each stream, filled up to the longest with NaN, so that whoever reads the padding notices."""
    longest = max(stream.x.shape[1] for stream in streams)
    return [
        nn.functional.pad(stream.x, (0, 0, 0, longest - stream.x.shape[1]), value=float("nan")) for stream in streams
    ]


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


def _leaving(stream: Stream, visit: Visit, y: Tensor, reduced: list[Reduced]) -> list[Stream]:
    """What a block's output stands for: one stream, or one for each size."""
    streams: list[Stream] = []
    prefix, before = visit.tokens.num_prefix_tokens, visit.tokens
    longest = max(outcome.n for outcome in visit.outcomes)
    if y.shape[1] != prefix + longest:
        raise ValueError(
            f"block {visit.block} returned {y.shape[1]} tokens, but {prefix + longest} were expected: a hook adds or "
            "removes tokens, which cannot be told from patches. Remove it, or entropatch.unprune_ the model."
        )
    for outcome in visit.outcomes:
        rows, plan = outcome.rows, outcome.plan
        part = before if rows is None else before.take(rows)
        tokens = outcome.after(part)
        if visit.patches is not None and visit.stage is not None:
            patches, scores = visit.patches, visit.scores
            if rows is not None:
                patches, scores = (
                    patches.index_select(0, rows),
                    None if scores is None else scores.index_select(0, rows),
                )
            numbers = _numbers(stream.rows, rows)
            reduced.append(Reduced(visit.stage, numbers, scores, patches, part, tokens, plan, visit.backend))
        if rows is None:
            streams.append(replace(stream, x=y, tokens=tokens))
        else:
            x = y.index_select(0, rows)[:, : prefix + outcome.n]
            streams.append(Stream(x, tokens, _numbers(stream.rows, rows)))
    return streams


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


def _rejoined(stream: Stream, around: Detour, left: Stream, visit: Visit, reduced: list[Reduced]) -> Stream:
    """What a block left of those that ran it, and those that went around it."""
    x, tokens = around.back(left.x, left.tokens.carried)
    if visit.recorded:
        patches = stream.x[:, tokens.num_prefix_tokens :]
        plan = Plan(around.plan.kept)  # their representative ends behind the block
        reduced.append(
            Reduced(around.stage, stream.rows, around.scores, patches, around.before, tokens, plan, visit.backend)
        )
    return replace(stream, x=x, tokens=tokens)


def _numbers(batch: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Numbers in the batch of some rows of a stream."""
    if rows is None or batch is None:
        return batch if rows is None else rows
    return batch.index_select(0, rows)


def _regrouped(streams: list[Stream]) -> list[Stream]:
    """Streams of one size joined, by rising size; the whole batch, once it is of one size again, in its order."""
    by_size: dict[int, list[Stream]] = {}
    for stream in streams:
        # Under torch.jit.trace, which counts multiply-adds, sizes are tensors, of which no two are the same key.
        by_size.setdefault(int(stream.tokens.n), []).append(stream)
    joined: list[Stream] = []
    for _, parts in sorted(by_size.items(), key=lambda item: item[0]):
        xs, rows = [part.x for part in parts], [part.rows for part in parts if part.rows is not None]
        joined.append(
            parts[0] if len(parts) == 1 else Stream(torch.cat(xs), join([p.tokens for p in parts], xs), torch.cat(rows))
        )
    if len(joined) > 1:
        return joined
    (whole,) = joined
    assert whole.rows is not None
    order = whole.rows.argsort()
    return [Stream(whole.x.index_select(0, order), whole.tokens.take(order))]
