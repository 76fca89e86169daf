"""Watching a pruned model at work: `trace`, and `restore` back to the grid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.reduction import dropped_places, gather_tokens, scatter_tokens
from entropatch.surgery.prune import pruning_of, unwrap
from entropatch.surgery.stage import Stage


@dataclass(frozen=True)
class StageRecord:
    """What one pruning stage saw and did in one forward pass.

    Attributes:
        block: 0-based block index.
        scores: importance of every patch present, (batch, n); for `Renyi` the negated entropy in nats.
        patches: original patch number of each scored token, (batch, n); -1 for a fused token.
        tokens: values of the scored tokens after the attention residual, (batch, n, width).
        kept_places: which of the scored tokens were kept, (batch, k), ascending.
        fused: whether a fused token was appended after the kept ones.
        backend: which of `entropatch.kernels` was there to compute entropies.
    """

    block: int
    scores: Tensor
    patches: Tensor
    tokens: Tensor
    kept_places: Tensor
    fused: bool
    backend: str

    @property
    def kept(self) -> Tensor:
        """Original numbers of the kept patches, (batch, k), in raster order; -1 for a kept fused token."""
        return gather_tokens(self.patches, self.kept_places)

    @property
    def dropped(self) -> Tensor:
        """Original numbers of the dropped patches, (batch, n - k), in raster order; -1 for a dropped fused token."""
        return gather_tokens(self.patches, self._dropped_places)

    @property
    def dropped_tokens(self) -> Tensor:
        """The last values of the dropped patches, after the attention residual, (batch, n - k, width)."""
        return gather_tokens(self.tokens, self._dropped_places)

    @property
    def tokens_before(self) -> int:
        """Patch tokens that entered the stage, an earlier fused token included."""
        return self.scores.shape[1]

    @property
    def tokens_after(self) -> int:
        """Patch tokens that left the stage, the fused token included."""
        return self.kept_places.shape[1] + int(self.fused)

    @property
    def _dropped_places(self) -> Tensor:
        return dropped_places(self.kept_places, self.tokens_before)


class Trace:
    """What every stage did in the most recent forward pass under `entropatch.trace`.

    Attributes:
        config: the pruning setting of the last forward pass.
        grid: (H, W), the patch grid of the last input; None before the first forward pass.
        stages: one `StageRecord` per pruning block, in order.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        running: whether a forward pass is on.
        thread: identifier of the thread that opened the trace, whose forward passes it hears.
    """

    def __init__(self, config: PruneConfig, num_prefix_tokens: int, norm: nn.Module):
        self.config = config
        self.num_prefix_tokens = num_prefix_tokens
        self.grid: tuple[int, int] | None = None
        self.running = False
        self.thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        self._norm = norm
        self._records: dict[int, StageRecord] = {}

    @property
    def stages(self) -> list[StageRecord]:
        return [self._records[block] for block in sorted(self._records)]

    @property
    def kept(self) -> list[Tensor]:
        """Original numbers of the patches kept after each stage: a list of (batch, k)."""
        return [stage.kept for stage in self.stages]

    @property
    def scores(self) -> list[Tensor]:
        """Importance of the patches present at each stage: a list of (batch, n)."""
        return [stage.scores for stage in self.stages]

    @property
    def counts(self) -> list[int]:
        """Patch tokens at the input and after each stage, for example [196, 138, 97, 68]."""
        stages = self.stages
        return [stages[0].tokens_before, *(stage.tokens_after for stage in stages)] if stages else []

    @contextmanager
    def forward_pass(self, config: PruneConfig, grid: tuple[int, int]) -> Iterator[None]:
        """Used by the model: stages record while this is open; what they recorded before is forgotten."""
        self.config, self.grid = config, grid
        self._records = {}
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def record(self, stage: Stage, scores: Tensor, kept: Tensor, tokens: Tensor, backend: str) -> None:
        """Used by a stage: its scores, the kept places, the patch tokens before reduction, and the backend.

        Differentiates nothing and keeps what it is given: what is derived from it is worked out when asked for, since
        under gradient checkpointing this runs inside a region whose recomputation does not record.
        """
        earlier = [block for block in self._records if block < stage.block]
        if earlier:
            patches = _numbers_after(self._records[max(earlier)])
        else:
            patches = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
        fused = stage.reduction == "fuse" and kept.shape[1] < scores.shape[1]
        self._records[stage.block] = StageRecord(stage.block, scores, patches, tokens, kept, fused, backend)

    def to_grid(self, tokens: Tensor, block: int, fill: Tensor | None, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Patch tokens as they leave `block`, put back on all patches: (batch, n, C) -> (batch, H·W, C).

        `fill` None puts the last value, through `norm`, where a patch was pruned.
        """
        stages = [stage for stage in self.stages if stage.block <= block]
        if not stages:
            return tokens
        total = stages[0].tokens_before
        numbers = _numbers_after(stages[-1])
        if tokens.shape[:2] != numbers.shape:
            raise ValueError(
                f"tokens must be the {numbers.shape[1]} patch tokens of {numbers.shape[0]} images that the trace saw "
                f"last, but got shape {tuple(tokens.shape)}; restore before the next forward pass."
            )
        # One extra place takes the fused tokens (number -1), which stand for no single patch.
        canvas = tokens.new_zeros(tokens.shape[0], total + 1, tokens.shape[2])
        if fill is None:
            for stage in stages:
                canvas = scatter_tokens(canvas, norm(stage.dropped_tokens), _last_if_fused(stage.dropped, total))
        else:
            canvas = canvas + fill
        return scatter_tokens(canvas, tokens, _last_if_fused(numbers, total))[:, :total]

    def restore(self, tokens: Tensor, fill: Tensor | float | str, normed: bool) -> Tensor:
        """See `entropatch.restore`."""
        if isinstance(fill, str) and fill != "last":
            raise ValueError(f'fill must be "last", a number or a tensor of width C, but got {fill!r}.')
        if self.grid is None or not self._records:
            raise ValueError("the trace is empty; run the model inside `with entropatch.trace(model) as trace:` first.")
        stages = self.stages
        height, width = self.grid
        if stages[0].tokens_before != height * width:
            raise ValueError(
                f"the first stage saw {stages[0].tokens_before} patches of a {height}×{width} grid: tokens were lost "
                "before it (timm's patch dropout in training mode), so their places are not known; use model.eval()."
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
        dense = self.to_grid(tokens, stages[-1].block, None if isinstance(fill, str) else fill, norm)
        return dense.reshape(dense.shape[0], height, width, dense.shape[2])


def _numbers_after(record: StageRecord) -> Tensor:
    """Original numbers of the tokens that leave a stage, the appended fused token as -1."""
    if not record.fused:
        return record.kept
    return torch.cat((record.kept, record.kept.new_full((record.kept.shape[0], 1), -1)), dim=1)


def _last_if_fused(numbers: Tensor, total: int) -> Tensor:
    return torch.where(numbers < 0, total, numbers)


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record the scores, kept patches and counts of every pruning stage while the block runs.

    The trace holds the most recent forward pass and stays readable afterwards. At `keep_rate=1` the scores are
    recorded too, and the output remains the stock model's. Works on a model compiled after pruning. A trace hears the
    forward passes of the thread that opened it. It keeps the tokens of every stage, and their graph where gradients
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
    pruning, adapter = pruning_of(model), pruning_of(model).adapter
    model = unwrap(model)
    with pruning.listeners.listen(
        Trace(pruning.config, adapter.num_prefix_tokens(model), adapter.norm(model))
    ) as recorder:
        yield recorder


def restore(tokens: Tensor, trace: Trace, fill: Tensor | float | str = "last", normed: bool = True) -> Tensor:
    """Pruned tokens back on the dense grid.

    Args:
        tokens: (batch, tokens, C) as `forward_features` returned them, with or without the prefix tokens.
        trace: the trace that was open during that forward pass.
        fill: what stands where a patch was pruned: "last", the last value it had (in the block that pruned it, after
            the attention residual); or a number; or a tensor of width C.
        normed: whether `tokens` went through the model's final norm, as those of `forward_features` did; the "last"
            values then go through it too.

    Returns:
        (batch, H, W, C) in raster order.

    Raises:
        ValueError: the trace is empty, or belongs to another forward pass.
    """
    return trace.restore(tokens, fill, normed)
