"""Recording a pruned model at work: `trace`, and `restore` back to the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.surgery.reduced import Reduced
from entropatch.surgery.restoring import to_grid
from entropatch.surgery.stage_record import StageRecord, short
from entropatch.surgery.state import among, pruned_part, pruning_of, this_thread


class Trace:
    """What every stage did in the most recent forward pass under `entropatch.trace`.

    Attributes:
        config: the pruning setting of the last forward pass.
        grid: (H, W), or (T, H, W) of a video: the patch grid of the last input; None before the first forward pass.
        stages: one `StageRecord` per pruning block, in order.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        thread: identifier of the thread that opened the trace, whose forward passes it records.
    """

    config: PruneConfig
    num_prefix_tokens: int
    thread: int

    def __init__(self, config: PruneConfig, num_prefix_tokens: int, norm: nn.Module):
        self.config = config
        self.num_prefix_tokens = num_prefix_tokens
        self.grid: tuple[int, ...] | None = None
        self.thread = this_thread()
        self._norm = norm
        self._reduced: list[Reduced] = []

    def __repr__(self) -> str:
        if self.grid is None:
            return "Trace(no forward pass yet)"
        counts = " -> ".join(short(counts) for counts in self.counts)
        return f"Trace({_times(self.grid)} patches, {self.config.label}, {counts or 'no stages'})"

    def begin(self, config: PruneConfig, grid: tuple[int, ...], num_prefix_tokens: int) -> None:
        """Used by the model: a forward pass begins, and what was recorded before is forgotten."""
        self.config, self.grid, self.num_prefix_tokens = config, grid, num_prefix_tokens
        self._reduced = []

    def end(self, config: PruneConfig, grid: tuple[int, ...], num_prefix_tokens: int, reduced: list[Reduced]) -> None:
        """Used by the model: what the stages did. Of passes inside one another the outermost ends last, and counts."""
        self.config, self.grid, self.num_prefix_tokens = config, grid, num_prefix_tokens
        self._reduced = reduced

    def again(self) -> Callable[[], None]:
        """Used by the model: a function that brings back what is recorded now, whatever runs in between."""
        config, grid, prefix, reduced = self.config, self.grid, self.num_prefix_tokens, self._reduced
        return lambda: None if grid is None else self.end(config, grid, prefix, reduced)

    @property
    def stages(self) -> list[StageRecord]:
        by_block: dict[int, list[Reduced]] = {}
        for reduced in self._reduced:
            by_block.setdefault(reduced.stage.block, []).append(reduced)
        return [StageRecord(by_block[block]) for block in sorted(by_block)]

    @property
    def kept(self) -> list[Tensor]:
        """Original numbers of the patches kept after each stage: a list of (batch, k)."""
        return [stage.kept for stage in self.stages]

    @property
    def scores(self) -> list[Tensor | None]:
        """Importance of the patches present at each stage: a list of (batch, n)."""
        return [stage.scores for stage in self.stages]

    @property
    def counts(self) -> list[int | list[int]]:
        """Tokens at the input and after each stage, such as [196, 138, 97, 68]; of each image where they differ."""
        stages = self.stages
        return [stages[0].counts_before, *(stage.counts_after for stage in stages)] if stages else []

    def restore(self, tokens: Tensor, fill: Tensor | float | str, normed: bool) -> Tensor:
        """See `entropatch.restore`."""
        if isinstance(fill, str) and fill != "last":
            raise ValueError(f'fill must be "last", a number or a tensor of width C, but got {fill!r}.')
        if self.grid is None or not self._reduced:
            raise ValueError("the trace is empty; run the model inside `with entropatch.trace(model) as trace:` first.")
        stages = self.stages
        if stages[0].tokens_before != prod(self.grid):
            raise ValueError(
                f"the first stage saw {stages[0].tokens_before} patches of a {_times(self.grid)} grid: tokens were "
                "lost before it (patch dropout in training mode), so their places are not known; use model.eval()."
            )
        if tokens.ndim != 3:
            raise ValueError(f"tokens must be (batch, tokens, width), but got shape {tuple(tokens.shape)}.")
        if tokens.shape[1] == stages[-1].tokens_after + self.num_prefix_tokens:
            tokens = tokens[:, self.num_prefix_tokens :]
        if not isinstance(fill, str):
            fill = torch.as_tensor(fill, dtype=tokens.dtype, device=tokens.device)
            if fill.shape not in ((), tokens.shape[2:]):
                raise ValueError(
                    f"fill must be a number or a tensor of width {tokens.shape[2]}, but got shape {tuple(fill.shape)}."
                )
        norm = self._norm if normed else nn.Identity()
        dense = to_grid(tokens, self._reduced, None if isinstance(fill, str) else fill, norm)
        return dense.reshape(dense.shape[0], *self.grid, dense.shape[2])


def _times(grid: tuple[int, ...]) -> str:
    return "×".join(map(str, grid))


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record the scores, kept patches and counts of every pruning stage while the block runs.

    The trace holds the most recent forward pass and stays readable afterwards; where a criterion, or a hook inside the
    model, runs the model again meanwhile, that of the outer pass. (A hook on the model itself is called when the pass
    is over: one that it runs is the most recent.) At `keep_rate=1` the scores are recorded too, and the output remains
    the stock model's. Works on a model compiled after pruning. A trace records the forward passes of the thread that
    opened it; of several, the one opened last. It keeps the tokens of every stage, and their graph where gradients
    are on, until it is dropped.

    Args:
        model: a pruned model, or the `torch.compile` of one.

    Yields:
        A `Trace`.

    Raises:
        ValueError: the model is not pruned.

    Example:
        >>> with entropatch.trace(model) as trace:
        ...     model(images)
        >>> trace.counts
        [196, 138, 97, 68]
    """
    pruning, target = pruning_of(model), pruned_part(model)
    recorder = Trace(pruning.config, pruning.adapter.num_prefix_tokens(target), pruning.adapter.norm(target))
    with among(pruning.observers.traces, recorder):
        yield recorder


def restore(tokens: Tensor, trace: Trace, fill: Tensor | float | str = "last", normed: bool = True) -> Tensor:
    """Pruned tokens back on the dense grid.

    A patch shows the token that stands for it: its own, or the one it was merged into.

    Args:
        tokens: (batch, tokens, C) as `forward_features` returned them, with or without the prefix tokens.
        trace: the trace that was open during that forward pass.
        fill: what stands where a patch was pruned: "last", the last value it had (in the block that pruned it, after
            the attention residual); or a number; or a tensor of width C.
        normed: whether `tokens` went through the model's final norm, as those of `forward_features` did; the "last"
            values then go through it too.

    Returns:
        (batch, H, W, C) in raster order; (batch, T, H, W, C) of videos.

    Raises:
        ValueError: the trace is empty, or belongs to another forward pass.
    """
    return trace.restore(tokens, fill, normed)
